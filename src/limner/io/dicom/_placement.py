"""Where the pixels of one frame lie on the grid of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry

Array = NDArray[Any]

_OFF_PLACE = 0.2  # of a step: slices may lie a little off their even place
_OFF_PIXEL = 0.25  # pixels, at the far corner of the frame


@dataclass(frozen=True, eq=False)
class FramePlacement:
    """A frame whose pixels are pixels of a slice, perhaps turned, mirrored, transposed or shifted.

    Attributes:
        depth: index of the slice, perhaps between two.
        turn: 2×2 whole numbers, (row, column) steps on the slice per (row, column) step of the
            frame.
        origin: (row, column) on the slice of the frame's first pixel.
    """

    depth: float
    turn: Array
    origin: tuple[int, int]

    @property
    def index(self) -> int | None:
        """The slice, None where the frame lies between slices; may be outside the volume."""
        nearest = round(self.depth)
        return nearest if abs(self.depth - nearest) <= _OFF_PLACE else None

    def put_on(self, mask: Array, shape: tuple[int, int]) -> Array:
        """The mask on a slice.

        Args:
            mask: boolean, (row, column) of the frame.
            shape: rows and columns of the slice; what lies outside is cut off.

        Returns:
            A boolean mask of `shape`.
        """
        if self.origin == (0, 0) and mask.shape == shape and (self.turn == np.eye(2)).all():
            return mask
        put = np.zeros(shape, dtype=np.bool_)
        at = np.argwhere(mask) @ self.turn.T + np.asarray(self.origin)
        at = at[((at >= 0) & (at < np.asarray(shape))).all(axis=1)]
        put[at[:, 0], at[:, 1]] = True
        return put


def place_frame(
    grid: Geometry,
    position: Array,
    axes: Array,
    spacing: tuple[float, float],
    shape: tuple[int, int],
) -> FramePlacement | None:
    """Where a frame lies on a volume, None if its pixels are not pixels of one slice.

    Args:
        grid: of the volume.
        position: LPS millimetres of the frame's first pixel.
        axes: 2×3, unit vectors along increasing column and along increasing row.
        spacing: millimetres per step as (row, column).
        shape: rows and columns of the frame.
    """
    at = np.asarray(grid.world_to_index(position), dtype=np.float64)
    steps = np.stack([axes[1] * spacing[0], axes[0] * spacing[1]])  # along rows, along columns
    moves = steps @ np.linalg.inv(grid.affine[:3, :3]).T
    whole = np.rint(moves)
    whole[:, 0] = 0.0
    drift = np.abs(moves - whole) * np.asarray(shape)[:, None]
    shift = np.rint(at[1:])
    if drift.max() > _OFF_PIXEL or np.abs(at[1:] - shift).max() > _OFF_PIXEL:
        return None
    turn = whole[:, 1:].T.astype(np.int64)
    if sorted(np.abs(turn).ravel()) != [0, 0, 1, 1] or abs(round(np.linalg.det(turn))) != 1:
        return None
    return FramePlacement(float(at[0]), turn, (int(shift[0]), int(shift[1])))
