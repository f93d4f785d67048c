"""SegVol as PyTorch modules (https://arxiv.org/abs/2311.13385): Segment Anything in three
dimensions and 768 channels, with words that join the prompts and are added to the mask.

Parts are named as in the published file, apart from what `remap` renames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.models.segvol.sizes import PUBLISHED, Plan
from limner.networks.blocks.clip_text import ClipText
from limner.networks.blocks.mask_decoder import MaskDecoder
from limner.networks.blocks.prompt_encoder3d import PromptEncoder3d
from limner.networks.blocks.vit3d import VolumeEncoder

Value = TypeVar("Value")


class SegVolMaskDecoder(MaskDecoder):
    """SAM's decoder with cells in three dimensions, and words added to the masks.

    The first normalisation on the way up has a weight per channel and place, which ties the network
    to its input size.
    """

    def __init__(self, plan: Plan = PUBLISHED) -> None:
        dim = plan.dim
        super().__init__(dim)
        halfway = (dim // 4, *(2 * n for n in plan.cells))  # from the cells to the mask
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, 2, 2),
            nn.LayerNorm(halfway),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.txt_align_upscaled_embedding = nn.Linear(dim, dim // 8)

    def first_mask(self, tokens: Tensor, features: Tensor, text: Tensor) -> Tensor:
        """The mask for prompts that leave no doubt, the only one that SegVol uses.

        Args:
            tokens: (B, T + N, DIM), from `decode`.
            features: (B, DIM / 8, d, h, w), likewise.
            text: (B, T, DIM), words; T is 0 or 1.

        Returns:
            Logits (B, 1, d, h, w).
        """
        filters = self.output_hypernetworks_mlps[0](tokens[:, 1])
        filters = filters + self.txt_align_upscaled_embedding(text).sum(dim=1)
        batch, _, d, h, w = features.shape
        mask: Tensor = filters[:, None] @ features.flatten(2)
        return mask.reshape(batch, 1, d, h, w)


class SegVolDecode(nn.Module):
    """The cheap half: prompts about one volume to masks.

    Args:
        prompt_encoder: of the network.
        mask_decoder: likewise.
    """

    def __init__(self, prompt_encoder: PromptEncoder3d, mask_decoder: SegVolMaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def sparse(self, points: Tensor, labels: Tensor, text: Tensor) -> Tensor:
        """Tokens of the prompts, (B, N + T, DIM); arguments as in `forward`."""
        return torch.cat([self.prompt_encoder.sparse(points, labels), text], dim=1)

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor, text: Tensor) -> Tensor:
        """Answer B prompts about one volume.

        Args:
            embedding: (1, DIM, *CELLS).
            points: (B, N, 3), d, h, w in voxels of the input; clicks, then the corners of a box or
                a point that says nothing; N may be 0.
            labels: (B, N), see `PromptEncoder.sparse`.
            text: (B, T, DIM), from `TextEncoder`; T is 0 or 1.

        Returns:
            Logits (B, 1, D, H / 4, W / 4).
        """
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        sparse = self.sparse(points, labels, text)
        dense = encoder.volume(sparse.shape[0])
        tokens, features = decoder.decode(embedding, encoder.positions(), sparse, dense)
        return decoder.first_mask(tokens, features, text)


class TextEncoder(nn.Module):
    """A sentence to a token for the decoder."""

    def __init__(self, plan: Plan = PUBLISHED) -> None:
        super().__init__()
        self.clip_text_model = ClipText(
            dim=plan.text_dim,
            depth=plan.text_depth,
            heads=plan.text_heads,
            hidden=plan.text_hidden,
        )
        self.dim_align = nn.Linear(plan.text_dim, plan.dim)

    def forward(self, sentence: Tensor) -> Tensor:
        """Token numbers (B, N), marks included, none padded, any type, to (B, DIM)."""
        out: Tensor = self.dim_align(self.clip_text_model(sentence.long()))
        return out


class SegVolNetwork(nn.Module):
    """The whole network, with the names of the published file.

    Args:
        plan: its sizes.
    """

    def __init__(self, plan: Plan = PUBLISHED) -> None:
        super().__init__()
        self.image_encoder = VolumeEncoder(
            plan.size,
            plan.patch,
            dim=plan.dim,
            depth=plan.depth,
            heads=plan.heads,
            hidden=plan.hidden,
        )
        self.prompt_encoder = PromptEncoder3d(plan.dim, plan.cells, plan.size)
        self.mask_decoder = SegVolMaskDecoder(plan)
        self.text_encoder = TextEncoder(plan)


def parts(plan: Plan, *names: str) -> nn.Module:
    """Some parts of `SegVolNetwork`, not filled: their values are whatever was in memory.

    Nothing is initialised, which would take longer than reading a file.

    Args:
        plan: sizes of the network.
        names: of the parts.
    """
    with torch.device("meta"):
        network = SegVolNetwork(plan)
    for name in [n for n, _ in network.named_children() if n not in names]:
        delattr(network, name)
    return network.to_empty(device="cpu")


def remap(state: Mapping[str, Value]) -> dict[str, Value]:
    """Published names to those of `SegVolNetwork`: CLIP's go by two sets of names, depending on the
    version of transformers, of which old ones have a list 0, 1, 2, … in the file, too.
    """
    return {
        name.replace(_OLD_TEXT, _TEXT, 1): value
        for name, value in state.items()
        if not name.endswith(".position_ids")
    }


_TEXT = "text_encoder.clip_text_model."
_OLD_TEXT = f"{_TEXT}text_model."
