"""Marching cubes on a mask: closed, outward, with the volume of the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry

_REACH = 4.0  # of the Gaussian, in standard deviations
_MOST_TRIED = 1 << 22  # voxels up to which the level is tried on the surface itself
_OFF = 0.002  # of the largest value: voxels are at least so far from the level
_CLOSE = 0.002  # of the volume
_STEPS = 8


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface.

    Attributes:
        vertices: ``(n, 3)`` float64, LPS millimetres.
        faces: ``(m, 3)`` indices of vertices, counterclockwise seen from outside.
        name: of the object.
        voxels: volume of its voxels, mm³.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    name: str
    voxels: float

    @property
    def volume(self) -> float:
        """Enclosed volume, mm³."""
        return signed_volume(self.vertices, self.faces)

    def scaled(self, factors: Sequence[float]) -> Surface:
        """The same with coordinates multiplied per axis, still outward."""
        faces = self.faces if np.prod(factors) > 0 else self.faces[:, ::-1]
        return Surface(self.vertices * np.asarray(factors), faces, self.name, self.voxels)


def extract_surface(
    mask: NDArray[np.bool_], geometry: Geometry, *, smoothing: float | None = None, name: str = ""
) -> Surface:
    """The surface of a mask.

    The mask is smoothed, and the level at which the surface runs is the one that encloses the
    volume of the voxels: a plain level of one half would shrink whatever is small. Lewiner et al.
    2003, https://doi.org/10.1080/10867651.2003.10487582 (scikit-image).

    Args:
        mask: boolean, ``(slice, row, column)``, at least one True. What touches the border is
            closed there.
        geometry: where it lies; may be oblique and anisotropic.
        smoothing: standard deviation in millimetres; None: the smallest spacing; 0: none.
        name: of the object.

    Raises:
        ValueError: a smoothing below 0, or no voxel.
    """
    smoothing = min(geometry.spacing) if smoothing is None else smoothing
    if not smoothing >= 0 or not np.isfinite(smoothing):
        raise ValueError(f"Smoothing is in millimetres, from 0, not {smoothing}.")
    if not mask.any():
        raise ValueError("A mask without a voxel has no surface.")
    field, low = _smoothed(mask, geometry, smoothing)
    target = int(np.count_nonzero(mask)) * geometry.voxel_volume
    level = _level(field, int(np.count_nonzero(mask)))
    vertices, faces = _march(field, level, low, geometry)
    if field.size <= _MOST_TRIED:
        vertices, faces = _fit_volume(field, level, target, low, geometry)
    return Surface(vertices, faces, name, target)


def signed_volume(vertices: NDArray[np.float64], faces: NDArray[Any]) -> float:
    """Volume within closed faces; negative where they face inwards."""
    centred = vertices - vertices.mean(axis=0)
    a, b, c = (centred[faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def merge_surfaces(surfaces: Sequence[Surface]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices and faces of several surfaces as one."""
    starts = np.cumsum([0, *(len(s.vertices) for s in surfaces)])
    faces = [s.faces + start for s, start in zip(surfaces, starts[:-1], strict=True)]
    return np.concatenate([s.vertices for s in surfaces]), np.concatenate(faces)


def _smoothed(
    mask: NDArray[np.bool_], geometry: Geometry, smoothing: float
) -> tuple[NDArray[np.float32], list[int]]:
    """The box around a mask with background on every side, smoothed; and where the box begins."""
    from scipy import ndimage

    sigma = [smoothing / s for s in geometry.spacing]
    low, parts, pads = [], [], []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        pad = 2 + int(np.ceil(_REACH * sigma[axis]))
        parts.append(slice(int(found[0]), int(found[-1]) + 1))
        pads.append((pad, pad))
        low.append(int(found[0]) - pad)
    field = np.pad(mask[tuple(parts)].astype(np.float32), pads)
    if smoothing > 0:
        field = ndimage.gaussian_filter(field, sigma, mode="constant", truncate=_REACH)
    for axis in range(3):  # background for certain, so that the surface is closed
        for end in (0, -1):
            field[(slice(None),) * axis + (end,)] = 0
    return field, low


def _level(field: NDArray[np.float32], count: int) -> float:
    """The level above which as many voxels lie as the mask has."""
    values = np.partition(field.ravel(), field.size - count)
    level = float(values[field.size - count])
    above = field[field > level]
    higher = float(above.min()) if above.size else level
    below = float(values[: field.size - count].max(initial=0.0))
    return min(max((below + level) / 2 if level > below else (level + higher) / 2, 1e-3), 0.999)


def _fit_volume(
    field: NDArray[np.float32], level: float, target: float, low: list[int], geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The surface at the level near the one given that encloses a volume."""
    lowest, highest = 1e-4, float(field.max()) * (1 - 1e-4)
    best: tuple[float, NDArray[np.float64], NDArray[np.int64]] | None = None
    for _ in range(_STEPS):
        vertices, faces = _march(field, level, low, geometry)
        found = signed_volume(vertices, faces)
        away = abs(found - target)
        if best is None or away < best[0]:
            best = (away, vertices, faces)
        if away <= _CLOSE * target:
            break
        lowest, highest = (level, highest) if found > target else (lowest, level)
        level = (lowest + highest) / 2
    assert best is not None
    return best[1], best[2]


def _march(
    field: NDArray[np.float32], level: float, low: list[int], geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from skimage import measure

    marching_cubes: Any = measure.marching_cubes  # which has no types

    # A corner that lies on the surface would be several vertices in one place, and no reader could
    # tell them apart.
    least = _OFF * float(field.max())
    on_it = np.abs(field - level) < least
    apart = np.where(field > level, level + least, level - least)
    points, faces, _, _ = marching_cubes(np.where(on_it, apart, field), level)
    vertices = geometry.index_to_world(np.asarray(points, dtype=np.float64) + low)
    faces = np.asarray(faces, dtype=np.int64)
    if signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1]
    return vertices, faces
