"""Following objects through a volume or a video from a few annotated slices or frames, and scoring
every other one (as XMem and iMOS are scored, https://arxiv.org/abs/2309.17264).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner import metrics
from limner.adapters.default_window import ROBUST
from limner.adapters.protocols import MemoryModel
from limner.bench._peak_memory import PeakMemory, resident_mb
from limner.bench.config import BenchConfig
from limner.bench.rows import encode_answer
from limner.datasets.sequences import Track
from limner.io.image import Image
from limner.models import ModelCard, PromptableModel, TrackerModel
from limner.prompts import simulate
from limner.prompts.types import MaskPrompt, Prompt, to_json
from limner.sessions import Session, open_session

Mask: TypeAlias = NDArray[np.bool_]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ModelPair:
    """Who answers prompts and who carries masks: one model, or two.

    Attributes:
        model: answers prompts.
        propagator: carries its masks; None: it does so itself.
    """

    model: PromptableModel
    propagator: PromptableModel | None = None

    @property
    def card(self) -> ModelCard:
        """The model's, of two models with both names and hashes."""
        if self.propagator is None:
            return self.model.card
        cards = self.model.card, self.propagator.card
        hashes = [card.weights_sha256 for card in cards]
        both = None if hashes == [None, None] else "+".join(h or "none" for h in hashes)
        return replace(cards[0], name="+".join(card.name for card in cards), weights_sha256=both)


@dataclass(frozen=True)
class PropagationScores:
    """How one object was followed; a value per scored frame where a list.

    Attributes:
        given: the annotated slices or frames, which are not scored.
        given_dice: mean Dice of the answers there, from which everything else is carried.
        frame: numbers of the scored ones, ascending.
        distance: from each to the nearest given one.
        truth: pixels of the object there.
        answer: pixels of the answer there.
        both: pixels that are in both.
        f: `limner.metrics.boundary_f`.
        num_written: slices or frames that were asked about, those without truth included.
        carry_seconds: wall clock of the propagation.
        grown_mb: memory at its end above that after its first answer (2^20 bytes).
    """

    given: list[int]
    given_dice: float
    frame: list[int]
    distance: list[int]
    truth: list[int]
    answer: list[int]
    both: list[int]
    f: list[float]
    num_written: int
    carry_seconds: float
    grown_mb: float | None


class _ObjectAnswers:
    """What came back about one object: answers between two frames."""

    def __init__(self, track: Track, shape: Sequence[int], config: BenchConfig, seed: int) -> None:
        self.track = track
        self.given = track.given(config.annotated)
        self.scored = track.scored(self.given, config.margin)
        self.low = min(*self.scored, *self.given)
        self.high = max(*self.scored, *self.given) + 1
        self.answers = np.zeros((self.high - self.low, *shape[1:]), dtype=bool)
        rng = np.random.default_rng((seed, 0))
        self.prompts = {k: _prompt(track.on(k), config.start, rng) for k in self.given}

    def take(self, frame: int, mask: Mask) -> None:
        """An answer; those beyond the object's surroundings are not kept."""
        if self.low <= frame < self.high:
            self.answers[frame - self.low] = mask

    def followed(self, clock: _Clock) -> PropagationScores:
        """The scores."""
        pairs = [(self.track.on(k), self.answers[k - self.low]) for k in self.scored]
        started = [metrics.dice(self.answers[k - self.low], self.track.on(k)) for k in self.given]
        return PropagationScores(
            given=list(self.given),
            given_dice=round(float(np.mean(started)), 6),
            frame=list(self.scored),
            distance=[min(abs(k - g) for g in self.given) for k in self.scored],
            truth=[int(np.count_nonzero(truth)) for truth, _ in pairs],
            answer=[int(np.count_nonzero(answer)) for _, answer in pairs],
            both=[int(np.count_nonzero(truth & answer)) for truth, answer in pairs],
            f=[round(metrics.boundary_f(answer, truth), 6) for truth, answer in pairs],
            num_written=clock.num_frames,
            carry_seconds=round(clock.propagation_seconds, 5),
            grown_mb=clock.grown_mb,
        )

    def fields(self, clock: _Clock, peak_mb: float | None, error: str | None) -> dict[str, Any]:
        """Of the row."""
        followed = self.followed(clock)
        total = sum(followed.truth) + sum(followed.answer)
        dice = 2 * sum(followed.both) / total if total else 1.0
        answer = encode_answer(self.answers) | {"first": self.low}
        prompts = [to_json(p.on_slice(k)) for k, p in self.prompts.items() if p.kind != "mask"]
        return {
            "scores": {"dice": [round(dice, 6)], "nsd": [None]},
            "seconds": [] if clock.first is None else [round(clock.first, 5)],
            "prompts": [prompts],
            "answer": answer,
            "error": error,
            "way": None,
            "peak_mb": peak_mb,
            "followed": asdict(followed),
        }


@dataclass
class _Clock:
    """Times of one propagation, in seconds of wall clock."""

    first: float | None = None  # from the first prompt to the first carried frame
    propagation_seconds: float = 0.0
    num_frames: int = 0
    grown_mb: float | None = None


def run_propagation(
    pair: ModelPair,
    image: Image,
    tracks: Sequence[Track],
    config: BenchConfig,
    *,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Give some objects and carry them in one session; of each the fields of its row.

    What a model raises ends the propagation and is kept as text; frames that have not been reached
    count as empty.

    Args:
        pair: who is asked.
        image: volume or video.
        tracks: objects; with several all are given before any is carried.
        config: of the run.
        seeds: one per object.
    """
    seen = {
        number: _ObjectAnswers(track, image.geometry.shape, config, seed)
        for number, (track, seed) in enumerate(zip(tracks, seeds, strict=True), start=1)
    }
    clock, memory, error = _Clock(), PeakMemory(), None
    memory.begin()
    try:
        with open_session(image, pair.model, propagator=pair.propagator, window=ROBUST) as session:
            _propagate(session, seen, clock)
    except Exception as problem:  # a model may raise anything, and the others go on
        error = f"{type(problem).__name__}: {problem}"
        _log.debug("a model failed", exc_info=True)
    memory.end()
    return [one.fields(clock, memory.megabytes, error) for one in seen.values()]


def _propagate(session: Session, seen: Mapping[int, _ObjectAnswers], clock: _Clock) -> None:
    """Say what is given and take what comes."""
    began = time.perf_counter()
    for number, one in seen.items():
        for frame, prompt in one.prompts.items():
            session.add(prompt, object_id=number, frame=frame)
            one.take(frame, session.predict(object_id=number, frame=frame).mask)
    low, high = min(one.low for one in seen.values()), max(one.high for one in seen.values())
    propagation_began = time.perf_counter()
    frames: set[int] = set()
    held = None
    for found in session.propagate(start=low, stop=high, direction="both"):
        clock.propagation_seconds = time.perf_counter() - propagation_began
        if clock.first is None:
            clock.first, held = time.perf_counter() - began, resident_mb()
        assert found.frame is not None
        frames.add(found.frame)
        clock.num_frames = len(frames)
        seen[found.object_id].take(found.frame, found.mask)
    now = resident_mb()
    clock.grown_mb = None if now is None or held is None else round(now - held, 1)


def _prompt(target: Mask, start: str, rng: np.random.Generator) -> Prompt:
    match start:
        case "box":
            return simulate.box(target, rng)
        case "click":
            return simulate.click(target, rng)
    return MaskPrompt(target)


def describe_start(config: BenchConfig) -> str:
    """What is given, in words: ``"1 mask"``."""
    plural = {"mask": "masks", "box": "boxes", "click": "clicks"}[config.start]
    text = f"{config.annotated} {config.start if config.annotated == 1 else plural}"
    return f"{text}, together" if config.together else text


def check_propagates(pair: ModelPair, config: BenchConfig) -> None:
    """Refuse whom the protocol cannot ask.

    Raises:
        ValueError: a model that does not understand what it begins with, one of volumes only, or
            one that has nothing to carry on.
    """
    card, carrier = pair.model.card, pair.propagator or pair.model
    if config.start not in card.prompts:
        raise ValueError(
            f"{card.name} understands {', '.join(sorted(card.prompts))}; the protocol propagation "
            f"with --start {config.start} needs that. Say --start mask, or name a model that "
            f"understands it and who carries on: limner-2d+{carrier.card.name}."
        )
    for one in (card, carrier.card):
        if 2 not in one.ndim:
            raise ValueError(
                f"{one.name} works in 3D only; masks are carried from slice to slice here. Leave "
                "the model out."
            )
    can_propagate = isinstance(carrier, TrackerModel | MemoryModel)
    if not can_propagate and not carrier.card.prompts & {"mask", "box"}:
        raise ValueError(
            f"{carrier.card.name} takes neither masks nor boxes to carry on. Leave the model out."
        )
