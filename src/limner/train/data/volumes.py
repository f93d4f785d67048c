"""Which volumes of a data folder may be trained on, and what of them may be a target besides what
labels name: supervoxels, groups of them, and connected parts of like brightness.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.datasets import Case, Dataset
from limner.errors import LimnerError
from limner.train.data.images import TrainSplit, read_volume, training_cases
from limner.train.data.pack_settings import PackSettings

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Ids = NDArray[np.uint16]

LEAST_VOXELS = 200_000  # of a volume that shows more than what its labels name
_MOST_CELLS = 250_000  # voxels of the grid on which supervoxels are found
_SHALLOW, _DEEP = (1.0, 2.5), (3.0, 9.0)  # grey values per voxel: depths of basins that are filled
_LEAST_PART = 150  # voxels of a part of like brightness
_MOST_PARTS = 40  # of one band
# HU: air, fat, soft tissue, bright soft tissue, bone, and all that is no air.
_CT_BANDS = ((-5000, -400), (-160, -25), (0, 110), (60, 200), (180, 5000), (-250, 5000))
_CLASSES = 4  # of brightness, elsewhere

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """One volume with its labels.

    Attributes:
        set_name: such as ``"pool/3d/hippocampus_mr_pool"``.
        stem: of its file.
        split: what it is for.
        spacing: millimetres (slice, row, column).
        images: uint8 (window, slice, row, column), robustly scaled, CT also in the soft-tissue
            window; no window where there is a label map only.
        labels: uint16 (slice, row, column), 0 is no target.
        regions: likewise: where there is no image, the classes to paint one from.
        bands: uint16 (band, slice, row, column): connected parts of like brightness, ids from 1.
    """

    set_name: str
    stem: str
    split: TrainSplit
    spacing: tuple[float, ...]
    images: Bytes
    labels: Ids
    regions: Ids | None
    bands: Ids


def read_volumes(
    datasets: Sequence[Dataset], settings: PackSettings | None = None
) -> Iterator[LabelledVolume]:
    """All volumes that may be trained on or validated with, set by set.

    A case that cannot be read is left out with a warning.

    Args:
        datasets: of `limner.datasets.find_training_sets`.
        settings: how many volumes of a set; None: the defaults.
    """
    settings = settings or PackSettings()
    for dataset, case in training_cases(datasets, ("volume",), settings.volumes):
        try:
            found = _volume(dataset.name, case)
        except (LimnerError, OSError) as error:
            _log.warning("%s %s is left out: %s", dataset.name, case.name, error)
            continue
        yield found


def _volume(set_name: str, case: Case) -> LabelledVolume:
    volume = read_volume(case)
    shape = volume.labels.shape
    images = np.zeros((0, *shape), dtype=np.uint8)
    bands = np.zeros((0, *shape), dtype=np.uint16)
    if volume.array is not None:
        array = volume.array
        limits = [(float(a), float(b)) for a, b in _CT_BANDS]
        if not volume.is_ct:
            array = volume.windows[0]
            limits = intensity_classes(volume.windows[0])
        images = np.stack(volume.windows)
        if array.size >= LEAST_VOXELS:
            bands = np.stack([find_parts(array, a, b, volume.spacing) for a, b in limits])
    split: TrainSplit = "val" if case.split == "val" else "train"
    spacing, labels, regions = volume.spacing, volume.labels, volume.regions
    return LabelledVolume(set_name, case.name, split, spacing, images, labels, regions, bands)


def intensity_classes(image: Bytes) -> list[tuple[float, float]]:
    """Ranges of brightness that divide a volume most clearly, and unions of the brighter ones."""
    from scipy import ndimage
    from skimage.filters import threshold_multiotsu

    soft = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    try:
        found = threshold_multiotsu(soft, classes=_CLASSES, nbins=64)  # type: ignore[no-untyped-call]
    except ValueError:  # hardly any brightness in it
        return [(128.0, 256.0)]
    edges = [float(t) for t in found]
    pairs = list(zip([-1.0, *edges], [*edges, 256.0], strict=True))
    return [*pairs, (edges[0], 256.0), (edges[1], 256.0)]


def find_parts(array: Array, low: float, high: float, spacing: Sequence[float]) -> Ids:
    """The larger connected parts of a volume with brightness from `low` to `high`, opened, so that
    thin bridges do not connect; ids from 1, largest first.
    """
    from scipy import ndimage

    finest = min(spacing)
    soft = ndimage.gaussian_filter(array.astype(np.float32), [0.6 * finest / s for s in spacing])
    inside = ndimage.binary_opening((soft >= low) & (soft < high))
    found, number = ndimage.label(inside)
    sizes = np.bincount(found.ravel(), minlength=number + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")[:_MOST_PARTS]
    order = order[(sizes[order] >= _LEAST_PART) & (sizes[order] <= array.size // 2)]
    ids = np.zeros(number + 1, dtype=np.uint16)
    ids[order] = np.arange(1, len(order) + 1)
    return np.asarray(ids[found])


def compute_supervoxels(
    image: Bytes, spacing: Sequence[float], rng: np.random.Generator
) -> tuple[Ids, Ids, Bytes, tuple[int, ...]]:
    """Two partitions of a volume along its edges, on a coarser grid: basins of the gradient,
    without those that are too shallow.

    Args:
        image: (slice, row, column).
        spacing: millimetres.
        rng: draws how fine they are.

    Returns:
        Ids from 1 on the coarser grid, of the finer and of the coarser partition; the coarse
        volume; and how many voxels one step of the grid holds along each axis.
    """
    from scipy import ndimage

    factors = np.ones(3, dtype=int)
    while np.prod(np.ceil(np.asarray(image.shape) / factors)) > _MOST_CELLS:
        factors[int(np.argmin(factors * np.asarray(spacing)))] *= 2
    each = (int(factors[0]), int(factors[1]), int(factors[2]))
    small = downsample(image, each)
    steps = factors * np.asarray(spacing)
    found = []
    for sigma, depths in ((1.2, _SHALLOW), (0.9, _DEEP)):
        blur = sigma * float(np.exp(rng.uniform(-0.3, 0.3))) * steps.min() / steps
        slope = ndimage.gaussian_gradient_magnitude(small.astype(np.float32), blur)
        found.append(_basins(slope, float(np.exp(rng.uniform(*np.log(depths))))))
    return found[0], found[1], small, each


def _basins(slope: NDArray[np.float32], least: float) -> Ids:
    """Basins that are deeper than `least`; ids from 1."""
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    filled = reconstruction(slope + np.float32(least), slope, method="erosion")  # type: ignore[no-untyped-call]
    return np.asarray(watershed(filled), dtype=np.uint16)  # type: ignore[no-untyped-call]


def downsample(image: Bytes, factors: Sequence[int]) -> Bytes:
    """Means of blocks; the last ones repeat the edge."""
    pads = [(0, -n % f) for n, f in zip(image.shape, factors, strict=True)]
    even = np.pad(image, pads, mode="edge")
    shape = [k for n, f in zip(even.shape, factors, strict=True) for k in (n // f, f)]
    return np.asarray(np.round(even.reshape(shape).mean(axis=(1, 3, 5))), dtype=np.uint8)


def region_table(ids: Ids, least: int, largest: int) -> NDArray[np.int32]:
    """One row per region of a map: id, voxels, first slice, row, column, last + 1 of each."""
    from scipy import ndimage

    sizes = np.bincount(ids.ravel())
    rows = [
        (k, sizes[k], *(s.start for s in window), *(s.stop for s in window))
        for k, window in enumerate(ndimage.find_objects(ids.astype(np.int32)), start=1)
        if window is not None and least <= sizes[k] <= largest
    ]
    return np.array(rows, dtype=np.int32).reshape(-1, 8)


def edge_clarity(ids: Ids, image: Bytes) -> NDArray[np.float64]:
    """How clear each region's border is, indexed by id: the mean step of brightness across it, in
    grey values, above 1.5 times that between neighbours within the region.
    """
    number = int(ids.max(initial=0)) + 1
    sums = np.zeros((2, number))
    counts = np.zeros((2, number))
    values = image.astype(np.int16)
    for axis in range(3):
        rows, grey = np.moveaxis(ids, axis, 0), np.moveaxis(values, axis, 0)
        step = np.abs(np.diff(grey, axis=0)).ravel()
        first, second = rows[:-1].ravel(), rows[1:].ravel()
        same = first == second
        for kind, ends in ((0, (first[same],)), (1, (first[~same], second[~same]))):
            weights = step[same] if kind == 0 else step[~same]
            for end in ends:
                sums[kind] += np.bincount(end, weights, minlength=number)
                counts[kind] += np.bincount(end, minlength=number)
    inner, border = sums / np.maximum(counts, 1)
    return np.asarray(border - 1.5 * inner)
