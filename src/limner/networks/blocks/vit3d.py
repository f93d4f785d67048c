"""The plain vision transformer on volumes, as MONAI builds it (https://monai.io, ``ViT`` of version
0.9 with "perceptron" patches): every token attends to every other, positions are a learnt table.

Names of parameters are the published ones. Patches are cut by reshaping and embedded by a linear
layer, which is a convolution in other words, but with the order of weights of the published files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int, int]


class PatchEmbedding3d(nn.Module):
    """One token per block of voxels, and where it lies.

    Args:
        size: of the volume in voxels, multiples of `patch`.
        patch: voxels per token.
        dim: channels.
    """

    def __init__(self, size: Size, patch: Size, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.grid = tuple(n // p for n, p in zip(size, patch, strict=True))
        voxels = patch[0] * patch[1] * patch[2]
        cut = nn.Identity()  # holds the place of the published rearrangement
        self.patch_embeddings = nn.Sequential(cut, nn.Linear(voxels, dim))
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, tokens, dim); tokens, and voxels within one, in C order."""
        (d, h, w), (pd, ph, pw) = self.grid, self.patch
        cut = volume.reshape(-1, d, pd, h, ph, w, pw).permute(0, 1, 3, 5, 2, 4, 6)
        tokens: Tensor = self.patch_embeddings(cut.reshape(-1, d * h * w, pd * ph * pw))
        return tokens + self.position_embeddings


class SelfAttention(nn.Module):
    """Every token to every token; queries, keys and values without bias.

    Args:
        dim: channels.
        heads: a divisor of `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, self.width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class TokenMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        out: Tensor = self.linear2(functional.gelu(self.linear1(x)))
        return out


class TokenBlock(nn.Module):
    """Attention and an MLP, each after a layer normalisation and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VolumeEncoder(nn.Module):
    """A plain vision transformer for one-channel volumes.

    Args:
        size: of the volume, ``(D, H, W)``.
        patch: voxels per token, likewise.
        dim: channels.
        depth: number of blocks.
        heads: of attention.
        hidden: channels inside the MLPs.
    """

    def __init__(
        self,
        size: Size,
        patch: Size,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
    ) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding3d(size, patch, dim)
        self.blocks = nn.ModuleList(TokenBlock(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, dim, D / patch, H / patch, W / patch)."""
        x: Tensor = self.patch_embedding(volume)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).transpose(1, 2)
        return x.reshape(-1, x.shape[1], *self.patch_embedding.grid)
