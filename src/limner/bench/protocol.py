"""Simulated user of the benchmark: prompts round by round, and how a session answers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.bench.config import Protocol
from limner.bench.disturb import click_beside, disturb_prompt
from limner.datasets.objects import TargetObject
from limner.models import ModelCard
from limner.prompts import simulate
from limner.prompts.simulate_volume import spread_slices
from limner.prompts.types import Prompt
from limner.sessions import Session

Mask: TypeAlias = NDArray[np.bool_]
Prompts: TypeAlias = tuple[Prompt, ...]

FIRST_KINDS: tuple[simulate.Kind, ...] = ("click", "box", "scribble", "lasso", "mask")
CORRECTIONS = ("click", "scribble")
_NEEDED: dict[str, str] = {
    "box": "box",
    "clicks": "click",
    "scribbles": "scribble",
    "examples": "example",
}


@dataclass(frozen=True, eq=False)
class Exchange:
    """One round.

    Attributes:
        prompts: of the round, as the session was given them (those on a slice of a volume lifted
            into it).
        mask: the answer, boolean, of the image's shape.
        seconds: of wall clock from the first `add` to the answer.
    """

    prompts: Prompts
    mask: Mask
    seconds: float


Responder: TypeAlias = Callable[[Prompts], Exchange]  # is told the prompts of a round, and answers


class SimulatedUser:
    """Someone who wants one object and says so by a protocol.

    Two generators, so that a disturbed conversation begins with the same wishes as an undisturbed
    one.

    Args:
        case: the object, and perhaps an annotator's strokes or pictures to show.
        protocol: what is said first and how it is corrected.
        understood: kinds of prompt that the model takes; others are never used.
        seed: integers that fix every choice.
        disturbance: of the prompts, a key of `config.DISTURBANCES`.
        slices: how many are marked by the protocol ``"slices"``.
        mark: what is said there, ``"box"`` or ``"click"``.
    """

    def __init__(
        self,
        case: TargetObject,
        protocol: Protocol,
        understood: Collection[str],
        *,
        seed: int,
        disturbance: str = "none",
        slices: int = 3,
        mark: str = "box",
    ) -> None:
        self.case = case
        self.protocol = protocol
        self._rule: simulate.Rule = "separate" if case.target.ndim == 2 else "cvpr2025"
        self._slices = slices
        self._mark = mark
        self._understood = frozenset(understood)
        self._rng = np.random.default_rng((seed, 0))
        self._disturb_rng = np.random.default_rng((seed, 1))
        self._disturbance = disturbance

    def before(self) -> Prompts:
        """What is said, and answered, ahead of the first round; nothing unless disturbed."""
        if self._disturbance != "negative_first":
            return ()
        click = click_beside(self.case.target, self._disturb_rng)
        return () if click is None else (click,)

    def first(self) -> Prompts:
        """What is said first."""
        target = self.case.target
        match self.protocol:
            case "box":
                prompt: Prompt = simulate.box(target, self._rng)
            case "clicks" if target.ndim == 3:
                prompt = self._click(np.zeros_like(target)) or simulate.click(target, self._rng)
            case "clicks":
                prompt = simulate.click(target, self._rng)
            case "mixed":
                prompt = simulate.first_prompt(target, self._rng, kind=self._drawn(FIRST_KINDS))
            case "scribbles":
                return self.case.strokes
            case "examples":
                return tuple(reference.example for reference in self.case.references)
            case "slices":
                return self._marks()
        return self._disturbed(prompt)

    def correct(self, answer: Mask) -> Prompts:
        """What is said to an answer; nothing where it is right, or where words are lacking."""
        target = self.case.target
        kind = "click" if "click" in self._understood else None
        if self.protocol == "mixed" and self._understood & set(CORRECTIONS):
            kind = self._drawn(CORRECTIONS)
        prompt: Prompt | None = None
        if kind == "click":
            prompt = self._click(answer)
        elif kind == "scribble":
            prompt = simulate.corrective_scribble(target, answer, self._rng)
        return () if prompt is None else self._disturbed(prompt)

    def _click(self, answer: Mask) -> Prompt | None:
        return simulate.corrective_click(self.case.target, answer, self._rng, rule=self._rule)

    def _marks(self) -> Prompts:
        """A box, or a click, on a few slices, in 3D."""
        target = self.case.target
        draw = simulate.box if self._mark == "box" else simulate.click
        marks: list[Prompt] = []
        for frame in spread_slices(target, self._slices):
            target_slice = target[frame]
            drawn = draw(target_slice, self._rng)
            shape, rng = target_slice.shape, self._disturb_rng
            marks.append(disturb_prompt(drawn, self._disturbance, rng, shape).on_slice(frame))
        return tuple(marks)

    def _drawn(self, kinds: Sequence[Any]) -> Any:
        """One of the kinds at random: the first of a random order that the model understands, so
        that models which understand it all are told the same.
        """
        order = [kinds[k] for k in self._rng.permutation(len(kinds))]
        return next(kind for kind in order if kind in self._understood)

    def _disturbed(self, prompt: Prompt) -> Prompts:
        shape = self.case.target.shape
        return (disturb_prompt(prompt, self._disturbance, self._disturb_rng, shape),)


def converse(listener: Responder, user: SimulatedUser, num_rounds: int) -> Iterator[Exchange]:
    """Prompt, answer, correct, until nothing is wrong or the rounds are used up.

    Args:
        listener: who answers; nothing has been said yet.
        user: who speaks.
        num_rounds: at most so many.

    Raises:
        Exception: whatever the model raises, at the round where it does.
    """
    opening = user.before()
    if opening:
        listener(opening)
    prompts = user.first()
    for _ in range(num_rounds):
        if not prompts:
            return
        exchange = listener(prompts)
        yield exchange
        prompts = user.correct(exchange.mask)


def repeat_shuffled(
    open_session: Callable[[], Session], rounds: Sequence[Prompts], rng: np.random.Generator
) -> Exchange:
    """The rounds of a conversation once more, in random order, in a new session; the last answer.

    `seconds` is that of the last round.
    """
    with open_session() as session:
        for place in rng.permutation(len(rounds)):
            exchange = ask(session, rounds[place])
    return exchange


def ask(session: Session, prompts: Prompts) -> Exchange:
    """Add the prompts of one round and ask once."""
    began = time.perf_counter()
    for prompt in prompts:
        session.add(prompt)
    mask = session.predict().mask
    return Exchange(prompts, mask, time.perf_counter() - began)


def check_speakable(
    card: ModelCard, protocol: Protocol, disturbance: str, *, mark: str = "box"
) -> None:
    """Refuse a protocol whose first prompt a model does not understand.

    Raises:
        ValueError: says what the model understands.
    """
    needed = {mark if protocol == "slices" else _NEEDED[protocol]} if protocol != "mixed" else set()
    if disturbance == "negative_first":
        needed.add("click")
    lacking = sorted(needed - card.prompts)
    if not lacking and (protocol != "mixed" or card.prompts & set(FIRST_KINDS)):
        return
    what = protocol if disturbance != "negative_first" else f"{protocol} with {disturbance}"
    other = "change protocol"
    if protocol != "examples" and "example" in card.prompts:
        other = "use --protocol examples"
    raise ValueError(
        f"{card.name} understands {', '.join(sorted(card.prompts))}; the protocol {what} "
        f"needs {', '.join(lacking or FIRST_KINDS)}. Leave the model out or {other}."
    )


def check_dimensions(card: ModelCard, dimensions: int, *, by_slices: bool = False) -> None:
    """Refuse to show a model what it cannot look at.

    Raises:
        ValueError: a model of volumes shall see pictures; one shall be asked slice by slice that
            works in 3D only, or that takes neither masks nor boxes to carry from slice to slice.
    """
    if dimensions == 2 and 2 not in card.ndim:
        raise ValueError(f"{card.name} works on volumes; pictures are scored here.")
    if dimensions == 2 or (3 in card.ndim and not by_slices):
        return
    if 2 not in card.ndim:
        raise ValueError(
            f"{card.name} works in 3D only and cannot be asked slice by slice; leave it out or "
            "leave out --by-slices."
        )
    if not card.prompts & {"mask", "box"}:
        raise ValueError(
            f"{card.name} understands {', '.join(sorted(card.prompts))}; a volume is answered "
            "slice by slice, which needs masks or boxes to carry on. Leave the model out."
        )
