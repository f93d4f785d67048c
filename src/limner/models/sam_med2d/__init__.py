"""sam_med2d: SAM-Med2D, Segment Anything with adapters learnt on medical images
(https://arxiv.org/abs/2308.16184, https://github.com/OpenGVLab/SAM-Med2D).

It sees 256 pixels a side, picked from the image and not mixed. Of its three masks the one that it
trusts most counts, whatever the prompts were. A mask goes back into it as probabilities,
where SAM takes logits. Colours are red, green, blue, as in the authors' predictor; their training
read them the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import Part, Published
from limner.adapters.sam import (
    Floats,
    ImageEncoding,
    InputFrame,
    SamEmbedding,
    clip_score,
    decode_prompts,
    encode_prompts,
    mask_input,
    sigmoid,
    to_eight_bit,
)
from limner.adapters.sam_network import sam_parts
from limner.checkpoints.cards import WeightsCard
from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.networks.blocks.mask_decoder import Sam
    from limner.runtime import Network

SIZE, LOW_RES = 256, 64  # sides of the network's input and answer
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green, blue, 0…255; SAM
_WANTED = (
    "image_encoder.pos_embed",
    "image_encoder.neck.0.weight",
    "mask_decoder.iou_token.weight",
)

CARD = ModelCard(
    name="sam_med2d/vit_b",
    summary="SAM-Med2D: clicks, boxes and rough masks on images of any modality",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask"}),
    licence="Apache-2.0",
    source="https://arxiv.org/abs/2308.16184, https://github.com/OpenGVLab/SAM-Med2D",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = WeightsCard(
    name="sam-med2d_b.pth",
    sources=(),
    licence="Apache-2.0",
    note="in a shared folder linked from https://github.com/OpenGVLab/SAM-Med2D; after "
    "downloading: limner models add sam_med2d/vit_b sam-med2d_b.pth",
)


class SamMed2d(ImageEncoding, BatchAnswers):
    """The network with everything around it.

    Args:
        card: its facts.
        encoder: (1, 3, SIZE, SIZE) to features.
        decoder: `limner.networks.blocks.mask_decoder.SamDecode`.
    """

    def __init__(self, card: ModelCard, encoder: Network, decoder: Network) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder = encoder, decoder

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Squashed and normalised."""
        check_understood(self.card, (), view.shape)
        return network_input(to_eight_bit(view)), InputFrame.squashed(view.shape, SIZE)

    def segment_batch(
        self, embedding: SamEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        `Segmentation.memory` is the chosen mask's logits, float32 (LOW_RES, LOW_RES).

        Raises:
            PromptError: nothing was asked, several boxes for one object, or a kind of prompt that
                the card does not list.
        """
        frame = embedding.frame
        encoded = [
            encode_prompts(self.card, q.prompts, frame, mask_probabilities(q, frame))
            for q in questions
        ]
        if not all(len(question.labels) or question.mask is not None for question in encoded):
            raise PromptError(f"{self.card.name} needs a click, a box or a mask. Give one.")
        answers = []
        for logits, quality in decode_prompts(self._decoder, embedding.features, encoded):
            best = 1 + int(np.argmax(quality[1:]))  # the first mask is for SAM's clear prompts
            low_res = logits[best].copy()  # not the batch that it is part of
            answers.append(Segmentation(frame.to_view(low_res), clip_score(quality[best]), low_res))
        return answers


def network_input(pixels: NDArray[np.uint8]) -> Floats:
    """(row, column, 3) as (1, 3, SIZE, SIZE), normalised.

    Pixels are picked as OpenCV does: the one at or above and left of the exact place.
    """
    rows, columns = (
        np.minimum(np.arange(SIZE) * (1.0 / (SIZE / n)), n - 1).astype(np.int64)
        for n in pixels.shape[:2]
    )
    picked = pixels[rows[:, None], columns].astype(np.float32)
    values = (picked - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def mask_probabilities(question: Question, frame: InputFrame) -> Floats | None:
    """The mask that is shown with the prompts: probabilities (LOW_RES, LOW_RES), or None."""
    logits = mask_input(question, frame, LOW_RES, most=math.inf)  # bounded by the sigmoid
    return None if logits is None else sigmoid(logits)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network: channels, blocks, heads and whole-grid blocks of the image encoder,
    channels inside the gate of its adapters, channels of the embedding.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    whole: tuple[int, ...] = (2, 5, 8, 11)
    gate: int = 192
    channels: int = 256


SMALL = Sizes(dim=32, depth=2, heads=2, whole=(1,), gate=8, channels=32)


def make_network(sizes: Sizes = Sizes()) -> Sam:
    """The network, without weights."""
    from limner.models.sam_med2d.network import Adapter
    from limner.networks.blocks.mask_decoder import MaskDecoder, Sam
    from limner.networks.blocks.prompt_encoder import PromptEncoder
    from limner.networks.blocks.vit import ImageEncoder

    encoder = ImageEncoder(
        SIZE,
        dim=sizes.dim,
        depth=sizes.depth,
        heads=sizes.heads,
        whole=sizes.whole,
        out_channels=sizes.channels,
        adapter=partial(Adapter, sizes.dim, sizes.gate),
    )
    prompts = PromptEncoder(sizes.channels, grid=SIZE // 16, input_size=SIZE)
    return Sam(encoder, prompts, MaskDecoder(sizes.channels))


def _parts(sizes: Sizes) -> Sequence[Part]:
    network = partial(make_network, sizes)
    return sam_parts(network, SIZE, SIZE // 16, low_res=LOW_RES, channels=sizes.channels)


SAM_MED2D = Published(
    CARD,
    (WEIGHTS,),
    network="sam_med2d",
    sizes=Sizes(),
    small=SMALL,
    parts=_parts,
    model=lambda c: SamMed2d(c.card, c["encoder"], c["decoder"]),
    wanted=_WANTED,
)
VARIANTS = {"vit_b": SAM_MED2D.variant()}
