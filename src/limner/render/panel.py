"""Rendering of one slice: pixels, objects, prompts, scale bar, patient directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from limner.colors import Color, color_of
from limner.prompts.types import (
    Area,
    Box,
    Click,
    Example,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
)

Array = NDArray[Any]
Pixels: TypeAlias = NDArray[np.uint8]

BACKDROP: Color = (18, 18, 20)
INK: Color = (235, 235, 235)
POSITIVE: Color = (60, 220, 120)
NEGATIVE: Color = (240, 70, 60)
BOX_COLOR: Color = (255, 255, 255)
FILL = 0.3  # opacity of an object
LINE = 0.6  # share of white in an object's outline, which stands out from its fill


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice, frame or 2D image to draw, already in display orientation.

    Attributes:
        pixels: uint8 RGB ``(row, column, 3)``.
        labels: integers ``(row, column)``.
        size: rows and columns of the rendering.
        mm_per_pixel: millimetres per row of the rendering; None if unknown.
        title: what it is, such as ``"slice 24"``.
        edges: patient directions at the top, right, bottom and left; empty where unknown.
        text: height of the letters in pixels.
    """

    pixels: Pixels
    labels: Array
    size: tuple[int, int]
    mm_per_pixel: float | None = None
    title: str = ""
    edges: tuple[str, str, str, str] = ("", "", "", "")
    text: int = 14


def outline_color_of(object_id: int) -> Color:
    """The colour of an object's outline: with much white, so that it stands out from the fill."""
    red, green, blue = (round(255 * LINE + (1 - LINE) * c) for c in color_of(object_id))
    return red, green, blue


def text_size(longest: float) -> int:
    """Height of letters that are legible on a picture of so many pixels, also shrunk to a page."""
    return int(np.clip(round(longest / 64), 13, 26))


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font in a size in pixels."""
    return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    label: str,
    *,
    anchor: str,
    size: int = 14,
) -> None:
    """Words with a dark rim, legible on anything. `position` is ``(x, y)``, Pillow's order."""
    draw.text(
        position, label, fill=INK, font=font(size), anchor=anchor, stroke_width=2, stroke_fill=0
    )


def draw_panel(
    panel: Panel,
    prompts: Sequence[Prompt] = (),
    *,
    to_display: Callable[[Array], Array] | None = None,
) -> Pillow.Image:
    """Draw one panel: pixels, objects, prompts, scale bar and directions.

    Args:
        panel: what to draw.
        prompts: 2D, positions as ``(row, column)`` of the stored slice.
        to_display: maps positions ``(n, 2)`` to display orientation; identity if None.
    """
    height, width = panel.size
    enlarged = height >= panel.pixels.shape[0]
    base = Pillow.fromarray(panel.pixels).resize(
        (width, height), Pillow.Resampling.NEAREST if enlarged else Pillow.Resampling.BOX
    )
    canvas = Pillow.fromarray(
        _overlay_labels(np.asarray(base), _resize_labels(panel.labels, panel.size))
    )
    draw = ImageDraw.Draw(canvas)
    scale = np.divide(panel.size, panel.labels.shape)
    for prompt in prompts:
        _draw_prompt(draw, prompt, scale, to_display or (lambda p: p), panel)
    _draw_annotations(draw, panel)
    return canvas


def to_rgb(pixels: Array, ndim: int, limits: tuple[float, float]) -> Pixels:
    """Intensities as uint8 RGB.

    Args:
        pixels: `ndim` spatial axes, then perhaps channels: 1 and 2 are shown in grey (of two, the
            second is transparency), of more the first three as red, green and blue.
        ndim: number of spatial axes.
        limits: intensities for black and white; NaN is black.
    """
    if pixels.ndim == ndim:
        pixels = pixels[..., None]
    channels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
    if not (channels.dtype == np.uint8 and limits == (0.0, 255.0)):
        low, high = limits
        scaled = (channels.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        channels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(channels, (*channels.shape[:-1], 3)))


def shrink_pixels(pixels: Array, size: tuple[int, int]) -> Array:
    """Means of whole blocks of pixels, at least `size`, so that a huge image is never copied."""
    factor = min(n // wanted for n, wanted in zip(pixels.shape, size, strict=False))
    if factor < 2:
        return pixels
    rows, columns = (n // factor for n in pixels.shape[:2])
    result = np.empty((rows, columns, *pixels.shape[2:]), np.float32)
    for row in range(rows):
        band = pixels[row * factor : (row + 1) * factor, : columns * factor]
        blocks = band.reshape(factor, columns, factor, *pixels.shape[2:])
        result[row] = blocks.mean(axis=(0, 2), dtype=np.float32)
    return result.astype(pixels.dtype) if pixels.dtype == np.uint8 else result


def _resize_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Resize labels by nearest neighbour, pixel centres aligned."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(np.int64), m - 1)
        for n, m in zip(size, labels.shape, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns[None, :]])


def _overlay_labels(base: Pixels, labels: Array) -> Pixels:
    """Draw labels as translucent fill with an outline of two pixels: dark outside, light inside."""
    found = np.nonzero(labels.any(axis=1))[0], np.nonzero(labels.any(axis=0))[0]
    if not found[0].size:
        return base.copy()
    # Only where they are, and two pixels around: films have many frames.
    region = tuple(slice(max(0, int(f[0]) - 2), int(f[-1]) + 3) for f in found)
    result = base.copy()
    result[region] = _blend_labels(base[region], labels[region], thick=min(labels.shape) > 300)
    return result


def _blend_labels(base: Pixels, labels: Array, *, thick: bool) -> Pixels:
    inside = labels > 0
    ids, places = np.unique(labels, return_inverse=True)
    places = places.reshape(labels.shape)
    colors, lines = (
        np.asarray([color(k) if k else (0, 0, 0) for k in ids.tolist()], np.float32)[places]
        for color in (color_of, outline_color_of)
    )
    result = base.astype(np.float32)
    result[inside] = (1 - FILL) * result[inside] + FILL * colors[inside]
    edge = _label_edges(labels) & inside
    rim = _dilate(edge) & ~inside
    result[rim] *= 0.25
    line = (edge | (_dilate(edge) & inside)) if thick else edge
    result[line] = lines[line]
    return np.asarray(np.clip(np.rint(result), 0, 255), dtype=np.uint8)


def _label_edges(labels: Array) -> NDArray[np.bool_]:
    """Find pixels with another label above, below, left or right."""
    result = np.zeros(labels.shape, dtype=np.bool_)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    result[1:] |= down
    result[:-1] |= down
    result[:, 1:] |= right
    result[:, :-1] |= right
    return result


def _dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    result = mask.copy()
    result[1:] |= mask[:-1]
    result[:-1] |= mask[1:]
    result[:, 1:] |= mask[:, :-1]
    result[:, :-1] |= mask[:, 1:]
    return result


def _draw_prompt(
    draw: ImageDraw.ImageDraw,
    prompt: Prompt,
    scale: Array,
    to_display: Callable[[Array], Array],
    panel: Panel,
) -> None:
    def to_canvas(points: Any) -> list[tuple[float, float]]:
        """Canvas ``(x, y)`` of positions ``(row, column)``; a pixel's centre is its index."""
        moved = (to_display(np.asarray(points, dtype=np.float64)) + 0.5) * scale
        return [(float(c), float(r)) for r, c in moved]

    match prompt:
        case Click():
            _marker(
                draw, to_canvas([prompt.at])[0], prompt.positive, max(7, max(panel.size) // 140)
            )
        case Box():
            corners = np.asarray([prompt.low, prompt.high]) - 0.5  # pixel edges
            (x0, y0), (x1, y1) = to_canvas(corners)
            frame = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
            draw.rectangle(frame, outline=(0, 0, 0), width=4)
            draw.rectangle(frame, outline=BOX_COLOR, width=2)
        case Scribble():
            color = POSITIVE if prompt.positive else NEGATIVE
            width = max(2, round(2 * prompt.radius * float(scale.min())))
            _stroke(draw, to_canvas(prompt.points), color, width)
        case Lasso():
            _stroke(draw, to_canvas([*prompt.points, prompt.points[0]]), BOX_COLOR, 2)
        case TextPrompt() | Example():
            pass
        case _:  # any other area: the outline of what it covers
            covered = _cover(prompt)
            rows, columns = np.nonzero(_label_edges(covered) & covered)
            if rows.size:
                draw.point(to_canvas(np.stack([rows, columns], axis=1)), fill=BOX_COLOR)


def _cover(area: Area) -> NDArray[np.bool_]:
    """The pixels of an area, on a grid that is larger, or as large as a mask."""
    if isinstance(area, MaskPrompt):
        return area.mask
    size = np.maximum(np.ceil(area.extent()[1]) + 1, 1).astype(int)
    covered = np.zeros(tuple(size), dtype=np.bool_)
    area.paint(covered, 0.0)
    return covered


def _stroke(
    draw: ImageDraw.ImageDraw, line: list[tuple[float, float]], color: Color, width: int
) -> None:
    if len(line) == 1:
        (x, y), r = line[0], max(1.0, width / 2)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color, outline=(0, 0, 0))
        return
    draw.line(line, fill=(0, 0, 0), width=width + 2, joint="curve")
    draw.line(line, fill=color, width=width, joint="curve")


def _marker(
    draw: ImageDraw.ImageDraw, position: tuple[float, float], positive: bool, radius: int
) -> None:
    """A disk with a plus or a minus: told apart by shape as well as by colour."""
    x, y = position
    arm, width = round(0.6 * radius), max(2, radius // 4)
    color = POSITIVE if positive else NEGATIVE
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color, outline=(0, 0, 0))
    draw.line([x - arm, y, x + arm, y], fill=(0, 0, 0), width=width)
    if positive:
        draw.line([x, y - arm, x, y + arm], fill=(0, 0, 0), width=width)


def _draw_annotations(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    height, width = panel.size
    if min(height, width) < 90:  # no room: the notes would cover the image
        return
    top, right, bottom, left = panel.edges
    size = panel.text
    title = panel.title if font(size).getlength(panel.title) < 0.8 * width else ""
    beside = 6 + font(size).getlength(title) > width / 2 - size  # the letter at the top has no room
    draw_text(draw, (width / 2, 4), "" if beside else top, anchor="ma", size=size)
    draw_text(draw, (width - 6, height / 2), right, anchor="rm", size=size)
    draw_text(draw, (width / 2, height - 4), bottom, anchor="md", size=size)
    draw_text(draw, (6, height / 2), left, anchor="lm", size=size)
    draw_text(draw, (6, 4), title, anchor="la", size=size)
    if panel.mm_per_pixel is not None:
        _scale_bar(draw, panel)


def _scale_bar(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    """A bar of 1, 2 or 5 times a power of ten, at most a third of the width, at the lower left."""
    assert panel.mm_per_pixel is not None
    height, width = panel.size
    longest = width / 3 * panel.mm_per_pixel
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(k * power for k in (1, 2, 5) if k * power <= longest)
    label = f"{length / 10:g} cm" if length >= 10 else f"{length:g} mm"
    if length < 0.1:
        label = f"{length * 1000:g} um"
    x, y = 8, height - 10
    end = x + length / panel.mm_per_pixel
    draw.rectangle([x - 1, y - 2, end + 1, y + 3], fill=(0, 0, 0))
    draw.rectangle([x, y - 1, end, y + 2], fill=INK)
    draw_text(draw, (x, y - 5), label, anchor="ld", size=panel.text)
