"""The transformer of SAM's mask decoder: tokens and the image attend to each other in turn
(https://arxiv.org/abs/2304.02643, appendix A). Names of parameters are the published ones.

Its layer normalisations use PyTorch's own epsilon, 1e-5, unlike those of the image's encoder.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.vit import Mlp


class Attention(nn.Module):
    """Attention between two sets of tokens, perhaps in fewer channels.

    Args:
        dim: channels of both sets.
        heads: of attention.
        downsample: the inner channels are `dim` over this.
    """

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads, self.width = heads, inner // heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, dim), (B, M, dim), (B, M, dim) to (B, N, dim)."""
        q = self._apart(self.q_proj(query))
        k = self._apart(self.k_proj(key))
        v = self._apart(self.v_proj(value))
        out = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _apart(self, x: Tensor) -> Tensor:
        """(B, N, inner) to (B, heads, N, inner / heads)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.width).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens to themselves, tokens to image, an MLP on the tokens, image to tokens.

    Args:
        dim: channels.
        heads: of attention.
        hidden: channels inside the MLP.
        first: this is the first block, whose self-attention sees no positions and replaces the
            tokens instead of being added to them.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, functional.relu)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_places: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, N, dim), (B, M, dim) and their positions to the new tokens and image."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_places
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        keys = image + image_positions
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_places, keys, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))

        seen = self.cross_attn_image_to_token(keys, tokens + token_places, tokens)
        return tokens, self.norm4(image + seen)


class TwoWayTransformer(nn.Module):
    """Two such blocks, and a last look of the tokens at the image.

    Args:
        dim: channels.
        heads: of attention.
        hidden: channels inside the MLPs.
        depth: number of blocks.
    """

    def __init__(self, dim: int = 256, heads: int = 8, hidden: int = 2048, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, heads, hidden, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim, heads, 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, image: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            tokens: (B, N, dim); as they come in they are also their own positions.
            image: (B, M, dim), one per cell.
            image_positions: (1, M, dim), positions of the cells.

        Returns:
            New tokens (B, N, dim) and image (B, M, dim).
        """
        places = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, places, image_positions)
        seen = self.final_attn_token_to_image(tokens + places, image + image_positions, image)
        return self.norm_final_attn(tokens + seen), image
