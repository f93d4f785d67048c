"""How well two masks agree: overlap (Dice, IoU) and distance between surfaces (HD95, ASSD, NSD).

What counts as the surface is a matter of definition, and two are in use that disagree on the same
masks. Every function that needs a surface takes ``definition``:

- ``"surfels"`` (default): the surface that marching cubes lays between the voxels (marching squares
  in 2D), cut into one element per 2×2×2 (2×2) neighbourhood, weighted by its area (length) in
  millimetres. This is what DeepMind's ``surface-distance`` computes (Nikolov et al. 2018,
  https://arxiv.org/abs/1809.04430) and what the MICCAI FLARE and CVPR challenges score with. It is
  the default because an element counts for the area it covers, where a count of voxels favours the
  finely sampled directions of anisotropic images.
- ``"voxels"``: the mask's voxels that have a face neighbour outside it, each counting once. This is
  what MONAI computes unless it is told ``use_subvoxels``.

In both, everything beyond the image is background, so an object cut by the image's edge has a
surface there, and the distance of an element is that to the nearest element of the other surface.

Empty masks: two of them agree (Dice, IoU, NSD 1.0; distances 0.0), one of them agrees with nothing
(Dice, IoU, NSD 0.0; distances infinite): FLARE's rule for Dice and NSD, and its only counterpart
for distances. MONAI and ``surface-distance`` give NaN for the overlap of two empty masks, which
silently drops out of an average; ours counts. Averages of distances must say what they do with
infinity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
_RING = ((0, 0), (1, 0), (1, 1), (0, 1))  # corners of a square, in order
Definition: TypeAlias = Literal["surfels", "voxels"]
Spacing: TypeAlias = Sequence[float] | None


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between the surfaces of two masks, element by element.

    Attributes:
        a_to_b: millimetres from every element of a's surface to the nearest of b's, ascending.
        b_to_a: the other way.
        a_weights: area (in 2D length) of the elements of `a_to_b`; each 1 with ``"voxels"``.
        b_weights: those of `b_to_a`.
        definition: of the surface, see the module.
    """

    a_to_b: NDArray[np.float64]
    b_to_a: NDArray[np.float64]
    a_weights: NDArray[np.float64]
    b_weights: NDArray[np.float64]
    definition: Definition

    def hausdorff(self, percentile: float = 100.0) -> float:
        """See `limner.metrics.hausdorff`."""
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile={percentile} must be from 0 to 100.")
        if not self.a_to_b.size and not self.b_to_a.size:
            return 0.0
        return max(
            self._percentile(self.a_to_b, self.a_weights, percentile),
            self._percentile(self.b_to_a, self.b_weights, percentile),
        )

    def assd(self) -> float:
        """See `limner.metrics.assd`."""
        total = float(self.a_weights.sum() + self.b_weights.sum())
        if total == 0:
            return 0.0
        return float(self.a_to_b @ self.a_weights + self.b_to_a @ self.b_weights) / total

    def nsd(self, tolerance: float) -> float:
        """See `limner.metrics.nsd`."""
        if not (np.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance={tolerance} must be finite and not below 0 mm.")
        total = float(self.a_weights.sum() + self.b_weights.sum())
        if total == 0:
            return 1.0
        near_a = self.a_weights[self.a_to_b <= tolerance].sum()
        near_b = self.b_weights[self.b_to_a <= tolerance].sum()
        return float(near_a + near_b) / total

    def _percentile(self, distances: Array, weights: Array, percentile: float) -> float:
        if not distances.size:
            return float("inf")
        if percentile == 100:  # the cumulated weights may miss 1.0 by rounding
            return float(distances[-1])
        if self.definition == "voxels":
            if np.isinf(distances[0]):  # interpolation would give NaN
                return float("inf")
            return float(np.percentile(distances, percentile))
        share = np.cumsum(weights) / weights.sum()
        place = int(np.searchsorted(share, percentile / 100.0))
        return float(distances[min(place, distances.size - 1)])


@dataclass(frozen=True)
class Scores:
    """The measures of one object, each as the function of its name gives it."""

    dice: float
    iou: float
    hd95: float
    assd: float
    nsd: float


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Dice coefficient ``2 |a ∩ b| / (|a| + |b|)`` of two masks of any shape, 0…1.

    Args:
        a: mask; every value but 0 is inside.
        b: mask of the same shape.

    Raises:
        TypeError: a mask is no array of numbers or booleans with one axis or more.
        ValueError: the shapes differ.
    """
    first, second = _masks(a, b)
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / total if total else 1.0


def iou(a: ArrayLike, b: ArrayLike) -> float:
    """Intersection over union (Jaccard index) of two masks of any shape, 0…1.

    Arguments and errors as for `dice`.
    """
    first, second = _masks(a, b)
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def hd95(
    a: ArrayLike, b: ArrayLike, spacing: Spacing = None, *, definition: Definition = "surfels"
) -> float:
    """95th percentile of the Hausdorff distance in millimetres; see `hausdorff`."""
    return hausdorff(a, b, spacing, percentile=95.0, definition=definition)


def hausdorff(
    a: ArrayLike,
    b: ArrayLike,
    spacing: Spacing = None,
    *,
    percentile: float = 100.0,
    definition: Definition = "surfels",
) -> float:
    """Hausdorff distance, or a percentile of it, in millimetres.

    The percentile is taken in each direction and the larger of the two is returned. With
    ``"surfels"`` it is the smallest distance below which that share of the *area* lies; with
    ``"voxels"`` the percentile of the voxels' distances, linearly interpolated.

    Args:
        a: 2D or 3D mask; every value but 0 is inside.
        b: mask of the same shape.
        spacing: millimetres per step in index order; 1 on each axis if None.
        percentile: 0…100; 100 is the maximum.
        definition: of the surface, see the module.

    Raises:
        TypeError: a mask is no array of numbers or booleans.
        ValueError: the shapes differ, the masks are not 2D or 3D, or an argument is out of range.
    """
    return surface_distances(a, b, spacing, definition=definition).hausdorff(percentile)


def assd(
    a: ArrayLike, b: ArrayLike, spacing: Spacing = None, *, definition: Definition = "surfels"
) -> float:
    """Average symmetric surface distance in millimetres.

    The mean over the elements of both surfaces together, weighted by area with ``"surfels"``. (The
    mean of the two directed means, which some packages call by the same name, is another number
    where the surfaces differ in size.) Arguments and errors as for `hausdorff`.
    """
    return surface_distances(a, b, spacing, definition=definition).assd()


def nsd(
    a: ArrayLike,
    b: ArrayLike,
    spacing: Spacing = None,
    *,
    tolerance: float,
    definition: Definition = "surfels",
) -> float:
    """Normalised surface Dice: the share of both surfaces within `tolerance` of the other, 0…1.

    Args:
        a: 2D or 3D mask; every value but 0 is inside.
        b: mask of the same shape.
        spacing: millimetres per step in index order; 1 on each axis if None.
        tolerance: millimetres; an element exactly as far away still counts as near.
        definition: of the surface, see the module.

    Raises:
        TypeError: as for `hausdorff`.
        ValueError: as for `hausdorff`; or `tolerance` is negative or not finite.
    """
    return surface_distances(a, b, spacing, definition=definition).nsd(tolerance)


def surface_distances(
    a: ArrayLike, b: ArrayLike, spacing: Spacing = None, *, definition: Definition = "surfels"
) -> SurfaceDistances:
    """All distances between the surfaces of two masks, for several measures at once.

    Works in the bounding box of both masks, over their surface elements only: memory grows with the
    surface, not with the volume. Arguments and errors as for `hausdorff`.
    """
    first, second = _masks(a, b)
    if first.ndim not in (2, 3):
        raise ValueError(f"Surfaces are measured in 2D and 3D masks, not in shape {first.shape}.")
    steps = _spacing(spacing, first.ndim)
    if definition not in ("surfels", "voxels"):
        raise ValueError(f"definition={definition!r} is unknown; use 'surfels' or 'voxels'.")
    window = _bounding_box(first, second)
    surfaces = [_surface(np.pad(mask[window], 1), steps, definition) for mask in (first, second)]
    (a_places, a_weights), (b_places, b_weights) = surfaces
    a_to_b, b_to_a = _nearest(a_places, b_places, steps), _nearest(b_places, a_places, steps)
    # Ties are ordered by weight, so that percentiles do not depend on the order of the voxels.
    a_order, b_order = np.lexsort((a_weights, a_to_b)), np.lexsort((b_weights, b_to_a))
    return SurfaceDistances(
        a_to_b[a_order], b_to_a[b_order], a_weights[a_order], b_weights[b_order], definition
    )


def evaluate(
    prediction: ArrayLike,
    target: ArrayLike,
    spacing: Spacing = None,
    *,
    tolerance: float,
    labels: Iterable[int] | None = None,
    definition: Definition = "surfels",
) -> dict[int, Scores]:
    """All measures for each label of two label maps.

    Args:
        prediction: 2D or 3D array of integers (or booleans, label 1); 0 is background.
        target: the truth, of the same shape.
        spacing: millimetres per step in index order; 1 on each axis if None.
        tolerance: of NSD, in millimetres.
        labels: those to score; None for all that occur in `target`, as the challenges do (a label
            that only the prediction has is then not punished: name it to have it scored).
        definition: of the surface, see the module.

    Returns:
        Scores by label, ascending where `labels` is None, else in the given order.

    Raises:
        TypeError: as for `nsd`.
        ValueError: as for `nsd`; or a label map does not hold integers.
    """
    first, second = _numbers(prediction, "prediction"), _numbers(target, "target")
    for name, array in (("prediction", first), ("target", second)):
        if array.dtype.kind not in "biu":
            raise ValueError(f"The {name} must hold integer labels, not {array.dtype}.")
    _check_shapes(first, second)
    there, here = _label_windows(first), _label_windows(second)
    scores = {}
    for label in here if labels is None else (int(v) for v in labels):
        found = [w[label] for w in (there, here) if label in w] or [(slice(0, 0),) * first.ndim]
        window = tuple(
            slice(min(s.start for s in sides), max(s.stop for s in sides))
            for sides in zip(*found, strict=True)
        )
        a, b = first[window] == label, second[window] == label
        distances = surface_distances(a, b, spacing, definition=definition)
        hd95_, assd_, nsd_ = distances.hausdorff(95), distances.assd(), distances.nsd(tolerance)
        scores[label] = Scores(dice(a, b), iou(a, b), hd95_, assd_, nsd_)
    return scores


def _label_windows(labels: Array) -> dict[int, tuple[slice, ...]]:
    """The bounding box of every label but 0, ascending by label."""
    from scipy import ndimage

    values = labels.view(np.uint8) if labels.dtype == np.bool_ else labels
    names = None
    if values.size and not 0 <= values.min() <= values.max() < 2**16:  # one slot per number below
        names, inverse = np.unique(values, return_inverse=True)
        values = inverse.reshape(labels.shape) + 1
    boxes = enumerate(ndimage.find_objects(values)) if values.size else ()
    found = ((k + 1 if names is None else int(names[k]), box) for k, box in boxes)
    return {label: box for label, box in found if label and box is not None}


def _masks(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _numbers(a, "a"), _numbers(b, "b")
    _check_shapes(first, second)
    return (
        first if first.dtype == np.bool_ else first != 0,
        second if second.dtype == np.bool_ else second != 0,
    )


def _numbers(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "biufc" or array.ndim == 0:
        # NumPy wraps whatever it does not know, and compares it as one equal element.
        raise TypeError(
            f"{name} is {type(values).__name__} (NumPy makes {array.dtype} of shape {array.shape} "
            "of it); masks are arrays of numbers or booleans with one axis or more."
        )
    return array


def _check_shapes(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"Masks of shapes {a.shape} and {b.shape} cannot be compared.")


def _spacing(spacing: Spacing, ndim: int) -> Array:
    steps = np.asarray((1.0,) * ndim if spacing is None else spacing, dtype=np.float64)
    if steps.shape != (ndim,) or not np.isfinite(steps).all() or steps.min() <= 0:
        raise ValueError(
            f"spacing={spacing} must be {ndim} finite numbers above 0 mm, one per axis."
        )
    return steps


def _bounding_box(a: Array, b: Array) -> tuple[slice, ...]:
    """The smallest window that holds both masks; empty slices where both are empty."""
    window = []
    for axis in range(a.ndim):
        others = tuple(k for k in range(a.ndim) if k != axis)
        found = np.flatnonzero(a.any(axis=others) | b.any(axis=others))
        window.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
    return tuple(window)


def _surface(padded: Array, spacing: Array, definition: Definition) -> tuple[Array, Array]:
    """Surface elements of a mask that has a rim of background one voxel wide.

    Returns:
        Their places as int64 indices ``(n, ndim)``, of voxels or of the points between eight (four)
        voxels, both relative to `padded`; and their weights ``(n,)``.
    """
    if definition == "voxels":
        core = (slice(1, -1),) * padded.ndim
        inner = padded[core].copy()
        for axis in range(padded.ndim):
            for side in (slice(0, -2), slice(2, None)):
                inner &= padded[(*core[:axis], side, *core[axis + 1 :])]
        places = np.argwhere(padded[core] & ~inner)
        return places, np.ones(len(places))
    codes = _neighbourhood_codes(padded)
    full = 2 ** (2**padded.ndim) - 1
    places = np.argwhere((codes != 0) & (codes != full))
    # Normals of unit cubes become areas in millimetres: along each axis they grow with the product
    # of the other axes' spacing (in 2D: normals of lines, the other axis' spacing).
    scaled = _surfel_normals(padded.ndim) * (spacing.prod() / spacing)
    areas = np.linalg.norm(scaled, axis=2).sum(axis=1)
    return places, areas[codes[tuple(places.T)]]


def _neighbourhood_codes(padded: Array) -> Array:
    """One bit per voxel of each 2×2×2 (2×2) neighbourhood, the first corner the highest bit."""
    codes = np.zeros(tuple(n - 1 for n in padded.shape), dtype=np.uint8)
    for corner in np.ndindex((2,) * padded.ndim):
        window = tuple(slice(c, n - 1 + c) for c, n in zip(corner, padded.shape, strict=True))
        codes <<= 1
        codes |= padded[window].view(np.uint8)
    return codes


@cache
def _surfel_normals(ndim: int) -> Array:
    """Area normals of the surface pieces in a unit cell, per neighbourhood code.

    Marching cubes as Lorensen and Cline published it (1987, https://doi.org/10.1145/37402.37422): a
    code with more than half of its corners inside has the surface of its complement, and corners
    that touch only across a face's diagonal are kept apart. A surface piece is a loop through the
    midpoints of cut edges. Loops around three or four corners that are not flat have an area that
    depends on how they are cut into triangles; the published tables cut them into the fan with the
    largest area, which all 254 codes of ``surface-distance`` agree with to rounding.

    Returns:
        Float64 ``(codes, pieces, ndim)``; length 0 where a code has fewer pieces.
    """
    size = 2**ndim
    corners = list(np.ndindex((2,) * ndim))
    normals = np.zeros((2**size, 4, ndim))
    for code in range(1, 2**size - 1):
        few = code if code.bit_count() <= size // 2 else 2**size - 1 - code
        inside = {c: bool(few >> (size - 1 - k) & 1) for k, c in enumerate(corners)}
        if ndim == 3:
            pieces = _surface_pieces(inside)
        else:
            lines = [np.subtract(end, start) for start, end in _segments(_RING, inside)]
            pieces = [np.array((-line[1], line[0])) for line in lines]
        normals[code, : len(pieces)] = pieces
    normals.flags.writeable = False
    return normals


def _surface_pieces(inside: dict[tuple[int, ...], bool]) -> list[Array]:
    """Area normals of the triangles in a unit cube, from the corners that are inside."""
    follow: dict[tuple[float, ...], tuple[float, ...]] = {}
    for axis in range(3):
        for side in (0, 1):
            # Every ring runs the same way round as seen from outside: np.roll keeps the sense.
            ring = [np.roll((side, *corner), axis).tolist() for corner in _RING[:: 2 * side - 1]]
            follow.update(_segments([tuple(corner) for corner in ring], inside))
    pieces: list[Array] = []
    while follow:
        start, point = follow.popitem()
        loop = [start]
        while point != start:
            loop.append(point)
            point = follow.pop(point)
        pieces += _largest_fan(np.array(loop))
    return pieces


def _segments(
    ring: Sequence[tuple[int, ...]], inside: dict[tuple[int, ...], bool]
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Where the surface crosses a square: one segment around each run of inside corners, from the
    midpoint of the edge where the ring leaves the run to that of the edge where it enters.
    """
    segments = []
    for k in range(4):
        if inside[ring[k]] and not inside[ring[(k + 1) % 4]]:
            first = k
            while inside[ring[first - 1]]:
                first -= 1
            leave = tuple((x + y) / 2 for x, y in zip(ring[k], ring[(k + 1) % 4], strict=True))
            enter = tuple((x + y) / 2 for x, y in zip(ring[first], ring[first - 1], strict=True))
            segments.append((leave, enter))
    return segments


def _largest_fan(loop: Array) -> list[Array]:
    """Area normals of the triangles of a polygon in 3D, fanned from the vertex that gives the
    largest area.
    """
    fans: list[Array] = []
    for start in range(len(loop)):
        spokes = np.roll(loop, -start, axis=0)[1:] - loop[start]
        fans.append(np.cross(spokes[:-1], spokes[1:]) / 2)
    areas = [float(np.linalg.norm(fan, axis=1).sum()) for fan in fans]
    return list(fans[int(np.argmax(np.round(areas, 9)))])


def _nearest(places: Array, others: Array, spacing: Array) -> NDArray[np.float64]:
    """Millimetres from each place to the nearest of the others; infinite where there are none.

    A k-d tree over the surface elements is 10 to 20 times faster than a distance transform of the
    bounding box where the surfaces are close, and about as fast where they are far apart.
    """
    if not len(others):
        return np.full(len(places), np.inf)
    if not len(places):
        return np.zeros(0)
    from scipy.spatial import cKDTree

    tree = cKDTree(others * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    _, index = tree.query(places * spacing)
    # From the index difference, so that voxels that coincide are exactly 0 apart and distances
    # have the rounding of a distance transform: a tolerance of 2 mm is met by exactly 2 mm.
    gap = (places - others[index]) * spacing
    return np.asarray(np.sqrt((gap * gap).sum(axis=1)))
