"""What a run is shown of a volume: the whole of it shrunk, or a crop at full resolution, mirrored
and with other intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.models.segvol.volume import picked
from limner.train.data.segvol_cases import PreparedCase

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class TrainingView:
    """A view of a case; all arrays are (D, H, W) of the network's input.

    Attributes:
        case: what is seen.
        image: float32.
        labels: 0 outside the volume; None without labels.
        pseudo: regions, -1 outside the volume; None without.
    """

    case: PreparedCase
    image: NDArray[np.float32]
    labels: Array | None
    pseudo: NDArray[np.int32] | None

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where an object is."""
        if self.labels is None or name not in self.case.names:
            return np.zeros(self.image.shape, dtype=np.bool_)
        return np.isin(self.labels, self.case.names[name])


def draw_view(
    case: PreparedCase,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    crops: float,
    positive: float = 0.0,
) -> TrainingView:
    """A view of a case.

    Args:
        case: what to look at.
        size: of the view.
        rng: draws it.
        crops: share of crops; the rest are whole volumes.
        positive: share of crops around a voxel of an object, all objects alike.
    """
    if rng.random() < crops:
        return crop_view(case, size, _centre(case, rng, positive))
    return whole_view(case, size)


def whole_view(case: PreparedCase, size: Sequence[int]) -> TrainingView:
    """All of a case shrunk: voxels are picked, as for inference."""
    rows = [picked(n, m, exact=True) for n, m in zip(case.image.shape, size, strict=True)]
    return _seen(case, rows, [np.ones(m, dtype=np.bool_) for m in size])


def crop_view(case: PreparedCase, size: Sequence[int], centre: Sequence[int]) -> TrainingView:
    """A window at full resolution, within the volume; a smaller volume is in the middle of it."""
    rows, inside = [], []
    for n, m, at in zip(case.image.shape, size, centre, strict=True):
        start = (n - m) // 2 if n <= m else min(max(at - m // 2, 0), n - m)
        line = np.arange(start, start + m)
        rows.append(np.clip(line, 0, n - 1))
        inside.append((line >= 0) & (line < n))
    return _seen(case, rows, inside)


def flip_view(
    seen: TrainingView, shares: Sequence[float], rng: np.random.Generator
) -> TrainingView:
    """Turned around along each axis at a share of times."""
    axes = tuple(k for k, share in enumerate(shares) if rng.random() < share)

    def flip(array: Array | None) -> Any:
        return None if array is None else np.ascontiguousarray(np.flip(array, axes))

    return replace(seen, image=flip(seen.image), labels=flip(seen.labels), pseudo=flip(seen.pseudo))


def jitter_intensity(
    seen: TrainingView, most: float, share: float, rng: np.random.Generator
) -> TrainingView:
    """Intensities scaled by up to 1 ± `most`, and shifted by up to ± `most`, each at a share of
    times.
    """
    bernoulli, drawn = rng.random(2) < share, rng.uniform(-most, most, 2)
    factor = 1 + drawn[0] if bernoulli[0] else 1.0
    shift = drawn[1] if bernoulli[1] else 0.0
    return replace(seen, image=seen.image * np.float32(factor) + np.float32(shift))


def _centre(case: PreparedCase, rng: np.random.Generator, positive: float) -> Sequence[int]:
    anywhere = [int(rng.integers(n)) for n in case.image.shape]
    places = case.places
    if rng.random() >= positive or not len(places):
        return anywhere
    places = places[places[:, 0] == rng.choice(np.unique(places[:, 0]))]
    return [int(n) for n in places[rng.integers(len(places)), 1:]]


def _seen(case: PreparedCase, rows: Sequence[Array], inside: Sequence[Array]) -> TrainingView:
    grid, pixels, regions = np.ix_(*rows), case.image, case.pseudo
    there = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    image = np.where(there, pixels[grid].astype(np.float32), np.float32(0))
    labels = pseudo = None
    if (stored := case.labels) is not None:
        labels = np.where(there, stored[grid], 0)
    if regions is not None:
        steps = zip(regions.shape, pixels.shape, rows, strict=True)
        coarse = np.ix_(*(picked(m, n, exact=True)[row] for m, n, row in steps))
        pseudo = np.where(there, regions[coarse], np.int32(-1))
    return TrainingView(case, image, labels, pseudo)
