"""2D training images of any data set: images as they are, slices of volumes in three directions.

Only cases of the splits train and val are opened, so that a test case is never read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.datasets import Case, Dataset, Unit
from limner.errors import FormatError, GeometryError, LimnerError
from limner.train.data.pack_settings import PackSettings

Array = NDArray[Any]
TrainSplit = Literal["train", "val"]

LONGEST_SIDE = 768  # of an image that is kept whole at its own resolution
TILE = 512  # native pixels of a tile of a larger image
SOFT_TISSUE = (-160.0, 240.0)  # HU; 8 bits over the whole range of CT would be 10 HU a step
_AIR = -200.0  # HU; CT that was not cut or rescaled holds something below
_REPORTED_S = 15.0  # between two lines about a data set
_LEAST_LABELLED = 24  # pixels of a slice

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image, or slice of a volume, with its labels.

    Attributes:
        set_name: of its data set.
        stem: of its case; of a slice ``"case:axis:index"``.
        split: what it is for.
        unit: what one object is: ``"label"``, ``"instance"`` or ``"component"``.
        image: uint8 (row, column) or (row, column, 3), robustly scaled; None where there is a label
            map only.
        labels: uint16 (row, column), 0 is no target.
        instances: uint16 (row, column), one value per object, where the set has them.
        regions: uint16 (row, column): where there is no image, the classes to paint one from.
        is_slice: whether it is a slice of a volume.
    """

    set_name: str
    stem: str
    split: TrainSplit
    unit: Unit
    image: NDArray[np.uint8] | None
    labels: NDArray[np.uint16]
    instances: NDArray[np.uint16] | None = None
    regions: NDArray[np.uint16] | None = None
    is_slice: bool = False


@dataclass(frozen=True, eq=False)
class VolumeArrays:
    """A volume as it is packed, before anything is found in it.

    Attributes:
        array: intensities as stored, (slice, row, column); None where there is a label map only.
        windows: uint8 (slice, row, column) each: all intensities, and of CT the soft-tissue window;
            empty where there is a label map only.
        labels: uint16, 0 is no target.
        regions: uint16: where there is no image, the classes to paint one from.
        spacing: millimetres (slice, row, column).
        is_ct: whether the intensities are Hounsfield units.
    """

    array: Array | None
    windows: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.uint16]
    regions: NDArray[np.uint16] | None
    spacing: tuple[float, ...]
    is_ct: bool


def read_images(
    datasets: Sequence[Dataset], settings: PackSettings | None = None, *, slices: bool = True
) -> Iterator[LabelledImage]:
    """All images that may be trained on or validated with, set by set.

    A case that cannot be read is left out with a warning.

    Args:
        datasets: of `limner.datasets.find_training_sets`.
        settings: how many slices of a volume; None: the defaults.
        slices: those of volumes, too.

    Raises:
        FormatError: none of the cases can be read.
    """
    settings = settings or PackSettings()
    kinds = ("image", "volume") if slices else ("image",)
    for dataset, case in training_cases(datasets, kinds):
        try:
            if dataset.kind == "volume":
                found = list(_read_slices(dataset, case, settings.num_slices(dataset.name)))
            else:
                found = list(_read_image(dataset, case))
        except (LimnerError, OSError) as error:
            _log.warning("%s %s is left out: %s", dataset.name, case.name, error)
            continue
        yield from found


def training_cases(
    datasets: Sequence[Dataset], kinds: Sequence[str], most: int | None = None
) -> Iterator[tuple[Dataset, Case]]:
    """The annotated cases of the splits train and val, set by set; says what is being read.

    Args:
        datasets: every case in a split.
        kinds: of data sets; others are passed over.
        most: cases of a set at most, spread evenly; None for all.
    """
    for dataset in datasets:
        if dataset.kind not in kinds:
            continue
        cases = [c for c in dataset.cases.values() if c.split in ("train", "val")]
        annotated = [case for case in cases if case.labels is not None]
        if len(annotated) < len(cases):
            _log.warning(
                "%s: %d of %d cases have no labels and are left out.",
                *(dataset.name, len(cases) - len(annotated), len(cases)),
            )
        count = len(annotated) if most is None else min(len(annotated), most)
        kept = np.linspace(0, len(annotated) - 1, count).round().astype(int)
        _log.info("reading %s: %d cases", dataset.name, count)
        reported = time.monotonic()
        for number, k in enumerate(kept):
            if time.monotonic() - reported > _REPORTED_S:
                reported = time.monotonic()
                _log.info("%s: %d of %d cases are read", dataset.name, number, count)
            yield dataset, annotated[k]


def read_volume(case: Case) -> VolumeArrays:
    """Read a volume, its labels and the windows that it is shown in.

    Of several channels the first is taken. Values of a label map without an image that no label
    names are background.

    Raises:
        FormatError: a file is damaged, or no volume.
        GeometryError: image and labels are of different sizes.
    """
    volume = case.read_labels()
    labels, spacing = as_ids(volume.to_array()), tuple(volume.geometry.spacing)
    if labels.ndim != 3:
        raise FormatError(f"{case.labels} is an image, not a volume; take it out of the folder.")
    if case.images:
        array = np.asarray(case.read_image(channel=0).array)
        array = array[..., 0] if array.ndim == 4 else array
        check_shapes(case, array.shape, labels.shape)
        is_ct = case.modality.startswith("CT") and float(np.nanmin(array)) < _AIR
        windows = [scale_to_uint8(array)]
        if is_ct:
            windows.append(scale_to_uint8(array, SOFT_TISSUE))
        return VolumeArrays(array, tuple(windows), labels, None, spacing, is_ct)
    _, found = np.unique(labels, return_inverse=True)
    regions = found.reshape(labels.shape).astype(np.uint16)
    named = sorted({value for values in case.label_names.values() for value in values})
    if named:
        labels = np.where(np.isin(labels, named), labels, 0).astype(np.uint16)
    return VolumeArrays(None, (), labels, regions, spacing, is_ct=False)


def check_shapes(case: Case, image: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Refuse labels of another size than their image.

    Raises:
        GeometryError: says both sizes.
    """
    if image != labels:
        sizes = ("×".join(map(str, shape)) for shape in (labels, image))
        raise GeometryError(
            "{} is of {}, its image of {}; they must fit.".format(case.labels, *sizes)
        )


def scale_to_uint8(array: Array, limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """uint8 as a session shows it: robust limits of the whole to 0…255; equal channels are one."""
    from limner.adapters.intensity import robust_limits

    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = array[..., :3]
        spread = np.ptp(array.astype(np.int32), axis=-1)
        if np.percentile(spread, 99) <= 3:  # grey, perhaps through JPEG
            array = array[..., 1]
    low, high = robust_limits(array) if limits is None else limits
    values = (array.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.round(np.clip(np.nan_to_num(values), 0, 255)), dtype=np.uint8)


def as_ids(array: Array) -> NDArray[np.uint16]:
    """Labels as uint16; renumbered where they are larger."""
    if array.max(initial=0) > np.iinfo(np.uint16).max:
        _, array = np.unique(array, return_inverse=True)
    return np.asarray(array, dtype=np.uint16)


def _read_image(dataset: Dataset, case: Case) -> Iterator[LabelledImage]:
    from limner.adapters.resize import shrink

    name, stem, unit = dataset.name, case.name, dataset.unit
    split: TrainSplit = "val" if case.split == "val" else "train"
    array = np.asarray(case.read_image().array)
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        array = array[..., 0]
    image = scale_to_uint8(array)
    labels = as_ids(case.read_labels().to_array())
    if labels.ndim != 2:
        raise FormatError(f"{case.labels} is a volume, not an image; take it out of the folder.")
    check_shapes(case, image.shape[:2], labels.shape)
    instances = None
    if dataset.has_instances:
        instances = as_ids(case.read_labels(instances=True).to_array())
    if max(labels.shape) <= LONGEST_SIDE:
        yield LabelledImage(name, stem, split, unit, image, labels, instances)
        return
    factor = TILE / max(labels.shape)
    shape = [max(1, round(n * factor)) for n in labels.shape]
    small = np.round(shrink(image, shape)).astype(np.uint8)
    rows, columns = (_nearest(n, m) for n, m in zip(labels.shape, shape, strict=True))
    fewer = None if instances is None else instances[rows][:, columns]
    yield LabelledImage(name, stem, split, unit, small, labels[rows][:, columns], fewer)
    for window in _tiles(labels.shape):
        if (labels[window] > 0).mean() >= 0.005:
            part = None if instances is None else instances[window]
            yield LabelledImage(name, stem, split, unit, image[window], labels[window], part)


def _read_slices(dataset: Dataset, case: Case, most: int) -> Iterator[LabelledImage]:
    """Slices that hold labels, evenly spread, of each direction and window."""
    volume = read_volume(case)
    split: TrainSplit = "val" if case.split == "val" else "train"
    for axis in range(3):
        counts = np.moveaxis(volume.labels > 0, axis, 0).sum(axis=(1, 2))
        places = np.flatnonzero(counts >= _LEAST_LABELLED)
        chosen = places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]
        steps = [s for k, s in enumerate(volume.spacing) if k != axis]
        images: Sequence[Array | None] = volume.windows or (None,)
        for place, image in ((p, i) for p in chosen for i in images):
            regions = volume.regions
            yield LabelledImage(
                dataset.name,
                f"{case.name}:{axis}:{place}",
                split,
                "label",
                None if image is None else _even(np.take(image, place, axis), steps, smooth=True),
                _even(np.take(volume.labels, place, axis), steps),
                regions=None if regions is None else _even(np.take(regions, place, axis), steps),
                is_slice=True,
            )


def _even(array: Array, steps: Sequence[float], *, smooth: bool = False) -> Array:
    """A slice with equal steps, if they differ much, as viewers show it: stretched on one axis."""
    from scipy import ndimage

    factors = np.asarray(steps) / min(steps)
    if factors.max() < 1.5:
        return np.ascontiguousarray(array)
    grown = ndimage.zoom(array.astype(np.float32), factors, order=1 if smooth else 0)
    return np.asarray(np.round(grown).astype(array.dtype))


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    starts = [np.linspace(0, max(0, n - TILE), -(-n // TILE)).round().astype(int) for n in shape]
    for row in starts[0]:
        for column in starts[1]:
            yield slice(row, row + TILE), slice(column, column + TILE)


def _nearest(size: int, bins: int) -> NDArray[np.intp]:
    return ((np.arange(bins) + 0.5) * size / bins).astype(np.intp)
