"""Training configuration: the keys that all methods share, checked by pydantic.

A method adds its own keys in a subclass (`limner.train.tasks`); files are read by
`limner.train.recipe`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _check_count(value: int) -> int:
    if value < 1:
        raise ValueError("it is at least 1.")
    return value


def _check_fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("it is a share, 0 to 1.")
    return value


def _check_positive(value: float) -> float:
    if not value > 0:
        raise ValueError("it is above 0.")
    return value


def _check_not_negative(value: float) -> float:
    if not value >= 0:
        raise ValueError("it is not below 0.")
    return value


def _make_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, AfterValidator(_check_count)]
Fraction = Annotated[float, AfterValidator(_check_fraction)]
Positive = Annotated[float, AfterValidator(_check_positive)]
NotNegative = Annotated[float, AfterValidator(_check_not_negative)]
Whole = Annotated[int, AfterValidator(_check_not_negative)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_make_tuple)]
Fractions = Annotated[tuple[Fraction, ...], BeforeValidator(_make_tuple)]
Betas = Annotated[tuple[Fraction, Fraction], BeforeValidator(_make_tuple)]
Words = Annotated[tuple[str, ...], BeforeValidator(_make_tuple)]


class TrainConfig(BaseModel):
    """What every training run has.

    Together with the data, a configuration decides the weights. Unknown keys, wrong types and
    impossible values raise ``pydantic.ValidationError``, a `ValueError`.

    Attributes:
        method: file name in `limner.train.tasks`.
        name: of the model; the files that the run writes are named after it.
        steps: optimiser steps of the whole run.
        batch_size: samples per step.
        micro_batch: samples that go through the network at once; the gradients of a batch are
            added up. 0 is the whole batch.
        learning_rate: at its peak.
        warmup_steps: of linear growth before the cosine.
        betas: AdamW's decay of the two moments.
        weight_decay: AdamW's.
        decay_all: decay biases and norms too; otherwise only parameters of two or more axes.
        clip_norm: longer gradients are shortened to it; 0 leaves them.
        ema_decay: of the exponential moving average of the weights, which then is the result;
            lower in the first steps. 0 keeps no average.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
        seed: fixes samples, prompts and initial weights.
        log_every: steps between lines of the log; the first step always has one.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    renamed: ClassVar[dict[str, str]] = {}
    """Former keys by name, which are still read, with a warning."""

    method: str
    name: str
    steps: Count = 100_000
    batch_size: Count = 16
    micro_batch: Whole = 0
    learning_rate: Positive = 5e-4
    warmup_steps: Whole = 500
    betas: Betas = (0.9, 0.98)
    weight_decay: NotNegative = 0.02
    decay_all: bool = False
    clip_norm: NotNegative = 1.0
    ema_decay: Fraction = 0.9995
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Whole = 0
    log_every: Count = 50
    validate_every: Count = 2000
    checkpoint_every: Count = 500

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked."""
        return type(self)(**{**self.model_dump(), **values})

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return self.model_dump(mode="json")


class PackConfig(TrainConfig):
    """What methods share that train on packs of images and volumes.

    Attributes:
        leave_out: sets not to train on, such as ``[3d/hippocampus_mr]``.
        synthetic_fraction: share of samples whose image is painted from a label map or made up; of
            sequences, of those from volumes.
        unlabelled_target_fraction: share of samples whose target no label names: superpixels and
            groups of them.
        quality_weight: of the loss of the predicted quality.
        validate_targets: at most so many targets per set.
    """

    renamed: ClassVar[dict[str, str]] = {
        "synthetic": "synthetic_fraction",
        "invented": "unlabelled_target_fraction",
    }

    leave_out: Words = ()
    synthetic_fraction: Fraction = 0.12
    unlabelled_target_fraction: Fraction = 0.2
    quality_weight: NotNegative = 0.05
    validate_targets: Count = 12


class SequenceConfig(PackConfig):
    """What methods share that learn from short sequences, made of volumes and images.

    Attributes:
        sizes: sides of the square views in pixels; each step draws one.
        frames: of a sequence.
        moved_image_fraction: share of the sequences that are images which are moved; the rest are
            slices of volumes.
    """

    renamed: ClassVar[dict[str, str]] = {**PackConfig.renamed, "piles": "moved_image_fraction"}

    sizes: Integers = (128, 192, 256)
    frames: int = 5
    moved_image_fraction: Fraction = 0.25


def check_multiples(sizes: tuple[int, ...], levels: int) -> None:
    """Raise ValueError for sides of views that a network with so many levels cannot halve."""
    stride = 2**levels
    if not sizes or any(size < stride or size % stride for size in sizes):
        raise ValueError(
            f"sizes={list(sizes)}: with {levels} levels they are multiples of {stride}."
        )
