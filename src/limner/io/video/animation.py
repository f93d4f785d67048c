"""Animated images (GIF, PNG, WebP) as videos, decoded by Pillow."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io import raster
from limner.io._errors import one_line
from limner.io.image import Image
from limner.io.limits import check_allocation
from limner.io.raster import png
from limner.io.raster.decoding import Header, open_image, read_header
from limner.io.raster.pixels import check_channel, choose_channel
from limner.io.video.frame_cache import FrameCache
from limner.io.video.lenient import LENIENT, LenientReader, stack_frames

Array = NDArray[Any]

_GIF = (b"GIF87a", b"GIF89a")
_EXTENSION, _FRAME, _TRAILER = 0x21, 0x2C, 0x3B  # first bytes of the blocks of a GIF


@dataclass(eq=False)
class _Player:
    """An animation, compressed in memory; frames in order cost one decoding.

    Going back starts anew, and keeps some of the frames before the wanted one.
    """

    path: Path
    size: tuple[int, int]  # columns, rows, as Pillow says it
    grey: bool
    strict: bool
    _pillow: Any = None
    _at: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._kept = FrameCache(self.size[0] * self.size[1] * (1 if self.grey else 3))

    def frame(self, index: int) -> Array:
        with self._lock:
            try:
                if index in self._kept:
                    return np.asarray(self._kept[index])
                back = self._pillow is not None and index < self._at
                if self._pillow is None or back:  # Pillow's own way back has gaps
                    self._pillow = open_image(io.BytesIO(self.path.read_bytes()), self.path)
                    self._kept.clear()
                if back:
                    self._keep_before(index)
                return self._pixels(index)
            except Exception as error:  # a decoder may raise anything on bytes made by others
                self._pillow = None
                text = (
                    f"{self.path}: frame {index} (counted from 0) cannot be decoded "
                    f"({one_line(error)})."
                )
                raise FormatError(f"{text} {LENIENT}" if self.strict else text) from error

    def _pixels(self, index: int) -> Array:
        self._pillow.seek(index)
        if self._pillow.size != self.size:  # a frame may ask for a larger canvas
            raise ValueError(f"its size is {self._pillow.size}")
        self._pillow.load()
        self._at = index
        shown = self._pillow
        if shown.mode == "P" and "transparency" in shown.info:
            shown = shown.convert("RGBA")  # the way that Pillow does not warn of
        return np.array(shown.convert("L" if self.grey else "RGB"))

    def _keep_before(self, index: int) -> None:
        """Decode and keep the frames before one, as far as there is room."""
        for k in range(max(0, index - self._kept.room), index):
            self._kept.keep(k, self._pixels(k))


def is_animation(path: Path, head: bytes) -> bool:
    """Whether the file begins as an image that may move: any GIF, animated PNG and WebP."""
    return head.startswith(_GIF) or png.is_animated(path, head) or raster.is_animated_webp(head)


def read_animation(path: Path, *, channel: int | None, name: str, strict: bool = True) -> Image:
    """Open an animated image as a video; with one frame it is an image.

    Frames are composed as they would be shown, in 8-bit RGB. A GIF whose only palette is grey is
    grey. With `strict` False what is there of a truncated one is taken; see `video.read`.

    Raises:
        FormatError: damaged or truncated.
    """
    header = read_header(path)
    count, grey = _survey(path, header, strict)
    if count == 1:
        return raster.read(path, channel=channel)
    num_channels = None if grey else 3
    shape = (count, header.rows, header.columns)
    full = shape if num_channels is None or channel is not None else (*shape, 3)
    check_channel(channel, num_channels, path)
    player = _Player(path, (header.columns, header.rows), grey, strict)

    def chosen(index: int) -> Array:
        return choose_channel(player.frame(index), channel, num_channels)

    read_frame = chosen if strict else LenientReader(chosen, count)

    def load() -> Array:
        check_allocation(full, 1, path)
        return stack_frames(read_frame, full, np.dtype(np.uint8))

    return Image(
        load,
        Geometry.from_spacing(shape),
        kind="video",
        dtype=np.uint8,
        num_channels=None if channel is not None else num_channels,
        read_slice=read_frame,
        path=path,
        format=name,
        metadata={"container": header.format.lower()},
        damaged=read_frame.damaged if isinstance(read_frame, LenientReader) else None,
    )


def _survey(path: Path, header: Header, strict: bool) -> tuple[int, bool]:
    """Number of frames, and whether all of them are grey."""
    content = path.read_bytes()
    try:
        if header.format == "GIF":
            return _survey_gif(content, strict)
        if header.format == "PNG" and strict:
            png.check_chunks(content)
        with open_image(io.BytesIO(content), path) as pillow:
            count = int(getattr(pillow, "n_frames", 1))
        if header.format == "PNG":
            most = content.count(b"fcTL") + 1  # the first may have none
            if count > most and strict:
                raise ValueError(f"{count} frames are promised and at most {most} are there")
            count = min(count, most)
        return count, False
    except Exception as error:  # a decoder may raise anything on bytes made by others
        raise FormatError(
            f"{path}: the animation is damaged or incomplete ({one_line(error)}). {LENIENT}"
        ) from error


def _survey_gif(content: bytes, strict: bool) -> tuple[int, bool]:
    """Walk over the blocks of a GIF without decoding (specification 89a, appendix B).

    Raises:
        ValueError: the file ends before its trailer, or there is no frame.
    """
    count, position = 0, 13
    size, position = _palette_size(content, 10, position)
    palettes = [content[13:position]] if size else []
    while position < len(content) and content[position] != _TRAILER:
        if content[position] == _FRAME:
            count += 1
            size, end = _palette_size(content, position + 9, position + 10)
            if size:
                palettes.append(content[position + 10 : end])
            position = end + 1  # the code size of the compression
        elif content[position] == _EXTENSION:
            position += 2
        else:
            if not strict and count:
                break
            raise ValueError(f"unknown block at byte {position}")
        while position < len(content) and content[position]:
            position += content[position] + 1
        position += 1
    if position >= len(content) and strict:
        raise ValueError("the file ends early")
    if not count:
        raise ValueError("there is no frame")
    return count, all(p[0::3] == p[1::3] == p[2::3] for p in palettes)


def _palette_size(content: bytes, flags_at: int, start: int) -> tuple[int, int]:
    flags = content[flags_at] if flags_at < len(content) else 0
    size = 3 << ((flags & 7) + 1) if flags & 0x80 else 0
    return size, start + size
