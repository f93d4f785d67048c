"""UniverSeg's network (https://arxiv.org/abs/2304.06131): a U-Net whose blocks let an image and
each of the pairs that show the task look at each other. Names of parameters are the published ones.

`UniverSeg` computes in the published order. `FirstLevel` and `Further` together give the same but
for float32's rounding, at a third of the work, and with a few pairs at a time where maps are large:
the convolution that joins image and pair ("CrossConv") has no activation after it, so it is
linear. It can be computed on either half by itself, and where only its mean over the pairs is
needed, on the mean pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_AT_ONCE = 8  # pairs laid together with the image: 8 x 256 maps of 128 x 128 are 128 MiB


class CrossConvolution(nn.Module):
    """The published ``cross``: one convolution over the channels of image and pair."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.cross_conv = nn.Conv2d(channels, out, 3, padding=1)


class Activated(nn.Module):
    """A convolution with leaky ReLU, under the names of the published wrappers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vmapped = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        return functional.leaky_relu(self.vmapped["conv"](x), 0.01)


class CrossBlock(nn.Module):
    """One level's block.

    Args:
        target: channels of the image's features.
        pair: channels of each pair's features.
        width: channels of what comes out.
    """

    def __init__(self, target: int, pair: int, width: int) -> None:
        super().__init__()
        self.split = target
        self.cross = CrossConvolution(target + pair, width)
        self.target = Activated(width)
        self.support = Activated(width)

    def joint(self, target: Tensor, pairs: Tensor) -> Tensor:
        """The joint convolution, (S, width, H, W), of (1, target, H, W) and (S, pair, H, W)."""
        convolution = self.cross.cross_conv
        parts = [
            convolution(torch.cat([target.expand(len(some), -1, -1, -1), some], dim=1))
            for some in torch.split(pairs, _AT_ONCE)
        ]
        return torch.cat(parts)

    def of_target(self, target: Tensor) -> Tensor:
        """The image's half of the joint convolution, (1, width, H, W)."""
        joint = self.cross.cross_conv
        return functional.conv2d(target, joint.weight[:, : self.split], joint.bias, padding=1)

    def of_pairs(self, pairs: Tensor) -> Tensor:
        """The pairs' half, (S, width, H, W); of their mean, its mean."""
        joint = self.cross.cross_conv
        return functional.conv2d(pairs, joint.weight[:, self.split :], padding=1)

    def seen(self, shared: Tensor, own: Tensor) -> Tensor:
        """What becomes of the pairs, from the halves: (S, width, H, W)."""
        # Expanded, since OpenVINO 2026.4 fuses the sum and then refuses more than one pair.
        joined: Tensor = self.support(own + shared.expand_as(own))
        return joined


class UniverSeg(nn.Module):
    """An image, and pairs of image and mask that show what is meant, to logits.

    Args:
        width: features at every level.
        depth: levels; the sides of the input are multiples of 2 to the power of ``depth - 1``.
    """

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.enc_blocks = nn.ModuleList(
            CrossBlock(width if level else 1, width if level else 2, width)
            for level in range(depth)
        )
        self.dec_blocks = nn.ModuleList(
            CrossBlock(2 * width, 2 * width, width) for _ in range(depth - 1)
        )
        self.out_conv = nn.ModuleDict({"conv": nn.Conv2d(width, 1, 1)})

    def forward(self, target: Tensor, pairs: Tensor) -> Tensor:
        """Logits of one image.

        Args:
            target: (1, 1, H, W), 0…1.
            pairs: (S, 2, H, W), S at least 1: image 0…1, and mask.

        Returns:
            (1, 1, H, W).
        """
        skipped: list[tuple[Tensor, Tensor]] = []
        for block in self.enc_blocks:
            if skipped:
                target, pairs = _shrunk(target), _shrunk(pairs)
            target, pairs = _crossed(block, target, pairs)
            skipped.append((target, pairs))
        skipped.pop()
        for block in self.dec_blocks:
            target_before, pairs_before = skipped.pop()
            target = torch.cat([_enlarged(target), target_before], dim=1)
            pairs = torch.cat([_enlarged(pairs), pairs_before], dim=1)
            target, pairs = _crossed(block, target, pairs, last=not skipped)
        logits: Tensor = self.out_conv["conv"](target)
        return logits


class FirstLevel(nn.Module):
    """The first level, for some of the pairs."""

    def __init__(self, network: UniverSeg) -> None:
        super().__init__()
        self.block = network.enc_blocks[0]

    def forward(self, target: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the further levels need of these pairs.

        Args:
            target: (1, 1, H, W).
            pairs: (s, 2, H, W).

        Returns:
            Sums over the pairs, of their half of the joint convolution and of what becomes of them,
            each (1, width, H, W); and that shrunk, (s, width, H / 2, W / 2).
        """
        block = self.block
        assert isinstance(block, CrossBlock)
        own = block.of_pairs(pairs)
        seen = block.seen(block.of_target(target), own)
        return own.sum(dim=0, keepdim=True), seen.sum(dim=0, keepdim=True), _shrunk(seen)


class Further(nn.Module):
    """All other levels, for all pairs."""

    def __init__(self, network: UniverSeg) -> None:
        super().__init__()
        self.network = network

    def forward(self, target: Tensor, own: Tensor, seen: Tensor, pairs: Tensor) -> Tensor:
        """Logits from what `FirstLevel` says of all pairs.

        Args:
            target: (1, 1, H, W).
            own: (1, width, H, W), the mean over the pairs of their half.
            seen: (1, width, H, W), the mean of what became of them.
            pairs: (S, width, H / 2, W / 2).

        Returns:
            (1, 1, H, W).
        """
        first, *encoders = self.network.enc_blocks
        *decoders, last = self.network.dec_blocks
        assert isinstance(first, CrossBlock)
        assert isinstance(last, CrossBlock)
        top: Tensor = first.target(first.of_target(target) + own)
        target = _shrunk(top)
        skipped: list[tuple[Tensor, Tensor]] = []
        for block in encoders:
            if skipped:
                target, pairs = _shrunk(target), _shrunk(pairs)
            target, pairs = _crossed_by_halves(block, target, pairs)
            skipped.append((target, pairs))
        skipped.pop()
        for block in decoders:
            target_before, pairs_before = skipped.pop()
            target = torch.cat([_enlarged(target), target_before], dim=1)
            pairs = torch.cat([_enlarged(pairs), pairs_before], dim=1)
            target, pairs = _crossed_by_halves(block, target, pairs)
        target = torch.cat([_enlarged(target), top], dim=1)
        mean = torch.cat([_enlarged(pairs.mean(dim=0, keepdim=True)), seen], dim=1)
        target = last.target(last.of_target(target) + last.of_pairs(mean))
        logits: Tensor = self.network.out_conv["conv"](target)
        return logits


def _crossed(
    block: nn.Module, target: Tensor, pairs: Tensor, *, last: bool = False
) -> tuple[Tensor, Tensor]:
    """One block in the published order; what becomes of the pairs is not needed after the last."""
    assert isinstance(block, CrossBlock)
    joint = block.joint(target, pairs)
    return block.target(joint.mean(dim=0, keepdim=True)), pairs if last else block.support(joint)


def _crossed_by_halves(block: nn.Module, target: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(block, CrossBlock)
    shared, own = block.of_target(target), block.of_pairs(pairs)
    return block.target(shared + own.mean(dim=0, keepdim=True)), block.seen(shared, own)


def _shrunk(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 2)


def _enlarged(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
