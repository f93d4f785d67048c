"""A training run as one frozen value, read from one flat YAML file."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limner.errors import FormatError

_LEVELS_OF_XMEM = 4  # a sixteenth of the picture


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the pack of pictures.

    Attributes:
        name: of the model.
        widths: channels per level of the network.
        depths: residual blocks per level.
        steps: optimiser steps of the whole run.
        batch_size: samples per step; of volumes, so many of the largest shape.
        sizes: sides of the square views in pixels; each step draws one. Pictures only.
        dimensions: 2 for pictures, 3 for volumes.
        shapes: ``SLICESxROWSxCOLUMNS`` of the views, in voxels; each step draws one. Volumes only.
        frames: of a sequence; 1 for single pictures or volumes. Sequences are made of volumes and
            pictures; their `dimensions` are 2.
        piles: share of samples that are pictures: piled up into volumes, or moved as sequences.
        adapters: channels inside the adapters that are trained in XMem's key encoder, on sequences;
            0 for a network of limner's own, which has `widths` and `depths`.
        references: remembered frames that are read at a time. Adapters only.
        learning_rate: at its peak.
        warmup_steps: of linear growth before the cosine.
        weight_decay: AdamW's.
        clip_norm: gradients longer than this are shortened.
        ema_decay: of the averaged weights, which are the result; lower in the first steps.
        rounds: prompts and answers that are learnt from, per sample and step.
        more_rounds: share of steps that begin with one to six rounds that are not learnt from, so
            that late corrections are seen, too.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
        seed: fixes pictures, targets, prompts and initial weights.
        synthetic: share of samples whose picture is painted from a label map or made up.
        invented: share of samples whose target no label names: superpixels and groups of them.
        wrong: share of prompts that are clumsy: clicks beside the target, boxes far off.
        quality_weight: of the loss of the predicted quality.
        leave_out: sets not to train on, such as ``[3d/hippocampus_mr]``.
        log_every: steps between lines of the log.
        validate_every: steps between validations.
        validate_targets: at most so many targets per set.
        checkpoint_every: steps between checkpoints.
    """

    name: str = "limner-2d"
    widths: tuple[int, ...] = (32, 64, 128, 192, 256)
    depths: tuple[int, ...] = (1, 2, 2, 2, 2)
    steps: int = 100_000
    batch_size: int = 16
    sizes: tuple[int, ...] = (128, 192, 256)
    dimensions: Literal[2, 3] = 2
    shapes: tuple[str, ...] = ()
    frames: int = 1
    piles: float = 0.25
    adapters: int = 0
    references: int = 3
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.9995
    rounds: int = 3
    more_rounds: float = 0.25
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    synthetic: float = 0.12
    invented: float = 0.2
    wrong: float = 0.1
    quality_weight: float = 0.05
    leave_out: tuple[str, ...] = ()
    log_every: int = 50
    validate_every: int = 2000
    validate_targets: int = 12
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        counts = (
            "steps batch_size frames references rounds log_every validate_every validate_targets"
        )
        for name in (*counts.split(), "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is at least 1.")
        for name in ("more_rounds", "synthetic", "invented", "piles", "wrong", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a share, 0 to 1.")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; it is above 0.")
        for name in ("warmup_steps", "weight_decay", "quality_weight", "seed", "adapters"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; it is not below 0.")
        if self.dimensions == 3:
            self._check_volumes()
            return
        if self.frames == 2:
            raise ValueError("frames=2; a sequence that teaches following has 3 or more.")
        if self.adapters and self.frames < 3:
            raise ValueError(f"adapters are trained on sequences; frames={self.frames} is below 3.")
        levels = _LEVELS_OF_XMEM if self.adapters else len(self.widths)
        stride = 2**levels
        if not self.sizes or any(size < stride or size % stride for size in self.sizes):
            raise ValueError(
                f"sizes={list(self.sizes)}: with {levels} levels they are multiples of {stride}."
            )

    @property
    def of_volumes(self) -> bool:
        """Whether volumes are needed to train."""
        return self.dimensions == 3 or self.frames > 1

    @property
    def result(self) -> str:
        """Name of the weights that the run writes, without suffix."""
        return f"{self.name}-adapters" if self.adapters else self.name

    def _check_volumes(self) -> None:
        pattern = r"[1-9]\d*x[1-9]\d*x[1-9]\d*"
        if not self.shapes or not all(re.fullmatch(pattern, s) for s in self.shapes):
            raise ValueError(
                f"shapes={list(self.shapes)}; for volumes give SLICESxROWSxCOLUMNS, one or more, "
                "such as [32x96x96]."
            )
        if self.piles + self.synthetic > 1:
            raise ValueError(
                f"piles={self.piles}, synthetic={self.synthetic}; they are at most 1 together."
            )

    def to_json(self) -> dict[str, Any]:
        """The run as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


def read_config(path: Path, **changes: Any) -> TrainConfig:
    """A run from its file.

    Args:
        path: flat YAML: one ``key: value`` a line; values are numbers, true, false, words and
            ``[lists]`` of them; ``#`` starts a comment.
        changes: replace values of the file; None leaves them.

    Raises:
        FormatError: the file is missing or malformed, a key is unknown, a value of the wrong type
            or impossible. The message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no recipe: it is not UTF-8 text.") from error
    values = parse(text, str(path))
    values |= {key: value for key, value in changes.items() if value is not None}
    return make_config(values, str(path))


def make_config(values: dict[str, Any], source: str) -> TrainConfig:
    """A run from plain values, such as those of a saved one.

    Args:
        values: by key.
        source: where they come from, for messages.

    Raises:
        FormatError: a key is unknown, a value of the wrong type or impossible.
    """
    types = typing.get_type_hints(TrainConfig)
    for key in values:
        if key not in types:
            raise FormatError(f"{source}: unknown key {key!r}; known are {', '.join(types)}.")
    try:
        return TrainConfig(**{k: _typed(k, v, types[k], source) for k, v in values.items()})
    except ValueError as error:
        raise FormatError(f"{source}: {error}") from error


def parse(text: str, source: str) -> dict[str, Any]:
    """Flat YAML to plain values.

    Raises:
        FormatError: a line is not ``key: value``, is indented, or repeats a key.
    """
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if not line or line == "---":
            continue
        found = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*):\s+(\S.*)", line)
        if found is None:
            raise FormatError(
                f"{source}, line {number}: {line.strip()!r} is not 'key: value' on one line; "
                "recipes are flat."
            )
        key, value = found.groups()
        if key in values:
            raise FormatError(f"{source}, line {number}: {key!r} is given twice.")
        values[key] = _value(value)
    return values


def write_config(path: Path, config: TrainConfig) -> None:
    """Save a run, so that `read_config` reads the same back."""
    from limner.atomic import atomic_bytes

    lines = [f"{key}: {json.dumps(value)}" for key, value in config.to_json().items()]
    atomic_bytes(path, ("\n".join(lines) + "\n").encode())


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return [_value(part.strip()) for part in inner.split(",")] if inner else []
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d[\d_]*", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    return text


def _typed(key: str, value: Any, wanted: Any, source: str) -> Any:
    """The value as the field's type; integers pass for floats, lists for tuples."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if value in inner:
            return value
        raise FormatError(f"{source}: {key}={value!r}; use one of {', '.join(map(str, inner))}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FormatError(f"{source}: {key}={value!r}; it is a [list] of {inner[0].__name__}.")
        return tuple(_typed(key, v, inner[0], source) for v in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise FormatError(f"{source}: {key}={value!r}; it is of type {wanted.__name__}.")
    return value
