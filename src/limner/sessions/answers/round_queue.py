"""One object's conversation on one frame: the rounds that still have to be answered, in order."""

from __future__ import annotations

from collections.abc import Sequence

from limner.sessions.answers.answer import Answer, Query
from limner.sessions.answers.answer_cache import AnswerCache, Key
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.log import Action, PromptLog, numbers


class RoundQueue:
    """The rounds about one object on one frame; each is fed what the round before left.

    Args:
        key: object and frame.
        actions: the prompts, oldest first; at least one.
        log: says which of them ended a round.
        cache: of answers; the newest round in it is where the conversation goes on.
    """

    def __init__(
        self,
        key: tuple[int, int | None],
        actions: Sequence[Action],
        log: PromptLog,
        cache: AnswerCache,
    ) -> None:
        self._key = key
        self._cache = cache
        self.answer: Answer | None = None
        self.base: SparseLogits | None = None
        self._todo: list[Sequence[Action]] = []  # newest first
        for n in range(len(actions), 0, -1):
            said = actions[:n]
            if n < len(actions) and not log.is_round(said):
                continue
            self.answer = cache.get(self._place(said))
            if self.answer is not None:
                break
            self._todo.append(said)

    @property
    def waiting(self) -> bool:
        """Whether a round has no answer yet."""
        return bool(self._todo)

    def ask(self) -> Query:
        """The question of the oldest round without an answer."""
        prompts = [a.prompt for a in self._todo[-1] if a.prompt is not None]
        if self.answer is None:
            return Query(prompts, self.base)
        return Query(prompts, self.answer.region, self.answer.memory)

    def take(self, answer: Answer) -> None:
        """The answer to what was asked."""
        self._cache.put(self._place(self._todo.pop()), answer)
        self.answer = answer

    def _place(self, said: Sequence[Action]) -> Key:
        return (*self._key, numbers(said))
