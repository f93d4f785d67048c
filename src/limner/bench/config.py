"""One run of the benchmark as a frozen value, kept beside its rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from limner.bench.slices import Between
from limner.datasets.selection import Dimensions
from limner.errors import FormatError

Protocol: TypeAlias = Literal[
    "box", "clicks", "mixed", "scribbles", "examples", "slices", "propagation", "automatic"
]
Split: TypeAlias = Literal["train", "val", "test", "all"]

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
SPLITS: tuple[str, ...] = ("train", "val", "test", "all")
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
MARKS = ("box", "click")
BETWEEN = ("interpolate", "carry")
STARTS = ("mask", "box", "click")


@dataclass(frozen=True)
class BenchConfig:
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

    data: str
    models: tuple[str, ...]
    protocol: Protocol = "box"
    rounds: int = 6
    split: Split = "test"
    sets: tuple[str, ...] = ()
    limit: int | None = None
    objects: int | None = None
    seed: int = 0
    disturb: str = "none"
    weights: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    examples: int = 16
    dimensions: Dimensions = 2
    by_slices: bool = False
    slices: int = 3
    mark: str = "box"
    between: Between = "interpolate"
    annotated: int = 1
    start: str = "mask"
    together: bool = False
    margin: int = 3

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("No model is named; name one or more, see limner models.")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={', '.join(self.models)}: each is named once.")
        for name, known in (
            ("protocol", PROTOCOLS),
            ("split", SPLITS),
            ("disturb", DISTURBANCES),
            ("dimensions", (2, 3)),
            ("mark", MARKS),
            ("between", BETWEEN),
            ("start", STARTS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use {', '.join(map(str, known))}.")
        self._check_numbers()
        self._check_dimensions()
        if self.disturb == "box_large_20" and self.protocol in ("clicks", "scribbles", "examples"):
            raise ValueError(
                f"disturb=box_large_20 needs boxes, and the protocol {self.protocol} has none; "
                "use protocol box or mixed."
            )
        strangers = sorted({name for name, _ in self.weights} - set(self.names))
        if strangers:
            raise ValueError(f"weights are given for {', '.join(strangers)}, not one of models.")

    @property
    def names(self) -> tuple[str, ...]:
        """Every single model, in order."""
        if self.protocol != "propagation":
            return self.models
        return tuple(dict.fromkeys(part for name in self.models for part in name.split("+")))

    def _check_numbers(self) -> None:
        leasts = {"rounds": 1, "limit": 1, "objects": 1, "seed": 0, "slices": 1, "annotated": 1}
        for name, least in {**leasts, "margin": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}; it is at least {least}.")
        if not 1 <= self.examples <= MOST_EXAMPLES:
            raise ValueError(f"examples={self.examples}; it is 1 to {MOST_EXAMPLES}.")
        if self.protocol != "examples" and self.examples != BenchConfig.examples:
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
            changed = [n for n in own if getattr(self, n) != _DEFAULTS[n]]
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
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


_OWN = {
    "slices": ("slices", "mark", "between"),
    "propagation": ("annotated", "start", "together", "margin"),
}
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(BenchConfig)}


def config_from_json(values: Any, source: Path) -> BenchConfig:
    """Inverse of `BenchConfig.to_json`; fields that are missing have their defaults.

    Raises:
        FormatError: `values` is no object, or a field is unknown or impossible; names `source`.
    """
    known = {field.name for field in dataclasses.fields(BenchConfig)}
    if not isinstance(values, dict) or not {"data", "models"} <= set(values) <= known:
        raise FormatError(f"{source} is not the configuration of a benchmark run.")
    given = dict(values)
    try:
        given["models"] = tuple(given["models"])
        given["sets"] = tuple(given.get("sets", ()))
        given["weights"] = tuple((str(name), str(path)) for name, path in given.get("weights", ()))
        return BenchConfig(**given)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{source}: {error}") from error


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
