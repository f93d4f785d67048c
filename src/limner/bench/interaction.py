"""Interaction of one model with a simulated user about one object, and its scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from limner.adapters.default_window import ROBUST
from limner.bench._peak_memory import PeakMemory
from limner.bench.config import BenchConfig
from limner.bench.measures import Scores, by_measure, leave_open, score_mask, score_nothing
from limner.bench.protocol import (
    Exchange,
    Prompts,
    Responder,
    SimulatedUser,
    ask,
    converse,
    repeat_shuffled,
)
from limner.bench.rows import encode_answer
from limner.bench.slices import SliceBySlice, slice_placement
from limner.datasets.objects import TargetObject
from limner.io.image import Image
from limner.models import ModelCard, PromptableModel
from limner.prompts.types import Example, Prompt, to_json
from limner.sessions import open_session

_log = logging.getLogger(__name__)


def run_interaction(
    model: PromptableModel, image: Image, case: TargetObject, config: BenchConfig, *, seed: int
) -> dict[str, Any]:
    """One conversation: the fields of its row that come from the answers.

    What the model raises ends the conversation and is kept as text; the scores are 0 from there.
    """
    held = _Transcript(case)
    memory = PeakMemory() if config.dimensions == 3 else None
    error = None
    try:
        _interact(held, model, image, config, seed=seed, memory=memory)
    except Exception as problem:  # a model may raise anything, and the others go on
        error = f"{type(problem).__name__}: {problem}"
        _log.debug("a model failed", exc_info=True)
    scores = held.scores
    if config.disturb == "shuffled":
        scores = [
            *[leave_open(case.target.ndim)] * (config.rounds - 1),
            score_answer(held.repeated, case),
        ]
        final = held.repeated
    else:
        last = score_nothing(case.target.ndim) if error or not scores else scores[-1]
        scores += [last] * (config.rounds - len(scores))
        final = held.last
    found: dict[str, Any] = {
        "scores": by_measure(scores),
        "seconds": held.seconds,
        "prompts": [
            [to_json(prompt) for prompt in prompts if not isinstance(prompt, Example)]
            for prompts in held.prompts
        ],
        "answer": None if final is None else encode_answer(final.mask),
        "error": error,
    }
    if memory is not None:
        found |= {"way": way_of(model.card, config), "peak_mb": memory.megabytes}
    return found


class _Transcript:
    """What was said and answered so far; of the masks only the last one is kept."""

    def __init__(self, case: TargetObject) -> None:
        self.case = case
        self.prompts: list[Prompts] = []
        self.seconds: list[float] = []
        self.scores: list[Scores] = []
        self.last: Exchange | None = None
        self.repeated: Exchange | None = None  # the end of the shuffled conversation

    def take(self, exchange: Exchange) -> None:
        """One more round."""
        self.prompts.append(exchange.prompts)
        self.seconds.append(round(exchange.seconds, 5))
        self.scores.append(score_answer(exchange, self.case))
        self.last = exchange


def _interact(
    held: _Transcript,
    model: PromptableModel,
    image: Image,
    config: BenchConfig,
    *,
    seed: int,
    memory: PeakMemory | None,
) -> None:
    """Hold the conversation. Raises whatever the model raises; what was held until then is kept."""
    user = SimulatedUser(
        held.case,
        config.protocol,
        model.card.prompts,
        seed=seed,
        disturbance=config.disturb,
        slices=config.slices,
        mark=config.mark,
    )
    with _listening(model, image, held.case, config, memory) as listener:
        for exchange in converse(listener, user, config.rounds):
            held.take(exchange)
    if config.disturb == "shuffled":
        opened = partial(open_session, image, model)
        held.repeated = repeat_shuffled(opened, held.prompts, np.random.default_rng((seed, 2)))


def score_answer(exchange: Exchange | None, case: TargetObject) -> Scores:
    """Of an answer; those of no answer where there is none."""
    mask = None if exchange is None else exchange.mask
    return score_mask(mask, case.target, case.spacing)


def way_of(card: ModelCard, config: BenchConfig) -> str | None:
    """How a model is asked about volumes: ``"whole"`` or ``"slices"``; None about pictures."""
    if config.dimensions == 2:
        return None
    return "slices" if config.by_slices or 3 not in card.ndim else "whole"


@contextmanager
def _listening(
    model: PromptableModel,
    image: Image,
    case: TargetObject,
    config: BenchConfig,
    memory: PeakMemory | None,
) -> Iterator[Responder]:
    """A session that answers, whole or slice by slice; its memory is watched if asked."""
    with open_session(image, model, window=ROBUST) as session:
        listener: Responder = partial(ask, session)
        if way_of(model.card, config) == "slices":
            marks = config.slices if config.protocol == "slices" else 1
            between = config.between if marks > 1 else "carry"
            hand = SliceBySlice(session, slice_placement(case.target), between=between)
            listener = partial(_say_by_slices, hand, case.target.shape)
        yield listener if memory is None else partial(_watched, memory, listener)


def _say_by_slices(hand: SliceBySlice, shape: Sequence[int], prompts: Sequence[Prompt]) -> Exchange:
    """Say the prompts of one round on their slices and carry what is answered."""
    began = time.perf_counter()
    prompts, mask = hand.say(prompts, shape)
    return Exchange(prompts, mask, time.perf_counter() - began)


def _watched(memory: PeakMemory, listener: Responder, prompts: Prompts) -> Exchange:
    memory.begin()
    try:
        return listener(prompts)
    finally:
        memory.end()
