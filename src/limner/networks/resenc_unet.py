"""A U-Net with a residual encoder for automatic segmentation in 2D and 3D, as nnU-Net's ResEnc
presets (https://arxiv.org/abs/2404.09556).

Blocks are those of ResNet-D: two convolutions with instance norm beside a shortcut that is pooled
before it is projected. The decoder has plain convolutions on upsampled features beside the skip.
Names of weights are those of the dynamic-network-architectures package (without its aliases
``all_modules.*`` and ``decoder.encoder.*``), so that files of nnU-Net fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, ...]

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_SLOPE = 0.01  # of the leaky ReLU
_SMALLEST = 4  # pixels per axis of the coarsest features, as nnU-Net plans them


class ConvNorm(nn.Module):
    """A convolution, instance norm and, unless it is the last of a residual block, a leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        stride: Size | None = None,
        *,
        bias: bool = True,
        active: bool = True,
    ) -> None:
        super().__init__()
        ndim = len(kernel)
        padding = tuple(k // 2 for k in kernel)
        self.conv = _CONV[ndim](
            in_channels, out_channels, kernel, stride or (1,) * ndim, padding, bias=bias
        )
        self.norm = _NORM[ndim](out_channels, affine=True)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *axes) to (B, out, *axes / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return nn.functional.leaky_relu(y, _SLOPE) if self.active else y


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the first one may have a stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel, active=False)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(_POOL[len(kernel)](stride, stride))
        if in_channels != out_channels:
            one = (1,) * len(kernel)
            shortcut.append(ConvNorm(in_channels, out_channels, one, bias=False, active=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *axes) to (B, out, *axes / stride)."""
        y = self.conv2(self.conv1(x)) + self.skip(x)
        return nn.functional.leaky_relu(y, _SLOPE)


class _Blocks(nn.Module):
    """The residual blocks of one encoder stage."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


class _Convs(nn.Module):
    """The plain convolutions of the stem or of one decoder stage."""

    def __init__(self, *convs: nn.Module) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x)
        return y


class ResidualEncoder(nn.Module):
    """A stem and stages of residual blocks; gives the features of every stage."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
    ) -> None:
        super().__init__()
        self.stem = _Convs(ConvNorm(in_channels, widths[0], kernels[0]))
        stages = []
        before = widths[0]
        for width, count, stride, kernel in zip(widths, blocks, strides, kernels, strict=True):
            one = (1,) * len(kernel)
            first = ResidualBlock(before, width, kernel, stride)
            rest = [ResidualBlock(width, width, kernel, one) for _ in range(count - 1)]
            stages.append(_Blocks(first, *rest))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, *axes) to the features of each stage, finest first."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class UNetDecoder(nn.Module):
    """Upsampling beside skips, with logits at every stage."""

    def __init__(
        self,
        num_labels: int,
        widths: Sequence[int],
        convs: int,
        strides: Sequence[Size],
        kernels: Sequence[Size],
    ) -> None:
        super().__init__()
        steps = list(zip(pairwise(widths), strides[1:], kernels, strict=False))[::-1]
        self.transpconvs = nn.ModuleList(
            _UP[len(stride)](coarse, fine, stride, stride) for (fine, coarse), stride, _ in steps
        )
        self.stages = nn.ModuleList(
            _Convs(
                ConvNorm(2 * fine, fine, kernel),
                *(ConvNorm(fine, fine, kernel) for _ in range(convs - 1)),
            )
            for (fine, _), _, kernel in steps
        )
        self.seg_layers = nn.ModuleList(
            _CONV[len(kernel)](fine, num_labels, 1) for (fine, _), _, kernel in steps
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the encoder to logits at each decoder stage, finest first."""
        *skips, x = features
        logits = []
        parts = zip(self.transpconvs, self.stages, self.seg_layers, reversed(skips), strict=True)
        for up, stage, head, skip in parts:
            x = stage(torch.cat([up(x), skip], dim=1))
            logits.append(head(x))
        return logits[::-1]


class ResEncUNet(nn.Module):
    """Image to logits.

    Args:
        in_channels: of the image.
        num_labels: channels of the logits, the background's included where there is one.
        widths: channels per stage, finest first; two stages at least.
        blocks: residual blocks per stage.
        strides: by which each stage shrinks its input along each axis; the first one by 1. Their
            number of entries is that of the image's axes.
        kernels: of the convolutions of each stage, odd.
        decoder_convs: convolutions per decoder stage.

    Attributes:
        deep_supervision: whether `forward` gives the logits of all decoder stages, for training.
    """

    def __init__(
        self,
        in_channels: int,
        num_labels: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
        decoder_convs: int = 1,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or not len(widths) == len(blocks) == len(strides) == len(kernels):
            raise ValueError(
                f"{len(widths)} widths, {len(blocks)} blocks, {len(strides)} strides and "
                f"{len(kernels)} kernels; there is one of each per stage, and two stages at least."
            )
        strides = [tuple(s) for s in strides]
        kernels = [tuple(k) for k in kernels]
        self.encoder = ResidualEncoder(in_channels, widths, blocks, strides, kernels)
        self.decoder = UNetDecoder(num_labels, widths, decoder_convs, strides, kernels)
        self.deep_supervision = False

    def forward(self, image: Tensor) -> Any:
        """Answer.

        Args:
            image: (B, in, *axes), normalised; sizes multiples of the product of the strides.

        Returns:
            Logits (B, label, *axes); with `deep_supervision` a list of them, full size first, each
            as much smaller as its stage is.
        """
        logits = self.decoder(self.encoder(image))
        return logits if self.deep_supervision else logits[0]


def plan_stages(
    patch: Sequence[int], spacing: Sequence[float], most: int
) -> tuple[list[Size], list[Size]]:
    """Strides and kernels for a patch: axes are halved until they are 4 pixels long, those with
    finer steps first, and a kernel is flat across axes whose steps are still twice as coarse
    (nnU-Net's planning).

    Args:
        patch: pixels per axis.
        spacing: millimetres per step, in the same order.
        most: stages.

    Returns:
        Strides and kernels of as many stages as fit, `most` at most and two at least.

    Raises:
        ValueError: the patch is too small to be halved even once.
    """
    sizes, steps = list(patch), list(spacing)
    one = (1,) * len(sizes)
    strides, kernels = [one], []
    while True:
        kernels.append(tuple(3 if s <= 2 * min(steps) else 1 for s in steps))
        longer = [n % 2 == 0 and n // 2 >= _SMALLEST for n in sizes]
        finest = min((s for s, ok in zip(steps, longer, strict=True) if ok), default=0.0)
        halved = tuple(
            2 if ok and s <= 2 * finest else 1 for s, ok in zip(steps, longer, strict=True)
        )
        if halved == one or len(strides) == most:
            break
        strides.append(halved)
        sizes = [n // h for n, h in zip(sizes, halved, strict=True)]
        steps = [s * h for s, h in zip(steps, halved, strict=True)]
    if len(strides) < 2:
        raise ValueError(
            f"A patch of {'x'.join(map(str, patch))} cannot be halved; its sides are even and "
            f"{2 * _SMALLEST} or more."
        )
    return strides, kernels
