"""Answers kept for undo, redo and composing, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from limner.sessions.answers.answer import Answer

Key: TypeAlias = tuple[int, int | None, tuple[int, ...]]  # object, frame, prompts by number

BUDGET = 256 << 20  # bytes of logits and memories; what is dropped is computed again when needed


class AnswerCache:
    """Least recently used answers are dropped first; the newest always stays."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._size = 0
        self._answers: OrderedDict[Key, Answer] = OrderedDict()

    def get(self, key: Key) -> Answer | None:
        """The answer, if it is still there."""
        found = self._answers.get(key)
        if found is not None:
            self._answers.move_to_end(key)
        return found

    def put(self, key: Key, answer: Answer) -> None:
        """Keep an answer."""
        if key in self._answers:
            self._size -= self._answers.pop(key).nbytes
        self._answers[key] = answer
        self._size += answer.nbytes
        while self._size > self._budget and len(self._answers) > 1:
            _, dropped = self._answers.popitem(last=False)
            self._size -= dropped.nbytes
