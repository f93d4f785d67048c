"""One video stream of a file: which frames it has, and any of them decoded on demand (PyAV)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, require
from limner.io._complaints import one_line
from limner.io._pictures import check_picture

Array = NDArray[Any]

# What FFmpeg may take a file for. Left out are the formats that name other files or addresses to
# read (playlists, concat scripts, DASH, SDP), devices, and folders of pictures.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,yuv4mpegpipe,"
    "h264,hevc,m4v,ivf,nut,mjpeg,gif,apng,dv,mxf"
)
_GREY = ("gray", "gray8", "pal8gray", "gray9le", "gray10le", "gray12le", "gray14le", "gray16le")
_HEAD = 4096  # bytes in which a container says how long it is
_NEAR = 32  # frames ahead that are decoded rather than sought

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Clip:
    """The frames of one stream.

    One decoder is kept at the frame it gave last, so that frames in order are decoded once.

    Attributes:
        path: the file.
        stream: number of the stream in the container.
        shape: ``(frame, row, column)`` and 3 if in colour.
        dtype: uint8 or uint16.
        stamps: presentation time stamp of each frame, increasing; None where the file has no usable
            ones, then frames are found by counting from the start.
        keys: stamps of the key frames, increasing.
        times: seconds of each frame.
        strict: whether damage that the decoder could hide is an error.
        metadata: facts for `limner info`.
    """

    path: Path
    stream: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stamps: list[int] | None
    keys: list[int]
    times: list[float]
    strict: bool
    metadata: dict[str, Any]
    _container: Any = None
    _frames: Iterator[Any] | None = None
    _at: int = -1  # index of the frame decoded last
    _sought: bool = False  # whether the decoder began elsewhere than at the start
    _last: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_channels(self) -> int | None:
        """None for grey."""
        return self.shape[3] if len(self.shape) == 4 else None

    def frame(self, index: int) -> Array:
        """Pixels of frame `index`, ``(row, column[, 3])``.

        Raises:
            FormatError: the frame is damaged or missing.
        """
        with self._lock:
            try:
                return self._pixels(self._decoded(index))
            except MemoryError:
                raise
            except Exception as error:  # the decoder fails in many ways on damaged data
                self._close()
                raise FormatError(
                    f"{self.path}: frame {index} (counted from 0) cannot be decoded "
                    f"({one_line(error)}); the file is damaged or incomplete."
                ) from error

    def _decoded(self, index: int) -> Any:
        if index == self._at and self._last is not None:
            return self._last
        if not self._is_ahead(index):
            self._seek(index)
        try:
            return self._advance(index)
        except Exception:
            if not self._sought:
                raise
            # Frames right after a key frame may lean on earlier ones ("open" groups), and indices
            # of containers may be wrong: the way from the start is slow but certain.
            self._restart()
            return self._advance(index)

    def _is_ahead(self, index: int) -> bool:
        """Whether decoding on from here is at least as short a way as seeking."""
        if self._frames is None or index <= self._at:
            return False
        return index - self._at <= _NEAR or self.stamps is None or self._key(index) <= self._at

    def _key(self, index: int) -> int:
        """Index of the last key frame at or before `index`."""
        assert self.stamps is not None
        key = int(np.searchsorted(self.keys, self.stamps[index], side="right")) - 1
        return int(np.searchsorted(self.stamps, self.keys[key])) if key >= 0 else 0

    def _restart(self) -> None:
        self._close()
        self._container = open_container(self.path)
        stream = self._container.streams[self.stream]
        stream.thread_type = "AUTO"
        if self.strict:
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
        self._frames = self._container.decode(stream)

    def _seek(self, index: int) -> None:
        self._restart()
        if self.stamps is None or self._key(index) == 0:
            return
        stream = self._container.streams[self.stream]
        self._container.seek(self.stamps[self._key(index)], stream=stream, backward=True)
        self._frames = self._container.decode(stream)
        self._sought = True

    def _advance(self, index: int) -> Any:
        assert self._frames is not None
        for frame in self._frames:
            if frame.is_corrupt and self.strict and not self._sought:
                raise ValueError("the data of the frame are corrupt")
            if self.stamps is None:
                self._at += 1
            elif frame.pts < self.stamps[index]:
                continue
            elif frame.pts > self.stamps[index]:
                break
            else:
                self._at = index
            if self._at == index:
                if frame.is_corrupt and self.strict:
                    raise ValueError("the data of the frame are corrupt")
                self._last = frame
                return frame
        raise ValueError("the decoder gives no such frame")

    def _pixels(self, frame: Any) -> Array:
        if (frame.height, frame.width) != self.shape[1:3]:
            raise ValueError(f"its size is {frame.height}×{frame.width}")
        return to_pixels(frame, self.num_channels is None, self.dtype)

    def _close(self) -> None:
        self._frames = self._last = None
        self._at, self._sought = -1, False
        if self._container is not None:
            self._container.close()
            self._container = None


class _Packet:
    """The facts about one compressed frame, without its data."""

    __slots__ = ("is_corrupt", "is_discard", "is_keyframe", "pts")

    def __init__(self, packet: Any) -> None:
        self.pts: int | None = packet.pts
        self.is_keyframe: bool = packet.is_keyframe
        self.is_corrupt: bool = packet.is_corrupt
        self.is_discard: bool = packet.is_discard


def open_clip(path: Path, *, series: str | None, strict: bool) -> Clip:
    """Find the frames of a video file: its packets are listed, nothing but one frame is decoded.

    Args:
        path: the file.
        series: number of the stream among the video streams, the first if None.
        strict: False takes a truncated file for what is there.

    Raises:
        FormatError: not a video, no frames, or truncated.
    """
    container = None
    try:
        container = open_container(path)
        stream = _stream(container, series, path)
        found = [_Packet(p) for p in container.demux(stream) if p.size]
        packets = [p for p in found if not p.is_discard]
        if not packets:
            raise FormatError(f"{path}: the video has no frames.")
        _check_complete(path, container.format.name, stream.frames, found, strict)
        return _clip(path, stream, packets, strict)
    except FormatError:
        raise
    except Exception as error:  # the parser fails in many ways on bytes made by others
        raise FormatError(f"{path}: not a readable video ({one_line(error)}).") from error
    finally:
        if container is not None:
            container.close()


def open_container(path: Path) -> Any:
    """Open a video file in PyAV so that it cannot name other files or addresses to read."""
    av = require("av", extra="video", purpose=f"read the video {path.name}")
    return av.open(
        f"file:{path.resolve()}",
        container_options={"protocol_whitelist": "file", "format_whitelist": _CONTAINERS},
        metadata_errors="replace",
    )


def to_pixels(frame: Any, grey: bool, dtype: np.dtype[Any]) -> Array:
    """The pixels of a decoded frame: grey values as stored, else 8-bit RGB."""
    if not grey:
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
    return np.ascontiguousarray(frame.to_ndarray(), dtype=dtype)


def _stream(container: Any, series: str | None, path: Path) -> Any:
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        raise FormatError(f"{path}: the file has no video stream.")
    if series is None:
        return streams[0]
    if not series.isdecimal() or int(series) >= len(streams):
        raise FormatError(
            f"{path}: there is no video stream {series!r}; the file has {len(streams)}, "
            "counted from 0."
        )
    return streams[int(series)]


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _clip(path: Path, stream: Any, packets: list[_Packet], strict: bool) -> Clip:
    context, base = stream.codec_context, float(stream.time_base or 0) or 1.0
    pixel_format = context.pix_fmt or ""
    grey = pixel_format in _GREY
    dtype = np.dtype(np.uint8 if pixel_format in ("gray", "gray8") or not grey else np.uint16)
    grid = (context.height, context.width)
    check_picture(grid if grey else (*grid, 3), dtype.itemsize, path)
    stamps: list[int] | None = sorted(p.pts for p in packets if p.pts is not None)
    assert stamps is not None
    count = len(packets)
    # Raw streams state no times of presentation, nor does AVI; those that FFmpeg makes up for AVI
    # are wrong where frames are stored in another order than shown.
    made_up = stream.container.format.name == "avi" and context.has_b_frames
    if made_up or len(set(stamps)) < count:
        stamps, count, times = None, *_counted(path, stream.index, strict)
    else:
        times = [s * base for s in stamps]
    keys = sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
    rate = float(stream.average_rate or 0)
    gaps = np.diff(times)
    return Clip(
        path=path,
        stream=stream.index,
        shape=(count, *grid) if grey else (count, *grid, 3),
        dtype=dtype,
        stamps=stamps,
        keys=keys,
        times=times,
        strict=strict,
        metadata={
            "codec": context.name,
            "container": stream.container.format.name,
            "pixel_format": pixel_format,
            "frames_per_second": rate,
            "constant_rate": bool(gaps.size == 0 or np.ptp(gaps) <= 2 * base + 1e-3),
            "duration_s": float(times[-1] - times[0] + (np.median(gaps) if gaps.size else 0.0)),
            "pixel_aspect": str(stream.sample_aspect_ratio or "1"),
        },
    )


def _counted(path: Path, stream: int, strict: bool) -> tuple[int, list[float]]:
    """Number of frames and their times by decoding them all, for files without time stamps."""
    container = open_container(path)
    times: list[float] = []
    try:
        for frame in container.decode(container.streams[stream]):
            times.append(len(times) / 25.0 if frame.time is None else float(frame.time))
    except Exception as error:
        if strict:
            raise FormatError(
                f"{path}: frame {len(times)} (counted from 0) cannot be decoded "
                f"({one_line(error)})."
            ) from error
        _LOG.warning("%s: only the first %d frames can be decoded.", path, len(times))
    finally:
        container.close()
    if not times:
        raise FormatError(f"{path}: the video has no frames.")
    return len(times), sorted(times)


def _check_complete(
    path: Path, container: str, stated: int, packets: list[_Packet], strict: bool
) -> None:
    """Refuse, or with `strict` False report, a file that ends before its container says it does."""
    with path.open("rb") as file:
        size, head = path.stat().st_size, file.read(_HEAD)
    if "mov" in container and stated > len(packets):  # others count in units of time
        reason = f"states {stated} frames but holds {len(packets)}"
    elif stated_size(head) > size:
        reason = f"states {stated_size(head)} bytes but holds {size}"
    elif packets[-1].is_corrupt:
        reason = f"ends inside frame {len(packets) - 1}"
    else:
        return
    message = f"{path}: the file {reason}; it is truncated"
    if strict:
        raise FormatError(f"{message}. Copy it again, or take what is there with strict=False.")
    _LOG.warning("%s.", message)


def stated_size(head: bytes) -> int:
    """Bytes that an AVI (RIFF) or Matroska file says it has, 0 where it does not say.

    Args:
        head: the first bytes of the file.
    """
    if head[:4] == b"RIFF" and len(head) >= 8:
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != b"\x1aE\xdf\xa3":
        return 0
    size, start = _ebml_size(head, 4)
    segment = start + size  # EBML header, then the segment, which is the rest of the file
    if head[segment : segment + 4] != b"\x18S\x80g":
        return 0
    size, start = _ebml_size(head, segment + 4)
    return start + size if size else 0


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """Size of a Matroska element and where its content begins; 0 for "unknown" (RFC 8794)."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()  # leading zero bits tell how many bytes follow
    content = head[at : at + length]
    if first == 0 or len(content) < length:
        return 0, at
    value = int.from_bytes(content, "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), at + length
