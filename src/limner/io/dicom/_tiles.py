"""Whole slide images: tiles put together to the total pixel matrix, where that fits in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.dicom._files import Header
from limner.io.dicom._frames import frames_of
from limner.io.dicom._pixels import PixelFormat
from limner.io.dicom._series import Stack

Array = NDArray[Any]

MAX_ASSEMBLED = 1 << 29  # bytes; larger levels of a slide are for tiled readers
TOTAL_COLUMNS = "TotalPixelMatrixColumns"


def is_tiled(header: Header) -> bool:
    """Whether the frames of a file are tiles of one image."""
    return bool(header.dataset.get(TOTAL_COLUMNS))


def stack_of(header: Header) -> Stack:
    """The tiles of a file as one image, described by its first tile."""
    rows, columns = matrix_size(header)
    note = f"whole slide level of {columns}×{rows}"
    return Stack(tuple(frames_of(header, limit=1)), "image", note)


def matrix_size(header: Header) -> tuple[int, int]:
    """Rows and columns of the whole image."""
    dataset = header.dataset
    return int(dataset.TotalPixelMatrixRows), int(dataset.TotalPixelMatrixColumns)


def tile_corners(header: Header, tile: tuple[int, int], num_frames: int) -> list[tuple[int, int]]:
    """(row, column) of the first pixel of each frame in the whole image.

    Raises:
        FormatError: the tiles are several layers (focal planes, optical paths).
    """
    groups = header.dataset.get("PerFrameFunctionalGroupsSequence")
    rows, columns = matrix_size(header)
    if groups and "PlanePositionSlideSequence" in groups[0]:
        places = [g.PlanePositionSlideSequence[0] for g in groups]
        return [
            (
                int(p.RowPositionInTotalImagePixelMatrix) - 1,
                int(p.ColumnPositionInTotalImagePixelMatrix) - 1,
            )
            for p in places
        ]
    across, down = -(-columns // tile[1]), -(-rows // tile[0])
    if num_frames != across * down:
        raise FormatError(
            f"{header.path}: {num_frames} frames are not {down}×{across} tiles of one picture; "
            "several focal planes or optical paths are not supported."
        )
    return [(k // across * tile[0], k % across * tile[1]) for k in range(num_frames)]


def check_size(header: Header, pixel_format: PixelFormat) -> None:
    """Refuse a level of a slide that is too large to be one array."""
    rows, columns = matrix_size(header)
    needed = rows * columns * pixel_format.samples * max(pixel_format.allocated // 8, 1)
    if needed > MAX_ASSEMBLED:
        raise FormatError(
            f"{header.path}: a whole slide level of {rows}×{columns} pixels is too large to read "
            f"at once (limit {MAX_ASSEMBLED >> 20} MiB); choose a smaller level of the pyramid."
        )


def slide_geometry(header: Header) -> Geometry:
    """The grid of the total pixel matrix, in millimetres of the slide coordinate system."""
    dataset = header.dataset
    shape = matrix_size(header)
    shared = dataset.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    spacing = measures[0].get("PixelSpacing") if measures else None
    if spacing is None:
        return Geometry.from_spacing(shape, None)
    row, column = (float(s) for s in spacing)
    cosines = [float(v) for v in dataset.get("ImageOrientationSlide") or (0, -1, 0, -1, 0, 0)]
    axes = np.asarray(cosines).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 2], affine[:3, 1] = axes[0] * column, axes[1] * row
    affine[:3, 0] = np.cross(axes[0], axes[1])
    origin = dataset.get("TotalPixelMatrixOriginSequence")
    if origin:
        names = ("XOffset", "YOffset", "ZOffset")
        values = (origin[0].get(f"{n}InSlideCoordinateSystem") for n in names)
        affine[:3, 3] = [float(v or 0.0) for v in values]
    return Geometry(shape, affine)


def paste(target: Array, tile: Array, corner: tuple[int, int]) -> None:
    """Put a tile into the image; what reaches over its edge is dropped."""
    row, column = corner
    if row < 0 or column < 0:
        raise ValueError(f"a tile lies at row {row}, column {column} of its picture")
    part = target[row : row + tile.shape[0], column : column + tile.shape[1]]
    part[...] = tile[: part.shape[0], : part.shape[1]]
