"""The prompt log of a session: the state that follows from its events.

The state is a pure fold over events, so a journal of events is all that has to survive a crash.
Undo and redo are events too: they mark actions as not counting, and as counting again.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from limner.errors import SessionError
from limner.prompts.types import Prompt
from limner.sessions.history.events import (
    Added,
    Cleared,
    Committed,
    Event,
    Locked,
    Named,
    Predicted,
    Prioritized,
    Propagated,
    PropagationRequest,
    Redone,
    Runs,
    Undone,
)


class CommittedMask(NamedTuple):
    """A frame that a propagation committed; see `Committed`. An array of runs takes a twentieth of
    the memory of a tuple, and a video has many frames.
    """

    runs: Runs
    score: float
    basis: str


@dataclass(eq=False)
class Action:
    """One thing that can be undone, as far as it concerns one object.

    Attributes:
        number: position in the order of actions; unique.
        group: actions of one event share it and are undone together by the session's undo.
        object_id: whose.
        frame: of a prompt on one frame or slice, else None.
        prompt: for an added prompt.
        clears: True for a reset.
        how: of a propagation, else None.
        frames: what a propagation committed, by frame.
    """

    number: int
    group: int
    object_id: int
    frame: int | None = None
    prompt: Prompt | None = None
    clears: bool = False
    how: str | None = None
    frames: dict[int, CommittedMask] = field(default_factory=dict)


class PromptLog:
    """What happened in a session: which prompts count, which were undone, which were answered."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self.names: dict[int, str] = {}
        self.locked: tuple[int, ...] = ()  # in the order in which they were locked
        self.priority: tuple[int, ...] = ()  # in a label map, the uppermost first
        self.requested: PropagationRequest | None = None  # the last propagation
        self.turns: Counter[int] = Counter()  # prompts, undo, redo and reset of an object so far
        self._known: set[int] = set()
        self._done: list[Action] = []
        self._undone: list[Action] = []
        self._rounds: set[tuple[int, ...]] = set()
        self._number = self._group = 0
        self._begun = -1  # group of the propagation that began last
        for event in events:
            self.apply(event)

    def check(self, event: Event) -> None:
        """Refuse an event that makes no sense now; `apply` after this cannot fail.

        Raises:
            SessionError: unknown or locked object, or nothing to undo, redo or predict.
        """
        match event:
            case Undone() | Redone():
                self._check_known(event.object_id)
            case Cleared():
                self._check_known(event.object_id)
                self.check_unlocked(*self._objects_of(event.object_id))
            case Added():
                self.check_unlocked(event.object_id)
            case Locked():
                self._check_known(event.object_id)
            case Prioritized():
                for object_id in event.object_ids:
                    self._check_known(object_id)
            case Predicted():
                if not self.prompts(event.object_id, event.frame):
                    where = "" if event.frame is None else f" on frame {event.frame}"
                    raise SessionError(
                        f"Object {event.object_id} has no prompts{where}; add one before predict()."
                    )
            case Committed():
                self._propagation(event.object_id)
        if isinstance(event, (Undone, Redone)):
            source = self._done if isinstance(event, Undone) else self._undone
            chosen = self._choose_actions(source, event.object_id)
            if not chosen:
                raise SessionError(f"There is nothing to {event.op}.")
            self.check_unlocked(*(action.object_id for action in chosen))

    def check_unlocked(self, *object_ids: int) -> None:
        """Refuse to change what was said about objects while one of them is locked.

        Raises:
            SessionError: one is.
        """
        for object_id in object_ids:
            if object_id in self.locked:
                raise SessionError(
                    f"Object {object_id} is locked, so that nothing changes it; unlock it first: "
                    f"session.unlock({object_id}), --unlock {object_id}."
                )

    def apply(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case Added():
                self._append_action(event.object_id, frame=event.frame, prompt=event.prompt)
                self.turns[event.object_id] += 1
                self._group += 1
            case Predicted():
                self._rounds.add(action_numbers(self.prompts(event.object_id, event.frame)))
            case Undone():
                self._move_actions(self._done, self._undone, event.object_id)
            case Redone():
                self._move_actions(self._undone, self._done, event.object_id)
            case Cleared():
                for object_id in self._objects_of(event.object_id):
                    self._append_action(object_id, clears=True)
                    self.turns[object_id] += 1
                self._group += 1
            case Named():
                self._known.add(event.object_id)
                self.names[event.object_id] = event.name
            case Locked():
                others = tuple(i for i in self.locked if i != event.object_id)
                again = event.locked and event.object_id in self.locked
                if not again:
                    self.locked = (*others, event.object_id) if event.locked else others
            case Prioritized():
                self.priority = event.object_ids
            case PropagationRequest():
                self.requested = event
            case Propagated():
                if not event.joins:
                    self._begun, self._group = self._group, self._group + 1
                for object_id in event.object_ids:
                    self._append_action(object_id, group=self._begun, how=event.how)
            case Committed():
                action = self._propagation(event.object_id)
                code = "I" if max(event.counts, default=0) < 1 << 32 else "Q"
                found = CommittedMask(
                    array(code, event.counts), event.score, sys.intern(event.basis)
                )
                action.frames[event.frame] = found

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects that have a prompt or a propagated frame, ascending."""
        return tuple(sorted({a.object_id for a in self._counting_actions() if not a.clears}))

    @property
    def known_ids(self) -> tuple[int, ...]:
        """Ids of all objects ever mentioned, ascending."""
        return tuple(sorted(self._known))

    @property
    def can_undo(self) -> bool:
        """Whether the session's undo has something to take back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether the session's redo has something to bring back."""
        return bool(self._undone)

    def prompts(self, object_id: int, frame: int | None) -> tuple[Action, ...]:
        """The prompts that count for an object on a frame (or None, the whole), oldest first."""
        return tuple(a for a in self.all_prompts(object_id) if a.frame == frame)

    def all_prompts(self, object_id: int | None = None) -> tuple[Action, ...]:
        """The prompts that count, of one object or of all, oldest first."""
        return tuple(
            a
            for a in self._counting_actions()
            if a.prompt is not None and object_id in (None, a.object_id)
        )

    def frames(self, object_id: int) -> tuple[int, ...]:
        """Frames on which an object has prompts, ascending."""
        return tuple(sorted({a.frame for a in self.all_prompts(object_id) if a.frame is not None}))

    def committed(self, object_id: int) -> dict[int, CommittedMask]:
        """Propagated frames of an object."""
        result: dict[int, CommittedMask] = {}
        for action in self._counting_actions():
            if action.object_id == object_id:
                result.update(action.frames)
        return result

    def propagated_before(self, object_id: int, frame: int, number: int) -> CommittedMask | None:
        """What propagations before an action had left of an object on a frame."""
        for action in reversed(self._counting_actions()):
            if action.object_id == object_id and action.number < number and frame in action.frames:
                return action.frames[frame]
        return None

    def known(self, object_id: int) -> dict[tuple[int, str], CommittedMask]:
        """All that propagations wrote of an object by frame and basis, also what was written over
        since.
        """
        return {
            (frame, found.basis): found
            for action in self._counting_actions()
            if action.object_id == object_id
            for frame, found in action.frames.items()
            if found.basis
        }

    def ways(self, object_id: int) -> dict[int, str]:
        """How each propagated frame of an object came to be."""
        result: dict[int, str] = {}
        for action in self._counting_actions():
            if action.object_id == object_id and action.how is not None:
                result.update(dict.fromkeys(action.frames, action.how))
        return result

    def is_round(self, actions: Sequence[Action]) -> bool:
        """Whether exactly these prompts were answered at some time."""
        return action_numbers(actions) in self._rounds

    def ends_round(self, action: Action) -> bool:
        """Whether an answer was asked for after this prompt and before the next one there."""
        prompts = self.prompts(action.object_id, action.frame)
        return self.is_round([a for a in prompts if a.number <= action.number])

    def signature(self) -> tuple[Any, ...]:
        """Everything that defines the state, for comparison: two logs with equal ones are alike."""
        return (
            tuple(self.names.items()),
            self.locked,
            self.priority,
            self.known_ids,
            tuple(_describe_action(a) for a in self._done),
            tuple(_describe_action(a) for a in self._undone),
            frozenset(self._rounds),
            self.requested,
        )

    def _append_action(self, object_id: int, *, group: int | None = None, **fields: Any) -> None:
        self._known.add(object_id)
        self._undone = [a for a in self._undone if a.object_id != object_id]
        group = self._group if group is None else group
        self._done.append(Action(self._number, group, object_id, **fields))
        self._number += 1

    def _move_actions(
        self, source: list[Action], target: list[Action], object_id: int | None
    ) -> None:
        moved = self._choose_actions(source, object_id)
        for action in moved:
            source.remove(action)
            self.turns[action.object_id] += 1
        target.extend(reversed(moved))
        if target is self._done:  # redone actions take their old place in time
            target.sort(key=lambda a: a.number)

    def _choose_actions(self, actions: list[Action], object_id: int | None) -> list[Action]:
        """The last action of an object, or the last group of all."""
        own = [a for a in actions if object_id in (None, a.object_id)]
        if not own:
            return []
        return own[-1:] if object_id is not None else [a for a in own if a.group == own[-1].group]

    def _counting_actions(self) -> list[Action]:
        """Actions since the last reset of their object."""
        last = {a.object_id: a.number for a in self._done if a.clears}
        return [a for a in self._done if a.number >= last.get(a.object_id, 0)]

    def _propagation(self, object_id: int) -> Action:
        for action in reversed(self._done):
            if action.object_id == object_id:
                if action.prompt is None and not action.clears:
                    return action
                break
        raise SessionError(f"The propagation of object {object_id} was ended by a later change.")

    def _objects_of(self, object_id: int | None) -> tuple[int, ...]:
        return self.object_ids if object_id is None else (object_id,)

    def _check_known(self, object_id: int | None) -> None:
        if object_id is not None and object_id not in self._known:
            known = ", ".join(str(i) for i in self.known_ids) or "none yet"
            raise SessionError(f"There is no object {object_id}; objects are: {known}.")


def action_numbers(actions: Sequence[Action]) -> tuple[int, ...]:
    """The numbers of actions: the key under which their answer is remembered."""
    return tuple(a.number for a in actions)


def _describe_action(action: Action) -> tuple[Any, ...]:
    return (
        action.number,
        action.group,
        action.object_id,
        action.frame,
        action.prompt,
        action.clears,
        action.how,
        tuple(sorted(action.frames.items())),
    )
