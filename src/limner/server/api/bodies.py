"""Bodies of requests, as OpenAPI describes them.

Ids, frames and prompts are handed to the session as they were sent: it refuses what is wrong with
the same words as one that runs in Python.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

ObjectId = Annotated[Any, WithJsonSchema({"type": "integer", "minimum": 1})]
AnyObject = Annotated[Any, WithJsonSchema({"type": ["integer", "null"], "minimum": 1})]
Frame = Annotated[Any, WithJsonSchema({"type": ["integer", "null"], "minimum": 0})]
Axis = Annotated[Any, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2})]
PromptValue = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["kind"],
            "properties": {
                "kind": {
                    "enum": ["click", "box", "scribble", "lasso", "mask", "text", "example"],
                },
            },
            "description": "A prompt in index order; the fields of each kind are in prompts.md.",
        }
    ),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSession(_Body):
    """What a session is opened with."""

    case: str = Field(description="Id of the image.")
    model: str | None = Field(None, description="See /models; default: that of the image's kind.")
    propagator: str | None = Field(None, description="Another model that carries masks.")
    zoom: bool | None = None
    window: str | list[float] | None = Field(None, description="A preset or [low, high].")
    keep_masks: bool = False
    exact: bool = False
    name: str = Field("", max_length=200)


class Description(_Body):
    """What people say of a session."""

    name: str | None = Field(None, max_length=200)
    status: str | None = Field(None, description="not started, in progress, done or flagged.")


class NewPrompt(_Body):
    """A prompt and what it is about."""

    prompt: PromptValue
    object_id: ObjectId = 1
    frame: Frame = None
    axis: Axis = 0
    check_only: bool = False


class Target(_Body):
    """An object on a frame."""

    object_id: ObjectId = 1
    frame: Frame = None


class Place(_Body):
    """A frame, or all."""

    frame: Frame = None


class OneOrAll(_Body):
    """One object, or all."""

    object_id: AnyObject = None


class ObjectName(_Body):
    """The name of an object."""

    name: Annotated[Any, WithJsonSchema({"type": "string"})]


class Lock(_Body):
    """Whether an object is locked."""

    locked: bool


class Priority(_Body):
    """Which objects keep shared pixels, the uppermost first."""

    object_ids: list[int]


class NewPropagation(_Body):
    """The arguments of a propagation; `resume` repeats the last one."""

    start: Frame = None
    stop: Frame = None
    direction: Annotated[Any, WithJsonSchema({"enum": ["both", "forward", "backward"]})] = "both"
    object_id: AnyObject = None
    how: Annotated[Any, WithJsonSchema({"enum": ["carry", "interpolate"]})] = "carry"
    again: bool = False
    resume: bool = False
