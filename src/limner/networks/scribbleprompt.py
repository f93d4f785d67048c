"""ScribblePrompt's U-Net (https://arxiv.org/abs/2312.07381): four levels of one convolution each,
as wide at the top as at the bottom. Names of parameters are the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """One convolution, and a PReLU with one slope for all channels unless it is the last."""

    def __init__(self, channels: int, out: int, kernel: int = 3, *, bent: bool = True) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.conv = nn.Sequential(convolution, nn.PReLU()) if bent else nn.Sequential(convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H, W)."""
        result: Tensor = self.conv(x)
        return result


class ScribblePromptUNet(nn.Module):
    """Image, prompts and the logits of the round before to logits.

    Args:
        channels: of the input.
        width: features at every level.
        depth: levels; the sides of the input are multiples of 2 to the power of `depth`.
    """

    def __init__(self, channels: int = 5, width: int = 192, depth: int = 4) -> None:
        super().__init__()
        self.downs = nn.ModuleList(
            ConvBlock(width if level else channels, width) for level in range(depth)
        )
        self.shrink = nn.MaxPool2d(2)
        self.bottleneck = ConvBlock(width, width)
        # Between the blocks lie what enlarges, without weights; hence only odd numbers have names.
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.ups = nn.ModuleList(
            module for _ in range(depth) for module in (enlarge, ConvBlock(2 * width, width))
        )
        self.final_conv = ConvBlock(width, 1, kernel=1, bent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to logits (B, 1, H, W)."""
        skipped = []
        for down in self.downs:
            x = down(x)
            skipped.append(x)
            x = self.shrink(x)
        x = self.bottleneck(x)
        for level in range(len(self.downs)):
            x = torch.cat([skipped.pop(), self.ups[2 * level](x)], dim=1)
            x = self.ups[2 * level + 1](x)
        logits: Tensor = self.final_conv(x)
        return logits
