"""Video writing, frame by frame: H.264 in .mp4, or an animated .gif."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from limner.atomic import atomic_path
from limner.errors import FormatError, require

Pixels = NDArray[np.uint8]

SUFFIXES = (".mp4", ".gif")
MOST_GIF_FRAMES = 150  # all of them are in memory at once, with a byte a pixel
FASTEST = 60.0  # frames a second that players and screens follow
SLOWEST_GIF_MS, FASTEST_GIF_MS = 1000, 20  # browsers show shorter times as 100 ms

_QUALITY = "20"  # of x264: outlines two pixels wide stay crisp; 0 is lossless, 51 the worst
_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf", "mpeg4")
_BT709, _LIMITED_RANGE = 1, 1  # ITU-T H.273: colours as players assume them of H.264

_log = logging.getLogger(__name__)


def write_film(path: Path, frames: Iterable[Pixels], *, rate: float) -> None:
    """Write images as a film, each as soon as it is made; the file appears whole or not at all.

    An .mp4 is H.264 with 4:2:0 colours in BT.709, which browsers, phones and slides play; odd sizes
    get one more row or column. It may be of any length.

    Args:
        path: ends in .mp4 or .gif.
        frames: uint8 RGB ``(row, column, 3)``, all of one size. Of a .gif at most
            `MOST_GIF_FRAMES`: it is for the caller to choose them.
        rate: images a second.

    Raises:
        FormatError: another suffix, no images, or the file cannot be written.
        MissingDependency: an .mp4 without PyAV.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(f"A film is written as {' or '.join(SUFFIXES)}, not {path.name!r}.")
    images = iter(frames)
    first = next(images, None)
    if first is None:
        raise FormatError(f"{path}: there are no pictures to make a film of.")
    rate = min(max(rate, 0.1), FASTEST)
    with atomic_path(path) as temporary:
        write = _write_mp4 if suffix == ".mp4" else _write_gif
        write(temporary, chain([first], images), rate)


def _write_mp4(path: Path, frames: Iterator[Pixels], rate: float) -> None:
    av = require("av", extra="video", purpose="write a film as .mp4")
    images = map(_even, frames)
    first = next(images)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(_encoder(av), rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.options = {"crf": _QUALITY, "preset": "veryfast"}
        context.gop_size = max(12, round(2 * rate))  # seeking takes to within two seconds
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for pixels in chain([first], images):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=av.video.reformatter.Colorspace.ITU709,
                dst_color_range=av.video.reformatter.ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _encoder(av: Any) -> str:
    """The best encoder there is for what every player knows."""
    for name in _ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # not in this build of FFmpeg
            continue
        if name == "mpeg4":
            _log.warning(
                "This PyAV writes no H.264; the film is MPEG-4, which browsers do not play."
            )
        return name
    raise FormatError("This PyAV writes neither H.264 nor MPEG-4; write a .gif.")


def _even(pixels: Pixels) -> Pixels:
    """Chroma has half the rows and columns, so both are even in number."""
    odd = [(0, n % 2) for n in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, [*odd, (0, 0)], mode="edge"))


def _write_gif(path: Path, frames: Iterator[Pixels], rate: float) -> None:
    images = (Pillow.fromarray(p).quantize(method=Pillow.Quantize.FASTOCTREE) for p in frames)
    duration = round(min(max(1000 / rate, FASTEST_GIF_MS), SLOWEST_GIF_MS))
    next(images).save(
        path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0
    )
