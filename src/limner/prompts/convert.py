"""Prompts between coordinate frames: from foreign index orders and world millimetres, and the check
that they lie in the image.

The functions return new prompts; text and examples, which have no position, come back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.errors import PromptError
from limner.geometry import Geometry
from limner.prompts.kinds.base import CornersPrompt, GridMap, PointsPrompt
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, Placeless, Prompt, Scribble

_DIGITS = 9  # of an index: what is less is rounding
_SLIVER = 1e-6  # of a pixel: a box that meets so little of one does not hold it
_MOST_TILT = 1.0  # slices that the corners of a lasso may span
_MOST_OBLIQUE = 40.0  # degrees between a slice and the plane whose name it gets
_ANATOMICAL = {"sagittal": 0, "coronal": 1, "axial": 2}  # across x, y, z of LPS


def from_xyz(prompt: Prompt) -> Prompt:
    """A prompt given as ``(x, y)`` or ``(x, y, z)`` pixels, as SAM and Slicer's IJK do, in index
    order.

    Boxes are half-open in both frames. A mask is transposed.
    """
    return prompt.mapped(GridMap(lambda p: p[::-1], mask=lambda mask: mask.T))


def from_world(prompt: Prompt, geometry: Geometry, *, system: str) -> Prompt:
    """A prompt given in patient millimetres, in index order.

    A box becomes the smallest index box that holds every pixel that it meets, also where the
    image's axes are oblique. A lasso must lie in a slice of the image; see `lasso_from_world` for
    one whose corners share no coordinate in millimetres.

    Args:
        prompt: its positions are ``(x, y, z)`` in millimetres; scribble radii stay in pixels.
        geometry: of the image.
        system: ``"lps"`` (DICOM, ITK) or ``"ras"`` (NIfTI, Slicer).

    Raises:
        PromptError: an unknown system, positions without three coordinates, a mask that would have
            to be resampled, or a lasso across the slices.
    """
    to_index = _world_to_index(geometry, system)
    if isinstance(prompt, Placeless | MaskPrompt):
        return prompt
    if prompt.num_axes != 3:
        raise PromptError("World positions have three coordinates: x, y, z in millimetres.")
    if isinstance(prompt, Lasso):
        return lasso_from_world(prompt.points, geometry, system=system)
    if isinstance(prompt, CornersPrompt):
        corners = np.stack(
            np.meshgrid(*zip(prompt.low, prompt.high, strict=True), indexing="ij"), axis=-1
        ).reshape(-1, 3)
        index = to_index(corners)
        low = np.floor(index.min(axis=0) + 0.5 + _SLIVER)
        high = np.ceil(index.max(axis=0) + 0.5 - _SLIVER)
        return prompt.moved_to(tuple(low), tuple(np.maximum(high, low + 1)))
    if isinstance(prompt, PointsPrompt):
        points = [tuple(to_index(np.asarray(p)).tolist()) for p in prompt.positions]
        return prompt.moved_to(points)
    assert_never(prompt)


def lasso_from_world(points: ArrayLike, geometry: Geometry, *, system: str) -> Lasso:
    """A closed line drawn in patient millimetres on one slice of an image, on that slice.

    Args:
        points: ``(n, 3)``: x, y, z in millimetres.
        geometry: of the image.
        system: ``"lps"`` or ``"ras"``.

    Raises:
        PromptError: an unknown system, or no axis of the image along which all points are within
            half a slice.
    """
    to_index = _world_to_index(geometry, system)
    corners = np.asarray(points, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 3:
        raise PromptError("A lasso in millimetres is a list of points x, y, z.")
    index = to_index(corners)
    if geometry.ndim == 2:
        return Lasso(tuple(map(tuple, index.tolist())))
    reach = np.ptp(index, axis=0)
    axis = int(reach.argmin())
    if reach[axis] > _MOST_TILT:
        raise PromptError(
            f"The lasso lies in no slice of the image: along axis {axis} it still spans "
            f"{reach[axis]:.1f} slices. Draw it on a slice, or use a box or a scribble."
        )
    index[:, axis] = np.floor((index[:, axis].min() + index[:, axis].max()) / 2 + 0.5)
    return Lasso(tuple(map(tuple, index.tolist())))


def plane_axis(geometry: Geometry, name: str) -> int:
    """The axis of a volume across which slices of an anatomical plane lie.

    Args:
        geometry: of the volume.
        name: ``"axial"``, ``"coronal"`` or ``"sagittal"``.

    Raises:
        PromptError: unknown name, no known orientation, or slices too tilted to be called so.
    """
    if name not in _ANATOMICAL:
        raise PromptError(f"A plane is {', '.join(_ANATOMICAL)} or an axis 0, 1, 2; not {name!r}.")
    if geometry.ndim != 3 or not geometry.has_spacing:
        raise PromptError(
            f"Nothing says how this image lies in the patient, so no slice of it is {name}; name "
            "the axis by its number: 0, 1 or 2."
        )
    cosines = np.abs(geometry.direction[_ANATOMICAL[name]])
    axis = int(cosines.argmax())
    tilt = float(np.degrees(np.arccos(min(1.0, cosines[axis]))))
    if tilt > _MOST_OBLIQUE:
        raise PromptError(
            f"The slices of this volume are tilted: those nearest to {name} (axis {axis}) are off "
            f"by {tilt:.0f} degrees. Name the axis by its number: 0, 1 or 2."
        )
    return axis


def _world_to_index(geometry: Geometry, system: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Millimetres to indices, without the rounding errors of affines."""
    if system not in ("lps", "ras"):
        raise PromptError(f"World system {system!r} is unknown; use 'lps' or 'ras'.")
    flip = np.array((1.0, 1.0, 1.0) if system == "lps" else (-1.0, -1.0, 1.0))
    return lambda points: np.round(geometry.world_to_index(points * flip), _DIGITS) + 0.0


def check_inside(prompt: Prompt, shape: Sequence[int], *, what: str = "image") -> None:
    """Refuse a prompt that does not fit an image.

    Clicks must be on a pixel (a tolerance of half a pixel). Boxes, scribbles and lassos may
    reach over the edge but must touch the image; a mask must have exactly its shape.

    Raises:
        PromptError: says where the prompt is and where the image ends.
    """
    if prompt.num_axes is None:
        return
    limits = "×".join(str(n) for n in shape)
    if isinstance(prompt, MaskPrompt):
        if prompt.mask.shape != tuple(shape):
            raise PromptError(
                f"A mask of shape {prompt.mask.shape} does not fit "
                f"the {what} of shape {tuple(shape)}."
            )
        return
    if prompt.num_axes != len(shape):
        raise PromptError(
            f"A {prompt.kind} with {prompt.num_axes} coordinates does not fit "
            f"the {len(shape)}D {what} of {limits}."
        )
    if prompt.is_outside(shape):
        low, high = (", ".join(f"{x:g}" for x in corner) for corner in prompt.extent())
        place = f"at ({low})" if isinstance(prompt, Click) else f"from ({low}) to ({high})"
        raise PromptError(
            f"The {prompt.kind} {place} lies outside the {what} of {limits} pixels; "
            "positions are array indices in index order (use --order xyz for x, y)."
        )


def fit_box(low: ArrayLike, high: ArrayLike, shape: Sequence[int]) -> Box:
    """The nearest box of whole pixels inside the image with at least one pixel per axis."""
    size = np.asarray(shape)
    first = np.clip(np.rint(np.minimum(low, high)), 0, size - 1)
    last = np.clip(np.rint(np.maximum(low, high)), first + 1, size)
    return Box(tuple(first), tuple(last))


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
