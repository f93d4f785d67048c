"""Answers kept for undo, redo and composing, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from limner.sessions._region import Region

Key: TypeAlias = tuple[int, int | None, tuple[int, ...]]  # object, frame, prompts by number

BUDGET = 256 << 20  # bytes of logits; what is dropped is computed again when needed


class AnswerCache:
    """Least recently used answers are dropped first; the newest always stays."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._size = 0
        self._answers: OrderedDict[Key, tuple[Region, float]] = OrderedDict()

    def get(self, key: Key) -> tuple[Region, float] | None:
        """The answer, if it is still there."""
        found = self._answers.get(key)
        if found is not None:
            self._answers.move_to_end(key)
        return found

    def put(self, key: Key, region: Region, score: float) -> None:
        """Keep an answer."""
        if key in self._answers:
            self._size -= self._answers.pop(key)[0].steps.nbytes
        self._answers[key] = (region, score)
        self._size += region.steps.nbytes
        while self._size > self._budget and len(self._answers) > 1:
            _, (dropped, _) = self._answers.popitem(last=False)
            self._size -= dropped.steps.nbytes
