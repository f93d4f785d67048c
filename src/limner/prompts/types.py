"""Prompt kinds, as unions and as a table, and JSON both ways.

Positions are array indices in index order: ``(row, column)`` in 2D and on a frame or slice,
``(slice, row, column)`` in 3D. The centre of a pixel is its integer index. Which object and which
frame a prompt belongs to is given when it is added to a session, not in the prompt.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, get_args

from limner.errors import PromptError
from limner.prompts.kinds.base import GridMap, Mask, PromptBase
from limner.prompts.kinds.box import Box
from limner.prompts.kinds.checks import Position, check_fields
from limner.prompts.kinds.click import Click
from limner.prompts.kinds.example import Example
from limner.prompts.kinds.lasso import Lasso
from limner.prompts.kinds.mask import MAX_MASK_PIXELS, MaskPrompt
from limner.prompts.kinds.scribble import Scribble
from limner.prompts.kinds.text import TextPrompt

__all__ = [
    "AREAS",
    "KINDS",
    "MARKS",
    "MAX_MASK_PIXELS",
    "Area",
    "Box",
    "Click",
    "Example",
    "GridMap",
    "Lasso",
    "Mark",
    "Mask",
    "MaskPrompt",
    "Placeless",
    "Position",
    "Prompt",
    "PromptBase",
    "Scribble",
    "TextPrompt",
    "check_prompt",
    "from_json",
    "to_json",
]

# A new kind is its name in one of these unions; all that tells kinds apart goes by them, by methods
# of the kinds, or ends in `assert_never`, where mypy names the arm that is missing.
Mark: TypeAlias = Click | Scribble  # says of pixels that they belong, or do not (`positive`)
Area: TypeAlias = Box | Lasso | MaskPrompt  # bounds the object
Placeless: TypeAlias = TextPrompt | Example  # says what, not where
Prompt: TypeAlias = Mark | Area | Placeless

KINDS: Final[dict[str, type[Prompt]]] = {cls.kind: cls for cls in get_args(Prompt)}
MARKS: Final = frozenset(cls.kind for cls in get_args(Mark))
AREAS: Final = frozenset(cls.kind for cls in get_args(Area))


def check_prompt(prompt: object) -> None:
    """Refuse what is no prompt of a known kind, before it is kept anywhere.

    Raises:
        TypeError: no prompt at all.
        PromptError: a kind of prompt that is not in `KINDS`.
    """
    if isinstance(prompt, Prompt):
        return
    if isinstance(prompt, PromptBase):
        raise PromptError(_unknown(prompt.kind))
    names = ", ".join(kind.__name__ for kind in KINDS.values())
    raise TypeError(f"A prompt is one of {names}, not {prompt!r}.")


def to_json(prompt: Prompt) -> dict[str, Any]:
    """The prompt as JSON values, with its kind under ``"kind"``; masks as row-major runs
    (`limner.rle`), the pixels of examples whole, compressed without loss.

    Raises:
        TypeError, PromptError: as `check_prompt`.
    """
    check_prompt(prompt)
    return {"kind": prompt.kind, **prompt.to_fields()}


def from_json(value: dict[str, Any]) -> Prompt:
    """Inverse of `to_json`.

    Raises:
        PromptError: the kind is unknown, or a field is missing, unknown or of the wrong type.
    """
    if not isinstance(value, dict) or value.get("kind") not in tuple(KINDS):
        raise PromptError(_unknown(value.get("kind") if isinstance(value, dict) else value))
    kind = KINDS[value["kind"]]
    fields = {k: v for k, v in value.items() if k != "kind"}
    check_fields(fields, kind.kind, *kind.json_fields)
    try:
        return kind.from_fields(fields)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        reason = str(error).rstrip(".")
        raise PromptError(f"Malformed {kind.kind} prompt: {reason}.") from error


def _unknown(kind: object) -> str:
    return f"Unknown kind of prompt {kind!r}; known are {', '.join(KINDS)}."
