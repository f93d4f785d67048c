"""SegVol's volume encoder in training: its configuration, first weights, and forward pass with
activation checkpointing, half precision or masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limner.models.segvol.sizes import Plan
from limner.networks.blocks.vit3d import VolumeEncoder
from limner.train.config import (
    Betas,
    Count,
    Fraction,
    Fractions,
    Integers,
    NotNegative,
    Positive,
    TrainConfig,
)

_SPREAD = 0.02  # of the first weights, as is usual for vision transformers


def _check_three(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) != 3:
        raise ValueError("it is three numbers.")
    return numbers


class SegVolConfig(TrainConfig):
    """What both stages of SegVol have.

    Attributes:
        size: of the network's input in voxels, (D, H, W).
        patch: voxels per token, likewise.
        dim: channels of the embedding.
        depth: blocks of the volume's encoder.
        heads: of its attention.
        hidden: channels inside its MLPs.
        crops: share of views that are crops at full resolution; the rest are whole volumes, shrunk.
        flips: shares of views that are flip_view along each axis.
        checkpointing: compute blocks of the encoder again on the way back instead of keeping them:
            a third more time for a fraction of the memory.
    """

    size: Annotated[Integers, AfterValidator(_check_three)] = (32, 256, 256)
    patch: Annotated[Integers, AfterValidator(_check_three)] = (4, 16, 16)
    dim: Count = 768
    depth: Count = 12
    heads: Count = 12
    hidden: Count = 3072
    batch_size: Count = 4
    learning_rate: Positive = 1e-4
    betas: Betas = (0.9, 0.999)
    weight_decay: NotNegative = 1e-5
    decay_all: bool = True
    clip_norm: NotNegative = 0.0
    ema_decay: Fraction = 0.0
    crops: Fraction = 0.5
    flips: Annotated[Fractions, AfterValidator(_check_three)] = (0.2, 0.2, 0.2)
    checkpointing: bool = False
    log_every: Count = 10

    @model_validator(mode="after")
    def _check_network(self) -> SegVolConfig:
        check_sizes("size", self.size, "patch", self.patch)
        if self.dim % 16 or self.dim % self.heads:
            raise ValueError(f"dim={self.dim}; it is a multiple of 16 and of heads={self.heads}.")
        return self

    def plan(self) -> Plan:
        """Sizes of the network."""
        depth, rows, columns = self.size
        first, second, third = self.patch
        return Plan(
            size=(depth, rows, columns),
            patch=(first, second, third),
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
        )


def check_sizes(name: str, sizes: tuple[int, ...], of: str, units: tuple[int, ...]) -> None:
    """Raise ValueError for sizes that are no multiples of others."""
    if any(u < 1 or n < u or n % u for n, u in zip(sizes, units, strict=True)):
        raise ValueError(f"{name}={list(sizes)}: multiples of {of}={list(units)} are needed.")


def initialise(encoder: VolumeEncoder) -> None:
    """Random weights, from the global generator."""
    nn.init.trunc_normal_(encoder.patch_embedding.position_embeddings, std=_SPREAD)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_SPREAD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def encode(
    encoder: VolumeEncoder,
    volume: Tensor,
    *,
    bf16: bool = False,
    checkpointing: bool = False,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """As ``encoder(volume)``, with what training needs.

    Args:
        encoder: of the network.
        volume: (B, 1, D, H, W).
        bf16: compute in bfloat16 where that is safe.
        checkpointing: compute blocks again on the way back instead of keeping what is in them.
        change: of the tokens, (B, N, dim), positions included, before the first block.

    Returns:
        (B, dim, d, h, w), float32.
    """
    with torch.autocast(volume.device.type, dtype=torch.bfloat16, enabled=bf16):
        x: Tensor = encoder.patch_embedding(volume)
        if change is not None:
            x = change(x)
        for block in encoder.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
        x = encoder.norm(x).transpose(1, 2)
    return x.float().reshape(-1, x.shape[1], *encoder.patch_embedding.grid)
