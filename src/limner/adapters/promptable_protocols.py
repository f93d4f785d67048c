"""Protocols of promptable models: questions about a view, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from limner.adapters.model_card import ModelCard
from limner.adapters.view import View
from limner.prompts.types import Prompt


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A model's answer on one view.

    Attributes:
        logits: float32 of the view's spatial shape, above 0 inside the object.
        score: predicted quality (IoU or Dice), 0…1.
        memory: what the model wants to see again with the next question about the same object on
            the same view, such as its logits before they were resized; None for nothing. Sessions
            hand it back (`Question.memory`) and never look into it.
    """

    logits: NDArray[np.float32]
    score: float
    memory: Any = None


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about one object on a view.

    Attributes:
        prompts: all that the user said so far, oldest first, positions in the view's index order.
        previous: logits of the round before, of the view's shape, or None.
        memory: `Segmentation.memory` of the round before, if that was about the same view.
    """

    prompts: Sequence[Prompt]
    previous: NDArray[np.float32] | None = None
    memory: Any = None


@runtime_checkable
class PromptableModel(Protocol):
    """A model that answers prompts on one view. Stateless: the session remembers."""

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""

    def embed(self, view: View) -> Any:
        """The expensive half, once per view: whatever `segment` wants to see again."""

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """The cheap half.

        Args:
            embedding: from `embed`.
            prompts: all that the user said so far, oldest first, positions in the view's index
                order.
            previous: logits of the round before, of the view's shape, or None.
        """


@runtime_checkable
class BatchModel(PromptableModel, Protocol):
    """A model that answers several questions about one view together, and that may remember.

    Sessions ask it through `segment_batch` only; `segment` is the same for one question.
    """

    def segment_batch(
        self, embedding: Any, questions: Sequence[Question]
    ) -> Sequence[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone."""


class BatchAnswers:
    """`segment` for models that answer in batches."""

    def segment_batch(
        self, embedding: Any, questions: Sequence[Question]
    ) -> Sequence[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone."""
        raise NotImplementedError

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """One question; see `segment_batch`."""
        return self.segment_batch(embedding, [Question(prompts, previous)])[0]


@runtime_checkable
class EncodingModel(PromptableModel, Protocol):
    """A model that can encode several views together. Sessions that know which slices or frames
    come next let it, where it says that this is faster.
    """

    @property
    def views_at_once(self) -> int:
        """How many views are worth encoding together here; 1 where nothing is gained."""

    def embed_batch(self, views: Sequence[View]) -> Sequence[Any]:
        """What `embed` says of each view, in order."""


@runtime_checkable
class ProposingModel(PromptableModel, Protocol):
    """A model that has several answers to a question that leaves open what is meant."""

    def propose(
        self, embedding: Any, questions: Sequence[Question], least: float = 0.0
    ) -> Sequence[Sequence[Segmentation]]:
        """All answers to each question, in the order of the questions, each with its own score; but
        those whose score is below `least` may be left out.
        """


@runtime_checkable
class CheckingModel(PromptableModel, Protocol):
    """A model that understands only some prompts of a kind, such as the words of a list."""

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt before anything is computed.

        Raises:
            PromptError: the model knows nothing of the sort; the message says what it knows.
        """
