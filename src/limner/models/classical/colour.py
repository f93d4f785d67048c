"""Colour models: how likely a pixel's intensity is of the object against the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

_BINS = {1: 64, 2: 32, 3: 16}  # per channel, by number of channels
_FLOOR = 0.02  # share of any colour in any object: what was not seen is not impossible
_NARROWEST, _WIDTH = 0.012, 0.06  # of a colour's distribution: known from many pixels, from one
_MOST_DIMENSIONS = 3
_LEAST_SLOPE, _MOST_SLOPE = 0.3, 2.0  # of equalisation, before normalising


def features_of(pixels: Array, ndim: int) -> NDArray[np.float32]:
    """Intensities as at most three smoothed channels in 0…1.

    Args:
        pixels: float32 in 0…1, spatial axes and then one of channels; finite.
        ndim: number of spatial axes.
    """
    channels = pixels
    if pixels.shape[-1] > _MOST_DIMENSIONS:
        flat = pixels.reshape(-1, pixels.shape[-1])
        centred = flat - flat.mean(axis=0)
        axes = np.linalg.eigh(centred.T @ centred)[1][:, : -_MOST_DIMENSIONS - 1 : -1]
        channels = (centred @ axes).reshape(*pixels.shape[:-1], _MOST_DIMENSIONS)
        spread = max(float(np.abs(channels).max()), 1e-6)
        channels = 0.5 + 0.5 * channels / spread
    channels = np.stack([_spread(channels[..., k]) for k in range(channels.shape[-1])], axis=-1)
    sigma = 0.5 + 6.0 * noise_level(channels, ndim)  # smooth more where there is more noise
    widths = [min(sigma, 1.5)] * ndim + [0.0]
    return np.asarray(ndimage.gaussian_filter(channels, widths, mode="nearest"), dtype=np.float32)


def _spread(channel: Array) -> Array:
    """Intensities 0…1 with more room for those that occur more: bounded histogram equalisation.

    In a CT without a window, soft tissue fills a tenth of the range, and air half of the pixels.
    The bound keeps a flat background from being spread into noise.
    """
    counts, edges = np.histogram(channel, bins=256, range=(0.0, 1.0))
    fair = channel.size / counts.size
    slopes = np.clip(counts, _LEAST_SLOPE * fair, _MOST_SLOPE * fair)
    heights = np.append(0.0, np.cumsum(slopes))
    return np.asarray(np.interp(channel, edges, heights / heights[-1]), dtype=np.float32)


def noise_level(channels: Array, ndim: int) -> float:
    """Standard deviation of the noise from second differences along the last spatial axis.

    The median makes edges count for nothing (Donoho's robust estimate).
    """
    if channels.shape[ndim - 1] < 3:
        return 0.0
    moved = np.moveaxis(channels, ndim - 1, 0)
    second = moved[2:] - 2.0 * moved[1:-1] + moved[:-2]
    return float(np.median(np.abs(second)) / 0.6745 / np.sqrt(6.0))


class ColourBins:
    """The features of a view, binned once, for histograms of any weights.

    Args:
        features: from `features_of`.
    """

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.shape = features.shape[:-1]
        dimensions = features.shape[-1]
        self._size = _BINS[dimensions]
        flat = np.clip((features * self._size).astype(np.int32), 0, self._size - 1)
        flat = flat.reshape(-1, dimensions)
        self._grid = (self._size,) * dimensions
        self._index = np.ravel_multi_index(tuple(flat.T), self._grid)

    def density(self, weights: Array) -> NDArray[np.float32]:
        """Probability of every pixel's bin among the pixels weighted by `weights`."""
        flat = np.asarray(weights, dtype=np.float64).ravel()
        counts = np.bincount(self._index, flat, minlength=int(np.prod(self._grid)))
        total = float(counts.sum())
        uniform = 1.0 / counts.size
        if total <= 0:
            return np.full(self.shape, uniform, dtype=np.float32)
        # Few samples say little about the width of the distribution: widen (Silverman's exponent).
        effective = total**2 / max(float((flat**2).sum()), 1e-12)
        width = self._size * max(_NARROWEST, _WIDTH * effective**-0.2)
        smooth = ndimage.gaussian_filter(counts.reshape(self._grid), width, mode="constant")
        share = smooth.ravel() / max(float(smooth.sum()), 1e-12)
        share = (1.0 - _FLOOR) * share + _FLOOR * uniform
        return np.asarray(share[self._index].reshape(self.shape), dtype=np.float32)

    def log_ratio(self, inside: Array, outside: Array) -> NDArray[np.float32]:
        """Log of the likelihood inside over the likelihood outside, clipped to ±4."""
        ratio = np.log(self.density(inside)) - np.log(self.density(outside))
        return np.asarray(np.clip(ratio, -4.0, 4.0), dtype=np.float32)
