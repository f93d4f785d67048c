"""Prompted segmentation of images: clicks, boxes, scribbles, lassos and corrections in 2D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from limner.checkpoints.load import fill, read_checkpoint
from limner.networks.blocks.efficientnet_lite import from_published
from limner.networks.lite_unet2d import PromptableLiteUNet2d
from limner.networks.promptable2d import make_network_2d
from limner.train.config import Fraction, Integers, check_multiples
from limner.train.data.augment import augment_images
from limner.train.data.pack import PackedImages
from limner.train.data.prepare import open_slices
from limner.train.data.rng import BatchRandom
from limner.train.data.synthetic import draw_shapes, paint
from limner.train.data.targets import TargetTable
from limner.train.data.views import DeviceImages, SampleBatch, draw_views
from limner.train.parts.prompted import PromptedConfig, PromptedTask
from limner.train.parts.validation2d import validate
from limner.train.simulate import interactions
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

_MADE_UP_SHAPES = 0.5  # of the painted images


class Config(PromptedConfig):
    """Prompted training in 2D.

    Attributes:
        sizes: sides of the square views in pixels; each step draws one.
        encoder: ``"unet"``, all of which has `widths` and `depths`, or ``"efficientnet-lite0"``,
            which may start from ImageNet weights and has sizes of its own.
        encoder_rate: share of the learning rate for that encoder, which knows much already.
    """

    method: Literal["prompted-2d"] = "prompted-2d"
    name: str = "limner-2d"
    sizes: Integers = (128, 192, 256)
    encoder: Literal["unet", "efficientnet-lite0"] = "unet"
    encoder_rate: Fraction = 0.3

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        check_multiples(self.sizes, len(self.widths))
        return self


def open_task(config: Config, inputs: TaskInputs) -> Prompted2d:
    """The task on a folder of data sets or a pack."""
    return Prompted2d(config, open_slices(inputs.data, inputs.out, config.leave_out), inputs.device)


class Prompted2d(PromptedTask):
    """Learning on images and slices.

    Args:
        config: of the run.
        pack: what to train on.
        device: that trains.
    """

    _config: Config

    def __init__(self, config: Config, pack: PackedImages, device: torch.device) -> None:
        super().__init__(config, pack.digest, device)
        self._device_data = DeviceImages(pack, device)
        self._table = TargetTable(
            pack, split=0, unlabelled_fraction=config.unlabelled_target_fraction
        )
        self._held_out: TargetTable | None = None
        if pack.images[:, 1].any():
            self._held_out = TargetTable(pack, split=1, unlabelled_fraction=0.0)

    def networks(self) -> Networks:
        """A new network, channels last."""
        network = make_network_2d(self._config.to_json()).to(self._device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {MAIN: network}

    def start(self, path: Path, networks: Networks) -> None:
        """From a run of the same network; or its encoder from ImageNet weights."""
        network = networks[MAIN]
        if isinstance(network, PromptableLiteUNet2d):
            encoder = from_published(read_checkpoint(path).tensors)
            if encoder:
                fill(network.encoder, encoder, path)
                return
        super().start(path, networks)

    def rate_of(self, name: str) -> float:
        """Share of the learning rate of a parameter."""
        lite = self._config.encoder != "unet"
        return self._config.encoder_rate if lite and name.startswith("encoder.") else 1.0

    @torch.no_grad()
    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Disturbed images with targets that can be seen."""
        config = self._config
        size = int(context.rng.choice(np.asarray(config.sizes)))
        for part in split_batch(config.batch_size, config.micro_batch):
            batch_rng = BatchRandom(part.samples, context.generator)
            samples = self._draw_samples(part.samples, size, context, batch_rng)
            yield replace(part, data=(samples, batch_rng))

    def _draw_samples(
        self, number: int, size: int, context: StepContext, batch_rng: BatchRandom
    ) -> SampleBatch:
        targets = self._table.draw(number, context.rng)
        views = draw_views(self._device_data.pack, targets, size, context.rng)
        samples = self._device_data.cut_view(targets, views, size, context.generator)
        painted = batch_rng.bernoulli(self._config.synthetic_fraction).flatten() | samples.painted
        index = painted.nonzero()[:, 0]
        if len(index):
            _repaint(samples, index, context.generator)
        image = augment_images(samples.image, batch_rng) * samples.inside
        return replace(samples, image=image, target=samples.target * samples.inside)

    def simulate_first_prompts(
        self, samples: SampleBatch, batch_rng: BatchRandom
    ) -> SimulatedPrompts:
        """The first round."""
        return interactions.simulate_first_prompts(
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
        return interactions.simulate_correction(
            prompts, logits, samples.target, samples.inside, batch_rng, self._config.prompt_noise
        )

    def validate(self, networks: Networks) -> Scores | None:
        """On the held-out images."""
        if self._held_out is None:
            return None
        return validate(
            networks[MAIN],
            self._device_data,
            self._held_out,
            size=max(self._config.sizes),
            most=self._config.validate_targets,
            precision=self._config.precision,
        )


def _repaint(samples: SampleBatch, index: Tensor, generator: torch.Generator) -> None:
    """Paint the images of some samples, in place; of some, new shapes instead of the regions."""
    batch_rng = BatchRandom(len(index), generator)
    size = samples.image.shape[-1]
    regions, target, inside = (t[index] for t in (samples.regions, samples.target, samples.inside))
    made_up = batch_rng.bernoulli(_MADE_UP_SHAPES).flatten().nonzero()[:, 0]
    if len(made_up):
        shapes, shape = draw_shapes(size, BatchRandom(len(made_up), generator))
        regions[made_up] = shapes.repeat_interleave(2, 1).repeat_interleave(2, 2)
        target[made_up], inside[made_up] = shape.float(), 1.0
    image = torch.nn.functional.avg_pool2d(paint(regions, batch_rng), 2)
    samples.image[index], samples.target[index], samples.inside[index] = image, target, inside
