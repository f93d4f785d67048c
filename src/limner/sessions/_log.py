"""What was said in a session: events, and the state that follows from them.

The state is a pure fold over events, so a journal of events is all that has to survive a crash.
Undo and redo are events too: they mark actions as not counting, and as counting again.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

from limner.errors import SessionError
from limner.prompts.types import Prompt, from_json, to_json

Runs: TypeAlias = "array[int]"  # row-major runs of a mask, see `limner.rle`


@dataclass(frozen=True)
class Added:
    """A prompt was added to an object, on a frame or (None) on the whole image."""

    prompt: Prompt
    object_id: int
    frame: int | None
    op: ClassVar[str] = "add"


@dataclass(frozen=True)
class Predicted:
    """The answer to all prompts so far was asked for: a round ended here."""

    object_id: int
    frame: int | None
    op: ClassVar[str] = "predict"


@dataclass(frozen=True)
class Undone:
    """The last action of an object, or (None) of the session, was taken back."""

    object_id: int | None
    op: ClassVar[str] = "undo"


@dataclass(frozen=True)
class Redone:
    """The action taken back last, of an object or (None) of the session, counts again."""

    object_id: int | None
    op: ClassVar[str] = "redo"


@dataclass(frozen=True)
class Cleared:
    """All prompts and propagated frames of an object, or (None) of all objects, were dropped."""

    object_id: int | None
    op: ClassVar[str] = "reset"


@dataclass(frozen=True)
class Named:
    """An object got a name."""

    object_id: int
    name: str
    op: ClassVar[str] = "name"


@dataclass(frozen=True)
class Propagated:
    """A propagation of objects began; the frames it commits follow. `how`: see `propagate`."""

    object_ids: tuple[int, ...]
    how: str = "carry"
    op: ClassVar[str] = "propagate"


@dataclass(frozen=True)
class Committed:
    """A propagation wrote one frame of one object; `counts` are the row-major runs of its mask."""

    object_id: int
    frame: int
    counts: tuple[int, ...]
    score: float
    op: ClassVar[str] = "commit"


Event: TypeAlias = Added | Predicted | Undone | Redone | Cleared | Named | Propagated | Committed
_EVENTS: dict[str, type[Event]] = {
    kind.op: kind
    for kind in (Added, Predicted, Undone, Redone, Cleared, Named, Propagated, Committed)
}


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as JSON values."""
    if isinstance(event, Added):
        fields = {
            "prompt": to_json(event.prompt),
            "object_id": event.object_id,
            "frame": event.frame,
        }
    else:
        fields = asdict(event)
    return {"op": event.op, **fields}


def event_from_json(value: dict[str, Any]) -> Event:
    """Inverse of `event_to_json`.

    Raises:
        SessionError: unknown or malformed event.
    """
    fields = dict(value)
    kind = _EVENTS.get(fields.pop("op", ""))
    if kind is None:
        raise SessionError(f"Unknown event {value.get('op')!r} in the journal.")
    try:
        if kind is Added:
            fields["prompt"] = from_json(fields["prompt"])
        for name in ("object_ids", "counts"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return kind(**fields)
    except (KeyError, TypeError) as error:
        raise SessionError(f"Malformed {kind.op!r} event in the journal: {error}.") from error


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
        frames: runs and score of each frame that a propagation committed; an array of runs takes
            a tenth of the memory of a tuple, and a video has many frames.
    """

    number: int
    group: int
    object_id: int
    frame: int | None = None
    prompt: Prompt | None = None
    clears: bool = False
    how: str | None = None
    frames: dict[int, tuple[Runs, float]] = field(default_factory=dict)


class Log:
    """The state of a session's conversation: what counts, what was undone, what was predicted."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self.names: dict[int, str] = {}
        self._known: set[int] = set()
        self._done: list[Action] = []
        self._undone: list[Action] = []
        self._rounds: set[tuple[int, ...]] = set()
        self._number = self._group = 0
        for event in events:
            self.apply(event)

    def check(self, event: Event) -> None:
        """Refuse an event that makes no sense now; `apply` after this cannot fail.

        Raises:
            SessionError: unknown object, or nothing to undo, redo or predict.
        """
        match event:
            case Undone() | Redone() | Cleared():
                self._check_known(event.object_id)
            case Predicted():
                if not self.prompts(event.object_id, event.frame):
                    where = "" if event.frame is None else f" on frame {event.frame}"
                    raise SessionError(
                        f"Object {event.object_id} has no prompts{where}; add one before predict()."
                    )
            case Committed():
                self._propagation(event.object_id)
        if isinstance(event, Undone) and not self._chosen(self._done, event.object_id):
            raise SessionError("There is nothing to undo.")
        if isinstance(event, Redone) and not self._chosen(self._undone, event.object_id):
            raise SessionError("There is nothing to redo.")

    def apply(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case Added():
                self._do(event.object_id, frame=event.frame, prompt=event.prompt)
                self._group += 1
            case Predicted():
                self._rounds.add(numbers(self.prompts(event.object_id, event.frame)))
            case Undone():
                self._move(self._done, self._undone, event.object_id)
            case Redone():
                self._move(self._undone, self._done, event.object_id)
            case Cleared():
                for object_id in self._concerned(event.object_id):
                    self._do(object_id, clears=True)
                self._group += 1
            case Named():
                self._known.add(event.object_id)
                self.names[event.object_id] = event.name
            case Propagated():
                for object_id in event.object_ids:
                    self._do(object_id, how=event.how)
                self._group += 1
            case Committed():
                action = self._propagation(event.object_id)
                action.frames[event.frame] = (array("Q", event.counts), event.score)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects that have a prompt or a propagated frame, ascending."""
        return tuple(sorted({a.object_id for a in self._counting() if not a.clears}))

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
            a for a in self._counting() if a.prompt is not None and object_id in (None, a.object_id)
        )

    def frames(self, object_id: int) -> tuple[int, ...]:
        """Frames on which an object has prompts, ascending."""
        return tuple(sorted({a.frame for a in self.all_prompts(object_id) if a.frame is not None}))

    def committed(
        self, object_id: int, *, before: int | None = None
    ) -> dict[int, tuple[Runs, float]]:
        """Propagated frames of an object: runs and score. `before`: only by earlier actions."""
        result: dict[int, tuple[Runs, float]] = {}
        for action in self._counting():
            if action.object_id == object_id and (before is None or action.number < before):
                result.update(action.frames)
        return result

    def ways(self, object_id: int) -> dict[int, str]:
        """How each propagated frame of an object came to be."""
        result: dict[int, str] = {}
        for action in self._counting():
            if action.object_id == object_id and action.how is not None:
                result.update(dict.fromkeys(action.frames, action.how))
        return result

    def is_round(self, actions: Sequence[Action]) -> bool:
        """Whether exactly these prompts were answered at some time."""
        return numbers(actions) in self._rounds

    def ends_round(self, action: Action) -> bool:
        """Whether an answer was asked for after this prompt and before the next one there."""
        said = self.prompts(action.object_id, action.frame)
        return self.is_round([a for a in said if a.number <= action.number])

    def signature(self) -> tuple[Any, ...]:
        """Everything that defines the state, for comparison: two logs with equal ones are alike."""
        return (
            tuple(self.names.items()),
            self.known_ids,
            tuple(_facts(a) for a in self._done),
            tuple(_facts(a) for a in self._undone),
            frozenset(self._rounds),
        )

    def _do(self, object_id: int, **fields: Any) -> None:
        self._known.add(object_id)
        self._undone = [a for a in self._undone if a.object_id != object_id]
        self._done.append(Action(self._number, self._group, object_id, **fields))
        self._number += 1

    def _move(self, source: list[Action], target: list[Action], object_id: int | None) -> None:
        moved = self._chosen(source, object_id)
        for action in moved:
            source.remove(action)
        target.extend(reversed(moved))
        if target is self._done:  # redone actions take their old place in time
            target.sort(key=lambda a: a.number)

    def _chosen(self, actions: list[Action], object_id: int | None) -> list[Action]:
        """The last action of an object, or the last group of all."""
        own = [a for a in actions if object_id in (None, a.object_id)]
        if not own:
            return []
        return own[-1:] if object_id is not None else [a for a in own if a.group == own[-1].group]

    def _counting(self) -> list[Action]:
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

    def _concerned(self, object_id: int | None) -> tuple[int, ...]:
        return self.object_ids if object_id is None else (object_id,)

    def _check_known(self, object_id: int | None) -> None:
        if object_id is not None and object_id not in self._known:
            known = ", ".join(str(i) for i in self.known_ids) or "none yet"
            raise SessionError(f"There is no object {object_id}; objects are: {known}.")


def numbers(actions: Sequence[Action]) -> tuple[int, ...]:
    """The numbers of actions: the key under which their answer is remembered."""
    return tuple(a.number for a in actions)


def _facts(action: Action) -> tuple[Any, ...]:
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
