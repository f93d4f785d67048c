"""Markers from prompts: pixels that are certain, and a prior of where the object may be.

The weightless models share it: each of them only decides the pixels that are left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from limner.adapters.prompt_checks import mask_of_prompt
from limner.prompts.types import Area, Box, Mark, MaskPrompt, Prompt

Array = NDArray[Any]
Mask = NDArray[np.bool_]

BOX_MARGIN = 0.04  # of the box's size: people draw boxes a little too small
_CORE = 0.45  # share of the largest depth from which a rough mask is taken as certain
# How far the object may go beyond what was drawn or found, in its largest depths.
_LASSO_REACH, _MASK_REACH, _ANSWER_REACH = 0.1, 0.5, 1.0
_SEED_RADIUS = 2.0  # pixels around a click that share its colour
_DENIED, _CLAIMED = 0.15, 0.5  # probability around a mark that contradicts an area
_SMALL_VIEW = 24  # pixels per axis, below which a click is one pixel


@dataclass(frozen=True, eq=False)
class Markers:
    """What is known before the image is looked at. All arrays have the view's shape.

    Attributes:
        marks: int8, 1 and -1 where clicks and scribbles say so, the later one where they conflict;
            every answer obeys them.
        inside: surely the object: positive marks with their surroundings, cores of rough masks.
        outside: surely not: negative marks, far from every area.
        prior: float32 probability of the object from areas (box, lasso, mask, earlier answer)
            alone; None where there is none.
    """

    marks: NDArray[np.int8]
    inside: Mask
    outside: Mask
    prior: NDArray[np.float32] | None

    @property
    def is_local(self) -> bool:
        """Whether an area bounds the object."""
        return self.prior is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all points at an object."""
        return self.prior is None and not self.inside.any()

    def crop(self, window: tuple[slice, ...]) -> Markers:
        """The same for a window."""
        prior = None if self.prior is None else self.prior[window]
        return Markers(self.marks[window], self.inside[window], self.outside[window], prior)


@dataclass(frozen=True, eq=False)
class _Area:
    """A rough idea of the object: certain `core`, `limit` beyond which it is not, probability."""

    core: Mask
    limit: Mask
    prior: NDArray[np.float32]


def gather_markers(
    prompts: Sequence[Prompt],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    previous: Array | None = None,
) -> Markers:
    """Read the prompts in the order they were said.

    Args:
        prompts: clicks, boxes, scribbles, lassos and masks in the view's index order.
        shape: of the view.
        spacing: millimetres per step.
        previous: logits of the round before, or None.
    """
    marks, wide = np.zeros(shape, dtype=np.int8), np.zeros(shape, dtype=np.int8)
    radius = _SEED_RADIUS if min(shape) >= _SMALL_VIEW else 0.0
    areas: list[_Area] = []
    for prompt in prompts:
        if isinstance(prompt, Mark):
            sign = 1 if prompt.positive else -1
            marks[mask_of_prompt(prompt, shape)] = sign
            wide[mask_of_prompt(prompt, shape, click_radius=radius)] = sign
        elif isinstance(prompt, Area):
            drawn = mask_of_prompt(prompt, shape)
            if drawn.any():
                areas.append(_area(prompt, drawn, _steps(spacing)))
    wide[marks != 0] = marks[marks != 0]
    area = _join_areas(areas, previous, marks > 0, _steps(spacing))
    if area is None:
        return Markers(marks, wide > 0, wide < 0, None)
    area = _correct_area(area, marks)
    return Markers(
        marks,
        (wide > 0) | (area.core & (wide >= 0)),
        (wide < 0) | (~area.limit & (wide <= 0)),
        area.prior,
    )


def enforce_marks(
    logits: Array, marks: NDArray[np.int8], *, margin: float = 1.0
) -> NDArray[np.float32]:
    """Logits as finite float32 with the sign that the marks demand, at least `margin` from 0."""
    result = np.nan_to_num(logits, nan=-margin, posinf=16.0, neginf=-16.0).astype(np.float32)
    result = np.where(marks > 0, np.maximum(result, margin), result)
    return np.where(marks < 0, np.minimum(result, -margin), result).astype(np.float32)


def signed_distance(mask: Mask, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Distance to the border in steps of the finest axis, positive inside, never 0."""
    steps = _steps(spacing)
    if mask.all() or not mask.any():
        size = float(np.max(np.multiply(mask.shape, steps)))
        return np.full(mask.shape, size if mask.any() else -size, dtype=np.float32)
    inner = ndimage.distance_transform_edt(mask, sampling=steps)
    outer = ndimage.distance_transform_edt(~mask, sampling=steps)
    return np.asarray(np.where(mask, inner - 0.5, 0.5 - outer), dtype=np.float32)


def _steps(spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Spacing in units of the finest axis."""
    finest = min(spacing)
    return tuple(s / finest for s in spacing)


def _area(prompt: Area, drawn: Mask, steps: tuple[float, ...]) -> _Area:
    """The area of one prompt. What lies in a single slice of a volume leaves the others open."""
    axis = _flat_axis(drawn)
    if axis is not None and not isinstance(prompt, MaskPrompt):
        index = int(np.flatnonzero(drawn.any(axis=tuple(k for k in range(3) if k != axis)))[0])
        section = np.asarray(drawn.take(index, axis=axis))
        rest = tuple(np.delete(steps, axis).tolist())
        flat = (
            _box_area(section)
            if isinstance(prompt, Box)
            else _rough_area(section, rest, reach=_LASSO_REACH)
        )
        return _extrude(flat, drawn.shape, axis, index, section, np.asarray(rest) / steps[axis])
    if isinstance(prompt, Box):
        return _box_area(drawn)
    reach = _MASK_REACH if isinstance(prompt, MaskPrompt) else _LASSO_REACH
    return _rough_area(drawn, steps, reach=reach)


def _flat_axis(drawn: Mask) -> int | None:
    """In a volume, the axis along which something drawn is one slice thick; None if none or all."""
    if drawn.ndim != 3:
        return None
    sizes = [len(np.unique(found)) for found in np.nonzero(drawn)]
    flat = [k for k in range(3) if sizes[k] == 1 and drawn.shape[k] > 1]
    return flat[0] if len(flat) == 1 else None


def _extrude(
    area: _Area, shape: tuple[int, ...], axis: int, index: int, section: Mask, ratio: Array
) -> _Area:
    """A plane's area as a body: it thins away from its slice over about half the drawing's size.

    Args:
        area: of the plane.
        shape: of the volume.
        axis: across the plane.
        index: of the plane.
        section: what was drawn there.
        ratio: steps of the plane's axes in slices.
    """
    sizes = [np.ptp(found) + 1 for found in np.nonzero(section)]
    reach = max(1.0, 0.5 * float(np.mean(np.multiply(sizes, ratio))))
    offset = np.abs(np.arange(shape[axis]) - index) / reach
    offset = offset.reshape([-1 if k == axis else 1 for k in range(3)])
    prior = np.expand_dims(area.prior, axis)
    odds = np.log(np.clip(prior, 1e-3, 0.999)) - np.log1p(-np.clip(prior, 1e-3, 0.999))
    limit = np.expand_dims(area.limit, axis) & (offset <= 1.5)
    core = np.expand_dims(area.core, axis) & (offset == 0)
    body = _sigmoid(odds - 3.0 * offset**2) * limit
    return _Area(core, limit, body.astype(np.float32))


def _box_area(inside: Mask) -> _Area:
    """A box speaks of the inscribed ellipse; its middle is not certain: that may be a ring's."""
    squares: Array = np.zeros(inside.shape)
    limit = np.ones(inside.shape, dtype=np.bool_)
    for axis, (found, size) in enumerate(zip(np.nonzero(inside), inside.shape, strict=True)):
        centre, half = (found.min() + found.max()) / 2, (np.ptp(found) + 1) / 2
        place = np.abs(np.arange(size) - centre)
        place = place.reshape([-1 if k == axis else 1 for k in range(inside.ndim)])
        squares = squares + (place / half) ** 2
        limit &= place <= half + max(0.5, BOX_MARGIN * 2 * half)
    prior = _sigmoid((1.0 - np.sqrt(squares)) * 4.0) * limit
    return _Area(np.zeros_like(inside), limit, prior.astype(np.float32))


def _rough_area(mask: Mask, steps: tuple[float, ...], *, reach: float) -> _Area:
    """A drawn or predicted mask: certain in its depth, open near its border.

    Args:
        mask: not empty.
        steps: spacing in units of the finest axis.
        reach: how far the object may go beyond it, in the mask's largest depths.
    """
    if mask.all():
        prior = np.full(mask.shape, 0.7, dtype=np.float32)
        return _Area(np.zeros_like(mask), np.ones_like(mask), prior)
    depth = signed_distance(mask, steps)
    largest = float(depth.max())
    softness = max(0.75, 0.25 * largest)
    core = depth >= max(_CORE * largest, min(1.0, largest))
    limit = depth > -(1.5 + reach * largest)
    return _Area(core, limit, (_sigmoid(depth / softness) * limit).astype(np.float32))


def _join_areas(
    areas: Sequence[_Area], previous: Array | None, wanted: Mask, steps: tuple[float, ...]
) -> _Area | None:
    """Union of what was drawn; inside it, an earlier answer says more than the drawing's shape.

    Beyond the drawing an earlier answer stays where it has a positive mark (`wanted`).
    """
    drawn = None
    for area in areas:
        drawn = area if drawn is None else _unite(drawn, area)
    if previous is None or not (previous > 0).any():
        return drawn
    reach = _MASK_REACH if areas else _ANSWER_REACH
    earlier = _rough_area(np.asarray(previous > 0), steps, reach=reach)
    if drawn is None:  # an answer to clicks alone may still be far off: it only leans
        lean = np.float32(0.5) + np.float32(0.5) * (earlier.prior - np.float32(0.5))
        return _Area(earlier.core, earlier.limit, lean * earlier.limit)
    parts, _ = ndimage.label((previous > 0) & ~drawn.limit)
    limit = drawn.limit | ((parts > 0) & np.isin(parts, parts[wanted]))
    prior = np.float32(0.3) * drawn.prior + np.float32(0.7) * earlier.prior
    return _Area((earlier.core | drawn.core) & limit, limit, prior * limit)


def _unite(first: _Area, second: _Area) -> _Area:
    prior = np.maximum(first.prior, second.prior)
    return _Area(first.core | second.core, first.limit | second.limit, prior)


def _correct_area(area: _Area, marks: NDArray[np.int8]) -> _Area:
    """The area where marks contradict it: turned around them, as far as the error may reach.

    A mark speaks for what is nearer to it than to marks of the other kind.
    """
    core, limit, prior = area.core, area.limit, area.prior
    to_yes, to_no = (_distance_to(marks == sign) for sign in (1, -1))
    wrong = (marks < 0) & (prior > 0.25)
    if wrong.any():
        depth = ndimage.distance_transform_edt(prior > 0.5)
        near = _distance_to(wrong) <= 1.5 * float(depth[wrong].max()) + 2.0
        core = core & ~near
        prior = np.where(near & (to_no < to_yes), np.minimum(prior, np.float32(_DENIED)), prior)
    missing = (marks > 0) & (prior < 0.5)
    if missing.any():
        gap = _distance_to(prior > 0.5)
        gap = np.minimum(gap, 0.25 * max(marks.shape))  # where nothing was likely before
        near = _distance_to(missing) <= 1.5 * float(gap[missing].max()) + 4.0
        limit = limit | near
        prior = np.where(near & (to_yes < to_no), np.maximum(prior, np.float32(_CLAIMED)), prior)
    return _Area(core, limit, prior.astype(np.float32))


def _distance_to(mask: Mask) -> Array:
    """Pixels to the nearest True; infinite where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask))


def _sigmoid(values: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))
