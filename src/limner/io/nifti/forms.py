"""The two affines of a NIfTI header, qform and sform, and what programs make of two that differ."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import GeometryError
from limner.geometry import Geometry
from limner.io._grid import geometry_from_axes

Array = NDArray[Any]

RAS_TO_LPS = np.diag((-1.0, -1.0, 1.0))
_SAME_GRID = 0.1  # of a voxel: forms that differ by less mean the same

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QformApart:
    """A qform that puts the voxels elsewhere than the sform.

    Attributes:
        affine: 4×4 of the qform, index order to LPS millimetres.
        distance: millimetres between the two at the corner where they differ most.
        used_by_itk: ``"qform"`` or ``"sform"``.
    """

    affine: Array
    distance: float
    used_by_itk: str


def qform_apart(
    header: Any, sizes: tuple[int, ...], unit_mm: float, geometry: Geometry
) -> QformApart | None:
    """The qform, where both forms are stated and it lies more than a tenth of a voxel elsewhere.

    ITK takes the sform if its code is 1 (scanner) or if the two differ in the sign of axes only,
    else the qform (measured with SimpleITK 2.5).
    """
    if int(header["qform_code"]) <= 0 or int(header["sform_code"]) <= 0:
        return None
    steps = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not (np.isfinite(steps) & (steps > 0)).all():
        return None
    try:
        affine = _qform(header, steps, Path())
        affine[:3] *= unit_mm
        vectors = (RAS_TO_LPS @ affine[:3, :3]).T
        origin = RAS_TO_LPS @ affine[:3, 3]
        other = geometry_from_axes(Path(), sizes, vectors, origin)
    except GeometryError:  # of no use, so nobody uses it
        return None
    if other.shape != geometry.shape or other.is_close(geometry, tolerance=_SAME_GRID):
        return None
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in other.shape], indexing="ij"), axis=-1)
    gaps = other.index_to_world(corners) - geometry.index_to_world(corners)
    signs_only = np.allclose(np.abs((other.direction * geometry.direction).sum(axis=0)), 1)
    signs_only = signs_only and np.allclose(other.origin, geometry.origin, atol=1e-3)
    by_sform = int(header["sform_code"]) == 1 or signs_only
    distance = float(np.linalg.norm(gaps, axis=-1).max())
    return QformApart(other.affine, distance, "sform" if by_sform else "qform")


def ras_affine(header: Any, sizes: tuple[int, ...], steps: Array, path: Path) -> tuple[Array, bool]:
    """Index (i, j, k) to RAS in the file's unit, and whether the file states a physical size."""
    if int(header["sform_code"]) > 0:
        sform = np.asarray(header.get_sform(), dtype=np.float64)
        used = sform[:3, : len(sizes)][:, np.array(sizes) > 1]
        if np.isfinite(sform).all() and np.linalg.norm(used, axis=0).min(initial=1) > 0:
            return sform, True
        if int(header["qform_code"]) <= 0:
            raise GeometryError(f"{path}: its sform is {sform[:3].tolist()}, which is no grid.")
        _log.warning("%s: its sform is no grid; the qform is used.", path)
    if int(header["qform_code"]) > 0:
        return _qform(header, steps, path), True
    shape = np.array([*sizes, 1, 1][:3])
    affine = np.diag((-steps[0], steps[1], steps[2], 1.0))
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    stated = int(header["xyzt_units"]) & 7 != 0 or bool((steps[: len(sizes)] != 1).any())
    return affine, stated


def _qform(header: Any, steps: Array, path: Path) -> Array:
    from nibabel import quaternions, spatialimages

    to_matrix: Any = quaternions.quat2mat
    try:
        rotation = to_matrix(header.get_qform_quaternion())
    except (spatialimages.HeaderDataError, ValueError) as error:
        raise GeometryError(f"{path}: its qform is no rotation ({error}).") from error
    affine = np.eye(4)
    handedness = -1.0 if float(header["pixdim"][0]) < 0 else 1.0  # 0 counts as 1
    affine[:3, :3] = rotation @ np.diag((steps[0], steps[1], steps[2] * handedness))
    affine[:3, 3] = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]
    return affine
