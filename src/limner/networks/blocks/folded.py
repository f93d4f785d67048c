"""SAM's cheap half arranged for a CPU: the same function of the same weights, in another order.

A prompt has some ten tokens, the image 4,096 cells. As published, every attention between them
projects all cells to queries, keys or values, moves them to heads and back, and that is where the
time goes. Here the projections are folded into the tokens instead, which are few:

    (cell W_k) . query = cell . (W_k^T query),   sum(weight (cell W_v)) = sum(weight cell) W_v

and likewise from the cells' side. Transposed convolutions, whose strides are their sizes, are
linear layers on cells, and masks are made before their pixels are put in order, as there are four
of them and 32 channels. For a box that is 2 instead of 3.5 GFLOP and no transposition of large
arrays; with more than 16 tokens folding needs more arithmetic than it saves, but still moves less
memory.

Results differ by rounding, 1e-6 of their standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.mask_decoder import MaskDecoder
from limner.networks.blocks.norm import LayerNorm2d
from limner.networks.blocks.prompt_encoder import PromptEncoder
from limner.networks.blocks.two_way_transformer import Attention, TwoWayBlock, TwoWayTransformer


class FoldedDecode(nn.Module):
    """`limner.networks.blocks.mask_decoder.SamDecode`, folded; shares the weights that it is given.

    Args:
        prompt_encoder: of the network.
        mask_decoder: likewise; only what `MaskDecoder` itself has is used.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `limner.networks.blocks.mask_decoder.SamDecode.forward`."""
        sparse = self.prompt_encoder.sparse(coords, labels)
        dense = dense_cells(self.prompt_encoder, mask, has_mask)
        places = self.prompt_encoder.positions()
        tokens, features = decode(self.mask_decoder, embedding, places, sparse, dense)
        return masks(self.mask_decoder, tokens, features, embedding.shape[3])


def dense_cells(encoder: PromptEncoder, mask: Tensor, has_mask: Tensor) -> Tensor:
    """`PromptEncoder.dense` by cells: (B, g * g, dim)."""
    *first, last = encoder.mask_downscaling
    assert isinstance(last, nn.Conv2d)
    for layer in first:
        mask = layer(mask)
    cells = functional.linear(_cells(mask), last.weight.flatten(1), last.bias)
    return torch.where(has_mask[:, None, None] > 0, cells, encoder.no_mask_embed.weight)


def decode(
    decoder: MaskDecoder, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """`MaskDecoder.decode`, with cells last.

    Args:
        decoder: what to do.
        embedding: (1, dim, g, g).
        places: (1, dim, g, g), positions of its cells.
        sparse: (B, N, dim), tokens of the prompts; N may be 0.
        dense: (B, g * g, dim), of `dense_cells`.

    Returns:
        Tokens (B, T + N, dim) and features (B, 16 * g * g, dim / 8) in the order that `mask_maps`
        understands.
    """
    own = decoder.own_tokens()[None]
    tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    tokens, cells = _two_ways(
        decoder.transformer, tokens, _cells(embedding) + dense, _cells(places)
    )
    first, norm, activation, second, last = decoder.output_upscaling
    assert isinstance(norm, LayerNorm2d)
    features = _doubled(first, cells)
    features = functional.layer_norm(
        features, (features.shape[2],), norm.weight, norm.bias, norm.eps
    )
    return tokens, last(_doubled(second, activation(features)))


def masks(
    decoder: MaskDecoder,
    tokens: Tensor,
    features: Tensor,
    side: int,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`MaskDecoder.masks` for what `decode` returned.

    Args:
        decoder: what to do.
        tokens: (B, T + N, dim).
        features: (B, 16 * g * g, dim / 8).
        side: g.
        more: (B, dim / 8), added to the filters of all masks.

    Returns:
        Logits (B, num_masks, 4g, 4g) and predicted IoU (B, num_masks), not bounded.
    """
    filters = torch.stack(
        [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    if more is not None:
        filters = filters + more[:, None]
    return mask_maps(filters, features, side), decoder.iou_prediction_head(tokens[:, 0])


def mask_maps(filters: Tensor, features: Tensor, side: int) -> Tensor:
    """Filters (B, M, C) on features (B, 16 * g * g, C) to (B, M, 4g, 4g); `side` is g."""
    values = features @ filters.transpose(1, 2)
    # Cell, then its quarter, then the quarter's quarter, each as row and column.
    values = values.reshape(-1, side, side, 2, 2, 2, 2, filters.shape[1])
    values = values.permute(0, 7, 1, 3, 5, 2, 4, 6)
    return values.reshape(-1, filters.shape[1], 4 * side, 4 * side)


def _cells(maps: Tensor) -> Tensor:
    """(B, C, g, g) to (B, g * g, C)."""
    return maps.flatten(2).transpose(1, 2)


def _doubled(convolution: nn.Module, cells: Tensor) -> Tensor:
    """A transposed convolution of size and stride 2; (B, M, C) to (B, 4 * M, out)."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (row, column, out), in
    out = functional.linear(cells, weight, convolution.bias.repeat(4))
    return out.reshape(cells.shape[0], -1, convolution.out_channels)


def _two_ways(
    transformer: TwoWayTransformer, tokens: Tensor, cells: Tensor, cell_places: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward`."""
    places = tokens
    for block in transformer.layers:
        assert isinstance(block, TwoWayBlock)
        if block.first:
            tokens = block.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + places
            tokens = tokens + block.self_attn(placed, placed, tokens)
        tokens = block.norm1(tokens)
        keys = cells + cell_places
        tokens = tokens + _at_cells(block.cross_attn_token_to_image, tokens + places, keys, cells)
        tokens = block.norm2(tokens)
        tokens = block.norm3(tokens + block.mlp(tokens))
        seen = _at_tokens(block.cross_attn_image_to_token, keys, tokens + places, tokens)
        cells = block.norm4(cells + seen)
    last = transformer.final_attn_token_to_image
    tokens = tokens + _at_cells(last, tokens + places, cells + cell_places, cells)
    tokens = transformer.norm_final_attn(tokens)
    return tokens, cells


def _at_cells(attention: Attention, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens attend to cells; (B, N, dim), (B, M, dim) twice to (B, N, dim).

    The bias of the keys is the same for all of them and so without effect.
    """
    heads, width = attention.heads, attention.width
    query_heads = _apart(attention.q_proj(query), heads, width) * width**-0.5
    query_heads = query_heads @ attention.k_proj.weight.reshape(heads, width, -1)
    shares = (query_heads.flatten(1, 2) @ keys.transpose(1, 2)).softmax(dim=-1)
    seen = (shares @ values).reshape(query.shape[0], heads, -1, values.shape[2])
    seen = seen @ attention.v_proj.weight.reshape(heads, width, -1).transpose(1, 2)
    out: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def _at_tokens(attention: Attention, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cells attend to tokens; (B, M, dim), (B, N, dim) twice to (B, M, dim)."""
    heads, width = attention.heads, attention.width
    offered = _apart(attention.k_proj(keys), heads, width) * width**-0.5
    bias = (offered @ attention.q_proj.bias.reshape(heads, width, 1)).flatten(2)  # (B, heads, N)
    offered = offered @ attention.q_proj.weight.reshape(heads, width, -1)
    shares = query @ offered.flatten(1, 2).transpose(1, 2)  # (B, M, heads * N)
    shares = shares.reshape(shares.shape[0], shares.shape[1], heads, -1) + bias[:, None]
    shares = shares.softmax(dim=-1).flatten(2)
    given = _apart(attention.v_proj(values), heads, width)
    given = given @ attention.out_proj.weight.reshape(-1, heads, width).permute(1, 2, 0)
    out: Tensor = shares @ given.flatten(1, 2) + attention.out_proj.bias
    return out


def _apart(x: Tensor, heads: int, width: int) -> Tensor:
    """(B, N, heads * width) to (B, heads, N, width)."""
    return x.reshape(x.shape[0], x.shape[1], heads, width).transpose(1, 2)
