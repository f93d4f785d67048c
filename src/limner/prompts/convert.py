"""Prompts between coordinate frames: foreign orders and world millimetres at the door, and into
windows.

The functions return new prompts; text and examples, which have no position, come back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.geometry import Geometry
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, Position, Prompt, Scribble, num_axes


def map_positions(prompt: Prompt, mapping: Callable[[Position], Position]) -> Prompt:
    """Apply `mapping` to every position of a prompt; radii and masks stay as they are."""
    match prompt:
        case Click():
            return Click(mapping(prompt.at), prompt.positive)
        case Box():
            return Box(mapping(prompt.low), mapping(prompt.high))
        case Scribble():
            points = tuple(mapping(p) for p in prompt.points)
            return Scribble(points, prompt.positive, prompt.radius)
        case Lasso():
            return Lasso(tuple(mapping(p) for p in prompt.points))
    return prompt


def from_xyz(prompt: Prompt) -> Prompt:
    """A prompt given as ``(x, y)`` or ``(x, y, z)`` pixels, as SAM and Slicer's IJK do, in index
    order.

    Boxes are half-open in both frames. A mask is transposed.
    """
    if isinstance(prompt, MaskPrompt):
        return MaskPrompt(prompt.mask.T)
    return map_positions(prompt, lambda p: p[::-1])


def from_world(prompt: Prompt, geometry: Geometry, *, system: str) -> Prompt:
    """A prompt given in patient millimetres, in index order.

    A box becomes the smallest index box that holds its eight corners' pixels.

    Args:
        prompt: its positions are ``(x, y, z)`` in millimetres; scribble radii stay in pixels.
        geometry: of the image.
        system: ``"lps"`` (DICOM, ITK) or ``"ras"`` (NIfTI, Slicer).
    """
    if system not in ("lps", "ras"):
        raise PromptError(f"World system {system!r} is unknown; use 'lps' or 'ras'.")
    axes = num_axes(prompt)
    if axes is None or isinstance(prompt, MaskPrompt):
        return prompt
    if axes != 3:
        raise PromptError("World positions have three coordinates: x, y, z in millimetres.")
    flip = np.array((1.0, 1.0, 1.0) if system == "lps" else (-1.0, -1.0, 1.0))

    def to_index(position: Position) -> Position:
        return tuple(float(x) for x in geometry.world_to_index(np.asarray(position) * flip))

    if isinstance(prompt, Box):
        corners = np.stack(
            np.meshgrid(*zip(prompt.low, prompt.high, strict=True), indexing="ij"), axis=-1
        ).reshape(-1, 3)
        index = geometry.world_to_index(corners * flip)
        low, high = np.floor(index.min(axis=0) + 0.5), np.ceil(index.max(axis=0) + 0.5)
        return Box(tuple(low), tuple(np.maximum(high, low + 1)))
    return map_positions(prompt, to_index)


def on_slice(prompt: Prompt, index: int) -> Prompt:
    """Lift a 2D prompt onto slice `index` of a volume; a box becomes one slice thick."""
    if num_axes(prompt) != 2:
        return prompt
    if isinstance(prompt, Box):
        return Box((index, *prompt.low), (index + 1, *prompt.high))
    if isinstance(prompt, MaskPrompt):
        raise PromptError("A 2D mask belongs to a slice: add it with frame=K.")
    return map_positions(prompt, lambda p: (float(index), *p))


def check_inside(prompt: Prompt, shape: Sequence[int], *, what: str = "image") -> None:
    """Refuse a prompt that does not fit an image.

    Clicks must be on a pixel (a tolerance of half a pixel). Boxes, scribbles and lassos may
    reach over the edge but must touch the image; a mask must have exactly its shape.

    Raises:
        PromptError: says where the prompt is and where the image ends.
    """
    axes = num_axes(prompt)
    if axes is None:
        return
    limits = "×".join(str(n) for n in shape)
    if isinstance(prompt, MaskPrompt):
        if prompt.mask.shape != tuple(shape):
            raise PromptError(
                f"A mask of shape {prompt.mask.shape} does not fit "
                f"the {what} of shape {tuple(shape)}."
            )
        return
    if axes != len(shape):
        raise PromptError(
            f"A {prompt.kind} with {axes} coordinates does not fit "
            f"the {len(shape)}D {what} of {limits}."
        )
    low, high = extent(prompt)
    size = np.asarray(shape)
    if isinstance(prompt, Click):
        outside = bool((low < -0.5).any() or (low > size - 0.5).any())
    elif isinstance(prompt, Box):  # half-open: must hold the centre of a pixel on every axis
        outside = bool((high <= 0).any() or (low > size - 1).any())
    else:
        outside = bool((high < 0.5).any() or (low > size - 0.5).any())
    if outside:
        place = ", ".join(f"{x:g}" for x in low)
        if not isinstance(prompt, Click):
            place = f"from ({place}) to ({', '.join(f'{x:g}' for x in high)})"
        else:
            place = f"at ({place})"
        raise PromptError(
            f"The {prompt.kind} {place} lies outside the {what} of {limits} pixels; "
            "positions are array indices in index order (use --order xyz for x, y)."
        )


def reaches_over(prompt: Prompt, shape: Sequence[int]) -> bool:
    """Whether part of a box lies outside an image of `shape`; what is outside has no effect."""
    if not isinstance(prompt, Box):
        return False
    limits = zip(prompt.low, prompt.high, shape, strict=True)
    return any(low < 0 or high > size for low, high, size in limits)


def extent(prompt: Prompt) -> tuple[NDArray[Any], NDArray[Any]]:
    """The bounding box of a prompt as half-open index bounds ``(low, high)``, brush radius
    included.

    Raises:
        PromptError: for text and examples, which have no place in the image.
    """
    match prompt:
        case Click():
            at = np.asarray(prompt.at)
            return at, at + 1
        case Box():
            return np.asarray(prompt.low), np.asarray(prompt.high)
        case Scribble():
            points = np.asarray(prompt.points)
            return points.min(axis=0) - prompt.radius, points.max(axis=0) + prompt.radius + 1
        case Lasso():
            points = np.asarray(prompt.points)
            return points.min(axis=0), points.max(axis=0) + 1
        case MaskPrompt():
            found = [
                np.flatnonzero(prompt.mask.any(axis=_others(prompt.mask.ndim, a)))
                for a in range(prompt.mask.ndim)
            ]
            if not found[0].size:
                return np.zeros(prompt.mask.ndim), np.zeros(prompt.mask.ndim)
            return (
                np.array([f[0] for f in found], dtype=float),
                np.array([f[-1] + 1 for f in found], dtype=float),
            )
    raise PromptError(f"A {prompt.kind} prompt has no place in the image.")


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(ndim) if k != axis)


def scribbles_from_mask(mask: NDArray[np.bool_], *, positive: bool) -> list[Scribble]:
    """Drawn pixels as strokes one pixel wide: one per connected component, covering it exactly.

    The stroke walks from pixel to touching pixel and back along its own trail, so that no line
    between two of its points leaves the component.

    Args:
        mask: boolean, 2D or 3D.
        positive: what the strokes say.
    """
    left = {tuple(p) for p in np.argwhere(mask).tolist()}
    offsets = [
        tuple(int(k) - 1 for k in step) for step in np.ndindex((3,) * mask.ndim) if set(step) != {1}
    ]
    strokes = []
    while left:
        trail = [left.pop()]
        walk = [trail[0]]
        while trail:
            here = trail[-1]
            near = (tuple(a + b for a, b in zip(here, step, strict=True)) for step in offsets)
            following = next((p for p in near if p in left), None)
            if following is not None:
                left.remove(following)
                trail.append(following)
                walk.append(following)
            else:
                trail.pop()
                if trail and left:
                    walk.append(trail[-1])
        strokes.append(Scribble(tuple(walk), positive, radius=0.0))
    return strokes
