"""Seeded region growing with a tolerance that finds itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import morphology, segmentation

from limner.adapters.markers import signed_distance
from limner.models.classical.graph_cut import grid_offsets, shifted_pair
from limner.models.classical.problem import SegmentationProblem, connected_parts

Array = NDArray[Any]
Mask = NDArray[np.bool_]


_FLAT = 0.03  # contrast inside that counts as none
_FEW = 40.0  # pixels: so small a region is seldom what a lone click means
_UNLIKE = 0.5  # loss of plausibility per unit of tolerance beyond "as like the rest as the object"


def grow_region(problem: SegmentationProblem) -> NDArray[np.float32]:
    """Seeded growing whose tolerance is where the region's border has the most contrast."""
    ratio = problem.first_ratio()
    for _ in range(2 if problem.markers.is_local else 1):
        mask = _grown(problem, ratio)
        if not mask.any():
            break
        ratio = problem.ratio_of(mask)
    return np.asarray(
        np.clip(0.7 * signed_distance(_split(problem, mask), problem.spacing), -8.0, 8.0)
    )


def _grown(problem: SegmentationProblem, ratio: Array) -> Mask:
    """Pixels reached from the seeds below the best tolerance."""
    starts = problem.starts(ratio)
    cost = -(ratio + 0.5 * problem.prior_logit())
    cost = np.where(problem.markers.outside, 50.0, cost)
    cost[starts] = min(float(cost.min()), -5.0)
    # The least tolerance at which each pixel is reached: grey-scale reconstruction from the seeds.
    seeded = np.where(starts, cost, 60.0)
    footprint = ndimage.generate_binary_structure(cost.ndim, 1)
    level: Array = morphology.reconstruction(  # type: ignore[no-untyped-call]
        seeded, cost, method="erosion", footprint=footprint
    )
    tolerance = _best_tolerance(level, problem)
    mask = np.asarray((level <= tolerance) & ~problem.markers.outside)
    if min(problem.shape) >= 32 and not starts.all():
        opened = ndimage.binary_opening(mask, footprint) | starts
        mask = connected_parts(opened, starts)
    return mask


def _best_tolerance(level: Array, problem: SegmentationProblem) -> float:
    """The tolerance whose region has the most contrast along its border and the least inside.

    All tolerances are judged at once: a pair of neighbours is on the border for the tolerances
    between the levels of its two pixels. The view's own border counts as border without contrast,
    so that regions which leak to it lose.
    """
    open_levels = level[level < 40.0]
    if not open_levels.size:
        return 0.0
    spread = np.linspace(open_levels.min(), open_levels.max(), 128)
    steps = np.unique(np.append(np.quantile(open_levels, np.linspace(0.0, 1.0, 65)), spread))
    if steps.size < 2:
        return float(steps[0])
    rank = np.searchsorted(steps, level)  # in the region from candidate `rank` on
    size = steps.size + 2
    border, length, within, pairs = (np.zeros(size) for _ in range(4))
    for offset in grid_offsets(level.ndim):
        here, there = shifted_pair(level.shape, offset)
        first, last = np.minimum(rank[here], rank[there]), np.maximum(rank[here], rank[there])
        step = np.abs(problem.features[here] - problem.features[there]).max(axis=-1).ravel()
        entered = np.bincount(first.ravel(), step, size)
        closed = np.bincount(last.ravel(), step, size)
        border += entered - closed
        within += closed
        closed_pairs = np.bincount(last.ravel(), minlength=size)
        length += np.bincount(first.ravel(), minlength=size) - closed_pairs
        pairs += closed_pairs
    if not problem.markers.is_local:
        for axis in range(level.ndim):
            for end in (0, -1):
                length += np.bincount(np.take(rank, end, axis=axis).ravel(), minlength=size)
    area = np.bincount(rank.ravel(), minlength=size).cumsum()[: steps.size]
    outer = (border.cumsum() / np.maximum(length.cumsum(), 1.0))[: steps.size]
    inner = (within.cumsum() / np.maximum(pairs.cumsum(), 1.0))[: steps.size]
    value = outer / (inner + _FLAT)
    return float(steps[int(np.argmax(value * _plausible(area, rank, steps, problem)))])


def _plausible(area: Array, rank: Array, steps: Array, problem: SegmentationProblem) -> Array:
    """How plausible each candidate's region is by size and place, 0…1."""
    prior = problem.markers.prior
    if prior is None:  # more than a few pixels, and rather like the seeds than like the average
        return np.asarray((1.0 - np.exp(-area / _FEW)) * np.exp(-_UNLIKE * np.maximum(steps, 0.0)))
    common = np.bincount(rank.ravel(), prior.ravel(), minlength=area.size).cumsum()[: area.size]
    return np.asarray(2.0 * common / (area + float(prior.sum())))


def _split(problem: SegmentationProblem, mask: Mask) -> Mask:
    """Give the basins of negative marks inside the region back, along the watershed of contrast."""
    # A rejected mark sits in a hole of its own, or just beside the region.
    around = ndimage.binary_dilation(ndimage.binary_fill_holes(mask), iterations=3)
    rejected = (problem.markers.marks < 0) & around
    if not rejected.any():
        return mask
    markers = np.zeros(problem.shape, dtype=np.int32)
    # Only the surroundings of a rejected pixel are disputed, as far as the error may reach.
    whole = ndimage.binary_fill_holes(mask | ndimage.binary_dilation(rejected, iterations=2))
    depth = ndimage.distance_transform_edt(whole)
    radius = 1.5 * float(depth[rejected].max()) + 3.0
    near = ndimage.distance_transform_edt(~rejected) <= radius
    markers[(mask & ~near) | problem.markers.inside] = 1
    markers[rejected] = 2
    slopes = [
        ndimage.gaussian_gradient_magnitude(problem.features[..., k], 1.0)
        for k in range(problem.features.shape[-1])
    ]
    # Ridges run along edges and through necks, where two parts of one colour are joined.
    contrast = np.max(slopes, axis=0)
    landscape = contrast / max(float(contrast.max()), 1e-6) - depth / max(float(depth.max()), 1.0)
    basins: Array = segmentation.watershed(  # type: ignore[no-untyped-call]
        landscape, markers, mask=whole | rejected
    )
    return np.asarray(mask & (basins == 1))
