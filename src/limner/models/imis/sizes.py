"""Sizes of IMIS-Net, as published and reduced; without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 1024  # side of the network's input


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; by default the published ones.

    Attributes:
        side: of the input in pixels.
        dim: channels of the image encoder.
        depth: its blocks.
        heads: of its attention.
        whole: which of its blocks attend over the whole grid.
        channels: of embedding and tokens; SAM has 256.
        text_dim: channels of CLIP's text tower.
        text_depth: its blocks.
    """

    side: int = SIZE
    dim: int = 768
    depth: int = 12
    heads: int = 12
    whole: tuple[int, ...] = (2, 5, 8, 11)
    channels: int = 768
    text_dim: int = 512
    text_depth: int = 12

    @property
    def low_res(self) -> int:
        """Side of the network's answer."""
        return self.side // 4


PUBLISHED = Sizes()
SMALL = Sizes(64, dim=32, depth=2, heads=2, whole=(1,), channels=32, text_dim=16, text_depth=1)
