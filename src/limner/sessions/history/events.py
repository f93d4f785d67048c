"""Session events: what a journal holds, one a line."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from dataclasses import fields as fields_of
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
class Locked:
    """An object was locked, or (False) unlocked: its prompts stay, and others are kept off it."""

    object_id: int
    locked: bool = True
    op: ClassVar[str] = "lock"


@dataclass(frozen=True)
class Prioritized:
    """Which objects keep the pixels that they share with others in a label map, uppermost first."""

    object_ids: tuple[int, ...]
    op: ClassVar[str] = "priority"


@dataclass(frozen=True)
class PropagationRequest:
    """A propagation was asked for, with these arguments of `propagate`. Nothing that undo takes
    back: that is what it wrote.
    """

    start: int | None = None
    stop: int | None = None
    direction: str = "both"
    object_id: int | None = None
    how: str = "carry"
    op: ClassVar[str] = "request"


@dataclass(frozen=True)
class Propagated:
    """A propagation begins to write frames of objects; they follow. `how`: see `propagate`.
    `joins`: the objects belong to the propagation that began last, and are undone with it.
    """

    object_ids: tuple[int, ...]
    how: str = "carry"
    joins: bool = False
    op: ClassVar[str] = "propagate"


@dataclass(frozen=True)
class Committed:
    """A propagation wrote one frame of one object.

    Attributes:
        counts: row-major runs of its mask.
        score: predicted quality, 0…1.
        basis: digest of all that the mask follows from, see
            `limner.sessions.propagation.provenance`; empty in journals from before there was one.
    """

    object_id: int
    frame: int
    counts: tuple[int, ...]
    score: float
    basis: str = ""
    op: ClassVar[str] = "commit"


Event: TypeAlias = (
    Added
    | Predicted
    | Undone
    | Redone
    | Cleared
    | Named
    | Locked
    | Prioritized
    | PropagationRequest
    | Propagated
    | Committed
)
_EVENTS: dict[str, type[Event]] = {
    kind.op: kind
    for kind in (
        Added,
        Predicted,
        Undone,
        Redone,
        Cleared,
        Named,
        Locked,
        Prioritized,
        PropagationRequest,
        Propagated,
        Committed,
    )
}


_TYPES: dict[str, tuple[type, ...]] = {  # by annotation
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
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
        fields = dict(vars(event))  # runs are many: no copies of each
    return {"op": event.op, **fields}


def event_from_json(value: dict[str, Any]) -> Event:
    """Inverse of `event_to_json`.

    Raises:
        SessionError: unknown or malformed event.
    """
    fields = dict(value)
    op = fields.pop("op", None)
    kind = _EVENTS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise SessionError(f"Unknown event {value.get('op')!r} in the journal.")
    try:
        if kind is Added:
            fields["prompt"] = from_json(fields["prompt"])
        for name in ("object_ids", "counts"):
            if name in fields:
                fields[name] = tuple(fields[name])
        event = kind(**fields)
        _check_types(event)
        return event
    except (KeyError, TypeError) as error:
        raise SessionError(f"Malformed {kind.op!r} event in the journal: {error}.") from error


def _check_types(event: Event) -> None:
    for field in fields_of(event):
        value = getattr(event, field.name)
        if field.type == "tuple[int, ...]":
            fits = all(isinstance(v, int) for v in value)
        else:
            fits = isinstance(value, _TYPES.get(str(field.type), (object,)))
        if not fits:
            raise TypeError(f"{field.name} is not {field.type}")
