"""The plan of a propagation: what it writes, and what of it is there already."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from limner.sessions.history.events import PropagationRequest
from limner.sessions.history.log import CommittedMask
from limner.sessions.propagation.schedule import FrameSpan


@dataclass(eq=False)
class PropagationRun:
    """One propagation under way.

    Attributes:
        request: what was asked for.
        again: also run what still holds.
        turns: how many prompts, undos, redos and resets each object had when it began.
        writing: objects of which a frame has been written.
    """

    request: PropagationRequest
    again: bool
    turns: Mapping[int, int]
    writing: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class PropagationPlan:
    """What a propagation in one direction writes, and what of it is there already.

    Attributes:
        run: the propagation.
        spans: all in one direction.
        provenance: digest of what a frame of a span follows from.
        known: what earlier propagations wrote, by object, then by frame and digest.
        visible: what of it was shown when it began, by object and frame.
        ends: a span has ended after so many frames without the object; None: it goes on.
        damaged: frames that could not be read, which say nothing of the object.
    """

    run: PropagationRun
    spans: Sequence[FrameSpan]
    provenance: Callable[[FrameSpan, int], str]
    known: Mapping[int, Mapping[tuple[int, str], CommittedMask]]
    visible: Mapping[int, Mapping[int, CommittedMask]]
    ends: int | None = None
    damaged: Container[int] = ()

    def find_valid(self, span: FrameSpan, frame: int) -> CommittedMask | None:
        """The mask that an earlier propagation left on a frame, if it still holds."""
        return self.known[span.object_id].get((frame, self.provenance(span, frame)))

    def known_prefix(self, span: FrameSpan) -> list[int]:
        """The first frames of a span, as far as all of them are known."""
        return [*takewhile(lambda frame: self.find_valid(span, frame), span.frames)]

    @property
    def missing(self) -> list[FrameSpan]:
        """Spans of which not all is known."""
        return [span for span in self.spans if not self._is_done(span)]

    def _is_done(self, span: FrameSpan) -> bool:
        known = self.known_prefix(span)
        if len(known) == len(span.frames):
            return True
        known = [frame for frame in known if frame not in self.damaged]
        if self.ends is None or len(known) < self.ends:
            return False
        last = [self.find_valid(span, frame) for frame in known[-self.ends :]]
        return not any(any(there.runs[1::2]) for there in last if there)
