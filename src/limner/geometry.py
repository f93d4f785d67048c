"""The grid of an image in patient space: shape, spacing and affine.

One convention holds everywhere inside limner. Indices are ``(row, column)`` in 2D,
``(slice, row, column)`` in 3D and ``(frame, row, column)`` in video; ``affine`` maps an index to
patient millimetres in LPS (DICOM PS3.3 C.7.6.2.1.1, ITK). Foreign conventions are converted in
``limner.io`` and ``limner.prompts.convert``, nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.errors import GeometryError

Array = NDArray[Any]

ORTHOGONALITY_TOLERANCE = 1e-3  # cosine between two axes; 1e-3 is 0.06 degrees
_LETTERS = ("RL", "AP", "IS")  # towards the low and the high end of each LPS axis


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the pixels of an image are.

    Attributes:
        shape: pixels per spatial axis, 2 or 3 integers in index order (channels are not counted).
        affine: 4×4 float64, homogeneous index ``(slice, row, column, 1)`` to LPS millimetres. A 2D
            image is slice 0. In a video the first column is the unit normal of the frames.
        has_spacing: False where the file states no physical size; one pixel then counts as 1 mm.
    """

    shape: tuple[int, ...]
    affine: Array = field(default_factory=lambda: _affine_from_spacing((1.0, 1.0, 1.0)))
    has_spacing: bool = True

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise GeometryError(f"A grid has 2 or 3 axes of at least one pixel, not shape {shape}.")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"An affine is 4×4 and finite, not {affine.tolist()}.")
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if sizes.min() <= 0:
            raise GeometryError(
                f"The affine gives spacing {sizes.tolist()}; every spacing must be above 0 mm."
            )
        if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
            raise GeometryError("The affine is singular: two of its axes point the same way.")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float] | None = None,
        *,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        direction: ArrayLike | None = None,
    ) -> Geometry:
        """Build a geometry from its parts.

        Args:
            shape: 2 or 3 integers in index order.
            spacing: millimetres per step, one per axis in index order; None if unknown.
            origin: LPS millimetres of the centre of the first pixel.
            direction: 3×3, column ``k`` is the LPS unit vector along index axis ``k`` of
                ``(slice, row, column)``. Default: columns run to the left, rows to the back, slices
                up.
        """
        ndim = len(shape)
        steps = (1.0,) * ndim if spacing is None else tuple(float(s) for s in spacing)
        if len(steps) != ndim:
            raise GeometryError(f"Spacing {steps} has {len(steps)} numbers for {ndim} axes.")
        if not all(np.isfinite(steps)) or min(steps) <= 0:
            raise GeometryError(f"Spacing {steps} must be finite and above 0 mm on every axis.")
        full = steps if ndim == 3 else (1.0, *steps)
        affine = _affine_from_spacing(full)
        if direction is not None:
            affine[:3, :3] = np.asarray(direction, dtype=np.float64) * np.asarray(full)
        affine[:3, 3] = origin
        return cls(tuple(shape), affine, has_spacing=spacing is not None)

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per step in index order (1.0 per pixel where `has_spacing` is False)."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(s) for s in sizes[3 - self.ndim :])

    @property
    def origin(self) -> tuple[float, float, float]:
        """LPS millimetres of the centre of the first pixel."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def direction(self) -> Array:
        """3×3: column ``k`` is the LPS unit vector along axis ``k`` of ``(slice, row, column)``."""
        return np.asarray(self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles; False for sheared grids (a tilted gantry)."""
        cosines = np.abs(self.direction.T @ self.direction - np.eye(3))
        return bool(cosines.max() < ORTHOGONALITY_TOLERANCE)

    @property
    def orientation(self) -> str:
        """The nearest patient direction in which each index axis increases, such as ``"SPL"``."""
        direction = self.direction[:, 3 - self.ndim :]
        nearest = np.abs(direction).argmax(axis=0)
        return "".join(
            _LETTERS[axis][int(direction[axis, k] > 0)] for k, axis in enumerate(nearest)
        )

    @property
    def voxel_volume(self) -> float:
        """Cubic millimetres of one voxel in 3D, square millimetres of one pixel in 2D."""
        if self.ndim == 2:
            return float(np.linalg.norm(np.cross(self.affine[:3, 1], self.affine[:3, 2])))
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def format_size(self, count: int) -> str:
        """The area, or in 3D the volume, of so many pixels, with its unit.

        Examples:
            >>> Geometry.from_spacing((4, 4), (0.5, 0.5)).format_size(10)
            '2.5 mm²'
        """
        size, power = count * self.voxel_volume, "²" if self.ndim == 2 else "³"
        if 0 < size < 1e-3:  # cells
            return f"{size * 1000.0**self.ndim:,.4g} µm{power}"
        if self.ndim == 3 and (size >= 1 or not size):
            size, unit, digits = size / 1000.0, "ml", 2
        else:
            unit, digits = f"mm{power}", 1
        return f"{f'{size:,.{digits}f}' if size >= 1 or not size else f'{size:.4g}'} {unit}"

    def index_to_world(self, index: ArrayLike) -> Array:
        """Map indices ``(…, ndim)`` in index order to LPS millimetres ``(…, 3)``.

        Examples:
            >>> geometry = Geometry.from_spacing((20, 64, 64), (2.5, 0.7, 0.7), origin=(10, 20, 30))
            >>> geometry.index_to_world([1, 0, 0]).tolist()
            [10.0, 20.0, 32.5]
        """
        points = np.asarray(index, dtype=np.float64)
        self._check_last_axis(points, self.ndim, "An index")
        matrix = self.affine[:3, 3 - self.ndim : 3]
        return np.asarray(points @ matrix.T + self.affine[:3, 3])

    def world_to_index(self, world: ArrayLike) -> Array:
        """Map LPS millimetres ``(…, 3)`` to fractional indices ``(…, ndim)`` in index order.

        In 2D the distance from the plane is dropped.
        """
        points = np.asarray(world, dtype=np.float64)
        self._check_last_axis(points, 3, "A world point")
        inverse = np.linalg.inv(self.affine[:3, :3])
        return np.asarray(((points - self.affine[:3, 3]) @ inverse.T)[..., 3 - self.ndim :])

    def crop(self, low: Sequence[int], high: Sequence[int]) -> Geometry:
        """The grid of ``array[low:high]``; bounds in index order, half-open; negative low pads."""
        shape = tuple(int(b) - int(a) for a, b in zip(low, high, strict=True))
        return Geometry(shape, self._moved_to(low), self.has_spacing)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Geometry:
        """The grid with `before` and `after` pixels added per axis, in index order."""
        low = [-int(b) for b in before]
        return self.crop(low, [n + int(a) for n, a in zip(self.shape, after, strict=True)])

    def resampled(self, shape: Sequence[int]) -> Geometry:
        """The grid of the same extent (outer pixel edges) with another number of pixels."""
        target = np.asarray(shape, dtype=np.float64)
        ratio = np.asarray(self.shape, dtype=np.float64) / target
        affine = self._moved_to((ratio - 1.0) / 2.0)  # centre of the first new pixel
        affine[:3, 3 - self.ndim : 3] *= ratio
        return Geometry(tuple(int(n) for n in shape), affine, self.has_spacing)

    def slice_at(self, index: int, axis: int = 0) -> Geometry:
        """The 2D grid of slice or frame `index` of a 3D grid, across an axis."""
        if self.ndim != 3:
            raise GeometryError(f"Only a 3D grid has slices; this one has shape {self.shape}.")
        rest = [k for k in range(3) if k != axis]
        affine = self._moved_to([index if k == axis else 0 for k in range(3)])
        shape = tuple(self.shape[k] for k in rest)
        return Geometry(shape, affine[:, [axis, *rest, 3]], self.has_spacing)

    def plane(self, index: int, axis: int = 0) -> Geometry:
        """Deprecated name of `slice_at`."""
        message = "Geometry.plane is now Geometry.slice_at"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.slice_at(index, axis)

    def is_close(self, other: Geometry, *, tolerance: float = 1e-3) -> bool:
        """Same shape, and every corner within `tolerance` times the smallest spacing."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), axis=-1)
        gap = np.linalg.norm(self.index_to_world(corners) - other.index_to_world(corners), axis=-1)
        return bool(gap.max() <= tolerance * min(self.spacing))

    def to_json(self) -> dict[str, Any]:
        """The geometry as JSON values: shape, affine, has_spacing."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "has_spacing": self.has_spacing,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Geometry:
        """Inverse of `to_json`."""
        return cls(
            tuple(value["shape"]), np.asarray(value["affine"]), has_spacing=value["has_spacing"]
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.has_spacing == other.has_spacing
            and bool(np.array_equal(self.affine, other.affine))
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.has_spacing, self.affine.tobytes()))

    def _moved_to(self, index: ArrayLike) -> Array:
        affine = np.array(self.affine)
        affine[:3, 3] = self.index_to_world(index)
        return affine

    @staticmethod
    def _check_last_axis(points: Array, size: int, what: str) -> None:
        if points.ndim == 0 or points.shape[-1] != size:
            raise GeometryError(f"{what} has {size} numbers here, not shape {points.shape}.")


def resample(
    array: ArrayLike, source: Geometry, target: Geometry, *, order: int = 1, fill: float = 0.0
) -> Array:
    """Sample an array that lives on `source` at the pixels of `target`, in world space.

    Args:
        array: values of shape ``source.shape``.
        source: its grid.
        target: the wanted grid, with as many axes.
        order: 0 nearest neighbour (labels), 1 linear.
        fill: value outside the source, which ends at the outer edges of its pixels.

    Returns:
        Array of ``target.shape`` with the dtype of `array`.
    """
    from scipy import ndimage

    values = np.asarray(array)
    if values.shape != source.shape:
        raise GeometryError(f"Array of shape {values.shape} does not fill grid {source.shape}.")
    if source.ndim != target.ndim:
        raise GeometryError(f"Cannot resample {source.ndim}D onto {target.ndim}D.")
    full = np.linalg.inv(source.affine) @ target.affine
    start = 3 - source.ndim
    matrix, offset = full[start:3, start:3], full[start:3, 3]
    # SciPy's plain "constant" mode ends the source at the centres of its outer pixels, which would
    # give a finer grid a rim of `fill`.
    nearest = {"order": 0, "mode": "grid-constant"}
    if order == 0:
        sampled = ndimage.affine_transform(
            values, matrix, offset, target.shape, cval=fill, **nearest
        )
        return np.asarray(sampled)
    sampled = ndimage.affine_transform(
        values, matrix, offset, target.shape, order=order, mode="nearest"
    )
    everywhere = np.ones(values.shape, dtype=np.uint8)
    inside = ndimage.affine_transform(everywhere, matrix, offset, target.shape, cval=0, **nearest)
    sampled[inside == 0] = fill
    return np.asarray(sampled)


def _affine_from_spacing(spacing: Sequence[float]) -> Array:
    """Slices up (z), rows to the back (y), columns to the left (x): ITK's identity direction."""
    affine = np.zeros((4, 4))
    for axis, step in enumerate(spacing):
        affine[2 - axis, axis] = step
    affine[3, 3] = 1.0
    return affine
