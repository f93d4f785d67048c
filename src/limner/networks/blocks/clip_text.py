"""The text transformer of CLIP (https://arxiv.org/abs/2103.00020), as Hugging Face's
``CLIPTextModel`` computes it; names of parameters are those of its newer releases.

Sentences go in alone, never padded, so the only mask is the causal one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class TextEmbeddings(nn.Module):
    """Tokens and their places."""

    def __init__(self, vocabulary: int, length: int, dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.position_embedding = nn.Embedding(length, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, N), int64, to (B, N, dim)."""
        out: Tensor = self.token_embedding(tokens)
        return out + self.position_embedding.weight[: tokens.shape[1]]


class CausalAttention(nn.Module):
    """Each token to itself and those before it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        query, key, value = (
            layer(x).reshape(x.shape[0], x.shape[1], self.heads, self.width).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class TextMlp(nn.Module):
    """Two linear layers; the activation between them is CLIP's cheap likeness of GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class TextBlock(nn.Module):
    """Attention and an MLP, each after a layer normalisation and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = CausalAttention(dim, heads)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.mlp = TextMlp(dim, hidden)
        self.layer_norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Layers(nn.Module):
    """Holds the blocks under their published name."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextBlock(dim, heads, hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class ClipText(nn.Module):
    """Sentences to vectors; the sizes are those of CLIP ViT-B/32.

    Args:
        vocabulary: number of tokens.
        length: most tokens of a sentence.
        dim: channels.
        depth: number of blocks.
        heads: of attention.
        hidden: channels inside the MLPs.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 49408,
        length: int = 77,
        dim: int = 512,
        depth: int = 12,
        heads: int = 8,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(vocabulary, length, dim)
        self.encoder = _Layers(depth, dim, heads, hidden)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """What is said at the last token, which is the end of the sentence.

        Args:
            tokens: (B, N), int64, from the mark of the start to that of the end, not padded.

        Returns:
            (B, dim).
        """
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(tokens)))
        return out[:, -1]
