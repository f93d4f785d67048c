"""IMIS-Net as PyTorch modules (https://arxiv.org/abs/2411.12814): SAM in 768 channels, with words
and a guess at what the object is.

Parts are named as in the published file, apart from what `remap` renames. The text tower is CLIP's,
passed in, so that this file needs nothing but PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.models.imis.sizes import Sizes
from limner.models.imis.vocabulary import END, START
from limner.networks.blocks import folded
from limner.networks.blocks.mask_decoder import MaskDecoder, Perceptron, Sam
from limner.networks.blocks.prompt_encoder import PromptEncoder
from limner.networks.blocks.vit import ImageEncoder

DIM = 768  # channels of embedding and tokens; SAM has 256
TEXT_DIM = 512  # of CLIP's text tower
SEMANTIC_DIM = 512  # of what the network says about the kind of object
_FIRST_ANSWER = 1  # the decoder's first mask is left out, as in SAM where prompts are ambiguous
_EPS = 1e-5  # of the image encoder, which was timm's; SAM's own has 1e-6

Value = TypeVar("Value")


class ImisMaskDecoder(MaskDecoder):
    """SAM's decoder with words added to the masks, and a vector per mask for the kind of object."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__(dim)
        self.semantic_tokens = nn.Embedding(self.num_masks, dim)
        self.text_output = nn.Linear(dim, dim // 8)
        self.semantic_prediction_head = Perceptron(dim, 256, SEMANTIC_DIM)

    def own_tokens(self) -> Tensor:
        """(9, DIM): quality, masks, kinds of object."""
        return torch.cat([super().own_tokens(), self.semantic_tokens.weight], dim=0)

    def answer(
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks, their quality and the kind of object, without the mask for clear prompts.

        Args:
            embedding: (1, DIM, g, g), of the image that all prompts are about.
            places: (1, DIM, g, g), positions of its cells.
            sparse: (B, N, DIM), tokens of the prompts.
            dense: (B, DIM, g, g), maps of the prompts.
            text: (B, T, DIM), words among the prompts; T is 0 or 1.

        Returns:
            Logits (B, 3, 4g, 4g), predicted IoU (B, 3), not bounded, and (B, 3, SEMANTIC_DIM).
        """
        tokens, features = self.decode(embedding, places, sparse, dense)
        logits, quality = self.masks(tokens, features)
        batch, _, rows, columns = features.shape
        text_mask = self.text_output(text) @ features.flatten(2)  # a mask of its own, for all alike
        logits = logits + text_mask.sum(dim=1, keepdim=True).reshape(batch, 1, rows, columns)
        first = 1 + self.num_masks
        kinds = self.semantic_prediction_head(tokens[:, first : first + self.num_masks])
        return logits[:, _FIRST_ANSWER:], quality[:, _FIRST_ANSWER:], kinds[:, _FIRST_ANSWER:]


class ImisDecode(nn.Module):
    """The cheap half: prompts about one image to masks.

    Args:
        prompt_encoder: of `network`.
        mask_decoder: likewise.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: ImisMaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def answer(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor,
        has_mask: Tensor,
        text: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Everything that the network says; arguments as in `forward`."""
        encoder = self.prompt_encoder
        sparse = torch.cat([encoder.sparse(coords, labels), text], dim=1)
        dense = encoder.dense(mask, has_mask)
        return self.mask_decoder.answer(embedding, encoder.positions(), sparse, dense, text)

    def forward(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor,
        has_mask: Tensor,
        text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Answer B prompts about one image.

        Args:
            embedding: (1, DIM, g, g).
            coords: (B, N, 2), x and y in pixels of the network's input; N may be 0.
            labels: (B, N), see `PromptEncoder.sparse`.
            mask: (B, 1, 4g, 4g), logits.
            has_mask: (B,), 1 where the mask counts.
            text: (B, T, DIM), from `WordTable`; T is 0 or 1.

        Returns:
            Logits (B, 3, 4g, 4g) and predicted IoU (B, 3), not bounded.
        """
        return self.answer(embedding, coords, labels, mask, has_mask, text)[:2]


class FoldedImisDecode(ImisDecode):
    """The same in another order of arithmetic, faster on a CPU: `limner.networks.blocks.folded`."""

    def forward(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor,
        has_mask: Tensor,
        text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `ImisDecode.forward`."""
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        sparse = torch.cat([encoder.sparse(coords, labels), text], dim=1)
        dense = folded.dense_cells(encoder, mask, has_mask)
        tokens, features = folded.decode(decoder, embedding, encoder.positions(), sparse, dense)
        text_mask = decoder.text_output(text).sum(dim=1)  # a mask of its own, for all alike
        logits, quality = folded.masks(decoder, tokens, features, embedding.shape[3], text_mask)
        return logits[:, _FIRST_ANSWER:], quality[:, _FIRST_ANSWER:]


class TextTower(nn.Module):
    """Sentences to tokens for the decoder.

    Args:
        text_model: CLIP's text transformer: ``text_model(input_ids=(B, N))`` has a
            ``pooler_output`` of (B, text_dim).
        text_dim: its channels.
        dim: of the decoder's tokens.
    """

    def __init__(self, text_model: nn.Module, text_dim: int = TEXT_DIM, dim: int = DIM) -> None:
        super().__init__()
        self.text_model = text_model
        self.text_out_dim = nn.Linear(text_dim, dim)

    def forward(self, sentence: Tensor) -> Tensor:
        """Token numbers (B, N), marks included, none padded, to (B, DIM)."""
        out: Tensor = self.text_out_dim(self.text_model(input_ids=sentence).pooler_output)
        return out


class Sentences(nn.Module):
    """Words by their numbers, each sentence through the tower by itself, as the authors do.

    Args:
        tower: filled with weights.
        sentences: token numbers, one list per word.
    """

    def __init__(self, tower: TextTower, sentences: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.tower = tower
        self.sentences = sentences

    def forward(self, number: Tensor) -> Tensor:
        """Numbers of words (B,), at least one, to (B, DIM)."""
        chosen = [self.sentences[int(n)] for n in number]
        return torch.cat([self.tower(torch.tensor([s], device=number.device)) for s in chosen])


class WordTable(nn.Module):
    """The tower's answers to all sentences that it will ever be asked.

    The table of 203 words is 0.6 MB; the tower that it comes from is 250 MB and slow to load.

    Args:
        tower: filled with weights; not kept.
        sentences: token numbers, one list per word.
    """

    table: Tensor

    def __init__(self, tower: TextTower, sentences: Sequence[Sequence[int]]) -> None:
        super().__init__()
        table = torch.empty(len(sentences), tower.text_out_dim.out_features)
        for length in {len(sentence) for sentence in sentences}:  # together, but never padded
            rows = [k for k, sentence in enumerate(sentences) if len(sentence) == length]
            with torch.no_grad():
                table[rows] = tower.eval()(torch.tensor([sentences[k] for k in rows]))
        self.register_buffer("table", table)

    def forward(self, number: Tensor) -> Tensor:
        """Numbers of words (B,) to (B, DIM)."""
        return self.table[number.long()]


def make_network(sizes: Sizes) -> Sam:
    """All but the text tower, without weights: its encoder takes (B, 3, side, side), normalised;
    `ImisDecode` is to be made of the rest.
    """
    encoder = ImageEncoder(
        sizes.side,
        dim=sizes.dim,
        depth=sizes.depth,
        heads=sizes.heads,
        whole=sizes.whole,
        out_channels=sizes.channels,
        eps=_EPS,
    )
    prompts = PromptEncoder(sizes.channels, sizes.side // 16, sizes.side)
    return Sam(encoder, prompts, ImisMaskDecoder(sizes.channels))


def clip_text_model(transformers: ModuleType, dim: int = TEXT_DIM, depth: int = 12) -> nn.Module:
    """CLIP's text transformer as the authors built it, untrained; nothing is fetched.

    Args:
        transformers: the package, 5 or newer.
        dim: its channels.
        depth: its blocks.
    """
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=depth,
        num_attention_heads=8,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=START,
        eos_token_id=END,
    )
    model: nn.Module = transformers.CLIPTextModel(config)
    return model


def remap(state: Mapping[str, Value]) -> dict[str, Value]:
    """Published names to those of `network` and `TextTower`.

    The encoder lies within one of timm's, whose own neck is in the file and never used; it is left
    out. The text tower goes by two names, depending on the version of transformers, and its last
    layer by another in files that were split.
    """
    renamed: dict[str, Value] = {}
    for name, value in state.items():
        if name.startswith(_INNER):
            if name.startswith(f"{_INNER}neck."):
                continue
            name = "image_encoder." + name.removeprefix(_INNER).replace(".mlp.fc", ".mlp.lin")
        for published, own in _TEXT_NAMES:
            if name.startswith(published):
                name = own + name.removeprefix(published)
        if not name.endswith(".position_ids"):  # 0, 1, 2, … in files of old versions
            renamed[name] = value
    return renamed


_INNER = "image_encoder.sam_encoder."
_TEXT_NAMES = (("text_model.text_model.", "text_model."), ("projection.", "text_out_dim."))
