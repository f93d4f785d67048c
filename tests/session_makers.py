"""Images with prompts that fit them, and models that watch a session, for tests of sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import limner
from limner import phantoms
from limner.adapters.protocols import ModelCard, Question, Segmentation, View
from limner.models import create_model
from limner.prompts.types import Prompt


@dataclass(frozen=True)
class Case:
    """A kind of session with prompts that fit it."""

    image: limner.Image
    truth: np.ndarray
    click: Prompt
    other: Prompt
    box: Prompt
    frame: int | None


def image_case() -> Case:
    phantom = phantoms.image(3, (96, 80))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((48, 40)),
        limner.Click((5, 5), positive=False),
        limner.Box((30, 20), (60, 60)),
        None,
    )


def volume_case() -> Case:
    phantom = phantoms.volume(3, (20, 48, 40))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((10, 24, 20)),
        limner.Click((2, 3, 4), positive=False),
        limner.Box((5, 10, 8), (15, 30, 30)),
        None,
    )


def video_case() -> Case:
    phantom = phantoms.sequence(3, (8, 48, 48))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((24, 24)),
        limner.Click((3, 4), positive=False),
        limner.Box((10, 10), (36, 36)),
        2,
    )


CASES: dict[str, Callable[[], Case]] = {
    "image": image_case,
    "volume": volume_case,
    "video": video_case,
}


class Watching:
    """The toy model, keeping what it was shown of the round before."""

    def __init__(self) -> None:
        self._toy = create_model("toy")
        self.card = self._toy.card
        self.seen: list[np.ndarray | None] = []

    def embed(self, view: View) -> object:
        return self._toy.embed(view)

    def segment(
        self, embedding: object, prompts: object, previous: np.ndarray | None = None
    ) -> Segmentation:
        self.seen.append(previous)
        return self._toy.segment(embedding, prompts, previous)  # type: ignore[arg-type]


class Recalling:
    """The toy model, asked in batches; it remembers how often it was asked, and says it by its
    score, so that a memory that is lost or of another object shows.
    """

    def __init__(self, kinds: frozenset[str] | None = None) -> None:
        self._toy = create_model("toy")
        card = self._toy.card
        self.card = ModelCard(**{**card.__dict__, "prompts": kinds or card.prompts, "zoom": False})
        self.embedded = 0
        self.batches: list[list[Question]] = []

    def embed(self, view: View) -> object:
        self.embedded += 1
        return self._toy.embed(view)

    def segment(
        self, embedding: object, prompts: Sequence[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        raise AssertionError("a model that answers in batches is asked so")

    def segment_batch(self, embedding: object, questions: Sequence[Question]) -> list[Segmentation]:
        self.batches.append(list(questions))
        return [self._one(embedding, q) for q in questions]

    def _one(self, embedding: object, question: Question) -> Segmentation:
        found = self._toy.segment(embedding, question.prompts, question.previous)  # type: ignore[arg-type]
        times = np.ones(1) if question.memory is None else question.memory[0] + 1
        return Segmentation(found.logits, float(times[0]) / 100, (times, np.zeros(1000)))
