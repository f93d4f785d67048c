"""Grids as the ITK family of formats states them (fastest axis first), and the limits of detached
headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry


def geometry_from_axes(
    path: Path,
    sizes: Sequence[int],
    vectors: ArrayLike,
    origin: ArrayLike,
    *,
    has_spacing: bool = True,
) -> Geometry:
    """The geometry of a file that lists its axes from the fastest to the slowest.

    Args:
        path: for the message.
        sizes: pixels per spatial axis, fastest first, 2 or 3.
        vectors: one row per axis: LPS millimetres of one step along it, of 2 or 3 numbers. A row
            that is missing, or zero where the axis has one pixel, becomes the unit normal of the
            other two.
        origin: LPS millimetres of the first pixel, 2 or 3 numbers.
        has_spacing: whether the file states a physical size.

    Raises:
        FormatError: a size is not positive, or there are not 2 or 3 axes.
        GeometryError: a spacing is 0, NaN or infinite, or two axes point the same way.
    """
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        shown = "×".join(str(n) for n in sizes)
        raise FormatError(f"{path}: a grid of {shown} is no image; 2 or 3 axes from 1 pixel on.")
    axes = np.zeros((3, 3))
    given = np.asarray(vectors, dtype=np.float64)
    axes[: len(given), : given.shape[1]] = given
    if not np.isfinite(axes).all() or not np.isfinite(np.asarray(origin)).all():
        raise GeometryError(
            f"{path}: the spacing, direction or origin is not finite; correct the header first."
        )
    _complete(axes, sizes)
    affine = np.eye(4)
    affine[:3, :3] = axes[::-1].T
    affine[: np.size(origin), 3] = origin
    steps = np.linalg.norm(axes[: len(sizes)], axis=1)
    if steps.min() <= 0:
        shown = "×".join(f"{s:g}" for s in steps)
        raise GeometryError(
            f"{path}: its spacing is {shown} mm (fastest axis first); every spacing must be above "
            "0. Correct the header first."
        )
    try:
        return Geometry(tuple(sizes)[::-1], affine, has_spacing=has_spacing)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _complete(axes: NDArray[np.float64], sizes: Sequence[int]) -> None:
    """Turn zero rows of one-pixel axes into the unit normal of the others, in place."""
    for k in range(3):
        if not axes[k].any() and (k >= len(sizes) or sizes[k] == 1):
            normal = np.cross(axes[k - 2], axes[k - 1])
            length = np.linalg.norm(normal)
            axes[k] = normal / length if length > 0 else axes[k]


def as_written(geometry: Geometry) -> Geometry:
    """The grid as ITK can hold it.

    ITK's 2D images lie in the plane of the patient's x and y, through the origin. A single slice
    that lies anywhere else becomes a volume of one slice, else ITK, 3D Slicer and ITK-SNAP refuse
    it or put it elsewhere.
    """
    if geometry.ndim == 3 or len(axes_of(geometry)[1]) == 2:
        return geometry
    return Geometry((1, *geometry.shape), geometry.affine, has_spacing=geometry.has_spacing)


def axes_of(geometry: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse of `geometry_from_axes`: rows of LPS vectors, fastest axis first, and the origin.

    A 2D image that lies in the plane of the patient's x and y, through the origin, gives vectors of
    2 numbers (as ITK writes it), any other vectors of 3.
    """
    vectors = geometry.affine[:3, 3 - geometry.ndim : 3].T[::-1].copy()
    origin = geometry.affine[:3, 3].copy()
    if geometry.ndim == 2 and not vectors[:, 2].any() and origin[2] == 0:
        return vectors[:, :2], origin[:2]
    return vectors, origin
