"""The tracker network: one object from frame to frame, by a memory of frames before.

The idea of a memory of pixels, read by how alike they are, is that of space-time memory networks
(https://arxiv.org/abs/1904.00607) and XMem (https://arxiv.org/abs/2207.07115), whose anisotropic
distance is used. What differs is for small networks that learn from few sequences: memory says not
only what it has learnt but the masks themselves, so that reading is copying labels over to pixels
that look alike; where a pixel lies counts as well, since a volume's slices and a heart's frames
change little; the frame before and its mask are moved to where things are now by classical means
(`limner.networks.motion`); and the answer is that of a promptable U-Net (`limner.networks.unet2d`),
which knows how to mend a rough mask before it has seen a single sequence.

Its parts run by themselves: `FrameEncoder` sees a frame, `MemoryEncoder` says what to remember of
it, `MemoryReader` reads it, `MaskDecoder` turns what memory says into a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.fusion2d import LOGIT_SCALE, MASK_LOGIT
from limner.networks.tracker_facts import (
    KEY,
    LEVEL,
    PLACE_AXES,
    PLACE_RANGE,
    STRIDE,
    VALUE,
    VALUE_LEARNT,
)
from limner.networks.unet2d import FOLD, PromptableUNet2d, ResidualBlock, check_levels

_SPREAD = 0.02  # of the weights that shrinkage begins with
_SHOWN = 8  # channels: image, mask of the frame before, mask as memory says, image before


class FrameEncoder(nn.Module):
    """A frame to what memory is asked with and remembered under.

    Args:
        widths: channels per level, as of the U-Net.
        depths: blocks per level.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        levels = LEVEL + 2  # one coarser than that of memory, for what is around
        self.fold = nn.PixelUnshuffle(FOLD)
        self.stem = nn.Conv2d(3 * FOLD**2, widths[0], 3, padding=1)
        before = (widths[0], *widths[: levels - 1])
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(inside, width, 1 if k == 0 else 2),
                *(ResidualBlock(width, width) for _ in range(depth - 1)),
            )
            for k, (inside, width, depth) in enumerate(
                zip(before, widths[:levels], depths[:levels], strict=True)
            )
        )
        width = widths[LEVEL]
        self.lift = nn.Conv2d(widths[LEVEL + 1], width, 1)
        self.to_key = nn.Conv2d(width, KEY, 3, padding=1)
        self.to_shrinkage = nn.Conv2d(width, 1, 3, padding=1)
        self.to_selection = nn.Conv2d(width, KEY + PLACE_AXES, 3, padding=1)
        # Begins as: all channels count half, near pixels more than far ones. Not quite 0: what is
        # squared would never learn.
        for head, spread in ((self.to_shrinkage, _SPREAD), (self.to_selection, 0.0)):
            nn.init.normal_(head.weight, std=spread)
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Key (B, KEY, h, w), shrinkage (B, 1, h, w) of 1 and more, selection (B, KEY + 2, h, w)
        from 0 on, and features (B, width, h, w); at a `STRIDE`-th of the image.

        Args:
            image: (B, 3, H, W), -1…1 of `limner.networks.fusion2d`.
        """
        x = self.stem(self.fold(image).contiguous(memory_format=torch.channels_last))
        *finer, coarser = self.down
        for level in finer:
            x = level(x)
        wide = functional.interpolate(
            self.lift(coarser(x)), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        features = functional.relu(x + wide)
        selection = torch.sigmoid(self.to_selection(features))
        scale = torch.ones(KEY + PLACE_AXES, 1, 1, device=image.device)
        scale[KEY:] = PLACE_RANGE
        shrinkage = self.to_shrinkage(features).square() + 1
        return self.to_key(features), shrinkage, selection * scale, features


class MemoryEncoder(nn.Module):
    """What to remember of an object on a frame.

    Args:
        width: of the frame's features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fold = nn.PixelUnshuffle(STRIDE)
        self.fuse = nn.Conv2d(width + STRIDE**2 + 1, width, 1)
        self.block = ResidualBlock(width, width)
        self.to_value = nn.Conv2d(width, VALUE_LEARNT, 1)
        self.halve = nn.PixelUnshuffle(2)

    def forward(self, features: Tensor, mask: Tensor, given: Tensor) -> Tensor:
        """Values (B, VALUE, h, w): what was learnt, then the mask at a quarter of the image, two
        by two pixels as channels.

        Args:
            features: (B, width, h, w) of `FrameEncoder`.
            mask: (B, 1, H, W), 0…1.
            given: (B, 1, 1, 1), 1 where the user said so.
        """
        flag = given.expand(-1, -1, *features.shape[2:])
        inputs = [features, 2 * self.fold(mask) - 1, flag]
        x = self.block(self.fuse(torch.cat(inputs, dim=1)))
        label = self.halve(functional.avg_pool2d(mask, STRIDE // 2))
        return torch.cat([self.to_value(x), label], dim=1)


class MemoryReader(nn.Module):
    """What all that is remembered says to each pixel, by how alike they are. Has no weights, but is
    most of the work where much is remembered; in float32, since squares of places need all digits.
    """

    def forward(self, query: Tensor, remembered: Tensor, value: Tensor) -> Tensor:
        """(Q, VALUE).

        Args:
            query: (Q, T) of `limner.networks.blocks.memory.query_terms`.
            remembered: (T, N), `memory_terms`, transposed.
            value: (N, VALUE).
        """
        return (query @ remembered).softmax(dim=1) @ value


class MaskDecoder(PromptableUNet2d):
    """A U-Net that is shown the frame, the frame before with its mask, and what memory says."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__(widths, depths)
        self.stem = nn.Conv2d(_SHOWN * FOLD**2, widths[0], 3, padding=1)
        self.told = nn.Conv2d(VALUE, widths[LEVEL], 1)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)  # type: ignore[arg-type]

    def forward(  # type: ignore[override]
        self, image: Tensor, before: Tensor, past: Tensor, readout: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, H, W) and the logit of the predicted IoU, (B,).

        Args:
            image: (B, 3, H, W), -1…1; sizes are multiples of `stride`.
            before: (B, 1, H, W): the mask of the frame before, moved to where things are now
                (`limner.networks.motion`): 1 inside, -1 outside, 0 where nothing is known.
            past: (B, 3, H, W): the frame before, as `image`, moved likewise; 0 where nothing is
                known.
            readout: (B, VALUE, h, w): what memory says.
        """
        label = functional.pixel_shuffle(readout[:, VALUE_LEARNT:], 2)
        prior = functional.interpolate(
            label, scale_factor=STRIDE / 2, mode="bilinear", align_corners=False
        )
        rough = math.tanh(MASK_LOGIT / LOGIT_SCALE)
        inputs = [image, rough * before, 2 * prior - 1, past]
        folded = self.fold(torch.cat(inputs, dim=1))
        x = self.stem(folded.contiguous(memory_format=torch.channels_last))
        skips = []
        for k, level in enumerate(self.down):
            x = level(x)
            if k == LEVEL:
                x = functional.relu(x + self.told(readout))
            skips.append(x)
        deepest = skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            wide = functional.interpolate(
                lift(x), scale_factor=2.0, mode="bilinear", align_corners=False
            )
            x = block(wide + skips.pop())
        logits = self.to_logits(x)
        return self.unfold(logits), self._quality(deepest, x, logits.mean(dim=1, keepdim=True))


class TrackerNetwork(nn.Module):
    """All of the network; what it computes is in its parts.

    Args:
        widths: channels per level, as of `PromptableUNet2d`; four levels at least.
        depths: blocks per level.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        check_levels(widths, depths)
        if len(widths) < LEVEL + 2:
            raise ValueError(
                f"{len(widths)} levels; a network that follows has {LEVEL + 2} or more."
            )
        self.frame = FrameEncoder(widths, depths)
        self.memory = MemoryEncoder(widths[LEVEL])
        self.decoder = MaskDecoder(widths, depths)
        self.stride = self.decoder.stride

    def start_from(self, image: Mapping[str, Tensor]) -> None:
        """Begin with what a network for single images has learnt.

        Args:
            image: weights of a `PromptableUNet2d` of the same widths and depths.

        Raises:
            RuntimeError: of other ones.
        """
        stem, inputs = image["stem.weight"], 4 * FOLD**2  # image and previous answer
        own = {k: v for k, v in image.items() if k != "stem.weight"}
        decoder = self.decoder.state_dict()
        kernel = torch.zeros_like(decoder["stem.weight"])
        kernel[:, :inputs] = stem[:, :inputs]
        self.decoder.load_state_dict({**decoder, **own, "stem.weight": kernel})
        frame = self.frame.state_dict()
        shared = {k: own[k] for k in frame if k in own and not k.startswith("lift.")}
        sees = stem[:, : 3 * FOLD**2]
        self.frame.load_state_dict({**frame, **shared, "stem.weight": sees})


def places(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(2, h, w): rows and columns of the pixels of memory, in steps of memory."""
    along = [torch.arange(n, device=device, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*along, indexing="ij"))


def read(key: Tensor, shrinkage: Tensor, value: Tensor, query: Tensor, selection: Tensor) -> Tensor:
    """What memory says of each pixel: values of all that was remembered, by how alike they are; as
    `limner.networks.blocks.memory`, for training.

    Args:
        key: (B, C, N).
        shrinkage: (B, N).
        value: (B, V, N).
        query: (B, C, Q).
        selection: (B, C, Q).

    Returns:
        (B, V, Q).
    """
    with torch.autocast(key.device.type, enabled=False):  # squares of places need all digits
        key, query, selection = key.float(), query.float(), selection.float()
        far = torch.einsum("bcn,bcq->bnq", key.square(), selection)
        far = far - 2 * torch.einsum("bcn,bcq->bnq", key, query * selection)
        far = far + (query.square() * selection).sum(dim=1, keepdim=True)
        near = -far * shrinkage.float()[..., None] / math.sqrt(key.shape[1])
        weights = near.softmax(dim=1)
        return torch.einsum("bvn,bnq->bvq", value.float(), weights)
