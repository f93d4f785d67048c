"""What of a volume is seen: views like those of a session, along any axis, with slices of random
thickness.

A session shows a window at the volume's own voxels if they are few enough, else with equal steps in
millimetres (`limner.sessions.answers.zoom`). Training sees both, and everything between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Shape = tuple[int, int, int]

_WHOLE = 0.2  # share of views that show the whole volume
_NEAR = 0.65  # share of windows about as wide as those of a session
_NEAR_WIDEST, _FAR_WIDEST = 2.2, 5.0  # of the target's size
_CUT = 0.12  # share of windows smaller than the target
_CUT_ACROSS = 0.12  # share of windows that need not hold all slices of the target
_KEPT = 0.85  # share of windows that do not reach beyond the volume
_NATIVE = 0.15  # share of views with the volume's own voxels
_MOST_ENLARGED = 4.0  # voxels of the view per voxel of the volume along an axis
_LEAST_SHOWN = 8.0  # voxels of the view along the longest side of a target in a whole volume
_EVEN = 1.5  # a volume is as good as isotropic up to this ratio of its steps
_THICKEST = 6.0  # slices, in steps within the slice
_GAPS = 0.4  # share of thick slices that are no means over their thickness
_WINDOW = 1.6  # of the target's size: a session's first window
_SLICES = (math.log(4), math.log(40))  # through a target, as they are followed


@dataclass(frozen=True, eq=False)
class View3d:
    """Where a view lies in its volume, in voxels of the volume; the first voxel covers 0 to 1.

    Attributes:
        shape: slices, rows, columns of the view.
        centre: (3,) of the middle.
        steps: (3, 3): voxels of the volume, along its axes, per voxel of the view along the view's
            axes: column 0 is one slice on.
        bend: strength of the elastic bending, in voxels of the view.
        averaged: whether a slice is a mean over its thickness.
    """

    shape: Shape
    centre: Vector
    steps: Vector
    bend: float = 0.0
    averaged: bool = True


def draw_view(
    box: Vector, size: Vector, spacing: Vector, shape: Shape, rng: np.random.Generator
) -> View3d:
    """A random view of a target.

    Args:
        box: (2, 3), of the target in the volume.
        size: of the volume.
        spacing: millimetres per voxel of the volume.
        shape: of the view.
        rng: chooses.
    """
    order = _order(spacing, rng)
    own = spacing[order]
    extent = (box[1] - box[0])[order] * own
    length = size[order] * own
    cells = np.asarray(shape, dtype=np.float64)
    native = rng.random() < _NATIVE and bool((extent <= 0.95 * cells * own).all())
    steps, cut = (own, False) if native else _steps(extent, length, own, cells, rng)
    window = steps * cells
    slack = np.abs((0.7 if cut else 0.95) * window - extent) / 2
    centre = (box.mean(axis=0) * spacing)[order] + rng.uniform(-1, 1, 3) * slack
    if rng.random() < _KEPT:
        half = np.minimum(window, length) / 2
        centre = np.clip(centre, half, length - half)
    turn = np.eye(3)
    if not native:
        turn = _turn(rng, free=bool(steps.max() / steps.min() < _EVEN))
        stretch = float(np.exp(np.clip(rng.normal(0, 0.1), -0.3, 0.3)))
        steps = steps * np.array([1.0, stretch, 1 / stretch])
    mirror = np.where(rng.random(3) < 0.5, -1.0, 1.0)
    directions = np.eye(3)[:, order] @ turn @ np.diag(steps * mirror)  # in mm, the volume's axes
    place = np.empty(3)
    place[order] = centre
    bend = 0.0
    if not native and rng.random() < 0.3:
        bend = float(rng.uniform(0.005, 0.03) * shape[2])
    averaged = bool(native or steps[0] < _EVEN * steps[1] or rng.random() >= _GAPS)
    return View3d(shape, place / spacing, directions / spacing[:, None], bend, averaged)


def draw_slices(
    box: Vector, size: Vector, spacing: Vector, shape: Shape, rng: np.random.Generator
) -> View3d:
    """Some slices through a target, one after the other in either direction, as they are followed:
    the first goes through the target, later ones may have left it. In the image the window is as
    wide as in `draw_view`.

    Args:
        box: (2, 3), of the target in the volume.
        size: of the volume.
        spacing: millimetres per voxel of the volume.
        shape: slices, rows and columns of the view.
        rng: chooses.
    """
    order = _order(spacing, rng)
    own = spacing[order]
    extent = (box[1] - box[0])[order] * own
    length = size[order] * own
    step = _width(extent[1:], length[1:], own[1:], rng) / shape[2]
    step = max(step, float(own[1:].mean()) / _MOST_ENLARGED)
    along = own[0]
    if rng.random() < 0.5:  # as many slices through the target as other scanners would make
        along = float(np.clip(extent[0] / np.exp(rng.uniform(*_SLICES)), own[0] / 2, 6 * own[0]))
    else:
        along = own[0] * float(rng.choice([1, 1, 2, 3]))
    steps = np.array([along, step, step])
    stretch = float(np.exp(np.clip(rng.normal(0, 0.1), -0.3, 0.3)))
    steps = steps * np.array([1.0, stretch, 1 / stretch])
    mirror = np.where(rng.random(3) < 0.5, -1.0, 1.0)
    turn = _about(0, rng.uniform(-math.pi, math.pi) if rng.random() < 0.3 else rng.normal(0, 0.15))
    centre = (box.mean(axis=0) * spacing)[order]
    centre[0] = (box[0, order[0]] + rng.random() * (box[1] - box[0])[order[0]]) * own[0]
    centre[0] += mirror[0] * along * (shape[0] - 1) / 2
    slack = np.abs(0.95 * steps[1:] * shape[2] - extent[1:]) / 2
    centre[1:] += rng.uniform(-1, 1, 2) * slack
    directions = np.eye(3)[:, order] @ turn @ np.diag(steps * mirror)
    place = np.empty(3)
    place[order] = centre
    bend = float(rng.uniform(0.005, 0.03) * shape[2]) if rng.random() < 0.2 else 0.0
    averaged = bool(rng.random() >= _GAPS)
    return View3d(shape, place / spacing, directions / spacing[:, None], bend, averaged)


def _width(extent: Vector, length: Vector, own: Vector, rng: np.random.Generator) -> float:
    """Millimetres along the sides of a square window around a target within the slice."""
    if rng.random() < _WHOLE:
        return float(length.max()) * rng.uniform(0.9, 1.2)
    widest = _NEAR_WIDEST if rng.random() < _NEAR else _FAR_WIDEST
    wider = float(np.exp(rng.uniform(np.log(1.2), np.log(widest))))
    wanted = float((extent * wider).max()) + rng.uniform(0, 36) * float(own.mean())
    return min(wanted, 1.2 * float(length.max()))


def plain_view(box: Vector, size: Vector, spacing: Vector, shape: Shape) -> View3d:
    """The view that a session would begin with: the thickest slices stay slices."""
    order = np.array([int(np.argmax(spacing)), *(k for k in range(3) if k != np.argmax(spacing))])
    own, cells = spacing[order], np.asarray(shape, dtype=np.float64)
    extent, length = (box[1] - box[0])[order] * own, size[order] * own
    wanted = np.minimum(np.maximum(_WINDOW * extent, extent + 24 * own.min()), length)
    steps = own
    if (wanted > cells * own).any():
        steps = np.maximum(own, float((wanted / cells).max()))
    half = np.minimum(steps * cells, length) / 2
    centre = np.clip((box.mean(axis=0) * spacing)[order], half, length - half)
    place = np.empty(3)
    place[order] = centre
    return View3d(shape, place / spacing, np.eye(3)[:, order] @ np.diag(steps) / spacing[:, None])


def _order(spacing: Vector, rng: np.random.Generator) -> NDArray[np.intp]:
    """The volume's axes as slices, rows and columns of the view."""
    thick = int(np.argmax(spacing))
    first = int(rng.integers(3))
    if spacing.max() / spacing.min() > _EVEN and rng.random() < 0.9:
        first = thick
    rest = [k for k in range(3) if k != first]
    if rng.random() < 0.5:
        rest.reverse()
    return np.array([first, *rest])


def _steps(
    extent: Vector, length: Vector, own: Vector, cells: Vector, rng: np.random.Generator
) -> tuple[Vector, bool]:
    """Millimetres per voxel of the view along its axes, and whether it cuts the target."""
    image = float(own[1:].mean())
    ratio = max(1.0, own[0] / image)
    if rng.random() < 0.5:
        ratio = float(np.exp(rng.uniform(np.log(_EVEN), np.log(_THICKEST))))
    per_cell = np.array([ratio, 1.0, 1.0])
    step = float((length / (cells * per_cell)).max()) * rng.uniform(0.95, 1.2)
    whole = rng.random() < _WHOLE and extent.max() / step >= _LEAST_SHOWN
    cut = False
    if not whole:
        widest = _NEAR_WIDEST if rng.random() < _NEAR else _FAR_WIDEST
        wider = float(np.exp(rng.uniform(np.log(1.2), np.log(widest))))
        wanted = extent * wider + rng.uniform(0, 18) * image
        needed = wanted / (cells * per_cell)
        step = float(needed[1:].max() if rng.random() < _CUT_ACROSS else needed.max())
        cut = rng.random() < _CUT
        if cut:
            step *= rng.uniform(0.3, 1.0) / wider
        step = min(step, 1.2 * float((length / (cells * per_cell)).max()))
    return np.maximum(step * per_cell, own / _MOST_ENLARGED), cut


def _turn(rng: np.random.Generator, *, free: bool) -> Vector:
    """A rotation: within slices as in 2D, little out of them; sometimes any, if steps are equal."""
    if free and rng.random() < 0.15:
        quaternion = rng.normal(size=4)
        return _rotation(quaternion / np.linalg.norm(quaternion))
    angle = rng.uniform(-math.pi, math.pi) if rng.random() < 0.3 else rng.normal(0, 0.15)
    turn = _about(0, angle)
    if rng.random() < 0.3:
        turn = turn @ _about(1, rng.normal(0, 0.12)) @ _about(2, rng.normal(0, 0.12))
    return turn


def _about(axis: int, angle: float) -> Vector:
    turn = np.eye(3)
    first, second = (k for k in range(3) if k != axis)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    return turn


def _rotation(q: Vector) -> Vector:
    """Of a unit quaternion."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
