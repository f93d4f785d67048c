"""One video stream of a file: which frames it has, and any of them decoded on demand (PyAV)."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io._errors import one_line
from limner.io.raster.pixels import check_image_size
from limner.io.video.container import open_container, video_stream
from limner.io.video.duration import check_complete
from limner.io.video.frame_cache import FrameCache
from limner.io.video.lenient import LENIENT

Array = NDArray[Any]

_GREY = ("gray", "gray8", "pal8gray", "gray9le", "gray10le", "gray12le", "gray14le", "gray16le")
_NEAR = 32  # frames ahead that are decoded rather than sought
_MOST_FAILURES = 50  # packets beyond the number of frames; then the decoder gets no further

_LOG = logging.getLogger(__name__)


class _NoFrame(ValueError):
    """The decoder went on and left a frame out, or gave one that it calls corrupt."""


@dataclass(eq=False)
class Clip:
    """The frames of one stream.

    One decoder is kept at the frame it gave last, so that frames in order are decoded once. Going
    back, some of those before the wanted one are kept, so that a group of frames is not decoded
    anew for each of them.

    Attributes:
        path: the file.
        stream: number of the stream in the container.
        shape: ``(frame, row, column)`` and 3 if in colour.
        dtype: uint8 or uint16.
        stamps: presentation time stamp of each frame, increasing; None where the file has no usable
            ones, then frames are found by counting from the start.
        keys: stamps of the key frames, increasing.
        times: seconds of each frame.
        strict: whether damage that the decoder could hide is an error. Otherwise only those frames
            are missing of which it makes nothing; those after them are as it makes them.
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
    _next: Any = None  # decoded in the search of a frame before it, not yet asked for
    _failures: int = 0  # packets that could not be decoded since the decoder began
    _kept: FrameCache | None = None  # decoded frames, on the way back
    _broken: dict[int, tuple[int, str]] = field(default_factory=dict)  # by key frame: the first bad
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
                if self.strict or not isinstance(error, _NoFrame):
                    self._close()
                text = (
                    f"{self.path}: frame {index} (counted from 0) cannot be decoded "
                    f"({one_line(error)}); the file is damaged or incomplete."
                )
                raise FormatError(f"{text} {LENIENT}" if self.strict else text) from error

    def _decoded(self, index: int) -> Any:
        if index == self._at and self._last is not None:
            return self._last
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        group = self._key(index)
        first, reason = self._broken.get(group, (self.shape[0], ""))
        if self.strict and index >= first:
            built = f"frame {first}, on which it is built, is damaged"
            raise ValueError(reason if index == first else built)
        try:
            return self._found(index)
        except Exception as error:
            self._broken[group] = index, one_line(error)
            raise

    def _found(self, index: int) -> Any:
        if 0 <= index < self._at:
            with suppress(Exception):  # what is damaged before it does not concern it
                kept = FrameCache(3 * self.shape[1] * self.shape[2])
                self._seek(max(0, index - kept.room + 1))
                self._kept = kept
                return self._advance(index)
            self._seek(index)
        elif not self._is_ahead(index):
            self._seek(index)
        try:
            return self._advance(index)
        except Exception:
            if not self._sought or (self._failures and not self.strict):
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
        """Index of the last key frame at or before `index`; 0 where they are not known."""
        if self.stamps is None:
            return 0
        key = bisect_right(self.keys, self.stamps[index]) - 1  # of lists, NumPy makes copies
        return bisect_left(self.stamps, self.keys[key]) if key >= 0 else 0

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
        self._last = None
        while True:
            frame = self._decode()
            if frame is None:
                self._at = self.shape[0]
                raise _NoFrame("the decoder gives no such frame")
            if frame.is_corrupt and self.strict and not self._sought:
                raise ValueError("the data of the frame are corrupt")
            if self.stamps is None:
                self._at += 1
            elif frame.pts < self.stamps[index]:
                self._keep(frame)
                continue
            elif frame.pts > self.stamps[index]:
                self._next, self._at = frame, index
                raise _NoFrame("the decoder leaves it out")
            else:
                self._at = index
            self._keep(frame)
            if self._at == index:
                if frame.is_corrupt:
                    raise _NoFrame("the data of the frame are corrupt")
                self._last = frame
                return frame

    def _decode(self) -> Any:
        """The next frame that the decoder gives, None at the end."""
        if self._next is not None:
            frame, self._next = self._next, None
            return frame
        while True:
            assert self._frames is not None
            try:
                return next(self._frames, None)
            except Exception as error:
                self._failures += 1
                if self.strict or isinstance(error, MemoryError):
                    raise
                if self._failures > self.shape[0] + _MOST_FAILURES:
                    return None
                self._frames = self._container.decode(self._container.streams[self.stream])

    def _keep(self, frame: Any) -> None:
        """Remember a frame on the way back."""
        if self._kept is None or frame.is_corrupt:
            return
        index = self._at
        if self.stamps is not None:
            index = bisect_left(self.stamps, frame.pts)
            if self.stamps[min(index, len(self.stamps) - 1)] != frame.pts:
                return
        self._kept.keep(index, frame)

    def _pixels(self, frame: Any) -> Array:
        if (frame.height, frame.width) != self.shape[1:3]:
            raise _NoFrame(
                f"it has {frame.height}×{frame.width} pixels, the first frame "
                f"{self.shape[1]}×{self.shape[2]}"
            )
        return to_pixels(frame, self.num_channels is None, self.dtype)

    def _close(self) -> None:
        self._frames = self._last = self._next = self._kept = None
        self._at, self._sought, self._failures = -1, False, 0
        if self._container is not None:
            self._container.close()
            self._container = None


class _Packet:
    """The facts about one compressed frame."""

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
        stream = video_stream(container, series, path)
        found = [_Packet(p) for p in container.demux(stream) if p.size]
        packets = [p for p in found if not p.is_discard]
        if not packets:
            raise FormatError(f"{path}: the video has no frames.")
        check_complete(
            path,
            stream.frames if "mov" in container.format.name else 0,  # others count in units of time
            len(found),
            ends_inside=found[-1].is_corrupt,
            strict=strict,
        )
        return _clip(path, stream, packets, strict)
    except FormatError:
        raise
    except Exception as error:  # the parser fails in many ways on bytes made by others
        raise FormatError(f"{path}: not a readable video ({one_line(error)}).") from error
    finally:
        if container is not None:
            container.close()


def to_pixels(frame: Any, grey: bool, dtype: np.dtype[Any]) -> Array:
    """The pixels of a decoded frame: grey values as stored, else 8-bit RGB."""
    if not grey:
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
    return np.ascontiguousarray(frame.to_ndarray(), dtype=dtype)


def _clip(path: Path, stream: Any, packets: list[_Packet], strict: bool) -> Clip:
    context, base = stream.codec_context, float(stream.time_base or 0) or 1.0
    pixel_format = context.pix_fmt or ""
    grey = pixel_format in _GREY
    dtype = np.dtype(np.uint8 if pixel_format in ("gray", "gray8") or not grey else np.uint16)
    grid = (context.height, context.width)
    check_image_size(grid if grey else (*grid, 3), dtype.itemsize, path)
    stamps: list[int] | None = sorted(p.pts for p in packets if p.pts is not None)
    assert stamps is not None
    count = len(packets)
    # Raw streams state no times of presentation, nor does AVI; those that FFmpeg makes up for AVI
    # are wrong where frames are stored in another order than shown.
    made_up = stream.container.format.name == "avi" and context.has_b_frames
    if made_up or len(set(stamps)) < count:
        stamps, count, times = None, *_count_frames(path, stream.index, strict)
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


def _count_frames(path: Path, stream: int, strict: bool) -> tuple[int, list[float]]:
    """Number of frames and their times by decoding them all, for files without time stamps."""
    container = open_container(path)
    times: list[float] = []
    failures = 0
    try:
        frames = container.decode(container.streams[stream])
        while True:
            try:
                frame = next(frames, None)
            except Exception as error:
                failures += 1
                if strict:
                    raise FormatError(
                        f"{path}: frame {len(times)} (counted from 0) cannot be decoded "
                        f"({one_line(error)}). {LENIENT}"
                    ) from error
                if failures > len(times) + _MOST_FAILURES:
                    break
                frames = container.decode(container.streams[stream])
                continue
            if frame is None:
                break
            times.append(len(times) / 25.0 if frame.time is None else float(frame.time))
    finally:
        container.close()
    if failures and times:
        _LOG.warning(
            "%s: %d frames cannot be decoded and are not counted, since the file has no times.",
            path,
            failures,
        )
    if not times:
        raise FormatError(f"{path}: the video has no frames that can be decoded.")
    return len(times), sorted(times)
