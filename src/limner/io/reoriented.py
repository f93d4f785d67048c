"""Volumes with another slicing axis first; what is written is as stored."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import GeometryError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels


class Reoriented(Image):
    """A volume with another axis first; its pixels are those of the volume, not copied.

    Args:
        stored: the volume.
        axis: 1 or 2, which of its axes comes first; the two others stay in their order.

    Raises:
        GeometryError: no volume, or it has no such axis.
    """

    def __init__(self, stored: Image, axis: int) -> None:
        if stored.kind != "volume":
            raise GeometryError(
                f"Only a volume has slices across axis {axis}, not a {stored.kind}."
            )
        if axis not in (1, 2):
            raise GeometryError(f"A volume has slices across axis 0, 1 or 2, not {axis!r}.")
        self.stored, self.axis = stored, axis
        super().__init__(
            lambda: np.moveaxis(stored.array, axis, 0),
            reorient_geometry(stored.geometry, axis),
            kind="volume",
            modality=stored.modality,
            dtype=stored.dtype,
            num_channels=stored.num_channels,
            channel_kind=stored.channel_kind,
            path=stored.path,
            format=stored.format,
            metadata=stored.metadata,
        )
        self.read_options = {**stored.read_options, "axis": axis}


def reorient_geometry(geometry: Geometry, axis: int) -> Geometry:
    """The same grid with another axis first."""
    order = [axis, *(k for k in range(3) if k != axis)]
    shape = tuple(geometry.shape[k] for k in order)
    return Geometry(shape, geometry.affine[:, [*order, 3]], geometry.has_spacing)


def labels_as_stored(labels: Labels, image: Reoriented) -> Labels:
    """Labels drawn on a volume seen along another axis, on the volume as stored."""
    return _move_axis(labels, image.stored.geometry, 0, image.axis)


def labels_as_reoriented(labels: Labels, image: Reoriented) -> Labels:
    """Inverse of `labels_as_stored`."""
    return _move_axis(labels, image.geometry, image.axis, 0)


def _move_axis(labels: Labels, geometry: Geometry, source: int, target: int) -> Labels:
    def mask(object_id: int) -> NDArray[Any]:
        return np.moveaxis(labels.mask(object_id), source, target)

    facts: dict[str, Any] = {"names": labels.names, "manifest": labels.manifest}
    if not labels.is_label_map:
        masks = {i: partial(mask, i) for i in labels.ids}
        return Labels(geometry, masks=masks, priority=labels.priority, **facts)
    flat = np.moveaxis(np.asarray(labels.to_array()), source, target)
    return Labels(geometry, array=flat, **facts)
