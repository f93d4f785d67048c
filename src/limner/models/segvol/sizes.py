"""Sizes of SegVol's network, as published and reduced; without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

SIZE = (32, 256, 256)  # of the input, (D, H, W)
PATCH = (4, 16, 16)  # voxels per token
DIM = 768  # channels of embedding and tokens
TEXT_DIM = 512  # of CLIP's text tower

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """Sizes of the network; by default the published ones.

    Attributes:
        size: of the input in voxels, (D, H, W), multiples of `patch`.
        patch: voxels per token, likewise.
        dim: channels of embedding and tokens, a multiple of 16 and of `heads`.
        depth: blocks of the volume's encoder.
        heads: of its attention.
        hidden: channels inside its MLPs.
        text_dim: channels of the text tower, a multiple of `text_heads`.
        text_depth: its blocks.
        text_heads: of its attention.
        text_hidden: channels inside its MLPs.
    """

    size: Shape = SIZE
    patch: Shape = PATCH
    dim: int = DIM
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    text_dim: int = TEXT_DIM
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048

    @property
    def cells(self) -> Shape:
        """Of the embedding, (d, h, w)."""
        d, h, w = (n // p for n, p in zip(self.size, self.patch, strict=True))
        return d, h, w


PUBLISHED = Plan()
SMALL = Plan(
    dim=32, depth=1, heads=2, hidden=64, text_dim=16, text_depth=1, text_heads=2, text_hidden=32
)
