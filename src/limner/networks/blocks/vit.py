"""The plain vision transformer that encodes images for Segment Anything
(https://arxiv.org/abs/2304.02643, after ViTDet, https://arxiv.org/abs/2203.16527).

Most blocks attend within windows, a few over the whole grid; positions are a learnt table plus,
per block, biases decomposed into rows and columns. Names of parameters are the published ones.
Everything about shapes is fixed when the encoder is built, so that the forward pass can be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.norm import LayerNorm2d


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
    ) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        out: Tensor = self.lin2(self.activation(self.lin1(x)))
        return out


class PatchEmbed(nn.Module):
    """One token per patch of the image."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H / patch, W / patch, dim)."""
        tokens: Tensor = self.proj(image)
        return tokens.permute(0, 2, 3, 1)


class GridAttention(nn.Module):
    """Self-attention on a square grid with biases for the distance in rows and in columns.

    The bias is the product of the unscaled query with a table (ViTDet, appendix); the scale applies
    to query times key only.

    Args:
        dim: channels.
        heads: a divisor of `dim`.
        side: rows, and columns, of the grid.
    """

    relative: Tensor

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        steps = torch.arange(side)
        relative = steps[:, None] - steps[None, :] + side - 1  # row of the table: query, key
        self.register_buffer("relative", relative, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side, side, dim) to the same."""
        batch, side, dim = x.shape[0], self.side, self.heads * self.rel_pos_h.shape[1]
        qkv = self.qkv(x).reshape(batch, side * side, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, tokens, dim / heads)
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._bias(query)
        )
        out = out.transpose(1, 2).reshape(batch, side, side, dim)
        projected: Tensor = self.proj(out)
        return projected

    def _bias(self, query: Tensor) -> Tensor:
        """(B, heads, tokens, tokens), to be added before the softmax."""
        side, tokens = self.side, self.side * self.side
        on_grid = query.reshape(query.shape[0], self.heads, side, side, query.shape[3])
        rows = torch.einsum("bnhwc,hkc->bnhwk", on_grid, self.rel_pos_h[self.relative])
        columns = torch.einsum("bnhwc,wkc->bnhwk", on_grid, self.rel_pos_w[self.relative])
        bias = rows[..., :, None] + columns[..., None, :]
        return bias.reshape(query.shape[0], self.heads, tokens, tokens)


class Block(nn.Module):
    """Attention and an MLP, each after a layer normalisation and beside a shortcut.

    Args:
        dim: channels.
        heads: of attention.
        grid: rows, and columns, of the whole.
        window: side of the windows that attention stays in; None for the whole grid.
        eps: of the layer normalisations.
        adapter: a module beside the MLP that sees the same normalised tokens, (B, grid, grid, dim),
            and whose output of the same shape is added (SAM-Med2D); registered as ``Adapter``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: int,
        *,
        window: int | None = None,
        eps: float = 1e-6,
        adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.window = grid, window
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = GridAttention(dim, heads, window or grid)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.Adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid, grid, dim) to the same."""
        normal = self.norm1(x)
        if self.window is None:
            x = x + self.attn(normal)
        else:
            # Padding comes after the normalisation, and padded tokens take part, as published.
            parts = self.attn(split(normal, self.grid, self.window))
            x = x + join(parts, self.grid, self.window)
        normal = self.norm2(x)
        out: Tensor = x + self.mlp(normal)
        return out if self.Adapter is None else out + self.Adapter(normal)


def split(x: Tensor, grid: int, window: int) -> Tensor:
    """Cut a grid into windows, padded with zeros at the bottom and right.

    Args:
        x: (B, grid, grid, C).
        grid: rows, and columns.
        window: side of a window.

    Returns:
        (B * windows, window, window, C), row by row.
    """
    across = -(-grid // window)
    missing = across * window - grid
    x = functional.pad(x, (0, 0, 0, missing, 0, missing))
    x = x.reshape(-1, across, window, across, window, x.shape[3])
    return x.transpose(2, 3).reshape(-1, window, window, x.shape[5])


def join(parts: Tensor, grid: int, window: int) -> Tensor:
    """Inverse of `split`; what was padded is dropped."""
    across = -(-grid // window)
    x = parts.reshape(-1, across, across, window, window, parts.shape[3])
    x = x.transpose(2, 3).reshape(-1, across * window, across * window, parts.shape[3])
    return x[:, :grid, :grid]


def neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """From an encoder's channels to those of the embedding; (B, C, H, W) to (B, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


class ImageEncoder(nn.Module):
    """ViT-B of Segment Anything unless said otherwise.

    Args:
        size: side of the square image, a multiple of `patch`.
        patch: pixels per token and axis.
        dim: channels.
        depth: number of blocks.
        heads: of attention.
        whole: indices of the blocks that attend over the whole grid.
        window: side of the windows of the others, in tokens.
        out_channels: of the embedding.
        eps: of the layer normalisations in the blocks; 1e-6 as published by SAM, 1e-5 in timm.
        adapter: makes the module beside the MLP of each block (see `Block`).
    """

    def __init__(
        self,
        size: int = 1024,
        *,
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        whole: Collection[int] = (2, 5, 8, 11),
        window: int = 14,
        out_channels: int = 256,
        eps: float = 1e-6,
        adapter: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        grid = size // patch
        self.patch_embed = PatchEmbed(patch, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                grid,
                window=None if index in whole else window,
                eps=eps,
                adapter=None if adapter is None else adapter(),
            )
            for index in range(depth)
        )
        self.neck = neck(dim, out_channels)

    def tokens(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) to (B, dim, grid, grid): the last block's output, before the neck."""
        x: Tensor = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) to (B, out_channels, grid, grid)."""
        embedding: Tensor = self.neck(self.tokens(image))
        return embedding
