"""How well two masks agree: overlap (Dice, IoU) and distance between surfaces (HD95, ASSD, NSD);
of masks in videos J and F as DAVIS has them.

What counts as the surface is a matter of definition, and two are in use that disagree on the same
masks. Every function that needs a surface takes ``definition``:

- ``"surfels"`` (default): the surface that marching cubes lays between the voxels (marching squares
  in 2D), cut into one element per 2×2×2 (2×2) neighbourhood, weighted by its area (length) in
  millimetres. This is what DeepMind's ``surface-distance`` computes (Nikolov et al. 2018,
  https://arxiv.org/abs/1809.04430) and what the MICCAI FLARE and CVPR challenges score with. It is
  the default because an element counts for the area it covers, where a count of voxels favours the
  finely sampled directions of anisotropic images.
- ``"voxels"``: the mask's voxels that have a face neighbour outside it, each counting once. This is
  what MONAI computes unless it is given ``use_subvoxels``.

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
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.metrics._surfaces import (
    Array,
    Definition,
    bounding_box,
    nearest,
    outline,
    surface,
)

_DAVIS_TOLERANCE = 0.008  # of a frame's diagonal
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

    Examples:
        >>> dice([0, 1, 1], [1, 1, 0])
        0.5
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


def jaccard(a: ArrayLike, b: ArrayLike) -> float:
    """J of DAVIS (Perazzi et al. 2016, https://doi.org/10.1109/CVPR.2016.85): what `iou` computes,
    of two masks on one frame.
    """
    return iou(a, b)


def boundary_f(a: ArrayLike, b: ArrayLike, *, tolerance: float | None = None) -> float:
    """F of DAVIS: how well the outlines of two masks on one frame agree, 0…1.

    A pixel is on an outline if it differs from its neighbour to the right, below, or below to the
    right; there is no outline along the frame's edge. Precision is the share of a's outline that is
    within `tolerance` of a pixel of b's, recall the other way round, F their harmonic mean. Two
    masks without an outline (empty, or all of the frame) agree: 1; one of them alone: 0.

    Args:
        a: 2D mask, the answer; every value but 0 is inside.
        b: 2D mask of the same shape, the truth.
        tolerance: pixels between centres, that far away still being near; None: 0.008 of the
            frame's diagonal, rounded up, as in DAVIS.

    Raises:
        TypeError: a mask is no array of numbers or booleans.
        ValueError: the shapes differ, the masks are not 2D, or `tolerance` is negative or not
            finite.
    """
    first, second = _masks(a, b)
    if first.ndim != 2:
        raise ValueError(f"F is measured on a frame, in 2D masks, not in shape {first.shape}.")
    if tolerance is None:
        tolerance = float(np.ceil(_DAVIS_TOLERANCE * np.hypot(*first.shape)))
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance} must be finite and not below 0 pixels.")
    ours, theirs = outline(first), outline(second)
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    ones = np.ones(2)
    precision = np.count_nonzero(nearest(ours, theirs, ones) <= tolerance) / len(ours)
    recall = np.count_nonzero(nearest(theirs, ours, ones) <= tolerance) / len(theirs)
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


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
    window = bounding_box(first, second)
    surfaces = [surface(np.pad(mask[window], 1), steps, definition) for mask in (first, second)]
    (a_places, a_weights), (b_places, b_weights) = surfaces
    a_to_b, b_to_a = nearest(a_places, b_places, steps), nearest(b_places, a_places, steps)
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
