"""Clicks, boxes and rough masks as tokens and maps for the mask decoder of Segment Anything
(https://arxiv.org/abs/2304.02643, appendix A). Names of parameters are the published ones.

Positions are (x, y) in pixels of the network's input, as published. Nothing in the forward pass
depends on the values of prompts, so that it can be traced with any number of prompts and points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limner.networks.blocks.norm import LayerNorm2d

NOTHING, NEGATIVE, POSITIVE, LOW_CORNER, HIGH_CORNER = -1, 0, 1, 2, 3  # labels of points


class RandomPositions(nn.Module):
    """Positions as sines and cosines of random frequencies (https://arxiv.org/abs/2006.10739).

    The frequencies are part of the weights although they were never trained.

    Args:
        dim: channels of an encoded position, even.
        axes: of a position.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int, axes: int = 2) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(axes, dim // 2))

    def forward(self, share: Tensor) -> Tensor:
        """(..., axes), in 2D as x, y, in shares 0…1 of the image's sides to (..., dim)."""
        phase = (2.0 * share - 1.0) @ self.positional_encoding_gaussian_matrix
        phase = 2.0 * math.pi * phase
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)

    def grid(self, side: int) -> Tensor:
        """(1, dim, side, side): the positions of the centres of a grid's cells."""
        matrix = self.positional_encoding_gaussian_matrix
        centres = (torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side
        x = centres[None, :].expand(side, side)
        encoded: Tensor = self(torch.stack([x, x.transpose(0, 1)], dim=-1))
        return encoded.permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Points, box corners and a mask.

    Args:
        dim: channels of tokens and maps.
        grid: side of the image's embedding; masks have four times that.
        input_size: side of the network's input in pixels.
        mask_channels: of the last layer but one that reads the mask.
    """

    def __init__(
        self, dim: int = 256, grid: int = 64, input_size: int = 1024, mask_channels: int = 16
    ) -> None:
        super().__init__()
        self.grid, self.input_size = grid, input_size
        self.pe_layer = RandomPositions(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, 2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, 2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def sparse(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Tokens of points.

        As published, clicks without a box are followed by one point labelled `NOTHING`, and a box
        is its two corners without that; whoever asks adds it.

        Args:
            coords: (B, N, 2), x and y in pixels of the input; 0 is the centre of the first pixel.
                N may be 0.
            labels: (B, N): `NOTHING`, `NEGATIVE`, `POSITIVE`, `LOW_CORNER` or `HIGH_CORNER`.

        Returns:
            (B, N, dim).
        """
        tokens: Tensor = self.pe_layer(self.share(coords))
        kind = labels[..., None]
        tokens = torch.where(kind == NOTHING, torch.zeros_like(tokens), tokens)
        added = self.not_a_point_embed.weight.expand_as(tokens)
        for label, embedding in enumerate(self.point_embeddings):
            assert isinstance(embedding, nn.Embedding)
            added = torch.where(kind == label, embedding.weight, added)
        return tokens + added

    def share(self, coords: Tensor) -> Tensor:
        """Positions in pixels as shares of the input's sides; same shape."""
        return (coords + 0.5) / self.input_size

    def dense(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Maps of rough masks.

        Args:
            mask: (B, 1, 4 * grid, 4 * grid); logits in SAM, what it is elsewhere says the family.
            has_mask: (B,), 1 where the mask counts and 0 where there is none.

        Returns:
            (B, dim, grid, grid), to be added to the image's embedding.
        """
        without = self.no_mask_embed.weight[:, :, None, None]
        return torch.where(has_mask[:, None, None, None] > 0, self.mask_downscaling(mask), without)

    def positions(self) -> Tensor:
        """(1, dim, grid, grid): the positions of the cells of the image's embedding."""
        return self.pe_layer.grid(self.grid)
