"""TinyViT (https://arxiv.org/abs/2207.10666) as the image's encoder in LiteMedSAM: convolutions
at full resolution, then attention within windows on ever coarser grids. Names of parameters are the
published ones.

Everything about shapes is fixed when the encoder is built, so that the forward pass can be traced.
Batch normalisations use the statistics of the weights file; the encoder is for evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.norm import LayerNorm2d

LITE_DIMS, LITE_DEPTHS, LITE_HEADS, LITE_WINDOWS = (
    (64, 128, 160, 320),
    (2, 2, 6, 2),
    (2, 4, 5, 10),
    (7, 7, 14, 7),
)
_EXPANSION = 4  # of channels inside convolution blocks and perceptrons
_OUT = 256  # channels of the embedding


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation."""

    def __init__(
        self, channels: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.add_module(
            "c", nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
        )
        self.add_module("bn", nn.BatchNorm2d(out))


class ConvolutionBlock(nn.Module):
    """Wider, over neighbours channel by channel, narrow again, beside a shortcut (MBConv)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = _EXPANSION * dim
        self.conv1 = ConvNorm(dim, wide)
        self.conv2 = ConvNorm(wide, wide, 3, groups=wide)
        self.conv3 = ConvNorm(wide, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to the same."""
        inner = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return functional.gelu(x + self.conv3(inner))


class PatchMerging(nn.Module):
    """To the next stage's channels, and by `stride` to its grid."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out)
        self.conv2 = ConvNorm(out, out, 3, stride=stride, groups=out)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, out, H / stride, W / stride)."""
        merged: Tensor = self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))
        return merged


class WindowAttention(nn.Module):
    """Self-attention in a square window, with a learnt bias for each distance.

    Args:
        dim: channels.
        heads: a divisor of `dim`.
        window: side of the window.
    """

    offsets: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # The published table has one entry per distance in rows and columns, in the order in which
        # they are first met: row by row from the first pixel.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        apart = (place[:, None] - place[None, :]).abs()
        offsets = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("offsets", offsets.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, window * window, dim) to the same."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, self.heads, 3, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # (B, heads, tokens, dim / heads)
        bias = self.attention_biases[:, self.offsets]
        scale = (dim // self.heads) ** -0.5
        weights = ((query @ key.transpose(-2, -1)) * scale + bias).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, dim)
        projected: Tensor = self.proj(mixed)
        return projected


class Perceptron(nn.Module):
    """Layer normalisation, and two linear layers with GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, _EXPANSION * dim)
        self.fc2 = nn.Linear(_EXPANSION * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return out


class AttentionBlock(nn.Module):
    """Attention in windows, a convolution channel by channel, a perceptron.

    Args:
        dim: channels.
        heads: of attention.
        side: rows, and columns, of the grid.
        window: side of the windows; at the right and below the grid is filled up with zeros, which
            take part.
    """

    def __init__(self, dim: int, heads: int, side: int, window: int) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, side, side) to the same."""
        x = x + self._attended(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)

    def _attended(self, x: Tensor) -> Tensor:
        """(B, side, side, dim) to the same."""
        side, window = self.side, self.window
        missing = -side % window
        if missing:
            x = functional.pad(x, (0, 0, 0, missing, 0, missing))
        batch, rows, _, dim = x.shape
        count = rows // window
        x = x.reshape(batch, count, window, count, window, dim).transpose(2, 3)
        x = self.attn(x.reshape(batch * count * count, window * window, dim))
        x = x.reshape(batch, count, count, window, window, dim).transpose(2, 3)
        return x.reshape(batch, rows, rows, dim)[:, :side, :side]


class Stage(nn.Module):
    """Blocks on one grid, then the way to the next."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to the next stage's channels and grid."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchStem(nn.Module):
    """Pixels to channels, each pixel by itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, dim // 2), nn.GELU(), ConvNorm(dim // 2, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, dim, H, W)."""
        out: Tensor = self.seq(x)
        return out


class TinyViT(nn.Module):
    """The encoder; LiteMedSAM's by default.

    Args:
        size: side of the input, a multiple of 4.
        dims: channels of the four stages. The first has convolutions; the last keeps the grid of
            the one before it.
        depths: blocks in each.
        heads: of attention in each; the first is not used.
        windows: sides of its windows, likewise.
        out_channels: of the embedding.
    """

    def __init__(
        self,
        size: int = 256,
        dims: Sequence[int] = LITE_DIMS,
        depths: Sequence[int] = LITE_DEPTHS,
        heads: Sequence[int] = LITE_HEADS,
        windows: Sequence[int] = LITE_WINDOWS,
        *,
        out_channels: int = _OUT,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchStem(dims[0])
        stages, side = [], size
        for k, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = [
                AttentionBlock(dim, heads[k], side, windows[k]) if k else ConvolutionBlock(dim)
                for _ in range(depth)
            ]
            following = dims[k + 1] if k + 1 < len(dims) else None
            stride = 2 if k + 2 < len(dims) else 1
            merging = None if following is None else PatchMerging(dim, following, stride)
            stages.append(Stage(blocks, merging))
            side //= stride
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out_channels, 1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) to (B, out_channels, size / 4, size / 4)."""
        x = self.patch_embed(image)
        for stage in self.layers:
            x = stage(x)
        embedding: Tensor = self.neck(x)
        return embedding
