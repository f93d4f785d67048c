"""Adapters in XMem's key encoder, as iMOS adds them, trained on sequences while XMem stays as it is
(https://arxiv.org/abs/2309.17264; where the adapters are is ours, see `limner.models.imos`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from limner.checkpoints.load import fill
from limner.errors import CheckpointError
from limner.models.xmem.network import XMemNetwork
from limner.train import checkpoint
from limner.train.config import Count, SequenceConfig, check_multiples
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.prepare import open_volumes_and_images
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import SequenceSampler
from limner.train.losses import choose_hard_fraction, dice, masks_loss
from limner.train.parts.validation_sequences import HeldOutSequences
from limner.train.parts.xmem_rollout import (
    XMemRollout,
    add_second_object,
    mask_probabilities,
    track_sequences,
    with_one_object,
)
from limner.train.parts.xmem_weights import Adapters, read_base
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

_LEVELS = 4  # XMem's: a sixteenth of the image
_DEEP = 0.2  # share of remembered frames that the sensory memory takes in, too


class Config(SequenceConfig):
    """Training of XMem's adapters.

    Attributes:
        adapter_width: channels inside the adapters.
        references: remembered frames that are read at a time.
    """

    renamed: ClassVar[dict[str, str]] = {**SequenceConfig.renamed, "adapters": "adapter_width"}

    method: Literal["xmem-adapters"] = "xmem-adapters"
    name: str = "imos"
    adapter_width: Count = 64
    references: Count = 3

    @model_validator(mode="after")
    def _check_sequences(self) -> Config:
        if self.frames < 3:
            raise ValueError(f"adapters are trained on sequences; frames={self.frames} is below 3.")
        check_multiples(self.sizes, _LEVELS)
        return self


def open_task(config: Config, inputs: TaskInputs) -> XMemAdapters:
    """The task on a folder of data sets or a pack with volumes.

    Raises:
        CheckpointError: no file of XMem is given, or it is of something else.
    """
    if inputs.start is None:
        raise CheckpointError(
            "Adapters are trained for weights that stay as they are; name their file, also "
            "when a run goes on: --start XMem.pth"
        )
    volumes, images = open_volumes_and_images(inputs.data, inputs.out, config.leave_out)
    return XMemAdapters(config, volumes, images, inputs.device, inputs.start)


class XMemAdapters(TrainingTask):
    """Learning to follow with XMem as it is and adapters that are new.

    Args:
        config: of the run.
        volumes: to train on.
        images: that are moved.
        device: that trains.
        base: file of XMem.

    Attributes:
        digest: of what is trained on and of what stays as it is.
        facts: about the file, ``base``.

    Raises:
        CheckpointError: the file is of something else.
    """

    def __init__(
        self,
        config: Config,
        volumes: PackedVolumes,
        images: PackedImages,
        device: torch.device,
        base: Path,
    ) -> None:
        self._config, self._device = config, device
        read = read_base(base)
        self._given = read.adapters
        self._frozen = read.network().to(device)
        self._frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.facts: dict[str, Any] = {"base": read.facts}
        self.digest = f"{volumes.digest}+{images.digest}+{read.facts['weights']}"
        self._maker = SequenceSampler(config, volumes, images, device)
        self._held_out = HeldOutSequences(config, volumes, self._maker.device_data)

    def networks(self) -> Networks:
        """New adapters, which do nothing yet."""
        return {MAIN: Adapters(self._config.adapter_width).to(self._device)}

    def start(self, path: Path, networks: Networks) -> None:
        """With the adapters that the file of XMem has, if any."""
        if self._given:
            fill(networks[MAIN], self._given, path)

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Disturbed sequences, with a second object if there is more than one of them."""
        config = self._config
        size = int(context.rng.choice(np.asarray(config.sizes)))
        for part in split_batch(config.batch_size, config.micro_batch):
            batch_rng = BatchRandom(part.samples, context.generator)
            clips = self._maker.draw(part.samples, size, context.rng, batch_rng)
            pairs = part.samples > 1
            shown = add_second_object(clips, batch_rng) if pairs else with_one_object(clips)
            yield replace(part, data=shown)

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn from all frames after the first."""
        config, shown = self._config, batch.data
        rollout = XMemRollout(self._with(context.networks), shown, config.precision)
        measured = {"loss": torch.zeros((), device=self._device)}
        hard = choose_hard_fraction(context.progress)
        for t in range(1, config.frames):
            logits = rollout.step(t, _choose_references(t, config.references, context.rng))
            target, inside = shown.target[:, t], shown.inside[:, t]
            loss = masks_loss(logits, target, inside, shown.there, hard)
            measured["loss"] = measured["loss"] + loss / (config.frames - 1)
            found = mask_probabilities(logits, shown, t)
            mask = (found.detach() > 0.5).float()
            measured[f"loss{t}"], measured[f"dice{t}"] = loss.detach(), dice(mask, target).mean()
            if t + 1 < config.frames:
                rollout.remember(t, found, deep=bool(context.rng.random() < _DEEP))
        copied = shown.target[:, 0] * shown.inside[:, -1]
        measured["copied"] = dice(copied, shown.target[:, -1]).mean()
        return measured

    def validate(self, networks: Networks) -> Scores | None:
        """Dice of held-out volumes followed from their middle slice on."""
        whole, config = self._with(networks), self._config
        return self._held_out.validate(
            lambda clips: track_sequences(
                whole, with_one_object(clips), config.references, config.precision
            )
        )

    def write(self, folder: Path, name: str, networks: Networks, facts: dict[str, Any]) -> Path:
        """Write the adapters alone, ``NAME-adapters``, in single precision: they begin as 0 and may
        stay below what half precision can tell.
        """
        path = folder / f"{name}-adapters.safetensors"
        weights = networks[MAIN].state_dict()
        return checkpoint.write_weights(path, weights, facts, torch.float32)

    def _with(self, networks: Mapping[str, nn.Module]) -> XMemNetwork:
        adapters = networks[MAIN]
        assert isinstance(adapters, Adapters)
        adapters.put_into(self._frozen)
        return self._frozen.eval()  # counts of normalisation stay as they are


def _choose_references(t: int, most: int, rng: np.random.Generator) -> list[int]:
    """Frames whose memory is read on frame `t`: the first one, and random ones of the rest."""
    rest = rng.permutation(np.arange(1, t))[: most - 1]
    return [0, *sorted(int(k) for k in rest)]
