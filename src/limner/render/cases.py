"""Rendering of one benchmark case: outlines of target and prediction, prompts of each round."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.adapters.intensity import robust_limits
from limner.adapters.prompt_checks import mask_of_prompt
from limner.io.image import Image
from limner.prompts.simulate_volume import largest_slice
from limner.prompts.types import Area, Box, Click, Lasso, MaskPrompt, Prompt, Scribble

if TYPE_CHECKING:
    from PIL import ImageDraw

Mask: TypeAlias = NDArray[np.bool_]
Crop: TypeAlias = tuple[slice, slice]

SIDE = 360  # pixels of the longer side of the rendering
MARGIN = 0.15  # of the window's size around what is shown
LEAST = 48  # image pixels that a window shows, where there are so many
TARGET, ANSWER = (0, 200, 120), (255, 140, 0)
POSITIVE, NEGATIVE, LINE = (80, 255, 120), (255, 70, 70), (255, 255, 255)


def draw_case(
    image: Image, target: Mask, answer: Mask, rounds: Sequence[Sequence[Prompt]]
) -> bytes:
    """Render the part of an image around target, prediction and prompts, as PNG.

    Args:
        image: 2D.
        target: boolean of the image's shape.
        answer: likewise.
        rounds: 2D prompts of each round; clicks are numbered by round.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    prompts = [prompt for given in rounds for prompt in given]
    crop = _choose_crop(target | answer, prompts)
    low = np.array([side.start for side in crop])
    size = np.array([side.stop - side.start for side in crop])
    scale = SIDE / size.max()
    height, width = (max(1, round(n * scale)) for n in size)
    method = Pillow.Resampling.NEAREST if scale >= 1 else Pillow.Resampling.BOX
    canvas = Pillow.fromarray(_crop_rgb(image, crop)).resize((width, height), method)
    pixels = np.array(canvas)
    for mask, colour in ((target, TARGET), (answer, ANSWER)):
        pixels[_outline(mask[crop], (height, width))] = colour
    for prompt in prompts:
        _draw_area(pixels, prompt, crop, target.shape)
    canvas = Pillow.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    for number, given in enumerate(rounds, 1):
        for prompt in given:
            _draw_prompt(draw, prompt, low, scale, number)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_slice(
    image: Image, target: Mask, answer: Mask, rounds: Sequence[Sequence[Prompt]]
) -> bytes:
    """Render the slice of a volume on which the target is largest; arguments as for `draw_case`.

    Of 3D boxes and masks the part on that slice is shown, of other prompts those that lie there.
    """
    frame = largest_slice(target)
    slice_image = Image(
        image.slice_at(frame), image.geometry.slice_at(frame), modality=image.modality
    )
    on_slice = [[p for p in (_on_slice(prompt, frame) for prompt in ps) if p] for ps in rounds]
    return draw_case(slice_image, target[frame], answer[frame], on_slice)


def _on_slice(prompt: Prompt, frame: int) -> Prompt | None:
    if isinstance(prompt, Area):
        return prompt.section(frame, 0)
    found = prompt.to_slice()
    return found[0] if found is not None and found[1] == frame else None


def _choose_crop(shown: Mask, prompts: Sequence[Prompt]) -> Crop:
    """Choose the crop to show: the bounding box of masks and prompts, with a margin."""

    spans = [MaskPrompt(shown).extent()] if shown.any() else []
    spans += [prompt.extent() for prompt in prompts]
    limit = np.array(shown.shape)
    if not spans:
        return slice(0, int(limit[0])), slice(0, int(limit[1]))
    low = np.min([span[0] for span in spans], axis=0)
    high = np.max([span[1] for span in spans], axis=0)
    middle, half = (low + high) / 2, (high - low) * (0.5 + MARGIN)
    half = np.maximum(np.maximum(half, half.max() / 2), LEAST / 2)  # not too narrow a strip
    first = np.clip(np.floor(middle - half), 0, limit - 1).astype(int)
    last = np.clip(np.ceil(middle + half), first + 1, limit).astype(int)
    return slice(int(first[0]), int(last[0])), slice(int(first[1]), int(last[1]))


def _crop_rgb(image: Image, crop: Crop) -> NDArray[np.uint8]:
    array = image.array
    part = array[crop]
    if part.ndim == 2:
        part = part[..., None]
    part = part[..., :3] if part.shape[-1] >= 3 else np.repeat(part[..., :1], 3, axis=-1)
    if array.dtype == np.uint8 and (image.num_channels or 1) >= 3:
        return np.ascontiguousarray(part)
    low, high = robust_limits(array)
    share = np.nan_to_num((part.astype(np.float64) - low) / max(high - low, 1e-30))
    return np.asarray(np.clip(share * 255, 0, 255), dtype=np.uint8)


def _outline(mask: Mask, size: tuple[int, int]) -> Mask:
    """Inner edge, two pixels wide, of a mask resized (nearest) to `size`."""
    from scipy import ndimage

    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(size, mask.shape, strict=True)
    )
    large = np.pad(mask[rows][:, columns], 2)
    inner = ndimage.binary_erosion(large, iterations=2)
    return np.asarray((large & ~inner)[2:-2, 2:-2])


def _draw_area(
    pixels: NDArray[np.uint8], prompt: Prompt, crop: Crop, shape: tuple[int, ...]
) -> None:
    """Tint the pixels that a scribble covers, or outline an area that has no line of its own."""
    size = pixels.shape[0], pixels.shape[1]
    if isinstance(prompt, Scribble):
        covered = mask_of_prompt(prompt, shape)[crop]
        if covered.any():
            mask = _resize_mask(covered, size)
            colour = np.array(POSITIVE if prompt.positive else NEGATIVE, dtype=np.uint8)
            pixels[mask] = pixels[mask] // 3 + colour // 3 * 2
    elif isinstance(prompt, Area) and not isinstance(prompt, Box | Lasso):
        pixels[_outline(mask_of_prompt(prompt, shape)[crop], size)] = LINE


def _resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(size, mask.shape, strict=True)
    )
    return np.asarray(mask[rows][:, columns])


def _draw_prompt(
    draw: ImageDraw.ImageDraw, prompt: Prompt, low: NDArray[Any], scale: float, number: int
) -> None:
    """Draw boxes and lassos as lines, clicks as numbered plus and minus. Pillow's order is x, y."""

    def place(point: Sequence[float], *, corner: bool) -> tuple[float, float]:
        """A corner of a box is the pixel's corner, other positions are its centre."""
        row, column = (np.asarray(point) - low + (0.0 if corner else 0.5)) * scale
        return float(column), float(row)

    if isinstance(prompt, Box):
        (left, top), (right, bottom) = (place(p, corner=True) for p in (prompt.low, prompt.high))
        draw.rectangle([left, top, right - 1, bottom - 1], outline=LINE)
    elif isinstance(prompt, Lasso):
        points = [place(p, corner=False) for p in prompt.points]
        draw.line([*points, points[0]], fill=LINE)
    elif isinstance(prompt, Click):
        x, y = place(prompt.at, corner=False)
        for colour, thick in (((0, 0, 0), 4), (POSITIVE if prompt.positive else NEGATIVE, 2)):
            draw.line([x - 5, y, x + 5, y], fill=colour, width=thick)
            if prompt.positive:
                draw.line([x, y - 5, x, y + 5], fill=colour, width=thick)
        draw.text((x + 6, y - 12), str(number), fill=LINE, stroke_width=1, stroke_fill=(0, 0, 0))
