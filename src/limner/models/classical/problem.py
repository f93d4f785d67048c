"""The segmentation problem of the classical models: features, markers and prior of a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from limner.adapters.markers import Markers
from limner.models.classical.colour import ColourBins

Array = NDArray[Any]
Mask = NDArray[np.bool_]

# Distance (pixels) and difference of features over which a neighbour still tells a mark's colour.
_NEAR, _ALIKE = 2.0, 0.15


@dataclass(frozen=True, eq=False)
class SegmentationProblem:
    """The part of a view in which the object may be, and what is known there.

    Attributes:
        features: ``(…, channel)``, 0…1, smoothed.
        spacing: millimetres per step.
        markers: as `gather_markers` found them.
        bins: of `features`.
    """

    features: NDArray[np.float32]
    spacing: tuple[float, ...]
    markers: Markers
    bins: ColourBins

    @property
    def shape(self) -> tuple[int, ...]:
        return self.features.shape[:-1]

    def first_ratio(self) -> NDArray[np.float32]:
        """Log likelihood ratio of colours, from the prompts alone."""
        inside, outside = self.markers.inside, self.markers.outside
        prior = self.markers.prior
        if prior is None:  # clicks alone: the rest is like the average of the view
            rest = 0.02 + 0.98 * outside - 0.02 * inside
            return self.bins.log_ratio(self._around(inside), rest)
        certain = 3.0 * inside  # what was marked says more than what was only enclosed
        weights = prior * ~outside + certain
        return self.bins.log_ratio(weights, (1.0 - prior) * ~inside + 2.0 * outside)

    def _around(self, inside: Mask) -> Array:
        """Weights of pixels that are probably of the object since they are near what was marked and
        look like it: a few pixels tell too little of an object's colours.
        """
        if not inside.any():
            return inside
        away, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
        differs = np.abs(self.features - self.features[tuple(nearest)]).max(axis=-1)
        likeness = np.exp(-0.5 * (differs / _ALIKE) ** 2 - 0.5 * (away / _NEAR) ** 2)
        return np.asarray(np.where(inside, 1.0, likeness))

    def ratio_of(self, mask: Mask) -> NDArray[np.float32]:
        """Log likelihood ratio of colours, from an answer."""
        return self.bins.log_ratio(
            mask + 3.0 * self.markers.inside, ~mask + 3.0 * self.markers.outside
        )

    def prior_logit(self) -> Array:
        """Log odds of the object from its place alone; 0 where clicks are all there is."""
        if self.markers.prior is None:
            return np.zeros(self.shape, dtype=np.float32)
        prior = np.clip(self.markers.prior, 0.02, 0.98)
        return np.asarray(np.log(prior) - np.log1p(-prior))

    def starts(self, ratio: Array) -> Mask:
        """Pixels taken for the object to begin with: the seeds, else the likeliest of the area."""
        return self.markers.inside if self.markers.inside.any() else self.likeliest(ratio)

    def likeliest(self, ratio: Array) -> Mask:
        """The fifth of the area said to hold the object that looks most like it; else nothing."""
        if self.markers.prior is None:
            return np.zeros(self.shape, dtype=np.bool_)
        evidence = ratio + self.prior_logit()
        open_pixels = ~self.markers.outside & (self.markers.prior > 0.5)
        if not open_pixels.any():
            open_pixels = ~self.markers.outside
        if not open_pixels.any():
            return np.zeros(self.shape, dtype=np.bool_)
        return np.asarray(open_pixels & (evidence >= np.quantile(evidence[open_pixels], 0.8)))


def connected_parts(mask: Mask, markers: Mask) -> Mask:
    """Parts that touch a seed; without seeds the largest and those of comparable size."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.zeros(count + 1, dtype=np.bool_)
    touched = np.unique(labels[markers & mask])
    if touched.size:
        kept[touched] = True
    else:
        kept[sizes >= 0.3 * sizes.max()] = True
    kept[0] = False
    return np.asarray(kept[labels])
