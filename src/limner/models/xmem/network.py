"""XMem's network (https://arxiv.org/abs/2207.07115); names of parameters are the published ones.

Its parts are modules of their own, so that each can be converted alone: `FrameEncoder` sees a
frame, `MemoryEncoder` what is to be remembered of it, `MaskDecoder` turns what memory says into
masks. Objects are the batch of the last two; what can be computed once for all of them is part of
the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.resnet import BasicBlock, Bottleneck, Cbam, Stem, stage

STRIDE = 16  # of the features that memory is made of


class XMemNetwork(nn.Module):
    """All of the network; what it computes is in its parts.

    Args:
        key: channels of keys.
        value: of what is remembered.
        hidden: of the sensory memory; 0 for the published variant without one.
        mask_channels: of masks beside the image: 2 (the object, all others), or 1 of the variant
            that was trained with single objects.
        adapters: channels inside of adapters in the key encoder; 0 for none.
        width: channels of the encoders' first layer; all others are multiples of it.
        depths: blocks of the key encoder's stages.
    """

    def __init__(
        self,
        key: int = 64,
        value: int = 512,
        hidden: int = 64,
        mask_channels: int = 2,
        *,
        adapters: int = 0,
        width: int = 64,
        depths: tuple[int, int, int] = (3, 4, 6),
    ) -> None:
        super().__init__()
        self.key_encoder = KeyEncoder(adapters, width, depths)
        self.value_encoder = ValueEncoder(value, hidden, mask_channels, width)
        self.key_proj = KeyProjection(key, 16 * width)
        self.decoder = Decoder(value, hidden, width)
        self.hidden = hidden

    @classmethod
    def for_weights(cls, shapes: Mapping[str, tuple[int, ...]]) -> XMemNetwork:
        """The network that weights of such shapes belong to, as far as they tell."""

        def size(name: str, axis: int, default: int) -> int:
            shape = shapes.get(name, ())
            return shape[axis] if len(shape) > axis else default

        return cls(
            size("key_proj.key_proj.weight", 0, 64),
            size("value_encoder.fuser.block2.conv2.weight", 0, 512),
            size("decoder.hidden_update.transform.weight", 0, 0) // 3,
            size("value_encoder.conv1.weight", 1, 5) - 3,
            adapters=size("key_encoder.res2.0.adapter.down.weight", 0, 0),
        )

    def freeze_encoder(self) -> None:
        """Leave only adapters to be trained in the key encoder, as iMOS does."""
        for name, parameter in self.key_encoder.named_parameters():
            parameter.requires_grad = ".adapter." in name


class Adapter(nn.Module):
    """What training on other images adds to a block that stays as it is: a perceptron at each
    pixel, times a weight. Begins as nothing.

    Args:
        channels: C.
        width: channels inside.
        alpha: the weight that it begins with; it is learnt, too.
    """

    def __init__(self, channels: int, width: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what is added to it."""
        y: Tensor = self.alpha * self.up(functional.relu(self.down(x)))
        return y


class KeyEncoder(Stem):
    """ResNet-50 to a sixteenth of the image.

    Args:
        adapters: channels inside of the adapter behind each block; 0 for none.
        width: channels of the first layer.
        depths: blocks of the stages.
    """

    def __init__(
        self, adapters: int = 0, width: int = 64, depths: tuple[int, int, int] = (3, 4, 6)
    ) -> None:
        super().__init__(3, width)
        self.res2 = stage(Bottleneck, depths[0], width, width, 1)
        self.layer2 = stage(Bottleneck, depths[1], 4 * width, 2 * width, 2)
        self.layer3 = stage(Bottleneck, depths[2], 8 * width, 4 * width, 2)
        stages = (self.res2, 4), (self.layer2, 8), (self.layer3, 16)
        for blocks, channels in ((blocks, factor * width) for blocks, factor in stages):
            for block in blocks if adapters else ():
                block.adapter = Adapter(channels, adapters)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) to features at strides 16, 8 and 4, of 16, 8 and 4 times `width`
        channels.
        """
        f4 = self.res2(self.stem(image))
        f8 = self.layer2(f4)
        return self.layer3(f8), f8, f4


class KeyProjection(nn.Module):
    """From features to what memory is asked with (section 3.2 of the paper)."""

    def __init__(self, key: int, inside: int = 1024) -> None:
        super().__init__()
        self.key_proj = nn.Conv2d(inside, key, 3, padding=1)
        self.d_proj = nn.Conv2d(inside, 1, 3, padding=1)
        self.e_proj = nn.Conv2d(inside, key, 3, padding=1)

    def forward(self, f16: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, shrinkage (1 and more) and selection (0…1)."""
        shrinkage = self.d_proj(f16).square() + 1
        return self.key_proj(f16), shrinkage, torch.sigmoid(self.e_proj(f16))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions of what is above 0, beside a shortcut of all."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(inside, out, 3, padding=1) if inside != out else None
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, out, H, W)."""
        y: Tensor = self.conv2(functional.relu(self.conv1(functional.relu(x))))
        return y + (x if self.downsample is None else self.downsample(x))

    def of_shared(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """What channels that are the same for all objects, the first ones of (N, inside, H, W), add
        to both sums: the convolutions are linear in what is laid together.
        """
        assert self.downsample is not None
        count, (one, other) = shared.shape[1], (self.conv1, self.downsample)
        y = functional.conv2d(functional.relu(shared), one.weight[:, :count], one.bias, padding=1)
        return y, functional.conv2d(shared, other.weight[:, :count], other.bias, padding=1)

    def of_own(self, own: Tensor, sums: tuple[Tensor, Tensor]) -> Tensor:
        """The rest of the channels, with what the shared ones add: (N, out, H, W)."""
        assert self.downsample is not None
        first = self.conv1.weight.shape[1] - own.shape[1]
        y = functional.conv2d(functional.relu(own), self.conv1.weight[:, first:], padding=1)
        y = self.conv2(functional.relu(y + sums[0]))
        x = functional.conv2d(own, self.downsample.weight[:, first:], padding=1)
        whole: Tensor = y + (x + sums[1])
        return whole


class Fusion(nn.Module):
    """The frame's features and an object's, joined."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(inside, out)
        self.attention = Cbam(out)
        self.block2 = ResidualBlock(out, out)

    def forward(self, shared: Tensor, own: Tensor) -> Tensor:
        """(1, C, H, W) of the frame and (N, …, H, W) of its objects to (N, out, H, W)."""
        whole = shared.expand(own.shape[0], -1, -1, -1)
        return self.finished(self.block1(torch.cat([whole, own], dim=1)))

    def finished(self, x: Tensor) -> Tensor:
        """What follows the first block."""
        y: Tensor = self.block2(x + self.attention(x))
        return y


class _Gate(nn.Module):
    """The gated update of the sensory memory (equation 7)."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(inside + hidden, 3 * hidden, 3, padding=1)

    def updated(self, x: Tensor, hidden: Tensor) -> Tensor:
        forget, update, new = self.transform(torch.cat([x, hidden], dim=1)).chunk(3, dim=1)
        update = torch.sigmoid(update)
        return torch.sigmoid(forget) * hidden * (1 - update) + update * torch.tanh(new)


class DeepUpdate(_Gate):
    """Sensory memory from what was remembered of a frame."""


class ScalesUpdate(_Gate):
    """Sensory memory from the decoder's features."""

    def __init__(self, hidden: int, value: int = 512, width: int = 256) -> None:
        super().__init__(width, hidden)
        self.g16_conv = nn.Conv2d(value, width, 1)
        self.g8_conv = nn.Conv2d(width, width, 1)
        self.g4_conv = nn.Conv2d(width + 1, width, 1)

    def forward(self, g16: Tensor, g8: Tensor, g4: Tensor, hidden: Tensor) -> Tensor:
        """Features at strides 16, 8 and 4, the last with the logits, and (N, hidden, h, w)."""
        x = self.g16_conv(g16) + self.g8_conv(functional.avg_pool2d(g8, 2))
        return self.updated(x + self.g4_conv(functional.avg_pool2d(g4, 4)), hidden)


class ValueEncoder(Stem):
    """ResNet-18 of the image with masks, fused with the frame's features."""

    def __init__(self, value: int, hidden: int, mask_channels: int, width: int = 64) -> None:
        super().__init__(3 + mask_channels, width)
        self.mask_channels = mask_channels
        self.layer1 = stage(BasicBlock, 2, width, width, 1)
        self.layer2 = stage(BasicBlock, 2, width, 2 * width, 2)
        self.layer3 = stage(BasicBlock, 2, 2 * width, 4 * width, 2)
        self.fuser = Fusion(16 * width + 4 * width, value)
        if hidden:
            self.hidden_reinforce = DeepUpdate(value, hidden)


class Upsampling(nn.Module):
    """To twice the resolution, with the frame's features of there."""

    def __init__(self, skip: int, inside: int, out: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip, inside, 3, padding=1)
        self.out_conv = ResidualBlock(inside, out)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """What `skip_conv` says of the frame's features, (1, inside, 2H, 2W), and
        (N, inside, H, W), to (N, out, 2H, 2W).
        """
        large = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        y: Tensor = self.out_conv(skip + large)
        return y


class Decoder(nn.Module):
    """What memory says of each object, to logits at a quarter of the image."""

    def __init__(self, value: int, hidden: int, width: int = 64) -> None:
        super().__init__()
        narrow, wide = 4 * width, 8 * width
        self.fuser = Fusion(16 * width + value + hidden, wide)
        if hidden:
            self.hidden_update = ScalesUpdate(hidden, wide, narrow)
        self.up_16_8 = Upsampling(wide, wide, narrow)
        self.up_8_4 = Upsampling(narrow, narrow, narrow)
        self.pred = nn.Conv2d(narrow, 1, 3, padding=1)


class FrameEncoder(nn.Module):
    """A frame to all that is the same for its objects."""

    def __init__(self, network: XMemNetwork) -> None:
        super().__init__()
        self.encoder, self.projection = network.key_encoder, network.key_proj
        self.decoder = network.decoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Keys, shrinkage, selection and features of 1024 channels at stride 16; and what the frame
        adds in the decoder: twice at stride 16, then at strides 8 and 4.

        Args:
            image: (1, 3, H, W) with sides that are multiples of 16.
        """
        f16, f8, f4 = self.encoder(image)
        sums = self.decoder.fuser.block1.of_shared(f16)
        skips = self.decoder.up_16_8.skip_conv(f8), self.decoder.up_8_4.skip_conv(f4)
        return (*self.projection(f16), f16, *sums, *skips)


class MemoryEncoder(nn.Module):
    """What is to be remembered of each object on a frame, and its sensory memory after that."""

    def __init__(self, network: XMemNetwork) -> None:
        super().__init__()
        self.encoder, self.hidden = network.value_encoder, network.hidden

    def forward(
        self, image: Tensor, f16: Tensor, masks: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values (N, value, h, w) and sensory memory (N, hidden, h, w).

        Args:
            image: (1, 3, H, W).
            f16: (1, 1024, h, w).
            masks: (N, 2, H, W): the object, and the sum of all others, as probabilities.
            hidden: (N, hidden, h, w).
        """
        encoder = self.encoder
        whole = image.expand(masks.shape[0], -1, -1, -1)
        x = encoder.stem(torch.cat([whole, masks[:, : encoder.mask_channels]], dim=1))
        x = encoder.layer3(encoder.layer2(encoder.layer1(x)))
        value = encoder.fuser(f16, x)
        if not self.hidden:
            return value, hidden
        return value, encoder.hidden_reinforce.updated(value, hidden)


class MaskDecoder(nn.Module):
    """Masks of objects from what memory says, and their sensory memory after that."""

    def __init__(self, network: XMemNetwork) -> None:
        super().__init__()
        self.decoder, self.hidden = network.decoder, network.hidden

    def forward(
        self, y16: Tensor, x16: Tensor, s8: Tensor, s4: Tensor, readout: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, 1, H, W) and sensory memory (N, hidden, h, w).

        Args:
            y16: (1, 512, h, w), with the three after it what `FrameEncoder` says of the frame.
            x16: (1, 512, h, w).
            s8: (1, 512, 2h, 2w).
            s4: (1, 256, 4h, 4w).
            readout: (N, value, h, w).
            hidden: (N, hidden, h, w).
        """
        decoder = self.decoder
        own = torch.cat([readout, hidden], dim=1) if self.hidden else readout
        g16 = decoder.fuser.finished(decoder.fuser.block1.of_own(own, (y16, x16)))
        g8 = decoder.up_16_8(s8, g16)
        g4 = decoder.up_8_4(s4, g8)
        logits = decoder.pred(functional.relu(g4))
        if self.hidden:
            hidden = decoder.hidden_update(g16, g8, torch.cat([g4, logits], dim=1), hidden)
        large = functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        return large, hidden
