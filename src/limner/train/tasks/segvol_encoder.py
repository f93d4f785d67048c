"""The volume's encoder while it learns: its first weights, and its way forward with blocks computed
twice, in half precision or with masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limner.networks.blocks.vit3d import VolumeEncoder

_SPREAD = 0.02  # of the first weights, as is usual for vision transformers


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
    twice: bool = False,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """As ``encoder(volume)``, with what training needs.

    Args:
        encoder: of the network.
        volume: (B, 1, D, H, W).
        bf16: compute in bfloat16 where that is safe.
        twice: compute blocks again on the way back instead of keeping what is in them.
        change: of the tokens, (B, N, dim), positions included, before the first block.

    Returns:
        (B, dim, d, h, w), float32.
    """
    with torch.autocast(volume.device.type, dtype=torch.bfloat16, enabled=bf16):
        x: Tensor = encoder.patch_embedding(volume)
        if change is not None:
            x = change(x)
        for block in encoder.blocks:
            x = checkpoint(block, x, use_reentrant=False) if twice else block(x)
        x = encoder.norm(x).transpose(1, 2)
    return x.float().reshape(-1, x.shape[1], *encoder.patch_embedding.grid)
