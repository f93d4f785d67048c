"""Queries, answers, and what a model remembers between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limner.adapters.axes import Bounds
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.sparse_logits import SparseLogits


@dataclass(frozen=True, eq=False)
class ModelMemory:
    """What a model wants to see again with the next question about the object on the same view.

    Attributes:
        bounds: of the view in the image.
        shape: of the view.
        value: the model's own; nobody else looks into it.
    """

    bounds: Bounds
    shape: tuple[int, ...]
    value: Any

    @property
    def nbytes(self) -> int:
        """Bytes of it that are known: of an array, or of those in a tuple or list."""
        parts = self.value if isinstance(self.value, (tuple, list)) else (self.value,)
        return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))

    def on(self, bounds: Bounds, shape: tuple[int, ...]) -> Any:
        """What it holds, if that is about this view, else None."""
        return self.value if (bounds, shape) == (self.bounds, self.shape) else None


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer about one object.

    Attributes:
        region: logits of the window around it.
        score: predicted quality, 0…1.
        memory: what the model wants to see again, None for nothing.
        withheld: pixels that the model would have changed, too, where no prompt asks for it.
    """

    region: SparseLogits
    score: float
    memory: ModelMemory | None = None
    withheld: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of it that are known."""
        return self.region.nbytes + (0 if self.memory is None else self.memory.nbytes)


@dataclass(frozen=True, eq=False)
class Query:
    """A question about one object.

    Attributes:
        prompts: in the image's index order, oldest first.
        previous: the answer of the round before.
        memory: of the round before.
        answered: so many of the prompts had been answered before; the others are what the answer
            may change (`limner.sessions.answers.merge`). None: it counts whole.
    """

    prompts: Sequence[Prompt]
    previous: SparseLogits | None = None
    memory: ModelMemory | None = None
    answered: int | None = None


def exact_answer(prompts: Sequence[Prompt]) -> Answer | None:
    """The newest prompt as the answer, if it is a mask."""
    last = prompts[-1] if prompts else None
    if not isinstance(last, MaskPrompt):
        return None
    return Answer(SparseLogits.of_mask(last.mask), 1.0 if last.mask.any() else 0.0)
