"""Predictions: mask, logits, score and changed box of one object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from limner.prompts.types import Box
from limner.sessions.answers.sparse_logits import SparseLogits


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """One object's mask, on the whole image or on one frame.

    The arrays are made when first asked for; what is kept is a window around the object.

    Attributes:
        region: logits of the window.
        score: predicted quality, 0…1.
        box: the smallest box that holds every pixel whose label changed since the object's last
            prediction here; None if nothing changed.
        object_id: whose mask.
        frame: frame or slice, None for the whole image or volume.
        known: whether an earlier propagation had found it, so that no model was asked.
        withheld: pixels or voxels that the model would have changed, too, where no prompt asks for
            it: beside a box, or away from the mark of a correction.
    """

    region: SparseLogits
    score: float
    box: Box | None
    object_id: int
    frame: int | None
    known: bool = False
    withheld: int = 0

    def __repr__(self) -> str:
        frame = "" if self.frame is None else f" on frame {self.frame}"
        shape = "×".join(map(str, self.region.shape))
        count = int(self.region.inside.sum())
        return (
            f"<Prediction of object {self.object_id}{frame}: {count:,} of {shape}, "
            f"score {self.score:.2f}>"
        )

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Boolean, the shape of the image, or of the frame where `frame` is set."""
        return self.region.mask()

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Float32 of the same shape, above 0 inside; far from the object a constant background."""
        return self.region.full()
