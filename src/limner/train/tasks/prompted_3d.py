"""Prompted segmentation of volumes: clicks, boxes, scribbles, lassos and corrections in 3D."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from limner.checkpoints.load import fill, read_weights
from limner.networks.unet3d import PromptableUNet3d, inflate
from limner.train.config import Fraction, Words
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.prepare import open_volumes_and_images
from limner.train.data.rng import BatchRandom
from limner.train.data.samples3d import VolumeSampler
from limner.train.data.targets3d import TargetTable3d
from limner.train.data.views import SampleBatch
from limner.train.parts.prompted import PromptedConfig, PromptedTask
from limner.train.parts.validation3d import validate
from limner.train.simulate import interactions3d
from limner.train.simulate.interactions import SimulatedPrompts
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    Scores,
    StepContext,
    TaskInputs,
    split_batch,
)

_SHAPE = re.compile(r"[1-9]\d*x[1-9]\d*x[1-9]\d*")


class Config(PromptedConfig):
    """Prompted training in 3D.

    Attributes:
        batch_size: of the largest shape; of smaller ones more, so that each batch has about as many
            voxels. So it is with `micro_batch`.
        shapes: ``SLICESxROWSxCOLUMNS`` of the views, in voxels; each step draws one.
        pseudo_volume_fraction: share of samples that are images, piled up into volumes.
    """

    renamed: ClassVar[dict[str, str]] = {
        **PromptedConfig.renamed,
        "piles": "pseudo_volume_fraction",
    }

    method: Literal["prompted-3d"] = "prompted-3d"
    name: str = "limner-3d"
    shapes: Words = ()
    pseudo_volume_fraction: Fraction = 0.25

    @model_validator(mode="after")
    def _check_shapes(self) -> Config:
        if not self.shapes or not all(_SHAPE.fullmatch(s) for s in self.shapes):
            raise ValueError(
                f"shapes={list(self.shapes)}; for volumes give SLICESxROWSxCOLUMNS, one or more, "
                "such as [32x96x96]."
            )
        if self.pseudo_volume_fraction + self.synthetic_fraction > 1:
            raise ValueError(
                f"pseudo_volume_fraction={self.pseudo_volume_fraction}, "
                f"synthetic_fraction={self.synthetic_fraction}; they are at most 1 together."
            )
        return self


def open_task(config: Config, inputs: TaskInputs) -> Prompted3d:
    """The task on a folder of data sets or a pack with volumes."""
    volumes, images = open_volumes_and_images(inputs.data, inputs.out, config.leave_out)
    return Prompted3d(config, volumes, images, inputs.device)


class Prompted3d(PromptedTask):
    """Learning on volumes.

    Args:
        config: of the run.
        volumes: what to train on.
        images: that are piled up into volumes.
        device: that trains.
    """

    _config: Config

    def __init__(
        self, config: Config, volumes: PackedVolumes, images: PackedImages, device: torch.device
    ) -> None:
        super().__init__(config, f"{volumes.digest}+{images.digest}", device)
        self._shapes = [parse_shape(s) for s in config.shapes]
        self._maker = VolumeSampler(
            volumes,
            images,
            device,
            synthetic=config.synthetic_fraction,
            pseudo_volume_fraction=config.pseudo_volume_fraction,
            unlabelled_fraction=config.unlabelled_target_fraction,
        )
        self._held_out: TargetTable3d | None = None
        if any(s.split for s in volumes.volumes):
            self._held_out = TargetTable3d(volumes, split=1, unlabelled_fraction=0.0)

    def networks(self) -> Networks:
        """A new network, channels last.

        Raises:
            ValueError: a shape of the recipe is no multiple of the network's stride.
        """
        network = PromptableUNet3d(self._config.widths, self._config.depths).to(self._device)
        for shape in self._shapes:
            if any(n % s for n, s in zip(shape, network.stride, strict=True)):
                raise ValueError(
                    f"shapes has {'x'.join(map(str, shape))}; with these widths they are multiples "
                    f"of {'x'.join(map(str, network.stride))}."
                )
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return {MAIN: network}

    def start(self, path: Path, networks: Networks) -> None:
        """From a run of the same network, or of the 2D network with the same widths."""
        weights, _ = read_weights(path)
        if not any(v.ndim == 5 for v in weights.values()):
            weights = {**networks[MAIN].state_dict(), **inflate(weights)}
        fill(networks[MAIN], weights, path)

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Disturbed volumes with targets that can be seen."""
        config = self._config
        shape = self._shapes[int(context.rng.integers(len(self._shapes)))]
        larger = max(prod(s) for s in self._shapes) / prod(shape)
        number = max(1, round(config.batch_size * larger))
        most = max(1, round(config.micro_batch * larger)) if config.micro_batch else 0
        for part in split_batch(number, most):
            batch_rng = BatchRandom(part.samples, context.generator, axes=3)
            samples = self._maker.draw(part.samples, shape, context.rng, batch_rng)
            yield replace(part, data=(samples, batch_rng))

    def simulate_first_prompts(
        self, samples: SampleBatch, batch_rng: BatchRandom
    ) -> SimulatedPrompts:
        """The first round."""
        return interactions3d.simulate_first_prompts(
            samples.target, samples.inside, batch_rng, self._config.prompt_noise
        )

    def simulate_correction(
        self,
        prompts: SimulatedPrompts,
        logits: Tensor,
        samples: SampleBatch,
        batch_rng: BatchRandom,
    ) -> SimulatedPrompts:
        """The next round."""
        return interactions3d.simulate_correction(
            prompts, logits, samples.target, samples.inside, batch_rng, self._config.prompt_noise
        )

    def validate(self, networks: Networks) -> Scores | None:
        """On the held-out volumes."""
        if self._held_out is None:
            return None
        return validate(
            networks[MAIN],
            self._maker.device_data,
            self._held_out,
            shape=self._shapes[0],
            most=self._config.validate_targets,
            precision=self._config.precision,
        )


def parse_shape(text: str) -> tuple[int, int, int]:
    """``"32x96x96"`` as slices, rows, columns."""
    depth, rows, columns = (int(n) for n in text.split("x"))
    return depth, rows, columns
