"""Surfaces of segmentations: closed triangle meshes in patient millimetres, as .stl, .obj or .ply.

Coordinates are LPS, which the head of each file says as 3D Slicer writes and reads it
(``SPACE=LPS``), or RAS where that is requested.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limner.atomic import atomic_bytes
from limner.errors import FormatError, GeometryError
from limner.io.labels import Labels
from limner.io.surfaces.extract import Surface, extract_surface, merge_surfaces
from limner.io.surfaces.formats import ENCODERS

__all__ = [
    "ENCODERS",
    "Surface",
    "extract_surface",
    "is_surface",
    "merge_surfaces",
    "surface_paths",
    "write_surfaces",
]


def is_surface(path: Path) -> bool:
    """Whether a path is named like a surface."""
    return path.suffix.lower() in ENCODERS


def write_surfaces(
    path: Path,
    labels: Labels,
    *,
    objects: Sequence[int] | None = None,
    smoothing: float | None = None,
    together: bool = False,
    world: str = "lps",
) -> dict[Path, list[Surface]]:
    """Write the surfaces of objects on a volume.

    Args:
        path: ``.stl``, ``.obj`` or ``.ply``. Of several objects each gets a file with its name
            before the suffix (`surface_paths`), unless they are written together.
        labels: the objects.
        objects: their ids; None: all that have a voxel.
        smoothing: standard deviation in millimetres of the Gaussian that takes off the steps
            between voxels; None: the smallest spacing; 0: none.
        together: all objects in one file.
        world: ``"lps"`` (DICOM, ITK, 3D Slicer) or ``"ras"``.

    Returns:
        What was written, by file.

    Raises:
        FormatError: an unknown suffix, no such object, or an object without a voxel.
        GeometryError: no volume.
        ValueError: a smoothing below 0, or other coordinates.
    """
    encode = ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise FormatError(f"{path}: surfaces are written as {', '.join(ENCODERS)}.")
    if world not in ("lps", "ras"):
        raise ValueError(f"Coordinates of a surface are lps or ras, not {world!r}.")
    if labels.geometry.ndim != 3:
        raise GeometryError("A surface is that of an object in a volume; this is a 2D image.")
    ids = _chosen(labels, objects)
    flip = (-1.0, -1.0, 1.0) if world == "ras" else (1.0, 1.0, 1.0)
    written: dict[Path, list[Surface]] = {}
    for target, part in surface_paths(path, labels, ids, together=together).items():
        found = [
            extract_surface(
                np.asarray(labels.mask(i), dtype=np.bool_),
                labels.geometry,
                smoothing=smoothing,
                name=labels.name(i),
            )
            for i in part
        ]
        atomic_bytes(target, encode([s.scaled(flip) for s in found], world.upper()))
        written[target] = found
    return written


def surface_paths(
    path: Path, labels: Labels, objects: Sequence[int], *, together: bool
) -> dict[Path, list[int]]:
    """Which objects go into which file."""
    if together or len(objects) == 1:
        return {path: list(objects)}
    paths: dict[Path, list[int]] = {}
    for object_id in objects:
        word = re.sub(r"[^\w.-]+", "_", labels.names.get(object_id, str(object_id))).strip("_.")
        target = path.with_name(f"{path.stem}_{word or object_id}{path.suffix}")
        if target in paths:
            target = path.with_name(f"{path.stem}_{word}_{object_id}{path.suffix}")
        paths[target] = [object_id]
    return paths


def _chosen(labels: Labels, objects: Sequence[int] | None) -> list[int]:
    if objects is None:
        found = [i for i in labels.ids if labels.mask(i).any()]
        if not found:
            raise FormatError("The segmentation holds no voxel of any object; nothing to show.")
        return found
    for object_id in objects:
        if object_id not in labels.ids or not labels.mask(object_id).any():
            known = ", ".join(str(i) for i in labels.ids) or "none"
            raise FormatError(f"There is no voxel of object {object_id}; objects are: {known}.")
    return list(dict.fromkeys(objects))
