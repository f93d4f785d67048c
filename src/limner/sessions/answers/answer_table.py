"""The answers of a session: every object's rounds of prompts, each answered once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner.models import PromptableModel
from limner.sessions.answers.answer import Answer, Query, exact_answer
from limner.sessions.answers.image_view import ImageView, Shape
from limner.sessions.answers.keep_mask import correct_mask, corrects_mask, start_from_mask
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.answers.zoom import predict_views, questions_at_once
from limner.sessions.history.events import Runs
from limner.sessions.history.log import Action, PromptLog, action_numbers

Key: TypeAlias = tuple[int, int | None, tuple[int, ...]]  # object, frame, prompts by number

BUDGET = 256 << 20  # bytes of logits and memories; what is dropped is computed again when needed


class AnswerTable:
    """Answers the prompts about objects, round by round, and keeps the answers.

    A round is all prompts on a frame up to a call of `predict`. Its answer is fed to the next
    round, so an answer follows from the prompts and from where the rounds ended; one that was
    dropped from memory is computed again.

    Args:
        model: answers prompts.
        view: what the model sees of a frame, or (None) of the whole image.
        log: the prompts.
        shape: of the image, spatial.
        zoom: whether the model looks twice.
        keep_masks: masks that are given stand, but for what later marks change near them.
    """

    def __init__(
        self,
        model: PromptableModel,
        view: Callable[[int | None], ImageView],
        log: PromptLog,
        shape: Shape,
        *,
        zoom: bool,
        keep_masks: bool = False,
    ) -> None:
        self._model, self._view, self._log = model, view, log
        self._shape, self._zoom, self._keep_masks = shape, zoom, keep_masks
        self._cache = AnswerCache(BUDGET)

    def answer_prompts(
        self, prompts: Mapping[int, Sequence[Action]], frame: int | None
    ) -> dict[int, Answer]:
        """The answers to prompts by object, all on one frame or (None) on the whole image; objects
        whose next round is not answered yet are asked about together.
        """
        queues = {
            i: RoundQueue((i, frame), actions, self._log, self._cache)
            for i, actions in prompts.items()
        }
        for object_id, queue in queues.items():
            if queue.answer is None:
                queue.base = self._initial_logits(object_id, frame, prompts[object_id][0])
        while queries := {q: query for q in queues.values() if (query := self._next_query(q))}:
            view = self._view(frame)
            found = predict_views(self._model, view, [*queries.values()], zoom=self._zoom)
            for (queue, query), prediction in zip(queries.items(), found, strict=True):
                corrects = self._keep_masks and corrects_mask(query)
                queue.take(
                    correct_mask(view, query, prediction)
                    if corrects
                    else prediction.to_answer(view)
                )
        return {i: queue.answer for i, queue in queues.items() if queue.answer is not None}

    def answer(self, object_id: int, frame: int | None) -> Answer:
        """The answer to all prompts about an object on a frame, or (None) on the whole image."""
        return self.answer_prompts({object_id: self._log.prompts(object_id, frame)}, frame)[
            object_id
        ]

    def objects_at_once(self, frame: int | None) -> int:
        """How many objects the model is asked about together there."""
        shape = self._shape if frame is None else self._shape[1:]
        return questions_at_once(self._model, shape, zoom=self._zoom)

    def decode_frame(self, runs: Runs) -> NDArray[np.bool_]:
        """The mask of a frame that a propagation wrote, from its runs."""
        return np.asarray(rle.decode(runs, self._shape[1:]), dtype=np.bool_)

    def clear(self) -> None:
        """Drop all answers; they are computed again when they are needed."""
        self._cache = AnswerCache(BUDGET)

    def _next_query(self, queue: RoundQueue) -> Query | None:
        query = queue.next_query(exact_masks=self._keep_masks or self._model.card.mask_is_answer)
        return start_from_mask(query) if query is not None and self._keep_masks else query

    def _initial_logits(
        self, object_id: int, frame: int | None, first: Action
    ) -> SparseLogits | None:
        """What earlier actions left of an object on a frame, so that a first correction there
        starts from it: a propagated mask, or the slice of an answer in 3D.
        """
        if frame is None:
            return None
        committed = self._log.propagated_before(object_id, frame, first.number)
        if committed is not None:
            return SparseLogits.of_mask(self.decode_frame(committed.runs))
        earlier = [a for a in self._log.prompts(object_id, None) if a.number < first.number]
        if not earlier:
            return None
        return self.answer_prompts({object_id: earlier}, None)[object_id].region.slice_at(frame)


class RoundQueue:
    """The rounds about one object on one frame that still have to be answered, oldest first.

    Args:
        key: object and frame.
        actions: the prompts, oldest first; at least one.
        log: says which of them ended a round.
        cache: of answers; the newest round in it is where the queue begins.

    Attributes:
        answer: to the newest round that has one.
        base: logits that the very first round starts from.
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
        self._answered = 0
        self._rounds: list[Sequence[Action]] = []  # newest first
        for n in range(len(actions), 0, -1):
            prompts = actions[:n]
            if n < len(actions) and not log.is_round(prompts):
                continue
            self.answer = cache.get(self._cache_key(prompts))
            if self.answer is not None:
                self._answered = _count(prompts)
                break
            self._rounds.append(prompts)

    def next_query(self, *, exact_masks: bool) -> Query | None:
        """The question of the oldest round without an answer; None where all have one.

        Args:
            exact_masks: rounds that end with a mask are answered by it.
        """
        while self._rounds:
            prompts = [a.prompt for a in self._rounds[-1] if a.prompt is not None]
            exact = exact_answer(prompts) if exact_masks else None
            if exact is not None:
                self.take(exact)
            elif self.answer is None:
                return Query(prompts, self.base, answered=0)
            else:
                before = self.answer
                return Query(prompts, before.region, before.memory, self._answered)
        return None

    def take(self, answer: Answer) -> None:
        """The answer to what was asked."""
        actions = self._rounds.pop()
        self._cache.put(self._cache_key(actions), answer)
        self.answer, self._answered = answer, _count(actions)

    def _cache_key(self, prompts: Sequence[Action]) -> Key:
        return (*self._key, action_numbers(prompts))


def _count(actions: Sequence[Action]) -> int:
    """How many of the actions are prompts."""
    return sum(a.prompt is not None for a in actions)


class AnswerCache:
    """Answers within a budget of memory. The least recently used are dropped first; the newest
    always stays.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
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
