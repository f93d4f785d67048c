"""Labels on the grid of their image: the same grid, or the same voxels in another order of axes.

Nothing is resampled. Two grids hold the same voxels where one becomes the other by exchanging and
reversing axes, as dcm2niix, ITK and nibabel do between DICOM and NIfTI; labels are then put into
the order of the image.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import GeometryError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels

Array = NDArray[Any]

SAME_GRID = 0.1  # of a pixel: headers rounded by another program still mean the same grid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """Axes exchanged and reversed.

    Attributes:
        order: which axis comes first, second, …
        reversed_axes: of the result, those that run the other way.
    """

    order: tuple[int, ...]
    reversed_axes: tuple[int, ...]

    def geometry(self, grid: Geometry) -> Geometry:
        """The grid of the turned array."""
        affine = np.array(grid.affine)
        affine[:, :3] = grid.affine[:, list(self.order)]
        shape = tuple(grid.shape[k] for k in self.order)
        for axis in self.reversed_axes:
            affine[:, 3] += affine[:, axis] * (shape[axis] - 1)
            affine[:, axis] *= -1
        return Geometry(shape, affine, grid.has_spacing)

    def array(self, values: Array) -> Array:
        """Values with the first three axes turned, as a view."""
        axes = (*self.order, *range(3, values.ndim))
        return np.flip(values.transpose(axes), self.reversed_axes)


def turn_towards(own: Geometry, wanted: Geometry) -> Turn | None:
    """How the axes of one volume are put into the order and direction of another's.

    None where two axes point the same way most.
    """
    cosines = own.direction.T @ wanted.direction
    order = np.abs(cosines).argmax(axis=0)
    if len(set(order.tolist())) < 3:
        return None
    against = tuple(k for k in range(3) if cosines[order[k], k] < 0)
    return Turn(tuple(int(k) for k in order), against)


def place_on_grid(
    labels: Labels,
    wanted: Geometry,
    path: Path | None,
    *,
    placeless: bool,
    image: Image | None = None,
) -> Labels:
    """Labels on the grid of their image.

    Args:
        labels: on a grid of their own.
        wanted: the image's grid.
        path: of the labels, for the message.
        placeless: their format knows a spacing at most, so only that is compared.
        image: the image, which may state a second place (see `limner.io.nifti`).

    Raises:
        GeometryError: they have another shape, or lie elsewhere.
    """
    found = _placed(labels, wanted, placeless)
    if found is not None:
        return found
    other = None if image is None else image.metadata.get("qform_affine")
    if other is not None:
        found = _placed(labels, Geometry(wanted.shape, np.array(other)), placeless)
    if found is not None:
        _log.warning(
            "%s lies where the qform of the image puts it, not the sform; it is taken voxel by "
            "voxel.",
            "The segmentation" if path is None else path,
        )
        found.geometry = wanted
        return found
    raise _elsewhere(labels.geometry, wanted, path)


def _placed(labels: Labels, wanted: Geometry, placeless: bool) -> Labels | None:
    own, target = _lifted(labels.geometry), _lifted(wanted)
    known = own.has_spacing and not (
        placeless and np.allclose(labels.geometry.spacing, wanted.spacing, rtol=0.01)
    )
    if own.shape == target.shape and (not known or own.is_close(target, tolerance=SAME_GRID)):
        if labels.geometry.ndim != wanted.ndim:
            return labels.on_grid(wanted)
        found = copy.copy(labels)
        found.geometry = wanted
        return found
    turn = turn_towards(own, target) if known and not placeless else None
    if turn is None or not turn.geometry(own).is_close(target, tolerance=SAME_GRID):
        return None
    _log.info("Axes of the segmentation are reordered, %s to %s.", own.orientation, turn.order)
    return _turned(labels, turn, wanted)


def _lifted(geometry: Geometry) -> Geometry:
    """A 2D grid as a volume of one slice."""
    if geometry.ndim == 3:
        return geometry
    return Geometry((1, *geometry.shape), geometry.affine, geometry.has_spacing)


def _turned(labels: Labels, turn: Turn, wanted: Geometry) -> Labels:
    """The labels in another order of axes, on the wanted grid, which may be 2D."""
    lifted = _lifted(labels.geometry).shape

    def turned(values: Array) -> Array:
        return turn.array(values.reshape(lifted)).reshape(wanted.shape)

    def mask(object_id: int) -> Array:
        return turned(labels.mask(object_id))

    facts: dict[str, Any] = {"names": labels.names, "manifest": labels.manifest}
    if labels.is_label_map:
        return Labels(wanted, array=turned(np.asarray(labels.to_array())), **facts)
    masks = {i: partial(mask, i) for i in labels.ids}
    return Labels(wanted, masks=masks, priority=labels.priority, **facts)


def _elsewhere(own: Geometry, wanted: Geometry, path: Path | None) -> GeometryError:
    name = "The segmentation" if path is None else str(path)
    if own.shape != wanted.shape:
        return GeometryError(
            f"{name} has shape {own.shape} and the image {wanted.shape}; a mask has exactly the "
            "shape of its image. Resample it first, or name the image it was drawn on."
        )
    return GeometryError(
        f"{name} lies elsewhere than the image: origin {_join(own.origin)}, spacing "
        f"{_join(own.spacing)}, {own.orientation}; the image has {_join(wanted.origin)}, "
        f"{_join(wanted.spacing)}, {wanted.orientation}. Resample it first."
    )


def _join(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{x:.5g}" for x in numbers) + ")"
