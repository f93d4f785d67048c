"""imis: IMIS-Net, which takes clicks, boxes, words and all of them together on 2D images
(https://arxiv.org/abs/2411.12814, https://github.com/uni-medical/IMIS-Bench).

The authors' weights file is not theirs to be had by a plain download; see the note of its card.
Unlike SAM it works in 768 channels, its words join the prompts and are added to every mask, and its
image is squashed to a square by picking pixels. Words are a closed list (`_imis_labels`): the
network was never shown others, and the authors' own code refuses them. Clicks of earlier rounds are
shown again together with the last answer, where the authors' training forgot them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner import errors
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, Variant, View
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
from limner.prompts.types import Prompt, TextPrompt

if TYPE_CHECKING:
    from torch import nn

    from limner.networks.blocks.mask_decoder import Sam
    from limner.runtime import Network

SIZE, LOW_RES = 1024, 256  # sides of the network's input and answer
DIM = 768  # channels of embedding and tokens
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green, blue, 0…255; SAM
MOST_AT_ONCE = 4  # questions in one pass: three times as wide as SAM
_TEXT = ("text_model.", "text_out_dim.")
_WANTED = ("image_encoder.sam_encoder.pos_embed", "image_encoder.neck.0.weight")

CARD = ModelCard(
    name="imis/vit_b",
    summary="IMIS-Net: clicks, boxes and words on pictures of any modality",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask", "text"}),
    licence="none stated by the authors",
    source="https://arxiv.org/abs/2411.12814, https://github.com/uni-medical/IMIS-Bench",
    zoom=False,
    window={2: SIZE},
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
    """

    def __init__(
        self,
        card: ModelCard,
        encoder: Network,
        decoder: Network,
        make_words: Callable[[], Network],
    ) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder, self._make_words = encoder, decoder, make_words

    @cached_property
    def _words(self) -> Network:
        return self._make_words()

    def check(self, prompt: Prompt) -> None:
        """Refuse a word that is not on the list."""
        _word([prompt])

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Squashed to the network's square and normalised."""
        check_understood(self.card, (), view.shape)
        return network_input(to_eight_bit(view)), InputFrame.squashed(view.shape, SIZE)

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
            encode_prompts(self.card, q.prompts, frame, mask_input(q, frame, LOW_RES))
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
                inputs = stack_prompts([encoded[k] for k in indices], LOW_RES)
                text = self._text([words[k] for k in indices])
                logits, quality = self._decoder(embedding.features, *inputs, text)
                for index, maps, values in zip(indices, logits, quality, strict=True):
                    answers[index] = _answer(maps, values, frame)
        return [answers[k] for k in range(len(questions))]

    def _text(self, words: Sequence[str | None]) -> Floats:
        """(B, T, DIM): words as the decoder takes them, all or none given; T is 0 or 1."""
        given = [labels.names().index(word) for word in words if word is not None]
        if not given:
            return np.zeros((len(words), 0, DIM), np.float32)
        (tokens,) = self._words(np.array(given, np.float32))
        return tokens[:, None]


def network_input(pixels: NDArray[np.uint8]) -> Floats:
    """(row, column, 3) as (1, 3, SIZE, SIZE), normalised; pixels are picked, not mixed."""
    from PIL import Image

    squashed = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST)
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


def _network(path: Path) -> Sam:
    """The network but for the text tower, with the weights of a file."""
    from limner.checkpoints.load import fill, read_checkpoint
    from limner.models.imis.network import network, remap

    whole = network()
    tensors = remap(read_checkpoint(path, wanted=_WANTED).tensors)
    fill(whole, {k: v for k, v in tensors.items() if not k.startswith(_TEXT)}, path)
    return whole


def _encoder(path: Path) -> nn.Module:
    return _network(path).image_encoder


def _decoder(path: Path, exact: bool) -> nn.Module:
    from limner.models.imis.network import FoldedImisDecode, ImisDecode, ImisMaskDecoder

    whole = _network(path)
    assert isinstance(whole.mask_decoder, ImisMaskDecoder)
    kind = ImisDecode if exact else FoldedImisDecode
    return kind(whole.prompt_encoder, whole.mask_decoder)


def _word_network(path: Path, *, exact: bool) -> nn.Module:
    """Numbers of words to tokens: by the text tower of a weights file, or by a table made of it."""
    from limner.checkpoints.load import fill, read_checkpoint
    from limner.models.imis.network import (
        Sentences,
        TextTower,
        WordTable,
        clip_text_model,
        remap,
    )

    tensors = remap(read_checkpoint(path, wanted=_WANTED).tensors)
    tensors = {k: v for k, v in tensors.items() if k.startswith(_TEXT)}
    if not tensors:
        raise CheckpointError(
            f"{path} is without the text tower, so it understands clicks and boxes only; words "
            f"need the authors' whole file, {WEIGHTS.name}."
        )
    purpose = f"understand words with {CARD.name}"
    tower = TextTower(
        clip_text_model(errors.require("transformers", extra="text", purpose=purpose))
    )
    fill(tower, tensors, path)
    sentences = [labels.token_ids(name) for name in labels.names()]
    return Sentences(tower, sentences) if exact else WordTable(tower, sentences)


def _build(
    *,
    weights: Path | None = None,
    device: str = "auto",
    exact: bool = False,
    keep_embeddings: bool = False,
) -> Imis:
    if weights is None:
        raise CheckpointError(
            f"{CARD.name} needs its weights, {WEIGHTS.name}: {WEIGHTS.note}. Or give the file with "
            "--weights."
        )
    if weights.is_dir():
        raise CheckpointError(f"{weights} is a folder; name the weights file, {WEIGHTS.name}.")
    from limner.checkpoints.digest import sha256_of
    from limner.runtime import compile_module

    sha256 = sha256_of(weights)  # the file is read, with PyTorch, the first time only
    key = f"imis-{sha256}"
    compiled = partial(compile_module, device=device, exact=exact)
    encoder = compiled(
        partial(_encoder, weights),
        key=f"{key}-encoder",
        inputs=[(1, 3, SIZE, SIZE)],
        precision="auto",
        remember=keep_embeddings,
    )
    side = SIZE // 16
    encoded = [
        (None, None, 2),
        (None, None),
        (None, 1, LOW_RES, LOW_RES),
        (None,),
        (None, None, DIM),
    ]
    decoder = compiled(
        partial(_decoder, weights, exact),
        key=f"{key}-decoder",
        inputs=[(1, DIM, side, side), *encoded],
        precision="fp32",
    )
    words = partial(  # needed at the first word only
        compiled,
        partial(_word_network, weights, exact=exact),
        key=f"{key}-words",
        inputs=[(None,)],
        precision="fp32",
    )
    return Imis(replace(CARD, weights_sha256=sha256), encoder, decoder, words)


VARIANTS = {"vit_b": Variant(CARD, _build, (WEIGHTS,), keeps_embeddings=True)}
