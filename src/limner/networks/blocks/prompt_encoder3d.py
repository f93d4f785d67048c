"""Segment Anything's prompt encoder on volumes, as SegVol lifted it (https://arxiv.org/abs/2311.13385).

Names of parameters are the published ones. Two slips of the axes are part of what the weights
learnt and so are kept: positions of points are divided by the sizes of the wrong axes, and the
positions of the cells have their first two axes swapped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.networks.blocks.prompt_encoder import PromptEncoder, RandomPositions

Size = tuple[int, int, int]


class PromptEncoder3d(PromptEncoder):
    """Points and box corners; the layers that read masks are in the weights and were never used.

    Args:
        dim: channels of tokens.
        cells: size of the volume's embedding, ``(d, h, w)``.
        size: of the network's input, ``(D, H, W)``.
    """

    def __init__(self, dim: int, cells: Size, size: Size) -> None:
        super().__init__(dim)
        self.cells, self.size = cells, size
        self.pe_layer = RandomPositions(dim, axes=3)

    def share(self, coords: Tensor) -> Tensor:
        """(B, N, 3) as d, h, w in voxels of the input to what the positions are made of.

        As published d is divided by H and h by D, so that the second number reaches H / D.
        """
        depth, height, width = self.size
        return (coords + 0.5) / coords.new_tensor([height, depth, width])

    def volume(self, batch: int) -> Tensor:
        """(batch, dim, 1, 1, 1), to be added to the volume's embedding: there is no mask."""
        return self.no_mask_embed.weight[:, :, None, None, None].expand(batch, -1, -1, -1, -1)

    def positions(self) -> Tensor:
        """(1, dim, d, h, w): the positions of the cells; as published in the order h, d, w."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        d, h, w = (
            (torch.arange(n, device=matrix.device, dtype=matrix.dtype) + 0.5) / n
            for n in self.cells
        )
        along, down, across = torch.meshgrid(d, h, w, indexing="ij")
        encoded: Tensor = self.pe_layer(torch.stack([down, along, across], dim=-1))
        return encoded.permute(3, 0, 1, 2)[None]
