"""SAM's mask decoder: from an image's embedding and prompts to masks and their predicted quality
(https://arxiv.org/abs/2304.02643, appendix A). Names of parameters are the published ones.

A family whose decoder has more tokens or outputs derives from `MaskDecoder`: it overrides
`own_tokens` to append its tokens after the published ones, and `forward` to do more with what
`decode` and `masks` return.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.norm import LayerNorm2d
from limner.networks.blocks.prompt_encoder import PromptEncoder
from limner.networks.blocks.two_way_transformer import TwoWayTransformer


class Perceptron(nn.Module):
    """Three linear layers with ReLU between them; (..., dim) to (..., out)."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., out)."""
        first, second, last = self.layers
        out: Tensor = last(functional.relu(second(functional.relu(first(x)))))
        return out


class MaskDecoder(nn.Module):
    """Prompts and an image to masks.

    Args:
        dim: channels of the embedding and the tokens.
        num_masks: one for prompts that leave no doubt (first), the others for those that do.
        iou_hidden: channels inside the head that predicts the masks' quality.
    """

    def __init__(self, dim: int = 256, num_masks: int = 4, iou_hidden: int = 256) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.transformer = TwoWayTransformer(dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(dim, dim, dim // 8) for _ in range(num_masks)
        )
        self.iou_prediction_head = Perceptron(dim, iou_hidden, num_masks)

    def own_tokens(self) -> Tensor:
        """(T, dim): the decoder's own tokens: quality, masks, and what a derived class appends."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)

    def decode(
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the transformer makes of prompts and image.

        Args:
            embedding: (1, dim, g, g), of the image that all prompts are about; or (B, ...).
            places: (1, dim, g, g), positions of its cells.
            sparse: (B, N, dim), tokens of the prompts; N may be 0.
            dense: (B, dim, g, g), maps of the prompts.

        Returns:
            Tokens (B, T + N, dim) and features (B, dim / 8, 4g, 4g).
        """
        own = self.own_tokens()[None]
        tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        image = embedding + dense
        tokens, flat = self.transformer(
            tokens, image.flatten(2).transpose(1, 2), places.flatten(2).transpose(1, 2)
        )
        features: Tensor = self.output_upscaling(flat.transpose(1, 2).reshape(image.shape))
        return tokens, features

    def masks(self, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Masks and their quality from what `decode` returned.

        Returns:
            Logits (B, num_masks, 4g, 4g) and predicted IoU (B, num_masks), not bounded.
        """
        filters = torch.stack(
            [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        batch, _, rows, columns = features.shape
        logits = (filters @ features.flatten(2)).reshape(batch, self.num_masks, rows, columns)
        return logits, self.iou_prediction_head(tokens[:, 0])

    def forward(
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `decode` and `masks`."""
        tokens, features = self.decode(embedding, places, sparse, dense)
        return self.masks(tokens, features)


class SamDecode(nn.Module):
    """Prompt encoder and mask decoder as one network: the cheap half of SAM.

    Args:
        prompt_encoder: of the same `dim` as the decoder.
        mask_decoder: what reads its tokens.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer B prompts about one image.

        Args:
            embedding: (1, dim, g, g).
            coords: (B, N, 2), x and y in pixels of the network's input; N may be 0.
            labels: (B, N), see `PromptEncoder.sparse`.
            mask: (B, 1, 4g, 4g).
            has_mask: (B,), 1 where the mask counts.

        Returns:
            Logits (B, num_masks, 4g, 4g) and predicted IoU (B, num_masks).
        """
        encoder = self.prompt_encoder
        sparse, dense = encoder.sparse(coords, labels), encoder.dense(mask, has_mask)
        logits, quality = self.mask_decoder(embedding, encoder.positions(), sparse, dense)
        return logits, quality


class Sam(nn.Module):
    """The whole network, with the names of the published files.

    Args:
        image_encoder: (B, 3, size, size) to (B, dim, g, g).
        prompt_encoder: of the same `dim`.
        mask_decoder: likewise.
    """

    def __init__(
        self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def decode(self) -> SamDecode:
        """The cheap half, sharing the weights."""
        return SamDecode(self.prompt_encoder, self.mask_decoder)
