"""A real promptable model without weights: the template for authors, and the fake for tests.

The rule: a pixel belongs to the object if its intensity is nearer to what was marked as inside than
to what was marked as outside, and if it is not far from the marks. Nothing else, so that an answer
can be foretold in a test. It needs NumPy alone, always answers the same, and takes microseconds on
small images.

To add a family, copy this file to ``models/<family>.py``, fill the card, write `embed` and
`segment` (and `segment_batch`, where one pass can answer several questions), and list the variants;
nothing is registered anywhere. ``pytest tests/test_models.py -k <family>`` then checks shapes,
determinism, prompt kinds and obedience to clicks. A family with a weights file is described by a
`limner.adapters.published.Published`, and tested by its reduced network with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood, mask_of_prompt
from limner.adapters.protocols import ModelCard, Question, Segmentation, Variant, View
from limner.prompts.types import AREAS, MARKS, Box, Mark, Prompt, TextPrompt

Array = NDArray[Any]

REACH = 0.35  # of the view's size: how far clicks without a box carry
STEEPNESS = 8.0  # logits per unit of normalised intensity
DARK = "dark"  # the one word it knows; any other text means the bright structures

CARD = ModelCard(
    name="toy",
    summary="nearest intensity to the marks; for tests. Text: 'dark', anything else is bright",
    ndim=(2, 3),
    prompts=MARKS | AREAS | {"text"},
    licence="Apache-2.0",
    source="this package; no weights",
    zoom=True,
    window={2: 256, 3: 64},
)


@dataclass(frozen=True, eq=False)
class ToyEmbedding:
    """What `segment` wants to see again.

    Attributes:
        features: float32 ``(…, channel)``, 0…1.
        shape: spatial shape.
    """

    features: NDArray[np.float32]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Marks:
    """Prompts as boolean arrays of the view's shape; `area` is None if nothing bounds the object"""

    inside: Array
    outside: Array
    area: Array | None


class Toy:
    """The model; stateless, as every model is."""

    card = CARD

    def embed(self, view: View) -> ToyEmbedding:
        """Normalise the pixels; NaN and infinities count as black."""
        pixels = np.nan_to_num(view.normalized(), nan=0.0, posinf=1.0, neginf=0.0)
        return ToyEmbedding(pixels.reshape(*view.shape, -1), view.shape)

    def segment(
        self,
        embedding: ToyEmbedding,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """Answer all prompts; see the module's docstring for the rule.

        Args:
            embedding: from `embed`.
            prompts: all so far, in the view's index order.
            previous: where nothing but negative marks are given, the mask they correct.
        """
        check_understood(self.card, prompts, embedding.shape)
        marks = _read(prompts, embedding.shape)
        texts = [p.text for p in prompts if isinstance(p, TextPrompt)]
        if marks.area is None and not marks.inside.any():
            if previous is not None and (previous > 0).any():
                logits = np.clip(previous, -16.0, 16.0)
            elif texts:
                grey = embedding.features.mean(axis=-1)
                logits = STEEPNESS * (0.5 - grey if DARK in texts[-1].lower() else grey - 0.5)
            else:
                logits = np.full(embedding.shape, -4.0)
        else:
            logits = _nearest(embedding, marks)
        obeyed = _obey(np.asarray(logits, dtype=np.float32), prompts)
        return Segmentation(obeyed, _score(obeyed))

    def segment_batch(
        self, embedding: ToyEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Several questions about one view; a network would answer them in one pass."""
        return [self.segment(embedding, q.prompts, q.previous) for q in questions]


def _read(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> _Marks:
    """Prompts as arrays; where they conflict the later one counts."""
    inside, outside = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    area: Array | None = None
    for prompt in prompts:
        covered = mask_of_prompt(prompt, shape)
        if isinstance(prompt, Mark):
            inside[covered] = prompt.positive
            outside[covered] = not prompt.positive
        elif covered.any():
            area = covered if area is None else area | covered
            if isinstance(prompt, Box):
                middle = _middle(prompt, shape)
                covered = middle if middle.any() else covered
            inside |= covered & ~outside
    return _Marks(inside, outside, area)


def _middle(box: Box, shape: tuple[int, ...]) -> Array:
    """The central half of a box per axis: there is its object."""
    result = np.ones(shape, dtype=np.bool_)
    for axis, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        place = np.abs(np.arange(shape[axis]) - (low + high - 1) / 2) <= max((high - low) / 4, 0.5)
        result &= place.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return result


def _nearest(embedding: ToyEmbedding, marks: _Marks) -> Array:
    """Logits of "nearer to the inside's mean than to any outside mean, and near the marks"."""
    pixels = embedding.features
    area = marks.area
    inside = marks.inside if marks.inside.any() else area
    assert inside is not None
    object_mean = pixels[inside].mean(axis=0)
    to_object = np.abs(pixels - object_mean).mean(axis=-1)
    to_rest = np.full(embedding.shape, 0.25, dtype=np.float32)  # what nothing is marked against
    if marks.outside.any():
        to_rest = np.abs(pixels - pixels[marks.outside].mean(axis=0)).mean(axis=-1)
    elif area is not None and not area.all():
        to_rest = np.abs(pixels - pixels[~area].mean(axis=0)).mean(axis=-1)
    logits = STEEPNESS * (to_rest - to_object)
    if area is not None:
        return np.where(area, logits + 1e-3, -4.0)  # a tie belongs to the box that was drawn
    centre = np.argwhere(inside).mean(axis=0)
    for axis, size in enumerate(embedding.shape):
        far = np.abs(np.arange(size) - centre[axis]) / max(REACH * size, 1.0)
        steep = STEEPNESS * np.maximum(far - 0.5, 0.0) ** 2
        logits = logits - steep.reshape([-1 if k == axis else 1 for k in range(logits.ndim)])
    return np.asarray(logits)


def _obey(logits: NDArray[np.float32], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
    """Clicked and scribbled pixels are as the user said, the later one where they conflict."""
    result = np.clip(logits, -16.0, 16.0)
    for prompt in prompts:
        if isinstance(prompt, Mark):
            result[mask_of_prompt(prompt, logits.shape)] = 4.0 if prompt.positive else -4.0
    return result


def _score(logits: NDArray[np.float32]) -> float:
    """Mean certainty of the pixels inside, 0…1; 0 for an empty mask."""
    inside = logits[logits > 0]
    return float(1.0 - np.exp(-inside.mean())) if inside.size else 0.0


def _build(*, weights: Path | None = None, device: str = "auto", exact: bool = False) -> Toy:
    return Toy()


VARIANTS = {"toy": Variant(CARD, _build)}
