"""Supervised segmentation: label maps learnt by a residual-encoder U-Net, without prompts.

nnU-Net's recipe (https://doi.org/10.1038/s41592-020-01008-z) in small: patches of which a share is
centred on labels, deep supervision, soft Dice and cross-entropy, several labels and channels,
patches as anisotropic as the images. The weights say what they are for, and `limner auto IMAGE
--model resenc-unet --weights FILE` uses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, model_validator
from torch import Tensor

from limner.adapters.network_plan import NetworkPlan
from limner.adapters.sliding_window import SlidingWindow
from limner.models.resenc_unet import network_of
from limner.networks.resenc_unet import ResEncUNet
from limner.train.config import Count, Fraction, Integers, TrainConfig, Words
from limner.train.data.augment_patches import augment_patches
from limner.train.data.labelled_cases import Kind, Layout, find_cases, prepare_cases
from limner.train.data.patches import PreparedCase, draw_patch
from limner.train.segmentation_losses import IGNORED, deep_supervision
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

Floats = NDArray[np.float32]
Spacing = Annotated[
    tuple[float, ...], BeforeValidator(lambda value: tuple(value) if type(value) is list else value)
]


class Config(TrainConfig):
    """Supervised training.

    Attributes:
        patch: pixels per axis of what the network sees: two for a network of slices.
        spacing: millimetres per step, in index order; empty: the median of the training cases.
        widths: channels per stage of the network, finest first.
        blocks: residual blocks per stage.
        decoder_convs: convolutions per stage of the decoder.
        normalization: ``"zscore"`` by each image, ``"fixed"`` by all training cases, or ``"auto"``:
            fixed for CT.
        foreground_fraction: share of patches that are centred on a label.
        augment: turn, zoom and disturb the patches.
        mirror: axes along which patches are mirrored; none where left and right are two labels.
        leave_out: data sets of the folder to pass over.
        validate_cases: at most so many.
    """

    method: Literal["supervised"] = "supervised"
    name: str = "resenc-unet"
    patch: Integers
    spacing: Spacing = ()
    widths: Integers = (32, 64, 128, 256, 320, 320)
    blocks: Integers = (1, 3, 4, 6, 6, 6)
    decoder_convs: Count = 1
    normalization: Kind = "auto"
    foreground_fraction: Fraction = 0.33
    augment: bool = True
    mirror: Integers = ()
    leave_out: Words = ()
    validate_cases: Count = 4

    @model_validator(mode="after")
    def _check_network(self) -> Config:
        if len(self.patch) not in (2, 3):
            raise ValueError(f"patch={list(self.patch)}; it has 2 or 3 axes.")
        for name in ("patch", "widths", "blocks"):
            values = getattr(self, name)
            if min(values, default=0) < 1:
                raise ValueError(f"{name}={list(values)}; it holds numbers from 1.")
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"{len(self.widths)} widths and {len(self.blocks)} blocks; a stage has one of each."
            )
        if not set(self.mirror) <= set(range(len(self.patch))):
            raise ValueError(
                f"mirror={list(self.mirror)}; the patch has axes 0 to {len(self.patch) - 1}."
            )
        if self.spacing and len(self.spacing) != len(self.patch):
            raise ValueError(
                f"spacing={list(self.spacing)}; it has one value per axis of the patch."
            )
        return self

    def layout(self) -> Layout:
        """What is chosen before data are looked at."""
        return Layout(
            self.patch,
            self.spacing,
            self.widths,
            self.blocks,
            self.decoder_convs,
            self.normalization,
        )


def open_task(config: Config, inputs: TaskInputs) -> Supervised:
    """The task on a folder of labelled images."""
    found, names = find_cases(inputs.data, config.leave_out)
    folder = inputs.out / "prepared"
    plan, cases, digest = prepare_cases(found, names, config.layout(), folder)
    return Supervised(config, plan, cases, digest, inputs.device)


class Supervised(TrainingTask):
    """Learning label maps.

    Args:
        config: of the run.
        plan: of the network.
        cases: to train and validate on.
        digest: of both.
        device: that learns.
    """

    def __init__(
        self,
        config: Config,
        plan: NetworkPlan,
        cases: Sequence[PreparedCase],
        digest: str,
        device: torch.device,
    ) -> None:
        self.digest = digest
        self.facts: dict[str, Any] = {"plan": plan.to_json()}
        self._config, self._plan, self._device = config, plan, device
        self._learnt = [case for case in cases if not case.validates]
        self._held_out = [case for case in cases if case.validates][: config.validate_cases]

    def networks(self) -> Networks:
        """A new network with random weights."""
        return {MAIN: network_of(self._plan).to(self._device)}

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Patches of random cases, the foreground's share spread evenly over them."""
        config, rng = self._config, context.rng
        for part in split_batch(config.batch_size, config.micro_batch):
            images, labels = [], []
            for _ in range(part.samples):
                case = self._learnt[int(rng.integers(len(self._learnt)))]
                centred = bool(rng.random() < config.foreground_fraction)
                image, names = draw_patch(case, config.patch, rng, foreground=centred)
                images.append(image)
                labels.append(names)
            yield MicroBatch(
                (np.stack(images), np.stack(labels)), part.samples, part.weight, part.last
            )

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn from patches."""
        config = self._config
        image, labels = (torch.from_numpy(part).to(self._device) for part in batch.data)
        if config.augment:
            spacing = self._plan.spacing or (1.0,) * len(config.patch)
            image, labels = augment_patches(
                image, labels, context.generator, spacing=spacing, mirror=config.mirror
            )
        network = context.networks[MAIN]
        assert isinstance(network, ResEncUNet)
        network.deep_supervision = True
        try:
            with self._autocast():
                logits = network(image)
        finally:
            network.deep_supervision = False
        target = labels.long()
        with torch.no_grad():
            hit = (logits[0].argmax(dim=1) == target)[(target > 0)].float()
        found = hit.mean() if hit.numel() else torch.ones((), device=self._device)
        return {"loss": deep_supervision(logits, target), "foreground_recall": found}

    @torch.no_grad()
    def validate(self, networks: Networks) -> Scores | None:
        """Dice of every label on whole cases that are not learnt from, at the network's spacing."""
        if not self._held_out:
            return None
        network, window = networks[MAIN], SlidingWindow(self._plan.patch)

        def answer(batch: Floats) -> Floats:
            with self._autocast():
                logits = network(torch.from_numpy(batch).to(self._device))
            return np.asarray(logits.float().cpu().numpy())

        overlaps = np.zeros((3, len(self._plan.labels)))
        for case in self._held_out:
            logits = window.predict(np.asarray(case.image, np.float32), answer)
            overlaps += count_overlaps(logits.argmax(axis=0), case.labels, len(self._plan.labels))
        both, found, there = overlaps
        dice = 2 * both / np.maximum(found + there, 1)
        scores = {
            name: {"dice": float(d)}
            for name, d in zip(self._plan.labels.values(), dice, strict=True)
        }
        return {"mean": {"dice": float(dice.mean())}, **scores}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._config.precision == "bf16":
            return torch.autocast(self._device.type, torch.bfloat16)
        return contextlib.nullcontext()


def count_overlaps(answer: NDArray[Any], labels: NDArray[Any], number: int) -> NDArray[np.float64]:
    """Pixels of each channel from 1 to `number`: in both, in the answer, in the labels; ``(3,
    number)``. Pixels whose label nobody knows are left out.
    """
    known = labels != IGNORED
    counts = np.zeros((3, number))
    for k in range(number):
        found, there = (answer == k + 1) & known, labels == k + 1
        counts[:, k] = (found & there).sum(), found.sum(), there.sum()
    return counts
