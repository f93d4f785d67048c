"""Runs of SegVol's two stages as frozen values, each read from one flat YAML file."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from limner.errors import FormatError
from limner.models.segvol.network import Plan
from limner.train.config import _typed, parse

PRETRAIN, FINETUNE = "segvol-pretrain", "segvol-finetune"
COMBINATIONS = ("point+text", "box+text", "text", "box", "point", "box+point")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What both stages have.

    Attributes:
        name: of the file that the run writes.
        size: of the network's input in voxels, (D, H, W).
        patch: voxels per token, likewise.
        dim: channels of the embedding.
        depth: blocks of the volume's encoder.
        heads: of its attention.
        hidden: channels inside its MLPs.
        steps: batches of the whole run.
        batch_size: volumes per batch.
        micro_batch: volumes that go through the network at once; gradients of the rest of the batch
            are added up. 0 is the whole batch.
        learning_rate: at its peak.
        warmup_steps: of linear growth before the cosine.
        weight_decay: AdamW's.
        clip_norm: longer gradients are shortened; 0 leaves them.
        crops: share of views that are crops at full resolution; the rest are whole volumes, shrunk.
        flips: shares of views that are mirrored along each axis.
        precision: ``"fp32"``, or ``"bf16"`` (autocast) for the encoder.
        checkpointing: compute blocks of the encoder again on the way back instead of keeping them:
            a third more time for a fraction of the memory.
        seed: fixes views, prompts and initial weights.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints.
    """

    suffix: ClassVar[str]

    name: str
    size: tuple[int, ...] = (32, 256, 256)
    patch: tuple[int, ...] = (4, 16, 16)
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    steps: int = 100_000
    batch_size: int = 4
    micro_batch: int = 0
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    weight_decay: float = 1e-5
    clip_norm: float = 0.0
    crops: float = 0.5
    flips: tuple[float, ...] = (0.2, 0.2, 0.2)
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        counts = "dim depth heads hidden steps batch_size log_every checkpoint_every"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is at least 1.")
        for name in ("micro_batch", "warmup_steps", "weight_decay", "clip_norm", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; it is not below 0.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}; it is above 0.")
        for name in ("size", "patch", "flips"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}={list(getattr(self, name))}; it is three numbers.")
        for share in (self.crops, *self.flips):
            if not 0 <= share <= 1:
                raise ValueError(f"crops and flips are shares, 0 to 1, not {share}.")
        _check_multiples("size", self.size, "patch", self.patch)
        if self.dim % 16 or self.dim % self.heads:
            raise ValueError(f"dim={self.dim}; it is a multiple of 16 and of heads={self.heads}.")

    @property
    def result(self) -> str:
        """Name of the file that the run writes."""
        return self.name + self.suffix

    @property
    def micro(self) -> int:
        """Volumes that go through the network at once."""
        return self.micro_batch or self.batch_size

    def plan(self) -> Plan:
        """Sizes of the network."""
        return Plan(
            size=_three(self.size),
            patch=_three(self.patch),
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
        )

    def to_json(self) -> dict[str, Any]:
        """The run as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Stage 1: the encoder learns to fill in what is masked (SimMIM).

    Attributes:
        method: ``"segvol-pretrain"``.
        mask_ratio: share of the volume that is masked.
        mask_patch: voxels that are masked together, (D, H, W), multiples of `patch`.
    """

    suffix: ClassVar[str] = ".ckpt"

    method: Literal["segvol-pretrain"] = "segvol-pretrain"
    name: str = "vit-pretrain"
    weight_decay: float = 0.05
    mask_ratio: float = 0.6
    mask_patch: tuple[int, ...] = (8, 32, 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mask_patch) != 3:
            raise ValueError(f"mask_patch={list(self.mask_patch)}; it is three numbers.")
        _check_multiples("size", self.size, "mask_patch", self.mask_patch)
        _check_multiples("mask_patch", self.mask_patch, "patch", self.patch)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio}; it is between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Stage 2: masks from prompts.

    Attributes:
        method: ``"segvol-finetune"``.
        text_dim: channels of the text tower.
        text_depth: its blocks.
        text_heads: of its attention.
        text_hidden: channels inside its MLPs.
        clip: file with CLIP's text tower, for runs that do not start from a whole SegVol; empty for
            none.
        combinations: of prompts, whose losses are added up in every step.
        most_positive: points inside, besides the first one.
        most_negative: points outside.
        jitter: voxels by which each side of a box is moved at most.
        train_dim_align: the layer from the text tower to the tokens learns, too.
        most_objects: of a batch that are learnt from, drawn at random; 0 is all.
        scale_shift: how far intensities are scaled and shifted at most.
        scale_shift_share: how often each of the two happens.
        positive_crops: share of crops around a labelled voxel.
        pseudo: learn from pseudo labels, too.
        pseudo_weight: of their loss.
        pseudo_rounds: prompts about them in a step; points and boxes in turn.
        pseudo_rule: ``"adaptive"`` as published, ``"threshold"`` as in the authors' code.
        pseudo_scale: of ``"adaptive"``, for grey values of 0…255.
        pseudo_sigma: of the Gaussian before, in voxels within planes.
        pseudo_min_size: voxels of the smallest region.
    """

    suffix: ClassVar[str] = ".pth"

    method: Literal["segvol-finetune"] = "segvol-finetune"
    name: str = "segvol"
    text_dim: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    clip: str = ""
    combinations: tuple[str, ...] = COMBINATIONS
    most_positive: int = 10
    most_negative: int = 10
    jitter: int = 0
    train_dim_align: bool = False
    most_objects: int = 0
    scale_shift: float = 0.1
    scale_shift_share: float = 0.1
    positive_crops: float = 2 / 3
    pseudo: bool = True
    pseudo_weight: float = 0.1
    pseudo_rounds: int = 6
    pseudo_rule: Literal["adaptive", "threshold"] = "adaptive"
    pseudo_scale: float = 16.0
    pseudo_sigma: float = 0.8
    pseudo_min_size: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.combinations) - set(COMBINATIONS)
        if unknown or not self.combinations:
            raise ValueError(
                f"combinations={list(self.combinations)}; use some of {', '.join(COMBINATIONS)}."
            )
        whole = "most_positive most_negative jitter most_objects pseudo_rounds pseudo_min_size"
        for name in (*whole.split(), "scale_shift", "pseudo_weight", "pseudo_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; it is not below 0.")
        for name in ("scale_shift_share", "positive_crops"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a share, 0 to 1.")

    @property
    def speaks(self) -> bool:
        """Whether words are among the prompts."""
        return any("text" in c for c in self.combinations)

    def plan(self) -> Plan:
        """Sizes of the network."""
        return dataclasses.replace(
            super().plan(),
            text_dim=self.text_dim,
            text_depth=self.text_depth,
            text_heads=self.text_heads,
            text_hidden=self.text_hidden,
        )


Config = PretrainConfig | FinetuneConfig
_KINDS: dict[str, type[Config]] = {PRETRAIN: PretrainConfig, FINETUNE: FinetuneConfig}


def method_of(path: Path) -> str | None:
    """The method that a recipe names, None if it names none of these."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None  # whoever reads the recipe says so
    named = (line.partition(":")[2].split("#")[0] for line in lines if line.startswith("method:"))
    method = next(named, "").strip().strip("\"'")
    return method if method in _KINDS else None


def read_config(path: Path, **changes: Any) -> Config:
    """A run from its file.

    Args:
        path: flat YAML; its ``method`` says which stage it is.
        changes: replace values of the file; None leaves them.

    Raises:
        FormatError: the file is missing or malformed, a key is unknown, a value of the wrong type
            or impossible.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"Cannot read the recipe {path}: {error}.") from error
    values = parse(text, str(path))
    return make_config(
        values | {key: value for key, value in changes.items() if value is not None}, str(path)
    )


def make_config(values: dict[str, Any], source: str) -> Config:
    """A run from plain values.

    Args:
        values: by key; ``method`` is one of them.
        source: where they come from, for messages.

    Raises:
        FormatError: a key is unknown, a value of the wrong type or impossible.
    """
    kind = _KINDS.get(values.get("method", ""))
    if kind is None:
        raise FormatError(
            f"{source}: method={values.get('method')!r}; use one of {', '.join(_KINDS)}."
        )
    types = {f.name: typing.get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}
    for key in values:
        if key not in types:
            raise FormatError(f"{source}: unknown key {key!r}; known are {', '.join(types)}.")
    try:
        return kind(**{k: _typed(k, v, types[k], source) for k, v in values.items()})
    except ValueError as error:
        raise FormatError(f"{source}: {error}") from error


def write_config(path: Path, config: Config) -> None:
    """Save a run, so that `read_config` reads the same back."""
    from limner.atomic import atomic_bytes

    lines = [f"{key}: {json.dumps(value)}" for key, value in config.to_json().items()]
    atomic_bytes(path, ("\n".join(lines) + "\n").encode())


def _check_multiples(name: str, sizes: tuple[int, ...], of: str, units: tuple[int, ...]) -> None:
    if any(u < 1 or n < u or n % u for n, u in zip(sizes, units, strict=True)):
        raise ValueError(f"{name}={list(sizes)}: multiples of {of}={list(units)} are needed.")


def _three(numbers: tuple[int, ...]) -> tuple[int, int, int]:
    first, second, third = numbers
    return first, second, third
