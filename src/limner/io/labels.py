"""Segmentations: several objects on one grid, which may overlap."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from limner.errors import GeometryError
from limner.geometry import Geometry
from limner.io.overlaps import Pair, count_shared, order_objects
from limner.label_values import mask_of_values

Array = NDArray[Any]

_LISTED = 8  # objects, in one line
_COUNTED = 1 << 15  # pixels that are counted at once; counting takes eight bytes each


class LabelArray(np.ndarray[Any, np.dtype[Any]]):
    """A read-only label map that remembers the segmentation it shows, overlaps and history
    included.

    Anything computed from it is a plain array in this respect: its `source` is None.
    """

    source: Labels | None

    def __array_finalize__(self, origin: Any) -> None:
        self.source = None


class Labels:
    """Objects on a grid: integer ids from 1, each with a boolean mask and perhaps a name.

    Give either a label map or one mask per object; a label map is kept as it is, so that thousands
    of instances cost one array, and of a mask the box around it.

    Args:
        geometry: the grid.
        array: label map of ``geometry.shape``, 0 is background.
        masks: boolean mask of ``geometry.shape`` per object id, or a function that makes it; they
            may overlap.
        names: what the objects are, such as ``{1: "liver"}``.
        manifest: how the segmentation was made, as JSON values; written beside every export.
        priority: ids of objects that a label map shows above all others, the uppermost first. Of
            the others it shows the lower id where two overlap, but for an object of which more than
            half lies in the other one.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        array: ArrayLike | None = None,
        masks: Mapping[int, ArrayLike | Callable[[], ArrayLike]] | None = None,
        names: Mapping[int, str] | None = None,
        manifest: Mapping[str, Any] | None = None,
        priority: Sequence[int] = (),
    ) -> None:
        if (array is None) == (masks is None):
            raise TypeError("Labels are made from a label map or from masks, not both or neither.")
        self.geometry = geometry
        self.manifest = manifest
        self.priority: tuple[int, ...] = tuple(int(i) for i in priority)
        self._array: Array | None = None
        self._masks: dict[int, tuple[tuple[slice, ...], Array]] = {}  # where, and the mask there
        if array is not None:
            self._array = self._fitting(np.asarray(array))
            if self._array.dtype.kind not in "bui":
                raise GeometryError(f"A label map holds integers, not {self._array.dtype}.")
            if self._array.dtype.kind == "i" and self._array.min(initial=0) < 0:
                raise GeometryError("A label map holds no negative labels.")
            self.ids: tuple[int, ...] = _ids(self._array)
        else:
            assert masks is not None
            for object_id, mask in masks.items():
                dense = np.asarray(mask() if callable(mask) else mask)
                self._masks[int(object_id)] = _crop(_boolean(self._fitting(dense), object_id))
            if any(i < 1 for i in self._masks):
                raise ValueError(f"Object ids start at 1, not {min(self._masks)}.")
            self.ids = tuple(sorted(self._masks))
        self.names: dict[int, str] = {int(i): str(n) for i, n in (names or {}).items()}

    @property
    def empty_ids(self) -> tuple[int, ...]:
        """Objects that are named and have no pixel: looked for and not found, or erased."""
        return tuple(sorted(i for i in self.names if i > 0 and i not in self.ids))

    @property
    def is_label_map(self) -> bool:
        """Whether they were made from a label map, so that no two objects overlap."""
        return self._array is not None

    def mask(self, object_id: int) -> Array:
        """The boolean mask of one object."""
        if self._array is not None:
            return np.asarray(self._array == object_id)
        whole = np.zeros(self.geometry.shape, dtype=np.bool_)
        if object_id not in self._masks and object_id in self.names:
            return whole
        place, inside = self._masks[object_id]
        whole[place] = inside
        return whole

    def to_array(self) -> LabelArray:
        """The label map, in the smallest unsigned type; where objects overlap it shows the one that
        comes first in `order`.

        Read-only, because it stands for this segmentation when it is written.
        """
        labels = self._flat().view(LabelArray)
        labels.source = self
        labels.flags.writeable = False
        return labels

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        """For NumPy functions: the label map of `to_array`, as a plain array of its own.

        Raises:
            ValueError: ``copy=False``, since the label map is made anew each time.
        """
        if copy is False:
            raise ValueError("The label map of Labels is made anew; copy=False cannot be had.")
        return np.array(self._flat(), dtype=dtype)

    @cached_property
    def overlaps(self) -> dict[Pair, int]:
        """How many pixels two objects share, by their ids, the lower one first."""
        return {} if self._array is not None else count_shared(self._masks)

    @property
    def order(self) -> tuple[int, ...]:
        """The ids as the objects lie over one another in a label map, the uppermost first."""
        if self._array is not None:
            return self.ids
        sizes = {i: int(np.count_nonzero(inside)) for i, (_, inside) in self._masks.items()}
        return order_objects(sizes, self.overlaps, self.priority)

    def on_grid(self, geometry: Geometry) -> Labels:
        """The same labels on a grid of the same size, which may have another number of axes where
        one of them is a volume of one slice.
        """
        if self._array is not None:
            array = self._array.reshape(geometry.shape)
            return Labels(geometry, array=array, names=self.names, manifest=self.manifest)
        return Labels(
            geometry,
            masks={i: self.mask(i).reshape(geometry.shape) for i in self.ids},
            names=self.names,
            manifest=self.manifest,
            priority=self.priority,
        )

    def num_overlapping(self) -> int:
        """How many pixels belong to more than one object."""
        if self._array is not None or len(self._masks) < 2:
            return 0
        once = np.zeros(self.geometry.shape, dtype=np.bool_)
        more = np.zeros(self.geometry.shape, dtype=np.bool_)
        for place, inside in self._masks.values():
            more[place] |= once[place] & inside
            once[place] |= inside
        return int(np.count_nonzero(more))

    def __repr__(self) -> str:
        sizes = self.sizes()
        listed = [
            f"{i} {self.name(i)} {self.geometry.format_size(sizes.get(i, 0))}"
            if self.geometry.has_spacing
            else f"{i} {self.name(i)} {sizes.get(i, 0):,} pixels"
            for i in self.ids[:_LISTED]
        ]
        more = [f"{len(self.ids) - _LISTED} more"] if len(self.ids) > _LISTED else []
        shape = "×".join(map(str, self.geometry.shape))
        return f"<Labels on {shape}: {', '.join([*listed, *more]) or 'no objects'}>"

    def sizes(self) -> dict[int, int]:
        """Pixels of each object, those that it shares with others included."""
        if self._array is not None:
            return count_labels(self._array)
        return {i: int(np.count_nonzero(self._masks[i][1])) for i in self.ids}

    def name(self, object_id: int) -> str:
        """The object's name, or ``"object 3"``."""
        return self.names.get(object_id, f"object {object_id}")

    def manifest_json(self) -> str | None:
        """The manifest as JSON text, None if there is none."""
        return None if self.manifest is None else json.dumps(self.manifest, indent=2)

    def _flat(self) -> Array:
        dtype = np.min_scalar_type(max(self.ids, default=0))
        if self._array is not None:
            return self._array.astype(dtype, copy=False)
        flat = np.zeros(self.geometry.shape, dtype=dtype)
        for object_id in reversed(self.order):
            place, inside = self._masks[object_id]
            flat[place][inside] = object_id
        return flat

    def _fitting(self, array: Array) -> Array:
        if array.shape != self.geometry.shape:
            raise GeometryError(
                f"A segmentation of shape {array.shape} does not fit the image of shape "
                f"{self.geometry.shape}."
            )
        return array


def count_labels(array: Array) -> dict[int, int]:
    """Pixels of each label above 0, ascending; part by part, since sorting all takes long."""
    counts: Counter[int] = Counter()
    for part in _parts(array):
        if part.dtype.kind == "b" or part.dtype == np.uint8:
            found = np.bincount(part.ravel().view(np.uint8), minlength=1)
            counts.update({int(i): int(found[i]) for i in np.flatnonzero(found)})
        else:
            ids, sizes = np.unique(part, return_counts=True)
            counts.update(dict(zip(ids.tolist(), sizes.tolist(), strict=True)))
    return {i: counts[i] for i in sorted(counts) if i > 0}


def _ids(array: Array) -> tuple[int, ...]:
    """The labels above 0, ascending."""
    return tuple(count_labels(array))


def _parts(array: Array) -> Iterator[Array]:
    """Parts of a label map along its first axis, those left out that are background only."""
    step = max(1, len(array) * _COUNTED // max(1, array.size))
    parts = (array[start : start + step] for start in range(0, len(array), step))
    return (part for part in parts if part.any())


def _boolean(mask: Array, object_id: int) -> Array:
    if mask.dtype.kind == "b":
        return mask
    try:
        return mask_of_values(mask, name=f"The mask of object {object_id}")
    except ValueError as error:
        raise GeometryError(f"The mask of object {object_id} is none: {error}.") from error


def _crop(mask: Array) -> tuple[tuple[slice, ...], Array]:
    """The box around a mask, and a copy of the mask there."""
    place = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        place.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
    return tuple(place), np.array(mask[tuple(place)])
