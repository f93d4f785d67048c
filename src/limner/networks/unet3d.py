"""A promptable U-Net for volumes: `limner.networks.unet2d` with a view across slices.

The 2D network, layer for layer, so that weights learnt on images are where learning
begins (`inflate`): its 3x3 convolutions act within slices. What is new are convolutions over three
neighbouring slices between them, which begin as zero; norms and the quality over all slices; and
halving the number of slices on the coarser levels. The finest two levels keep every slice, since
most clinical volumes have slices several times as thick as pixels are wide.

Factorised convolutions, (1, 3, 3) and (3, 1, 1), after P3D (https://arxiv.org/abs/1711.10305) and
R(2+1)D (https://arxiv.org/abs/1711.11248): half the multiplications of 3x3x3 and 6.2 million
parameters instead of 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.fusion2d import IMAGE_CENTRE, IMAGE_SCALE, LOGIT_SCALE, NUM_CHANNELS
from limner.networks.unet2d import FOLD, check_levels, norm_of

_FIRST_HALVED = 2  # level from which on the slices are halved as well


def fuse(
    image: Tensor, previous: Tensor, positive: Tensor, negative: Tensor, region: Tensor
) -> Tensor:
    """The network's input.

    Args:
        image: (B, 3, D, H, W), 0…1.
        previous: (B, 1, D, H, W) logits of the round before, 0 where there was none.
        positive: (B, 1, D, H, W), 1 on positive clicks and scribbles.
        negative: likewise.
        region: (B, 1, D, H, W), 1 inside a box or lasso.

    Returns:
        (B, 7, D, H, W), channels last in memory.
    """
    inputs = [(image - IMAGE_CENTRE) * IMAGE_SCALE, torch.tanh(previous / LOGIT_SCALE)]
    fused = torch.cat([*inputs, positive, negative, region], dim=1)
    return fused.contiguous(memory_format=torch.channels_last_3d)


class InPlaneConv(nn.Conv3d):
    """A convolution within slices.

    As a 2D convolution over all slices at once, whose gradients PyTorch computes twice as fast.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, stride: int = 1, *, bias: bool = True
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (1, size, size),
            (1, stride, stride),
            (0, size // 2, size // 2),
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) to (B, out, D, H / stride, W / stride)."""
        slices_first = x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
        weight = self.weight.squeeze(2).contiguous(memory_format=torch.channels_last)
        y = functional.conv2d(slices_first, weight, self.bias, self.stride[1:], self.padding[1:])
        stacked: Tensor = y.movedim(1, -1).reshape(x.shape[0], x.shape[2], *y.shape[2:], -1)
        return stacked.movedim(-1, 1)


class CrossSliceConv(nn.Conv3d):
    """A convolution over three slices, zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape."""
        rows = x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)
        weight = self.weight.squeeze(4).contiguous(memory_format=torch.channels_last)
        y = functional.conv2d(rows, weight, None, 1, (1, 0))
        unrolled: Tensor = y.movedim(1, -1).reshape(x.shape[0], x.shape[2], *x.shape[3:], -1)
        return unrolled.movedim(-1, 1)


class ResidualBlock3d(nn.Module):
    """Two convolutions in the plane and one across between them, beside a shortcut.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        halved: sizes are halved along the plane's axes, and along all.
    """

    def __init__(
        self, in_channels: int, out_channels: int, halved: tuple[bool, bool] = (False, False)
    ) -> None:
        super().__init__()
        in_plane, slices = halved
        stride = 2 if in_plane else 1
        self.thin: nn.Module = nn.AvgPool3d((2, 1, 1)) if slices else nn.Identity()
        self.conv1 = InPlaneConv(in_channels, out_channels, 3, stride, bias=False)
        self.norm1 = norm_of(out_channels)
        self.across = CrossSliceConv(out_channels)
        self.conv2 = InPlaneConv(out_channels, out_channels, 3, bias=False)
        self.norm2 = norm_of(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_plane or in_channels != out_channels:
            pool = nn.AvgPool3d((1, 2, 2)) if in_plane else nn.Identity()
            self.shortcut = nn.Sequential(
                pool, InPlaneConv(in_channels, out_channels, 1, bias=False)
            )
        nn.init.zeros_(self.norm2.weight)  # each block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) to (B, out, D, H, W), halved where it is."""
        x = self.thin(x)
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(y + self.across(y))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class PromptableUNet3d(nn.Module):
    """Fused volume and prompts to logits and a predicted quality.

    Args:
        widths: channels per level, multiples of 8, finest first.
        depths: residual blocks per level on the way down; one per level on the way up.

    Attributes:
        stride: the sizes of the input are multiples of it, ``(slices, rows, columns)``.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        check_levels(widths, depths)
        levels = range(len(widths))
        halved = [(k > 0, k >= _FIRST_HALVED) for k in levels]
        in_plane = FOLD * 2 ** (len(widths) - 1)
        self.stride = (2 ** sum(h[1] for h in halved), in_plane, in_plane)
        self.stem = InPlaneConv(NUM_CHANNELS * FOLD**2, widths[0], 3)
        before = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualBlock3d(before[k], widths[k], halved[k]),
                *(ResidualBlock3d(widths[k], widths[k]) for _ in range(depths[k] - 1)),
            )
            for k in levels
        )
        pairs = list(pairwise(widths))[::-1]
        self.lift = nn.ModuleList(InPlaneConv(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(ResidualBlock3d(fine, fine) for fine, _ in pairs)
        self.to_logits = InPlaneConv(widths[0], FOLD**2, 3)
        self.judge = nn.Sequential(nn.Linear(widths[-1] + 2 * widths[0], 64), nn.ReLU())
        self.to_quality = nn.Linear(64, 1)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            fused: (B, 7, D, H, W) of `fuse`; sizes multiples of `stride`.

        Returns:
            Logits (B, 1, D, H, W), above 0 inside; and the logit of the predicted IoU, (B,).
        """
        x = self.stem(_fold(fused).contiguous(memory_format=torch.channels_last_3d))
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        deepest = skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            skip = skips.pop()
            x = block(_enlarged(lift(x), skip.shape[2]) + skip)
        logits = self.to_logits(x)
        return _unfold(logits), self._quality(deepest, x, logits.mean(dim=1, keepdim=True))

    def _quality(self, deepest: Tensor, finest: Tensor, logits: Tensor) -> Tensor:
        """The logit of the IoU from the whole view, the inside of the answer and its rim, where the
        answer is unsure. Gradients stop here: judging must not change the answer.
        """
        inside = torch.sigmoid(logits.detach().float())
        rim = inside * (1.0 - inside)
        features = finest.detach().float()
        parts = [
            deepest.detach().float().mean(dim=(2, 3, 4)),
            _average(features, inside),
            _average(features, rim),
        ]
        quality: Tensor = self.to_quality(self.judge(torch.cat(parts, dim=1)))
        return quality.squeeze(1)


def inflate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `PromptableUNet2d` as those of this network with the same widths and depths.

    Returns:
        All weights but the convolutions across slices, which begin as zero.
    """
    return {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in state.items()}


def _fold(x: Tensor) -> Tensor:
    """Two by two pixels of each slice to channels, ordered as `torch.nn.PixelUnshuffle` does."""
    batch, channels, slices, rows, columns = x.shape
    parts = x.view(batch, channels, slices, rows // FOLD, FOLD, columns // FOLD, FOLD)
    return parts.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)


def _unfold(x: Tensor) -> Tensor:
    """Inverse of `_fold`, for one channel."""
    batch, _, slices, rows, columns = x.shape
    parts = x.reshape(batch, 1, FOLD, FOLD, slices, rows, columns)
    return parts.permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)


def _enlarged(x: Tensor, slices: int) -> Tensor:
    """Twice the rows and columns, bilinear; each slice repeated where there are twice as many."""
    slices_first = x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
    wide = functional.interpolate(
        slices_first, scale_factor=2.0, mode="bilinear", align_corners=False
    )
    y: Tensor = wide.movedim(1, -1).reshape(x.shape[0], x.shape[2], *wide.shape[2:], -1)
    if slices != x.shape[2]:
        y = y.repeat_interleave(2, dim=1)
    return y.movedim(-1, 1)


def _average(features: Tensor, weights: Tensor) -> Tensor:
    """(B, C): mean over the view, weighted; the weights are (B, 1, D, H, W)."""
    total = weights.sum(dim=(2, 3, 4)).clamp_min(1e-3)
    return (features * weights).sum(dim=(2, 3, 4)) / total
