"""imis: IMIS-Net, which takes clicks, boxes, words and all of them together on 2D images
(https://arxiv.org/abs/2411.12814, https://github.com/uni-medical/IMIS-Bench).

The authors' weights file is not theirs to be had by a plain download; see the note of its card.
Unlike SAM it works in 768 channels, its words join the prompts and are added to every mask, and its
image is squashed to a square by picking pixels. Words are a closed list (`vocabulary`): the
network was never shown others, and the authors' own code refuses them. Clicks of earlier rounds are
shown again together with the last answer, where the authors' training forgot them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner import errors
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import FileWeights, Part, Published, Weights
from limner.adapters.sam import (
    Floats,
    ImageEncoding,
    InputFrame,
    SamEmbedding,
    clip_score,
    encode_prompts,
    group_by_length,
    mask_input,
    stack_prompts,
    to_eight_bit,
)
from limner.checkpoints.cards import WeightsCard
from limner.errors import CheckpointError, PromptError
from limner.models.imis import vocabulary as labels
from limner.models.imis.sizes import PUBLISHED, SIZE, SMALL, Sizes
from limner.prompts.types import Prompt, TextPrompt

if TYPE_CHECKING:
    from torch import nn

    from limner.networks.blocks.mask_decoder import Sam
    from limner.runtime import Network

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green, blue, 0…255; SAM
MOST_AT_ONCE = 4  # questions in one pass: three times as wide as SAM
_TEXT = ("text_model.", "text_out_dim.")
_OTHERS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
_WANTED = ("image_encoder.sam_encoder.pos_embed", "image_encoder.neck.0.weight")

CARD = ModelCard(
    name="imis/vit_b",
    summary="IMIS-Net: clicks, boxes and words on images of any modality",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask", "text"}),
    licence="none stated by the authors",
    source="https://arxiv.org/abs/2411.12814, https://github.com/uni-medical/IMIS-Bench",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = WeightsCard(
    name="IMISNet-B.pth",
    sources=(),
    licence="none stated by the authors",
    note="on Baidu Netdisk, linked from https://github.com/uni-medical/IMIS-Bench; after "
    "downloading: limner models add imis/vit_b IMISNet-B.pth",
)


class Imis(ImageEncoding, BatchAnswers):
    """The network with everything around it.

    Args:
        card: its facts.
        encoder: (1, 3, SIZE, SIZE) to features.
        decoder: `limner.models.imis.network.ImisDecode`.
        make_words: makes `limner.models.imis.network.WordTable`, or what does the same; called at
            the first word.
        sizes: of the network.
    """

    def __init__(
        self,
        card: ModelCard,
        encoder: Network,
        decoder: Network,
        make_words: Callable[[], Network],
        sizes: Sizes = PUBLISHED,
    ) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder, self._make_words = encoder, decoder, make_words
        self._sizes = sizes

    @cached_property
    def _words(self) -> Network:
        return self._make_words()

    def check(self, prompt: Prompt) -> None:
        """Refuse a word that is not on the list."""
        _word([prompt])

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Squashed to the network's square and normalised."""
        check_understood(self.card, (), view.shape)
        side = self._sizes.side
        return network_input(to_eight_bit(view), side), InputFrame.squashed(view.shape, side)

    def segment_batch(
        self, embedding: SamEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone: of three masks
        the one that the network trusts most.

        Of several words about one object the newest counts. The answer before, or a mask among the
        prompts if that is newer, is shown as well.

        Raises:
            PromptError: nothing was asked, a kind of prompt or a word that the model does not know,
                or several boxes for one object.
            CheckpointError: a word, and the weights file has no text tower.
            MissingDependency: a word, and transformers is not installed.
        """
        frame = embedding.frame
        encoded = [
            encode_prompts(self.card, q.prompts, frame, mask_input(q, frame, self._sizes.low_res))
            for q in questions
        ]
        words = [_word(q.prompts) for q in questions]
        for question, word in zip(encoded, words, strict=True):
            if not len(question.labels) and question.mask is None and word is None:
                raise PromptError(f"{self.card.name} needs a click, a box, a word or a mask.")
        answers: dict[int, Segmentation] = {}
        for spoken in (False, True):
            chosen = [k for k, word in enumerate(words) if (word is not None) == spoken]
            for group in group_by_length([encoded[k] for k in chosen], MOST_AT_ONCE):
                indices = [chosen[k] for k in group]
                inputs = stack_prompts([encoded[k] for k in indices], self._sizes.low_res)
                text = self._text([words[k] for k in indices])
                logits, quality = self._decoder(embedding.features, *inputs, text)
                for index, maps, values in zip(indices, logits, quality, strict=True):
                    answers[index] = _answer(maps, values, frame)
        return [answers[k] for k in range(len(questions))]

    def _text(self, words: Sequence[str | None]) -> Floats:
        """(B, T, DIM): words as the decoder takes them, all or none given; T is 0 or 1."""
        given = [labels.names().index(word) for word in words if word is not None]
        if not given:
            return np.zeros((len(words), 0, self._sizes.channels), np.float32)
        (tokens,) = self._words(np.array(given, np.float32))
        return tokens[:, None]


def network_input(pixels: NDArray[np.uint8], side: int = SIZE) -> Floats:
    """(row, column, 3) as (1, 3, side, side), normalised; pixels are picked, not mixed."""
    from PIL import Image

    squashed = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
    values = (np.asarray(squashed) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], dtype=np.float32)


def _word(prompts: Sequence[Prompt]) -> str | None:
    """The name that the newest word means."""
    texts = [p.text for p in prompts if isinstance(p, TextPrompt)]
    return labels.find(texts[-1]) if texts else None


def _answer(logits: Floats, quality: NDArray[np.float32], frame: InputFrame) -> Segmentation:
    best = int(quality.argmax())
    low_res = logits[best].copy()  # not the batch that it is part of
    return Segmentation(frame.to_view(low_res), clip_score(quality[best]), low_res)


def _filled(sizes: Sizes, weights: Weights) -> Sam:
    """The network but for the text tower."""
    from limner.models.imis.network import make_network

    whole = make_network(sizes)
    weights.fill(whole, leave_out=_TEXT)
    return whole


def _encoder(sizes: Sizes, weights: Weights) -> nn.Module:
    return _filled(sizes, weights).image_encoder


def _decoder(sizes: Sizes, weights: Weights, *, exact: bool) -> nn.Module:
    from limner.models.imis.network import FoldedImisDecode, ImisDecode, ImisMaskDecoder

    whole = _filled(sizes, weights)
    assert isinstance(whole.mask_decoder, ImisMaskDecoder)
    kind = ImisDecode if exact else FoldedImisDecode
    return kind(whole.prompt_encoder, whole.mask_decoder)


def _word_network(sizes: Sizes, weights: Weights, *, exact: bool) -> nn.Module:
    """Numbers of words to tokens: by the text tower of a weights file, or by a table made of it."""
    from limner.models.imis.network import Sentences, TextTower, WordTable, clip_text_model

    if isinstance(weights, FileWeights) and not any(n.startswith(_TEXT) for n in weights.tensors()):
        raise CheckpointError(
            f"{weights.path} is without the text tower, so it understands clicks and boxes only; "
            f"words need the authors' whole file, {WEIGHTS.name}."
        )
    purpose = f"understand words with {CARD.name}"
    transformers = errors.require("transformers", extra="text", purpose=purpose)
    text_model = clip_text_model(transformers, sizes.text_dim, sizes.text_depth)
    tower = TextTower(text_model, sizes.text_dim, sizes.channels)
    weights.fill(tower, leave_out=_OTHERS)
    sentences = [labels.token_ids(name) for name in labels.names()]
    return Sentences(tower, sentences) if exact else WordTable(tower, sentences)


def _parts(sizes: Sizes) -> Sequence[Part]:
    grid, low_res, channels = sizes.side // 16, sizes.low_res, sizes.channels
    prompts = [(None, None, 2), (None, None), (None, 1, low_res, low_res), (None,)]
    return (
        Part(
            "encoder",
            partial(_encoder, sizes),
            [(1, 3, sizes.side, sizes.side)],
            precision="auto",
            encodes=True,
        ),
        Part(
            "decoder",
            partial(_decoder, sizes, exact=False),
            [(1, channels, grid, grid), *prompts, (None, None, channels)],
            published=partial(_decoder, sizes, exact=True),
        ),
        Part(  # needed at the first word only
            "words",
            partial(_word_network, sizes, exact=False),
            [(None,)],
            published=partial(_word_network, sizes, exact=True),
            deferred=True,
        ),
    )


def _remap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    from limner.models.imis.network import remap

    return remap(state)


IMIS = Published(
    CARD,
    (WEIGHTS,),
    network="imis",
    sizes=PUBLISHED,
    small=SMALL,
    parts=_parts,
    model=lambda c: Imis(c.card, c["encoder"], c["decoder"], c.deferred["words"], c.sizes),
    wanted=_WANTED,
    remap=_remap,
)
VARIANTS = {"vit_b": IMIS.variant()}
