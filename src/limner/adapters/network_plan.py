"""What an automatic network was trained for, as inference has to repeat it: labels, channels,
intensity normalisation, spacing, patch and layout. Kept inside the weights file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.errors import CheckpointError, FormatError

Array = NDArray[Any]
Floats = NDArray[np.float32]
Sizes = tuple[tuple[int, ...], ...]

_LEAST_SPREAD = 1e-8


@dataclass(frozen=True)
class Normalization:
    """How the intensities of one channel become the network's input.

    Attributes:
        kind: ``"zscore"``: by mean and standard deviation of each image; ``"fixed"``: by those
            below, after clipping, for units that mean something (CT), as nnU-Net does.
        low, high: limits of ``"fixed"``, in stored units.
        mean, std: of ``"fixed"``, in stored units.
    """

    kind: Literal["zscore", "fixed"] = "zscore"
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, pixels: Array) -> Floats:
        """Normalised pixels of one channel, float32; what is not finite becomes the mean, 0."""
        values = np.array(pixels, dtype=np.float32)
        finite = np.isfinite(values)
        all_finite = bool(finite.all())
        if self.kind == "fixed":
            np.clip(values, self.low, self.high, out=values)
            mean, std = self.mean, self.std
        else:
            known = values if all_finite else values[finite]
            mean = float(known.mean(dtype=np.float64)) if known.size else 0.0
            std = float(known.std(dtype=np.float64)) if known.size else 1.0
        values -= np.float32(mean)
        values *= np.float32(1.0 / max(std, _LEAST_SPREAD))
        if not all_finite:
            values[~finite] = 0.0
        return values


@dataclass(frozen=True)
class NetworkPlan:
    """The facts about an automatic network beside its weights.

    Attributes:
        labels: names by value, in the order of the channels; the background's comes before them.
        normalization: of each image channel.
        spacing: millimetres per step, in index order; None: images are taken as they are.
        patch: pixels per axis of what the network sees; two of a network of slices.
        widths: channels per stage of the network, finest first.
        blocks: residual blocks per stage.
        strides: of each stage, per axis.
        kernels: of each stage, per axis.
        decoder_convs: convolutions per stage of the decoder.
        overlapping: whether labels may overlap; then the background has no channel.
    """

    labels: Mapping[int, str]
    normalization: tuple[Normalization, ...]
    spacing: tuple[float, ...] | None
    patch: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    strides: Sizes
    kernels: Sizes
    decoder_convs: int = 1
    overlapping: bool = False

    @property
    def num_outputs(self) -> int:
        """Channels of the logits."""
        return len(self.labels) + (not self.overlapping)

    def normalize(self, array: Array, ndim: int) -> Floats:
        """The network's input.

        Args:
            array: ``(*axes)`` or ``(*axes, channel)``, intensities as stored.
            ndim: number of spatial axes.

        Returns:
            ``(channel, *axes)``, float32.

        Raises:
            FormatError: the image has another number of channels.
        """
        pixels = array[..., None] if array.ndim == ndim else array
        wanted = len(self.normalization)
        if pixels.shape[-1] != wanted:
            raise FormatError(
                f"The network takes images with {wanted} channel(s), and this one has "
                f"{pixels.shape[-1]}; use --channel K for one of them, or another model."
            )
        return np.stack([n(pixels[..., k]) for k, n in enumerate(self.normalization)])

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return dataclasses.asdict(self) | {"labels": {str(k): v for k, v in self.labels.items()}}

    @classmethod
    def from_json(cls, value: Any, source: Path) -> NetworkPlan:
        """Inverse of `to_json`.

        Raises:
            CheckpointError: fields are missing, unknown or of another type; names `source`.
        """
        if value is None:
            raise CheckpointError(
                f"{source} are weights of another model: they do not say what an automatic network "
                "was trained for. Use a file that limner train wrote."
            )
        try:
            given = dict(value)
            given["labels"] = {int(k): str(v) for k, v in given["labels"].items()}
            given["normalization"] = tuple(Normalization(**n) for n in given["normalization"])
            for name in ("spacing", "patch", "widths", "blocks"):
                given[name] = None if given[name] is None else tuple(given[name])
            for name in ("strides", "kernels"):
                given[name] = _sizes(given[name])
            return cls(**given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source} does not say what an automatic network was trained for ({error}); use a "
                "file that limner train wrote."
            ) from error


def _sizes(values: Sequence[Sequence[int]]) -> Sizes:
    return tuple(tuple(int(n) for n in size) for size in values)
