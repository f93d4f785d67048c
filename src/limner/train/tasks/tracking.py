"""Tracking of objects through sequences: the tracker learns frame by frame from its own answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from limner.checkpoints.load import fill, read_weights
from limner.networks.tracker2d import TrackerNetwork
from limner.train.config import Integers, SequenceConfig, check_multiples
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.prepare import open_volumes_and_images
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import SequenceSampler
from limner.train.losses import answer_loss, dice, quality_loss
from limner.train.parts.tracker_rollout import TrackerRollout, track_clips
from limner.train.parts.validation_sequences import HeldOutSequences
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    Scores,
    StepContext,
    TaskInputs,
    TrainingTask,
    split_batch,
)

_REMEMBERED = 0.7  # share of answered frames that are remembered
_WITHOUT_MASK = 0.1  # share of frames that are shown without the mask of the frame before


class Config(SequenceConfig):
    """Training of the tracker.

    Attributes:
        widths: channels per level of the network.
        depths: residual blocks per level.
    """

    method: Literal["tracking"] = "tracking"
    name: str = "limner-seq"
    widths: Integers = (32, 64, 128, 192, 256)
    depths: Integers = (1, 2, 2, 2, 2)

    @model_validator(mode="after")
    def _check_sequences(self) -> Config:
        if self.frames < 3:
            raise ValueError(
                f"frames={self.frames}; a sequence that teaches following has 3 or more."
            )
        check_multiples(self.sizes, len(self.widths))
        return self


def open_task(config: Config, inputs: TaskInputs) -> Tracking:
    """The task on a folder of data sets or a pack with volumes."""
    volumes, images = open_volumes_and_images(inputs.data, inputs.out, config.leave_out)
    return Tracking(config, volumes, images, inputs.device)


class Tracking(TrainingTask):
    """Learning on sequences.

    Args:
        config: of the run.
        volumes: what to train on.
        images: that are moved.
        device: that trains.
    """

    def __init__(
        self, config: Config, volumes: PackedVolumes, images: PackedImages, device: torch.device
    ) -> None:
        self.digest = f"{volumes.digest}+{images.digest}"
        self.facts: dict[str, Any] = {}
        self._config, self._device = config, device
        self._maker = SequenceSampler(config, volumes, images, device)
        self._held_out = HeldOutSequences(config, volumes, self._maker.device_data)

    def networks(self) -> Networks:
        """A new network, channels last."""
        network = TrackerNetwork(self._config.widths, self._config.depths).to(self._device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {MAIN: network}

    def start(self, path: Path, networks: Networks) -> None:
        """From a run of the same network, or of the 2D network with the same widths."""
        network = networks[MAIN]
        assert isinstance(network, TrackerNetwork)
        weights, _ = read_weights(path)
        if "frame.stem.weight" in weights:
            fill(network, weights, path)
        else:
            network.start_from({name: value.float() for name, value in weights.items()})

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Disturbed sequences."""
        config = self._config
        size = int(context.rng.choice(np.asarray(config.sizes)))
        for part in split_batch(config.batch_size, config.micro_batch):
            batch_rng = BatchRandom(part.samples, context.generator)
            clips = self._maker.draw(part.samples, size, context.rng, batch_rng)
            yield replace(part, data=(clips, batch_rng))

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn from all frames after the first."""
        config, network = self._config, context.networks[MAIN]
        assert isinstance(network, TrackerNetwork)
        clips, batch_rng = batch.data
        rollout = TrackerRollout(network, clips, config.precision)
        measured = {"loss": torch.zeros((), device=self._device)}
        for t in range(1, config.frames):
            mask_shown = batch_rng.bernoulli(1 - _WITHOUT_MASK).float()
            logits, quality = rollout.step(t, mask_shown)
            target, inside = clips.target[:, t], clips.inside[:, t]
            loss = answer_loss(logits, target, inside, torch.zeros_like(target))
            judged = quality_loss(quality, logits, target, inside)
            both = (loss + config.quality_weight * judged) / (config.frames - 1)
            measured["loss"] = measured["loss"] + both
            mask = (logits.detach() > 0).float() * inside
            measured[f"loss{t}"], measured[f"dice{t}"] = loss.detach(), dice(mask, target).mean()
            rollout.remember(t, keep=context.rng.random() < _REMEMBERED)
        copied = (
            clips.target[:, 0] * clips.inside[:, -1]
        )  # how well the first mask fits the last frame
        measured["copied"] = dice(copied, clips.target[:, -1]).mean()
        return measured

    def validate(self, networks: Networks) -> Scores | None:
        """Dice of held-out volumes followed from their middle slice on."""
        network = networks[MAIN]
        assert isinstance(network, TrackerNetwork)
        return self._held_out.validate(
            lambda clips: track_clips(network, clips, self._config.precision)
        )
