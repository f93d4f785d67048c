"""A promptable U-Net: image and prompts are fused in the first layer, so every answer is one pass.

Early fusion beat late fusion in ScribblePrompt (https://arxiv.org/abs/2312.07381) and nnInteractive
(https://arxiv.org/abs/2503.08373). What differs here is for the CPU: two by two pixels are folded
into channels at the door and unfolded at the exit, so that nothing is lost and no layer is both
wide in space and narrow in channels (memory-bound); skip connections are added instead of
concatenated (half the decoder's multiplications); all else are plain 3x3 convolutions, which oneDNN
and OpenVINO run near the machine's peak.

Group normalisation, not batch normalisation: an image is normalised by itself, as kinds of image
that were never seen must be; small batches and rounds with and without a previous answer do not mix
their statistics; training and inference are the same function, so averaged weights need no
recalibration. The price, measured, is in docs/notes/limner-2d.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.fusion2d import (
    IMAGE_CENTRE,
    IMAGE_SCALE,
    LOGIT_SCALE,
    NUM_CHANNELS,
)

FOLD = 2  # pixels per axis that become channels
_GROUP = 8  # channels normalised together


def fuse(
    image: Tensor, previous: Tensor, positive: Tensor, negative: Tensor, region: Tensor
) -> Tensor:
    """The network's input.

    Args:
        image: (B, 3, H, W), 0…1.
        previous: (B, 1, H, W) logits of the round before, 0 where there was none.
        positive: (B, 1, H, W), 1 on positive clicks and scribbles.
        negative: likewise.
        region: (B, 1, H, W), 1 inside a box or lasso.

    Returns:
        (B, 7, H, W), channels last in memory.
    """
    inputs = [(image - IMAGE_CENTRE) * IMAGE_SCALE, torch.tanh(previous / LOGIT_SCALE)]
    fused = torch.cat([*inputs, positive, negative, region], dim=1)
    return fused.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first may halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = norm_of(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = norm_of(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            pool = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv)
        nn.init.zeros_(self.norm2.weight)  # each block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class PromptableUNet2d(nn.Module):
    """Fused image and prompts to logits and a predicted quality.

    Args:
        widths: channels per level, multiples of 8, finest first; the finest has half the image's
            resolution, each other half of the one before.
        depths: residual blocks per level on the way down; one per level on the way up.

    Attributes:
        stride: both sizes of the input must be multiples of it.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        check_levels(widths, depths)
        self.stride = FOLD * 2 ** (len(widths) - 1)
        self.fold = nn.PixelUnshuffle(FOLD)
        self.stem = nn.Conv2d(NUM_CHANNELS * FOLD**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, stride),
                *(ResidualBlock(width, width) for _ in range(depth - 1)),
            )
            for before, width, depth, stride in zip(
                (widths[0], *widths[:-1]), widths, depths, (1, *[2] * len(widths)), strict=False
            )
        )
        pairs = list(pairwise(widths))[::-1]
        self.lift = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(ResidualBlock(fine, fine) for fine, _ in pairs)
        self.to_logits = nn.Conv2d(widths[0], FOLD**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(FOLD)
        self.judge = nn.Sequential(nn.Linear(widths[-1] + 2 * widths[0], 64), nn.ReLU())
        self.to_quality = nn.Linear(64, 1)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            fused: (B, 7, H, W) of `fuse`; H and W multiples of `stride`.

        Returns:
            Logits (B, 1, H, W), above 0 inside; and the logit of the predicted IoU, (B,).
        """
        x = self.stem(self.fold(fused).contiguous(memory_format=torch.channels_last))
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        deepest = skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            wide = functional.interpolate(
                lift(x), scale_factor=2.0, mode="bilinear", align_corners=False
            )
            x = block(wide + skips.pop())
        logits = self.to_logits(x)
        return self.unfold(logits), self._quality(deepest, x, logits.mean(dim=1, keepdim=True))

    def _quality(self, deepest: Tensor, finest: Tensor, logits: Tensor) -> Tensor:
        """The logit of the IoU, (B,)."""
        quality: Tensor = self.to_quality(self.judge(judge_answer(deepest, finest, logits)))
        return quality.squeeze(1)


def judge_answer(deepest: Tensor, finest: Tensor, logits: Tensor) -> Tensor:
    """What the predicted IoU follows from: the whole image, the inside of the answer and its rim.

    The rim is where the answer is unsure. Gradients stop here: judging must not change the answer.

    Args:
        deepest: (B, C, h, w), features of the coarsest level.
        finest: (B, D, H, W), of the finest.
        logits: (B, 1, H, W).

    Returns:
        (B, C + 2 * D), float32.
    """
    inside = torch.sigmoid(logits.detach().float())
    rim = inside * (1.0 - inside)
    features = finest.detach().float()
    whole = deepest.detach().float().mean(dim=(2, 3))
    return torch.cat([whole, _average(features, inside), _average(features, rim)], dim=1)


def check_levels(widths: Sequence[int], depths: Sequence[int]) -> None:
    """Refuse levels that no network has.

    Raises:
        ValueError: not as many widths as depths, or impossible ones.
    """
    if len(widths) != len(depths) or len(widths) < 2:
        raise ValueError(
            f"{len(widths)} widths and {len(depths)} depths; give one of each per level, "
            "two levels or more."
        )
    if any(w < _GROUP or w % _GROUP for w in widths) or min(depths) < 1:
        raise ValueError(
            f"widths={tuple(widths)}, depths={tuple(depths)}: widths are multiples of {_GROUP} "
            "and depths at least 1."
        )


def _average(features: Tensor, weights: Tensor) -> Tensor:
    """(B, C): mean over the image, weighted; the weights are (B, 1, H, W)."""
    total = weights.sum(dim=(2, 3)).clamp_min(1e-3)
    return (features * weights).sum(dim=(2, 3)) / total


def norm_of(channels: int) -> nn.GroupNorm:
    """Group normalisation of so many channels."""
    return nn.GroupNorm(channels // _GROUP, channels)
