"""Real automatic and sampling models without weights: the templates for authors, and the fakes for
tests.

The rule: the intensities of a view, black to white, are cut into three bands; the middle one is
label 1, "grey", the brightest label 2, "bright". The sampling model moves the cuts at random, so
that it is unsure near them. Nothing else, so that an answer can be foretold in a test.

To add a family, copy this file to ``models/<family>.py``, fill the card, and write `predict` or
`sample`; a network with a fixed patch takes `limner.adapters.sliding_window` (see
``models/resenc_unet.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limner.adapters.protocols import ModelCard, Variant, View

Floats = NDArray[np.float32]

LOW, HIGH = 1 / 3, 2 / 3  # of black to white
STEEPNESS = 24.0  # logits per unit of normalised intensity
SPREAD = 0.05  # standard deviation of a cut that is drawn

CARD = ModelCard(
    name="toy-automatic/bands",
    summary="three bands of intensity as labels, without prompts; for tests",
    ndim=(2, 3),
    prompts=frozenset(),
    licence="Apache-2.0",
    source="this package; no weights",
    zoom=False,
    window={2: 256, 3: 64},
    labels={1: "grey", 2: "bright"},
)
SAMPLING_CARD = replace(
    CARD,
    name="toy-automatic/samples",
    summary="the same with cuts drawn at random, to show mean and uncertainty; for tests",
)


class Bands:
    """The automatic model; stateless, as every model is."""

    card = CARD

    def predict(self, view: View) -> Floats:
        """Logits of background, grey and bright, ``(3, *view.shape)``; of colours their mean."""
        return _logits(view, LOW, HIGH)


class DrawnBands:
    """The sampling model."""

    card = SAMPLING_CARD

    def sample(self, view: View, n: int, rng: np.random.Generator) -> Iterator[Floats]:
        """Softmax probabilities with cuts drawn anew each time."""
        for _ in range(n):
            low, high = rng.normal((LOW, HIGH), SPREAD)
            odds = np.exp(_logits(view, low, high))
            yield odds / odds.sum(axis=0)


def _logits(view: View, low: float, high: float) -> Floats:
    pixels = np.nan_to_num(view.normalized(), nan=0.0, posinf=1.0, neginf=0.0)
    grey = pixels.reshape(*view.shape, -1).mean(axis=-1)
    middle = (high - low) / 2 - np.abs(grey - (low + high) / 2)
    return (STEEPNESS * np.stack([low - grey, middle, grey - high])).astype(np.float32)


def _build(*, weights: Path | None = None, device: str = "auto", exact: bool = False) -> Bands:
    return Bands()


def _build_sampling(
    *, weights: Path | None = None, device: str = "auto", exact: bool = False
) -> DrawnBands:
    return DrawnBands()


VARIANTS = {
    "bands": Variant(CARD, _build),
    "samples": Variant(SAMPLING_CARD, _build_sampling),
}
