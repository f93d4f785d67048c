"""Masks that come frame by frame, put on a grid and made into `Labels`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry, resample
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation

logger = logging.getLogger(__name__)
Array = NDArray[Any]


class SliceMasks:
    """Masks of objects on a stack of planes, one bit per pixel until they are made into labels.

    Args:
        shape: ``(slice, row, column)``.
        path: of the file they come from, for messages.
    """

    def __init__(self, shape: tuple[int, ...], path: Path) -> None:
        self._shape = shape
        self._path = path
        self._slices: dict[int, dict[int, Array]] = {}

    def add(self, object_id: int, index: int, mask: Array) -> None:
        """Unite an object's mask on plane `index` with `mask`, ``(row, column)``."""
        if not mask.any():
            return
        packed = np.packbits(mask)
        slices = self._slices.setdefault(object_id, {})
        slices[index] = slices[index] | packed if index in slices else packed

    @property
    def num_slices(self) -> int:
        """How many masks are held."""
        return sum(len(slices) for slices in self._slices.values())

    def to_labels(self, geometry: Geometry, names: Mapping[int, str]) -> Labels:
        """The objects as labels on a grid of the same shape (2D if there is one slice).

        One label map where no objects overlap, else one mask per object.
        """
        top = max(self._slices, default=0)
        dtype = np.min_scalar_type(top)
        check_allocation(self._shape, dtype.itemsize, self._path)
        array = np.zeros(self._shape, dtype=dtype)
        for object_id, slices in self._slices.items():
            for index, packed in slices.items():
                mask = self._unpack(packed)
                if array[index][mask].any():
                    return Labels(geometry, masks=self._masks(geometry), names=names)
                array[index][mask] = object_id
        return Labels(geometry, array=array.reshape(geometry.shape), names=names)

    def _masks(self, geometry: Geometry) -> dict[int, Array]:
        check_allocation((len(self._slices), *self._shape), 1, self._path)
        masks = {}
        for object_id, slices in self._slices.items():
            mask = np.zeros(self._shape, dtype=bool)
            for index, packed in slices.items():
                mask[index] = self._unpack(packed)
            masks[object_id] = mask.reshape(geometry.shape)
        return masks

    def _unpack(self, packed: Array) -> Array:
        rows, columns = self._shape[1:]
        bits = np.unpackbits(packed, count=rows * columns)
        return bits.reshape(rows, columns).astype(bool)


def as_volume(geometry: Geometry) -> Geometry:
    """A 2D grid as the volume of one slice that it is."""
    if geometry.ndim == 3:
        return geometry
    return Geometry((1, *geometry.shape), geometry.affine, geometry.has_spacing)


def move_labels(labels: Labels, target: Geometry) -> Labels:
    """Labels on another grid: exactly where the grids share their pixels, else nearest neighbour.

    Args:
        labels: on a volume.
        target: volume grid.
    """
    source = labels.geometry
    mapping = np.linalg.inv(target.affine) @ source.affine
    whole = np.rint(mapping)
    reach = float(max(source.shape))
    drift = np.abs(mapping[:3, :3] - whole[:3, :3]).max() * reach
    is_exact = drift < 0.25 and np.abs(mapping[:3, 3] - whole[:3, 3]).max() < 0.25
    if not (is_exact and abs(abs(np.linalg.det(whole[:3, :3])) - 1.0) < 1e-6):
        logger.warning("The segmentation lies on another grid; resampled by nearest neighbour.")
        masks = {
            i: resample(labels.mask(i).astype(np.uint8), source, target, order=0) != 0
            for i in labels.ids
        }
        return Labels(target, masks=masks, names=labels.names)
    masks = {i: _move_voxels(labels.mask(i), whole, target.shape) for i in labels.ids}
    return Labels(target, masks=masks, names=labels.names)


def _move_voxels(mask: Array, mapping: Array, shape: tuple[int, ...]) -> Array:
    """Put the set voxels where the whole-number `mapping` sends them."""
    moved = np.zeros(shape, dtype=bool)
    index = np.argwhere(mask) @ mapping[:3, :3].T.astype(np.int64) + mapping[:3, 3].astype(np.int64)
    inside = ((index >= 0) & (index < np.asarray(shape))).all(axis=1)
    if not inside.all():
        logger.warning("%d voxels lie outside the image and are lost.", int((~inside).sum()))
    moved[tuple(index[inside].T)] = True
    return moved


def one_pixel(like: Image) -> Labels:
    """An object of one pixel on the middle slice of an image, to try whether it can be written."""
    shape = like.geometry.shape
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(n // 2 for n in shape)] = True
    return Labels(like.geometry, masks={1: mask})
