"""Configuration of a benchmark run, checked by pydantic and kept beside its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from limner.bench.slices import Between
from limner.datasets.selection import Dimensions
from limner.errors import FormatError

Protocol: TypeAlias = Literal[
    "box", "clicks", "mixed", "scribbles", "examples", "slices", "propagation", "automatic"
]
Split: TypeAlias = Literal["train", "val", "test", "all"]
Disturbance: TypeAlias = Literal[
    "none",
    "click_off_5",
    "box_large_20",
    "negative_first",
    "shuffled",
    "sixteen_bit",
    "rgb",
    "grey",
    "inverted",
]
Mark: TypeAlias = Literal["box", "click"]
Start: TypeAlias = Literal["mask", "box", "click"]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Whole: TypeAlias = Annotated[int, Field(ge=0)]

PROTOCOLS: dict[str, str] = {
    "box": "the tight box, then corrective clicks",
    "clicks": "a click on the most inner pixel, then corrective clicks",
    "mixed": "click, box, scribble, lasso or rough mask, then corrective clicks or scribbles",
    "scribbles": "all strokes that a person drew, then corrective clicks",
    "examples": "other pictures with all pixels of the same label, then corrective clicks",
    "slices": "a box (or click) on a few slices of a volume, then corrective clicks",
    "propagation": "one annotated slice or frame (or a few), carried to the others",
    "automatic": "no prompts: the whole image is labelled, and every label scored",
}
IMAGE_PROTOCOLS = ("box", "clicks", "mixed", "scribbles", "examples", "automatic")
VOLUME_PROTOCOLS = ("box", "clicks", "mixed", "slices", "propagation", "automatic")
DISTURBANCES: dict[str, str] = {
    "none": "as the user means it",
    "click_off_5": "every click lands 5 pixels away in a random direction",
    "box_large_20": "every side of a box is 10 % of its length too far out",
    "negative_first": "a negative click beside the object comes first",
    "shuffled": "all prompts of the undisturbed conversation once more, in random order",
    "sixteen_bit": "the picture as uint16 over the whole range of that type",
    "rgb": "a grey picture stored with three equal channels",
    "grey": "a colour picture turned grey",
    "inverted": "black for white",
}
VOLUME_DISTURBANCES = ("none", "click_off_5", "box_large_20", "sixteen_bit", "inverted")
MOST_EXAMPLES = 64


class BenchConfig(BaseModel):
    """Everything that decides the rows of a run, apart from the files themselves.

    Attributes:
        data: the folder, as an absolute path.
        models: names; all are asked about the same objects. Of the protocol ``propagation`` also
            two joined by ``+``: the first answers prompts, the second carries its masks.
        protocol: what the simulated user does, a key of `PROTOCOLS`.
        rounds: prompts per conversation, the first included (with ``scribbles`` all strokes of a
            person are the first, with ``examples`` all examples).
        split: which part of the data; a folder without ``splits.json`` is all test.
        sets: patterns of set names such as ``"scribble_*"``; all sets if empty.
        limit: images per set, spread evenly over it; None for all.
        objects: objects per image, spread evenly over them; None for all.
        seed: of the user; every object derives its own from it.
        disturb: what is made harder, a key of `DISTURBANCES`.
        weights: ``(model, file)`` pairs; models not named take what they ship with.
        device: where models run.
        examples: pictures that are shown, at most; of the protocol ``examples`` only.
        dimensions: 2 for pictures, 3 for volumes.
        by_slices: volumes are said slice by slice to models that work in 3D, too.
        slices: that are marked; of the protocol ``slices`` only.
        mark: what is said on each of these: ``"box"`` or ``"click"``.
        between: how models that work in 2D get from one marked slice to the next:
            ``"interpolate"`` boxes or ``"carry"`` masks.
        annotated: slices or frames that are given; this and all below of the protocol
            ``propagation`` only.
        start: how they are given: the true ``"mask"``, the tight ``"box"`` or a ``"click"``.
        together: all objects of an image in one session.
        margin: slices or frames beyond the object's first and last one that are asked about, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    models: tuple[str, ...]
    protocol: Protocol = "box"
    rounds: Count = 6
    split: Split = "test"
    sets: tuple[str, ...] = ()
    limit: Count | None = None
    objects: Count | None = None
    seed: Whole = 0
    disturb: Disturbance = "none"
    weights: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    examples: int = 16
    dimensions: Dimensions = 2
    by_slices: bool = False
    slices: Count = 3
    mark: Mark = "box"
    between: Between = "interpolate"
    annotated: Count = 1
    start: Start = "mask"
    together: bool = False
    margin: Whole = 3

    def __init__(self, data: str, models: Sequence[str], **values: Any) -> None:
        """Check the values of a run.

        Raises:
            ValueError: a field is unknown or impossible, in one line.
        """
        try:
            super().__init__(data=data, models=models, **values)
        except ValidationError as error:
            raise ValueError(_describe(error.errors()[0])) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError("No model is named; name one or more, see limner models.")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={', '.join(self.models)}: each is named once.")
        self._check_examples()
        self._check_dimensions()
        if self.disturb == "box_large_20" and self.protocol in ("clicks", "scribbles", "examples"):
            raise ValueError(
                f"disturb=box_large_20 needs boxes, and the protocol {self.protocol} has none; "
                "use protocol box or mixed."
            )
        strangers = sorted({name for name, _ in self.weights} - set(self.names))
        if strangers:
            raise ValueError(f"weights are given for {', '.join(strangers)}, not one of models.")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every single model, in order."""
        if self.protocol != "propagation":
            return self.models
        return tuple(dict.fromkeys(part for name in self.models for part in name.split("+")))

    def _check_examples(self) -> None:
        if not 1 <= self.examples <= MOST_EXAMPLES:
            raise ValueError(f"examples={self.examples}; it is 1 to {MOST_EXAMPLES}.")
        if self.protocol != "examples" and self.examples != _default("examples"):
            raise ValueError(
                f"examples={self.examples} means nothing to the protocol {self.protocol}; leave it "
                "out or use protocol examples."
            )

    def _check_dimensions(self) -> None:
        """Refuse what pictures or volumes do not have."""
        solid = self.dimensions == 3
        what, protocols = ("volumes", VOLUME_PROTOCOLS) if solid else ("pictures", IMAGE_PROTOCOLS)
        if self.protocol not in protocols:
            raise ValueError(
                f"protocol={self.protocol} is not for {what}; there use {', '.join(protocols)}."
            )
        if solid and self.disturb not in VOLUME_DISTURBANCES:
            raise ValueError(
                f"disturb={self.disturb} is not for volumes; there use "
                f"{', '.join(VOLUME_DISTURBANCES)}."
            )
        if self.by_slices and not solid:
            raise ValueError("by_slices is about volumes; use it with --dimensions 3.")
        for protocol, own in _OWN.items():
            changed = [n for n in own if getattr(self, n) != _default(n)]
            if changed and self.protocol != protocol:
                raise ValueError(
                    f"{changed[0]}={getattr(self, changed[0])} means nothing to the protocol "
                    f"{self.protocol}; leave it out or use protocol {protocol}."
                )
        if self.protocol == "propagation" and (self.by_slices or self.disturb != "none"):
            what = "by_slices" if self.by_slices else f"disturb={self.disturb}"
            raise ValueError(f"{what} means nothing to the protocol propagation; leave it out.")

    def to_json(self) -> dict[str, Any]:
        """The run as JSON values."""
        return self.model_dump(mode="json")

    def changed(self, **values: Any) -> BenchConfig:
        """A copy with other values, checked."""
        return BenchConfig(**(self.model_dump() | values))


_OWN = {
    "slices": ("slices", "mark", "between"),
    "propagation": ("annotated", "start", "together", "margin"),
}


def _default(name: str) -> Any:
    return BenchConfig.model_fields[name].default


def config_from_json(values: Any, source: Path) -> BenchConfig:
    """Inverse of `BenchConfig.to_json`; fields that are missing have their defaults.

    Raises:
        FormatError: `values` is no object, or a field is unknown or impossible; names `source`.
    """
    if not isinstance(values, dict) or not {"data", "models"} <= set(values):
        raise FormatError(f"{source} is not the configuration of a benchmark run.")
    try:
        return BenchConfig(**values)
    except ValueError as error:
        raise FormatError(f"{source}: {error}") from error


def _describe(error: ErrorDetails) -> str:
    """One line about what is wrong: what was given, and what is allowed."""
    key = str(error["loc"][0]) if error["loc"] else ""
    given, reason = error["input"], error["type"]
    match reason:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            return f"unknown key {key!r}; known are {', '.join(BenchConfig.model_fields)}."
        case "literal_error":
            allowed = get_args(BenchConfig.model_fields[key].annotation)
            return f"{key}={given!r} is unknown; use {', '.join(map(str, allowed))}."
        case "greater_than_equal":
            return f"{key}={given}; it is at least {error['ctx']['ge']}."
    return f"{key}={given!r}; {error['msg'][0].lower()}{error['msg'][1:]}."


def parse_weights(given: Sequence[str], models: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``FILE`` for the only model, or ``MODEL=FILE``, as pairs with absolute paths.

    Raises:
        ValueError: a file without a model's name where several are asked.
    """
    pairs = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in models:
            if len(models) != 1:
                raise ValueError(
                    f"weights {text!r} with {len(models)} models: say whose, as {models[0]}={text}."
                )
            name, path = models[0], text
        pairs.append((name, str(Path(path).resolve())))
    return tuple(pairs)
