"""Overlay of a segmentation on its image: objects, prompts, legend; previews as PNG and GIF."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pillow

from limner.adapters.default_window import choose_window
from limner.adapters.intensity import robust_limits
from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.io.labels import Labels
from limner.prompts.types import MaskPrompt, Prompt
from limner.render.layout import GAP, count_objects, lay_out, list_legend
from limner.render.panel import (
    BACKDROP,
    Panel,
    draw_panel,
    shrink_pixels,
    text_size,
    to_rgb,
)
from limner.render.reformat import Reformat, prompt_on_slice

Array = NDArray[Any]

LARGEST, SMALLEST = 1600, 480  # pixels of the longer side
MOST_FRAMES = 8  # on a contact sheet
MOST_GIF_FRAMES = 120


class PlacedPrompt(Protocol):
    """A prompt and its frame or slice, such as an entry of a session."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""

    @property
    def frame(self) -> int | None:
        """Its frame or slice; None for the whole image."""


class OnFrame(Protocol):
    """A mask of an image, or of one frame or slice of it, such as a prediction."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Boolean."""

    @property
    def frame(self) -> int | None:
        """Which frame or slice; None for the whole."""


class OverlayPixels(np.ndarray[Any, np.dtype[np.uint8]]):
    """An overlay's pixels, which a notebook shows as an image."""

    def _repr_png_(self) -> bytes | None:
        if self.ndim != 3 or self.shape[-1] != 3:  # a part of it
            return None
        file = io.BytesIO()
        Pillow.fromarray(np.asarray(self)).save(file, format="PNG")
        return file.getvalue()


def render_overlay(
    image: Image,
    labels: ArrayLike | Labels | OnFrame,
    *,
    frame: int | None = None,
    prompts: Sequence[Prompt | PlacedPrompt] = (),
    window: str | tuple[float, float] | None = None,
    names: Mapping[int, str] | None = None,
) -> OverlayPixels:
    """Draw a segmentation on its image.

    A 2D image is shown as stored; a volume as three orthogonal slices through the largest object in
    radiological orientation (head or front up, the patient's right on the left); a video as a
    contact sheet of up to eight frames.

    Args:
        image: what was segmented.
        labels: integers or booleans of ``image.geometry.shape``, 0 is background; a segmentation,
            or a prediction, which is shown on its frame.
        frame: draw only this frame or slice, as stored.
        prompts: of the user, positions in the image's index order; 2D ones on a volume or
            video are drawn on their own frame (a session's entries know it), else on `frame`.
        window: intensities for black and white, or the name of a CT window; if None that of the
            file or of soft tissue in CT, else robust limits.
        names: of the objects, for the legend; taken from `labels` where these know them.

    Returns:
        uint8 RGB ``(row, column, 3)``, at most `LARGEST` wide, and high but for the legend; a
        notebook shows it as an image.

    Raises:
        ValueError: `labels` does not fit the image, or there is no such frame or window.
    """
    if hasattr(labels, "mask") and not isinstance(labels, Labels | np.ndarray):
        labels, frame = _mask_of(cast(OnFrame, labels), image, frame)
    array, shape = _check_labels(cast(ArrayLike, labels), image, frame), image.geometry.shape
    source = labels if isinstance(labels, Labels) else getattr(labels, "source", None)
    known = dict(source.names if source is not None else {}) | dict(names or {})
    limits = invert_window(image, choose_window(image, window).limits)
    image = invert_for_display(image)
    placed = _place_prompts(prompts, len(shape), frame)
    panels: Sequence[Pillow.Image | list[Pillow.Image]]
    if len(shape) == 2:
        panels = [_draw_stored(image, image.array, array, placed, limits, "", LARGEST)]
    elif frame is not None:
        panels = [_draw_frame(image, array, frame, placed, limits, LARGEST)]
    elif image.kind == "video":
        panels = _draw_contact_sheet(image, array, placed, limits)
    else:
        panels = _draw_orthogonal_slices(image, array, placed, limits)
    sizes = count_objects(labels if source is None else source, array, frame)
    return lay_out(panels, list_legend(image, sizes, known, frame)).view(OverlayPixels)


def _mask_of(found: OnFrame, image: Image, frame: int | None) -> tuple[Array, int | None]:
    """The mask on the whole image, and the frame to show."""
    if found.frame is None:
        return found.mask, frame
    whole = np.zeros(image.geometry.shape, np.bool_)
    whole[found.frame] = found.mask
    return whole, found.frame if frame is None else frame


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
    labels: ArrayLike | Labels | OnFrame,
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
    height, width = int(size[0]), int(size[1])
    limits = _limits(image, pixels, limits)
    panel = Panel(
        to_rgb(shrink_pixels(pixels, (height, width)), 2, limits),
        labels,
        (height, width),
        float(spacing.min()) / scale if image.geometry.has_spacing else None,
        title,
        text=text_size(max(height, width)),
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
    largest = (LARGEST - 5 * GAP) // min(4, len(chosen))
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
) -> Sequence[Pillow.Image | list[Pillow.Image]]:
    """Draw slices across the three axes through the largest object, in one scale."""
    centre = _choose_centre(labels, prompts)
    limits = _limits(image, image.array, limits)
    reformats = [Reformat(image, axis) for axis in range(3)]
    sizes = np.asarray([t.size_mm for t in reformats])
    side_by_side, scale = _arrange(sizes)
    whole = (sizes[:, 1].sum() if side_by_side else sizes[:, 1].max()) * scale
    panels = [
        reformat.draw_slice(labels, prompts, centre[axis], limits, scale, text_size(whole))
        for axis, reformat in enumerate(reformats)
    ]
    return panels if side_by_side else [[panel] for panel in panels]


def _arrange(sizes: Array) -> tuple[bool, float]:
    """Whether panels go beside or below each other, and their scale: what shows more and larger.

    A volume of few thick slices has two flat panels, which would leave a row of three mostly empty.
    """
    (high, wide), (tall, broad) = sizes.max(axis=0), sizes.sum(axis=0)
    room = LARGEST - 4 * GAP
    row = min(room / broad, 0.5 * LARGEST / high)
    column = min(0.75 * LARGEST / wide, 0.75 * LARGEST / tall)
    area = sizes.prod(axis=1).sum()
    beside = bool(row * area / (broad * high) >= column * area / (wide * tall))
    return beside, float(row if beside else column)


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


def _pad_height(canvas: Pillow.Image, height: int) -> Pillow.Image:
    """Pad a frame at the bottom: all frames of a .gif share one size."""
    ground = Pillow.new("RGB", (canvas.width, height), BACKDROP)
    ground.paste(canvas.convert("RGB"), (0, 0))
    return ground.convert("P", palette=Pillow.Palette.ADAPTIVE)
