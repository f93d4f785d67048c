"""Residual networks (https://arxiv.org/abs/1512.03385) down to a sixteenth of the image.

Names of parameters inside the blocks are those that published weights have; the stages are named by
whoever builds them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, as in networks with 18 and 34 layers.

    Args:
        inside: channels that come in.
        width: channels of both convolutions, and what comes out.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, as in networks with 50 layers and more.

    `adapter`, where there is one, says what is added to what comes out.

    Args:
        inside: channels that come in.
        width: channels of the 3x3 convolution; four times as many come out.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inside, 4 * width, stride)
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, 4 * width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = functional.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y if self.adapter is None else y + self.adapter(y)


class Stem(nn.Module):
    """What comes before the stages: a 7x7 convolution and a maximum, to a quarter of the image.

    Args:
        channels: of the image.
        width: of the result.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def stem(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / 4, W / 4)."""
        return functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)


def stage(
    block: type[BasicBlock] | type[Bottleneck], count: int, inside: int, width: int, stride: int
) -> nn.Sequential:
    """Blocks of one resolution; the first one strides."""
    first = block(inside, width, stride)
    further = (block(width * block.expansion, width, 1) for _ in range(count - 1))
    return nn.Sequential(first, *further)


def _shortcut(inside: int, out: int, stride: int) -> nn.Sequential | None:
    """To other channels or another resolution; None where both stay."""
    if stride == 1 and inside == out:
        return None
    return nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class Cbam(nn.Module):
    """Attention to channels, then to places (https://arxiv.org/abs/1807.06521).

    Args:
        channels: C.
        reduction: the perceptron between has so many times fewer.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.ChannelGate = _ChannelGate(channels, reduction)
        self.SpatialGate = _SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        gated: Tensor = self.SpatialGate(self.ChannelGate(x))
        return gated


class _ChannelGate(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inside = channels // reduction
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, inside), nn.ReLU(), nn.Linear(inside, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        score = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return x * torch.sigmoid(score)[:, :, None, None]


class _SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3)})

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial["conv"](pooled))
