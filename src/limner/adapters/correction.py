"""Local correction: a new answer changes the mask near the marks that ask for it, nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from limner.adapters.markers import Markers

Array = NDArray[Any]
Mask = NDArray[np.bool_]

_STRONGEST = 8.0  # logit of what is kept from the round before


def keep_local_correction(
    logits: NDArray[np.float32], previous: NDArray[np.float32], markers: Markers
) -> NDArray[np.float32]:
    """A new answer, but only where marks ask for one: elsewhere the answer before stays.

    A mark that contradicts the answer before changes the pixels that the new answer changes in the
    same sense, that hang together with it and that are nearer to it than to any mark of the other
    kind. Without such a mark the new answer counts, whatever it is.

    Args:
        logits: the new answer.
        previous: the answer before, of the same shape.
        markers: of the same shape.
    """
    before, after = previous > 0, logits > 0
    missed, spilled = (markers.marks > 0) & ~before, (markers.marks < 0) & before
    if not before.any() or not (missed.any() or spilled.any()):
        return logits
    mask = before | _reached(after & ~before, missed, markers.marks < 0)
    mask &= ~_reached(before & ~after, spilled, markers.marks > 0)
    mask = (mask | markers.inside) & ~markers.outside
    kept = np.clip(np.nan_to_num(previous), -_STRONGEST, _STRONGEST)
    kept = np.where(mask == before, kept, np.where(mask, 0.5, -0.5))
    return np.where(mask == after, logits, kept).astype(np.float32)


def _reached(change: Mask, marks: Mask, others: Mask) -> Mask:
    """The parts of a change that touch a mark, as far as no mark of the other kind is nearer."""
    if not marks.any():
        return np.zeros_like(change)
    allowed = change | marks
    if others.any():
        to_marks, to_others = (ndimage.distance_transform_edt(~m) for m in (marks, others))
        allowed = allowed & (to_marks <= to_others)
    labels, _ = ndimage.label(allowed)
    return np.asarray(np.isin(labels, np.unique(labels[marks])) & allowed)
