"""Measurements of segmented labels: size, intensity and bounding box, as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from limner.io.image import Image
from limner.io.labels import Labels

Place = tuple[slice, ...]


@dataclass(frozen=True)
class LabelStatistics:
    """Facts about one label of an image.

    Attributes:
        id: the label's value.
        name: what it is.
        voxels: how many pixels or voxels it has.
        volume_mm3: cubic millimetres; None in 2D, of videos and without a known spacing.
        volume_ml: the same in millilitres.
        area_mm2: square millimetres in 2D; None elsewhere and without a known spacing.
        mean: of the stored intensities inside, one per channel; None where the label is empty.
        std: their standard deviation (of all pixels, not an estimate), likewise.
        low: bounding box in index order, its first pixel; None where the label is empty.
        high: of the bounding box, half-open, likewise.
    """

    id: int
    name: str
    voxels: int
    volume_mm3: float | None = None
    volume_ml: float | None = None
    area_mm2: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    low: tuple[int, ...] | None = None
    high: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values; those that do not apply are left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def measure_labels(
    labels: Labels, image: Image, names: Mapping[int, str]
) -> tuple[LabelStatistics, ...]:
    """Measure labels on the image that they belong to.

    Args:
        labels: of the image's grid.
        image: its intensities are taken as stored.
        names: of the labels to measure, also of those that were not found.
    """
    places = _find_places(labels)
    return tuple(_measure(labels, image, i, name, places.get(i)) for i, name in names.items())


def _measure(
    labels: Labels, image: Image, label: int, name: str, place: Place | None
) -> LabelStatistics:
    if place is None:
        return LabelStatistics(label, name, 0, **_measure_size(0, image))
    mask = labels.mask(label)[place]
    means, spreads = _measure_intensity(image, mask, place)
    count = int(np.count_nonzero(mask))
    return LabelStatistics(
        label,
        name,
        count,
        **_measure_size(count, image),
        mean=means,
        std=spreads,
        low=tuple(s.start for s in place),
        high=tuple(s.stop for s in place),
    )


def _measure_size(count: int, image: Image) -> dict[str, Any]:
    geometry = image.geometry
    if not geometry.has_spacing or image.kind == "video":
        return {}
    size = round(count * geometry.voxel_volume, 4)
    if geometry.ndim == 2:
        return {"area_mm2": size}
    return {"volume_mm3": size, "volume_ml": round(size / 1000, 7)}


def _measure_intensity(
    image: Image, mask: NDArray[np.bool_], place: Place
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, slice by slice."""
    count = 0
    shift: NDArray[Any] | None = None  # near the mean, so that squares lose nothing
    total: Any = 0.0
    squares: Any = 0.0
    for pixels, inside in _cut_slices(image, mask, place):
        inside_count = int(np.count_nonzero(inside))
        if not inside_count:  # a label may skip slices
            continue
        values = pixels[inside].reshape(inside_count, -1).astype(np.float64)
        shift = values.mean(axis=0) if shift is None else shift
        values -= shift
        count += inside_count
        total = total + values.sum(axis=0)
        squares = squares + (values**2).sum(axis=0)
    assert shift is not None
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    means = tuple(float(f"{v:.6g}") for v in mean + shift)
    return means, tuple(float(f"{v:.6g}") for v in spread)


def _cut_slices(
    image: Image, mask: NDArray[np.bool_], place: Place
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The pixels of a box with its mask; of a volume or video slice by slice."""
    if image.geometry.ndim == 2:
        yield image.array[place], mask
        return
    for k, inside in zip(range(place[0].start, place[0].stop), mask, strict=True):
        yield image.slice_at(k)[place[1:]], inside


def _find_places(labels: Labels) -> dict[int, Place]:
    """Bounding boxes of the labels that have pixels."""
    if labels.num_overlapping() == 0 and max(labels.ids, default=0) < 2**16:
        found = ndimage.find_objects(labels.to_array().astype(np.uint16, copy=False))
        return {k: place for k, place in enumerate(found, start=1) if place is not None}
    boxes = {i: ndimage.find_objects(labels.mask(i).astype(np.uint8)) for i in labels.ids}
    return {i: found[0] for i, found in boxes.items() if found}
