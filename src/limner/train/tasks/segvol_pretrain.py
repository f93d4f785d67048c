"""SegVol, stage 1: the volume encoder learns to fill in what is masked (SimMIM,
https://arxiv.org/abs/2111.09886).

Masked tokens are replaced by one learnt token and keep their positions, the encoder sees all of
them, and one linear layer predicts the voxels; only the masked ones count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from limner.datasets import volume_folders
from limner.models.segvol.sizes import Plan
from limner.networks.blocks.vit3d import VolumeEncoder
from limner.train.config import Integers, NotNegative
from limner.train.data.segvol_cases import PreparedCase, prepare_cases
from limner.train.data.segvol_views import draw_view, flip_view
from limner.train.parts import segvol_files
from limner.train.parts.segvol_encoder import SegVolConfig, check_sizes, encode, initialise
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    StepContext,
    TaskInputs,
    TrainingTask,
    split_batch,
)


class Config(SegVolConfig):
    """Masked volume modelling.

    Attributes:
        mask_ratio: share of the volume that is masked.
        mask_patch: voxels that are masked together, (D, H, W), multiples of `patch`.
    """

    method: Literal["segvol-pretrain"] = "segvol-pretrain"
    name: str = "vit-pretrain"
    weight_decay: NotNegative = 0.05
    mask_ratio: float = 0.6
    mask_patch: Integers = (8, 32, 32)

    @model_validator(mode="after")
    def _check_masks(self) -> Config:
        if len(self.mask_patch) != 3:
            raise ValueError(f"mask_patch={list(self.mask_patch)}; it is three numbers.")
        check_sizes("size", self.size, "mask_patch", self.mask_patch)
        check_sizes("mask_patch", self.mask_patch, "patch", self.patch)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio}; it is between 0 and 1.")
        return self


def open_task(config: Config, inputs: TaskInputs) -> SegVolPretraining:
    """The task on a folder of volumes; see `limner.datasets.volume_folders`."""
    sources = volume_folders.unlabelled(inputs.data)
    cases, digest = prepare_cases(sources, inputs.out / "volumes")
    return SegVolPretraining(config, cases, digest, inputs.device)


class MaskedVolumes(nn.Module):
    """The encoder, the token of what is masked, and the head that predicts voxels.

    Args:
        plan: sizes of the network.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.encoder = VolumeEncoder(
            plan.size,
            plan.patch,
            dim=plan.dim,
            depth=plan.depth,
            heads=plan.heads,
            hidden=plan.hidden,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, plan.dim))
        self.head = nn.Linear(plan.dim, plan.patch[0] * plan.patch[1] * plan.patch[2])
        initialise(self.encoder)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, volume: Tensor, masked: Tensor, *, bf16: bool = False, checkpointing: bool = False
    ) -> Tensor:
        """Fill in.

        Args:
            volume: (B, 1, D, H, W).
            masked: bool (B, tokens); what is below is not seen.
            bf16: see `encode`.
            checkpointing: likewise.

        Returns:
            All voxels by token, (B, tokens, voxels), in the order in which the encoder cuts them.
        """
        places = self.encoder.patch_embedding.position_embeddings

        def hide(tokens: Tensor) -> Tensor:
            hidden = (self.mask_token + places).to(tokens.dtype)
            return torch.where(masked[..., None], hidden, tokens)

        seen = encode(self.encoder, volume, bf16=bf16, checkpointing=checkpointing, change=hide)
        filled: Tensor = self.head(seen.flatten(2).transpose(1, 2))
        return filled


def voxels_by_token(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, 1, D, H, W) cut as the encoder does it, to (B, tokens, voxels)."""
    batch, _, depth, height, width = volume.shape
    d, h, w = patch
    cut = volume.reshape(batch, depth // d, d, height // h, h, width // w, w)
    return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1, d * h * w)


def draw_mask(config: Config, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens of one volume are masked, (tokens,): a fixed number of random blocks."""
    blocks = [n // m for n, m in zip(config.size, config.mask_patch, strict=True)]
    number = int(np.prod(blocks))
    chosen = np.zeros(number, dtype=np.bool_)
    chosen[rng.permutation(number)[: max(1, round(config.mask_ratio * number))]] = True
    fine = chosen.reshape(blocks)
    for axis in range(3):
        fine = np.repeat(fine, config.mask_patch[axis] // config.patch[axis], axis=axis)
    return fine.ravel()


def fill_loss(filled: Tensor, volume: Tensor, masked: Tensor, patch: Sequence[int]) -> Tensor:
    """Mean absolute error of the masked voxels."""
    wanted = voxels_by_token(volume, patch)
    error = (filled.float() - wanted).abs().mean(dim=-1)
    return (error * masked).sum() / masked.sum()


class SegVolPretraining(TrainingTask):
    """Learning to fill in what is masked.

    Args:
        config: of the run.
        cases: what to learn from.
        digest: of them.
        device: that trains.
    """

    def __init__(
        self, config: Config, cases: Sequence[PreparedCase], digest: str, device: torch.device
    ) -> None:
        self.digest = digest
        self.facts: dict[str, Any] = {}
        self._config, self._cases, self._device = config, cases, device

    def networks(self) -> Networks:
        """A new encoder with its head."""
        return {MAIN: MaskedVolumes(self._config.plan()).to(self._device)}

    def start(self, path: Path, networks: Networks) -> None:
        """From an earlier run, of either stage."""
        segvol_files.start_pretraining(path, networks[MAIN])

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Views of volumes, and what of them is masked."""
        config, rng = self._config, context.rng
        for part in split_batch(config.batch_size, config.micro_batch):
            images, masks = [], []
            for _ in range(part.samples):
                case = self._cases[int(rng.integers(len(self._cases)))]
                view = draw_view(case, config.size, rng, crops=config.crops)
                images.append(flip_view(view, config.flips, rng).image)
                masks.append(draw_mask(config, rng))
            volume = torch.from_numpy(np.stack(images)[:, None]).to(self._device)
            masked = torch.from_numpy(np.stack(masks)).to(self._device)
            yield replace(part, data=(volume, masked))

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn to fill in."""
        config, (volume, masked) = self._config, batch.data
        filled = context.networks[MAIN](
            volume,
            masked,
            bf16=config.precision == "bf16",
            checkpointing=config.checkpointing,
        )
        return {"loss": fill_loss(filled, volume, masked, config.patch)}

    def write(self, folder: Path, name: str, networks: Networks, facts: dict[str, Any]) -> Path:
        """Write the encoder in the authors' container, ``NAME.ckpt``."""
        path = folder / f"{name}.ckpt"
        segvol_files.write_encoder(path, networks[MAIN], facts)
        return path
