"""Overlay of a segmentation on its image: objects, prompts, legend; previews as PNG and GIF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from limner.adapters.intensity import resolve_window, robust_limits
from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.prompts.types import MaskPrompt, Prompt
from limner.render.panel import (
    BACKDROP,
    Panel,
    Pixels,
    color_of,
    draw_panel,
    draw_text,
    font,
    to_rgb,
)
from limner.render.reformat import Reformat, prompt_on_slice

Array = NDArray[Any]

LARGEST, SMALLEST = 1600, 480  # pixels of the longer side
MOST_FRAMES = 8  # on a contact sheet
MOST_GIF_FRAMES = 120
_GAP, _LINE = 8, 20  # pixels
_MOST_LEGEND = 12  # objects


class PlacedPrompt(Protocol):
    """A prompt and its frame or slice, such as an entry of a session."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""

    @property
    def frame(self) -> int | None:
        """Its frame or slice; None for the whole image."""


def render_overlay(
    image: Image,
    labels: ArrayLike,
    *,
    frame: int | None = None,
    prompts: Sequence[Prompt | PlacedPrompt] = (),
    window: str | tuple[float, float] | None = None,
    names: Mapping[int, str] | None = None,
) -> Pixels:
    """Draw a segmentation on its image.

    A 2D image is shown as stored; a volume as three orthogonal slices through the largest object in
    radiological orientation (head or front up, the patient's right on the left); a video as a
    contact sheet of up to eight frames.

    Args:
        image: what was segmented.
        labels: integers or booleans of ``image.geometry.shape``, 0 is background.
        frame: draw only this frame or slice, as stored.
        prompts: of the user, positions in the image's index order; 2D ones on a volume or
            video are drawn on their own frame (a session's entries know it), else on `frame`.
        window: intensities for black and white, or the name of a CT window; robust limits if None.
        names: of the objects, for the legend; taken from `labels` where these know them.

    Returns:
        uint8 RGB ``(row, column, 3)``, at most `LARGEST` wide, and high but for the legend.

    Raises:
        ValueError: `labels` does not fit the image, or there is no such frame or window.
    """
    array, shape = _check_labels(labels, image, frame), image.geometry.shape
    source = getattr(labels, "source", None)
    known = dict(source.names if source is not None else {}) | dict(names or {})
    limits = invert_window(image, resolve_window(window))
    image = invert_for_display(image)
    placed = _place_prompts(prompts, len(shape), frame)
    if len(shape) == 2:
        panels = [_draw_stored(image, image.array, array, placed, limits, "", LARGEST)]
    elif frame is not None:
        panels = [_draw_frame(image, array, frame, placed, limits, LARGEST)]
    elif image.kind == "video":
        panels = _draw_contact_sheet(image, array, placed, limits)
    else:
        panels = _draw_orthogonal_slices(image, array, placed, limits)
    return _lay_out(panels, _legend(image, array, known, frame))


def _check_labels(labels: ArrayLike, image: Image, frame: int | None) -> Array:
    """The labels as integers of the image's shape; refuses misfits."""
    array = np.asarray(labels)
    shape = image.geometry.shape
    if array.shape != shape or array.dtype.kind not in "bui":
        raise ValueError(
            f"Labels are integers of the image's shape {shape}, not {array.dtype} {array.shape}."
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if frame is not None and (len(shape) == 2 or not 0 <= frame < shape[0]):
        last = "none" if len(shape) == 2 else f"0…{shape[0] - 1}"
        raise ValueError(f"There is no frame {frame} in this {image.kind}; it has {last}.")
    return array


def write_preview(
    path: Path,
    image: Image,
    labels: ArrayLike,
    *,
    frame: int | None = None,
    prompts: Sequence[Prompt | PlacedPrompt] = (),
    window: str | tuple[float, float] | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write `render_overlay` as ``.png``, or frame by frame as a moving ``.gif``.

    Raises:
        FormatError: another suffix, a ``.gif`` of a single picture, or the file cannot be written.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in (".png", ".gif"):
        raise FormatError(f"A preview is written as .png or .gif, not {path.name!r}.")
    if suffix == ".png":
        canvas = render_overlay(
            image, labels, frame=frame, prompts=prompts, window=window, names=names
        )
        with atomic_path(path) as temporary:
            Pillow.fromarray(canvas).save(temporary, format="PNG")
        return
    if image.geometry.ndim == 2 or frame is not None:
        raise FormatError(f"{path.name}: a .gif shows several frames; write one picture as .png.")
    chosen = _spread_frames(image.geometry.shape[0], MOST_GIF_FRAMES)
    canvases = [
        Pillow.fromarray(
            render_overlay(image, labels, frame=k, prompts=prompts, window=window, names=names)
        ).convert("P", palette=Pillow.Palette.ADAPTIVE)
        for k in chosen
    ]
    height = max(p.height for p in canvases)
    canvases = [p if p.height == height else _pad_height(p, height) for p in canvases]
    with atomic_path(path) as temporary:
        canvases[0].save(
            temporary, format="GIF", save_all=True, append_images=canvases[1:], duration=100, loop=0
        )


def _limits(image: Image, pixels: Array, limits: tuple[float, float] | None) -> tuple[float, float]:
    """The window; else colours of 8 bits as they are, and robust limits for everything else."""
    if limits is not None:
        return limits
    if image.dtype == np.uint8 and (image.num_channels or 1) >= 3:
        return 0.0, 255.0
    return robust_limits(pixels)


def _draw_stored(
    image: Image,
    pixels: Array,
    labels: Array,
    prompts: Sequence[Prompt],
    limits: tuple[float, float] | None,
    title: str,
    largest: int,
) -> Pillow.Image:
    """Draw a 2D image, frame or slice as stored, with square millimetres."""
    spacing = np.asarray(image.spacing[-2:])
    scale = _scale(np.asarray(labels.shape) * spacing / spacing.min(), largest)
    size = np.maximum(1, np.rint(np.asarray(labels.shape) * spacing / spacing.min() * scale))
    panel = Panel(
        to_rgb(pixels, 2, _limits(image, pixels, limits)),
        labels,
        (int(size[0]), int(size[1])),
        float(spacing.min()) / scale if image.geometry.has_spacing else None,
        title,
    )
    return draw_panel(panel, [p for p in prompts if p.num_axes == 2])


def _draw_frame(
    image: Image,
    labels: Array,
    frame: int,
    prompts: Sequence[Prompt],
    limits: tuple[float, float] | None,
    largest: int,
) -> Pillow.Image:
    title = f"{'frame' if image.kind == 'video' else 'slice'} {frame}"
    flat = [f for p in prompts if (f := prompt_on_slice(p, 0, frame, labels.shape)) is not None]
    return _draw_stored(image, image.slice_at(frame), labels[frame], flat, limits, title, largest)


def _draw_contact_sheet(
    image: Image, labels: Array, prompts: Sequence[Prompt], limits: tuple[float, float] | None
) -> list[Pillow.Image]:
    chosen = _include_prompted(_spread_frames(labels.shape[0], MOST_FRAMES), prompts)
    largest = (LARGEST - 5 * _GAP) // min(4, len(chosen))
    return [_draw_frame(image, labels, k, prompts, limits, largest) for k in chosen]


def _place_prompts(
    prompts: Sequence[Prompt | PlacedPrompt], ndim: int, frame: int | None
) -> list[Prompt]:
    """Prompts with as many axes as the image; those that have no place in it are left out."""
    placed: list[Prompt] = []
    for given in prompts:
        prompt = cast(Prompt, getattr(given, "prompt", given))
        on = getattr(given, "frame", None)
        on = frame if on is None else on
        if prompt.num_axes == 2 and ndim == 3 and on is not None:
            if isinstance(prompt, MaskPrompt):
                continue  # the labels show what became of it
            prompt = prompt.on_slice(on)
        if prompt.num_axes == ndim:
            placed.append(prompt)
    return placed


def _include_prompted(chosen: list[int], prompts: Sequence[Prompt]) -> list[int]:
    """Move the nearest of the chosen frames to each prompted one, so that every prompt is shown."""
    spans = [p.extent() for p in prompts if not isinstance(p, MaskPrompt)]
    wanted = sorted({int(low[0]) for low, high in spans if high[0] - low[0] <= 1})
    for frame in wanted[: len(chosen) // 2]:
        free = [k for k in chosen if k not in wanted]
        if frame not in chosen and free:
            chosen[chosen.index(min(free, key=lambda k: abs(k - frame)))] = frame
    return sorted(chosen)


def _draw_orthogonal_slices(
    image: Image, labels: Array, prompts: Sequence[Prompt], limits: tuple[float, float] | None
) -> list[Pillow.Image]:
    """Draw slices across the three axes through the largest object, in one scale."""
    centre = _choose_centre(labels, prompts)
    limits = _limits(image, image.array, limits)
    reformats = [Reformat(image, axis) for axis in range(3)]
    sizes = np.asarray([t.size_mm for t in reformats])
    room = LARGEST - 4 * _GAP
    scale = min(room / sizes[:, 1].sum(), 0.5 * LARGEST / sizes[:, 0].max())
    return [
        reformat.draw_slice(labels, prompts, centre[axis], limits, scale)
        for axis, reformat in enumerate(reformats)
    ]


def _choose_centre(labels: Array, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Choose the voxel to show: middle of the largest object, else of the prompts, else of all."""
    counts = np.bincount(labels.ravel()) if labels.any() else np.zeros(1)
    if counts[1:].any():
        found = np.nonzero(labels == 1 + int(counts[1:].argmax()))
        nearest = sum(
            (f - f.mean()) ** 2 for f in found
        )  # the mean itself may be beside a crescent
        best = int(np.argmin(nearest))
        return tuple(int(f[best]) for f in found)
    spans = [p.extent() for p in prompts if p.num_axes == labels.ndim]
    middle = np.asarray(labels.shape) / 2
    if spans:
        middle = np.mean([(a + b - 1) / 2 for a, b in spans], axis=0)
    return tuple(int(x) for x in np.clip(np.rint(middle), 0, np.asarray(labels.shape) - 1))


def _scale(size: Array, largest: int) -> float:
    """Rendered pixels per image pixel: whole numbers up, anything down."""
    longest = float(size.max())
    if longest > largest:
        return largest / longest
    return float(max(1, min(SMALLEST, largest) // int(np.ceil(longest))))


def _spread_frames(count: int, most: int) -> list[int]:
    """Up to `most` of `count` indices, evenly spread, first and last included."""
    return sorted({int(k) for k in np.rint(np.linspace(0, count - 1, min(count, most)))})


def _legend(
    image: Image, labels: Array, names: Mapping[int, str], frame: int | None
) -> list[tuple[int, str]]:
    """Objects with their names and sizes; id 0 for the line that says how many are left out."""
    counted = labels if frame is None else labels[frame]
    ids, counts = np.unique(counted, return_counts=True)
    rows = []
    for object_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if object_id:
            name = names.get(object_id, f"object {object_id}")
            rows.append((object_id, f"{name}: {_format_size(image, count, frame)}"))
    left = len(rows) - _MOST_LEGEND
    return [*rows[:_MOST_LEGEND], (0, f"and {left} more")] if left > 0 else rows


def _format_size(image: Image, count: int, frame: int | None) -> str:
    if not image.geometry.has_spacing:
        return f"{count} pixels"
    spacing = image.spacing
    if image.kind == "volume" and frame is None:
        volume = count * image.geometry.voxel_volume / 1000.0
        return f"{volume:.3g} mL" if volume < 1000 else f"{volume:.0f} mL"
    area = count * spacing[-1] * spacing[-2] / 100.0
    many = " over all frames" if image.kind == "video" and frame is None else ""
    return (f"{area:.3g} sq cm" if area >= 0.1 else f"{area * 100:.3g} sq mm") + many


def _lay_out(panels: Sequence[Pillow.Image], legend: Sequence[tuple[int, str]]) -> Pixels:
    """Lay out panels in rows on a dark ground, up to four beside each other, the legend below."""
    rows = [list(panels[k : k + 4]) for k in range(0, len(panels), 4)]
    widths = [sum(p.width for p in row) + _GAP * (len(row) + 1) for row in rows]
    single = len(panels) == 1
    width = panels[0].width if single else max(widths)
    entries = _wrap_legend(legend, width)
    pad = 0 if single else _GAP
    height = pad + sum(max(p.height for p in row) + pad for row in rows)
    canvas = Pillow.new("RGB", (width, height + len(entries) * _LINE + bool(entries) * 6), BACKDROP)
    y = pad
    for row in rows:
        x = pad
        for panel in row:
            canvas.paste(panel, (x, y))
            x += panel.width + pad
        y += max(p.height for p in row) + pad
    draw = ImageDraw.Draw(canvas)
    for k, line in enumerate(entries):
        for x, object_id, label in line:
            middle = height + 3 + k * _LINE + _LINE // 2
            if object_id:
                draw.rectangle([x, middle - 6, x + 12, middle + 6], fill=color_of(object_id))
            draw_text(draw, (x + 18, middle), label, anchor="lm", size=13)
    return np.array(canvas)


def _wrap_legend(legend: Sequence[tuple[int, str]], width: int) -> list[list[tuple[int, int, str]]]:
    """Legend entries in lines that fit: ``(x, object id, words)``."""
    lines: list[list[tuple[int, int, str]]] = []
    x = width
    for object_id, label in legend:
        needed = 18 + int(font(13).getlength(label)) + 20
        if x + needed > width:
            lines.append([])
            x = _GAP
        lines[-1].append((x, object_id, label))
        x += needed
    return lines


def _pad_height(canvas: Pillow.Image, height: int) -> Pillow.Image:
    """Pad a frame at the bottom: all frames of a .gif share one size."""
    ground = Pillow.new("RGB", (canvas.width, height), BACKDROP)
    ground.paste(canvas.convert("RGB"), (0, 0))
    return ground.convert("P", palette=Pillow.Palette.ADAPTIVE)
