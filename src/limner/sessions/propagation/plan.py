"""A propagation under way: what was asked for, and what of it is there already."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from limner.sessions.history.events import Requested
from limner.sessions.history.log import Written
from limner.sessions.propagation.schedule import Leg


@dataclass(eq=False)
class Run:
    """One propagation under way.

    Attributes:
        request: what was asked for.
        again: also run what still holds.
        turns: how many turns the conversation about each object had taken when it began.
        writing: objects of which a frame has been written.
    """

    request: Requested
    again: bool
    turns: Mapping[int, int]
    writing: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Pass:
    """Part of a propagation that goes in one direction.

    Attributes:
        run: the propagation.
        legs: of the pass.
        basis: what a frame of a leg follows from.
        known: what earlier propagations wrote, by object, then by frame and basis.
        visible: what of it was shown when the pass began, by object and frame.
        ends: a leg has ended after so many frames without the object; None: it goes on.
        damaged: frames that could not be read, which say nothing of the object.
    """

    run: Run
    legs: Sequence[Leg]
    basis: Callable[[Leg, int], str]
    known: Mapping[int, Mapping[tuple[int, str], Written]]
    visible: Mapping[int, Mapping[int, Written]]
    ends: int | None = None
    damaged: Container[int] = ()

    def right(self, leg: Leg, frame: int) -> Written | None:
        """What is known of a frame and still holds."""
        return self.known[leg.object_id].get((frame, self.basis(leg, frame)))

    def prefix(self, leg: Leg) -> list[int]:
        """The first frames of a leg, as far as all of them are known."""
        return [*takewhile(lambda frame: self.right(leg, frame), leg.frames)]

    @property
    def missing(self) -> list[Leg]:
        """Legs of which not all is known."""
        return [leg for leg in self.legs if not self._is_done(leg)]

    def _is_done(self, leg: Leg) -> bool:
        known = self.prefix(leg)
        if len(known) == len(leg.frames):
            return True
        known = [frame for frame in known if frame not in self.damaged]
        if self.ends is None or len(known) < self.ends:
            return False
        last = [self.right(leg, frame) for frame in known[-self.ends :]]
        return not any(any(there.runs[1::2]) for there in last if there)
