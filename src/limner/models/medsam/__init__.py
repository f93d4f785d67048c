"""MedSAM, which outlines what is in a box (https://doi.org/10.1038/s41467-024-44824-z), and
Segment Anything, whose network it is (https://arxiv.org/abs/2304.02643).

``vit_b`` is MedSAM as its authors run it: the image is squashed to a square of 1024 pixels by
cubic interpolation and spread to 0…1, the box is the only prompt, and probabilities, not logits,
are resized. ``vit_b_points`` is the predictor of Segment Anything, for its own weights and for
those trained like it: the aspect is kept, colours are normalised, clicks, boxes, rough masks and
the answer before are understood. MedSAM's weights load there, too, but were never shown clicks.
``lite`` is LiteMedSAM (`limner.models.medsam.lite`).

Files with the names of the authors and of Hugging Face's ``SamModel`` are both read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import Part, Published
from limner.adapters.sam import (
    EncodedPrompts,
    Floats,
    ImageEncoding,
    InputFrame,
    SamEmbedding,
    clip_score,
    decode_prompts,
    empty_answer,
    encode_prompts,
    log_odds,
    mask_input,
    resize_bilinear,
    sigmoid,
    to_eight_bit,
)
from limner.adapters.sam_network import sam_parts
from limner.checkpoints.cards import WeightsCard
from limner.models.medsam import lite
from limner.models.medsam.names import WANTED, remap
from limner.models.medsam.squash import squash

if TYPE_CHECKING:
    from limner.networks.blocks.mask_decoder import Sam
    from limner.runtime import Network


SIZE, STEP = 1024, 4  # side of the network's input; pixels of it per pixel of its answer
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green, blue, 0…255; SAM
CLEAR = 0  # the mask for prompts that leave no doubt
_AMBIGUOUS = (1, 2, 3)  # those for prompts that do
SOURCE = "https://doi.org/10.1038/s41467-024-44824-z, https://github.com/bowang-lab/MedSAM"

CARD = ModelCard(
    name="medsam/vit_b",
    summary="MedSAM: what is in a box, images of any modality",
    ndim=(2,),
    prompts=frozenset({"box"}),
    licence="Apache-2.0",
    source=SOURCE,
    zoom=False,
    window={2: SIZE},
    published=True,
)
POINTS_CARD = ModelCard(
    name="medsam/vit_b_points",
    summary="Segment Anything's ViT-B: clicks, boxes and rough masks; for SAM's own weights",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask"}),
    licence="Apache-2.0",
    source="https://arxiv.org/abs/2304.02643, https://github.com/facebookresearch/segment-anything",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = (
    WeightsCard(
        name="medsam_vit_b.pth",
        sources=("https://zenodo.org/records/10689643/files/medsam_vit_b.pth",),
        licence="Apache-2.0",
        size=375_049_145,
        note="the weights of the paper; the authors offer them at the link in their repository",
    ),
    WeightsCard(
        name="medsam-vit-base-flaviagiammarino.bin",
        sources=("hf:flaviagiammarino/medsam-vit-base/pytorch_model.bin",),
        licence="Apache-2.0",
        note="an older release of MedSAM (July 2023, 1,090,486 pairs of image and mask)",
    ),
    WeightsCard(
        name="medsam-vit-base-wanglab.bin",
        sources=("hf:wanglab/medsam-vit-base/pytorch_model.bin",),
        licence="Apache-2.0",
        note="the oldest release of MedSAM (spring 2023)",
    ),
)
POINTS_WEIGHTS = (
    WeightsCard(
        name="sam_vit_b_01ec64.pth",
        sources=("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",),
        licence="Apache-2.0",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        note="Segment Anything's own weights, trained on photographs",
    ),
)


class MedSam(ImageEncoding, BatchAnswers):
    """MedSAM: one box, one answer; what was answered before is not looked at.

    Args:
        card: its facts.
        encoder: (1, 3, 1024, 1024) to features.
        decoder: `limner.networks.blocks.mask_decoder.SamDecode`.
        exact: squash images as the authors do, by scikit-image, instead of tens of times faster.
        size: side of the network's input.
    """

    def __init__(
        self,
        card: ModelCard,
        encoder: Network,
        decoder: Network,
        *,
        exact: bool = False,
        size: int = SIZE,
    ) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder = encoder, decoder
        self._exact, self._size = exact, size

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Squashed and spread to 0…1."""
        check_understood(self.card, (), view.shape)
        image = squash(to_eight_bit(view), self._size, exact=self._exact)
        low = image.min()
        spread = (image - low) / max(float(image.max() - low), 1e-8)
        return _channels_first(spread), InputFrame.squashed(view.shape, self._size)

    def segment_batch(
        self, embedding: SamEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        Raises:
            PromptError: a question has several boxes, or another kind of prompt.
        """
        frame = embedding.frame
        encoded = [encode_prompts(self.card, question.prompts, frame) for question in questions]
        answers = [empty_answer(frame.shape) for _ in encoded]
        boxed = [k for k, question in enumerate(encoded) if question.has_box]
        decoded = decode_prompts(self._decoder, embedding.features, [encoded[k] for k in boxed])
        for k, (logits, quality) in zip(boxed, decoded, strict=True):
            probability = resize_bilinear(
                sigmoid(logits[CLEAR]), frame.shape
            )  # in this order, as trained
            answers[k] = Segmentation(log_odds(probability), clip_score(quality[CLEAR]))
        return answers


class SamPredictor(ImageEncoding, BatchAnswers):
    """Segment Anything's predictor.

    Clicks alone may mean several things: of three answers the one that the network trusts most
    counts. With a box, a rough mask or an answer before there is one answer.

    Args:
        card: its facts.
        encoder: (1, 3, 1024, 1024) to features.
        decoder: `limner.networks.blocks.mask_decoder.SamDecode`.
        size: side of the network's input.
    """

    def __init__(
        self, card: ModelCard, encoder: Network, decoder: Network, *, size: int = SIZE
    ) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder, self._size = encoder, decoder, size

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Shrunk or enlarged to 1024 pixels on the longer side, normalised, padded with 0."""
        check_understood(self.card, (), view.shape)
        frame = InputFrame.longest(view.shape, self._size)
        rows, columns = frame.inside
        resized = Image.fromarray(to_eight_bit(view)).resize(
            (columns, rows), Image.Resampling.BILINEAR
        )
        colours = np.asarray(resized, dtype=np.float32) - np.array(MEAN, np.float32)
        padded = np.zeros((self._size, self._size, 3), np.float32)
        padded[:rows, :columns] = colours / np.array(STD, np.float32)
        return _channels_first(padded), frame

    def segment_batch(
        self, embedding: SamEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        Raises:
            PromptError: several boxes for one object, or a kind of prompt that the card does not
                list.
        """

        def chosen(encoded: EncodedPrompts, quality: NDArray[np.float32]) -> list[int]:
            return [_AMBIGUOUS[int(np.argmax(quality[1:]))] if _is_open(encoded) else CLEAR]

        return [answers[0] for answers in self._answers(embedding, questions, chosen)]

    def propose(
        self, embedding: SamEmbedding, questions: Sequence[Question], least: float = 0.0
    ) -> list[list[Segmentation]]:
        """All three masks where clicks alone are asked about, as in Segment Anything's own
        automatic mode; otherwise the one. MedSAM's training used the one only, so with its weights
        the three are what was left of Segment Anything's.

        Args:
            embedding: from `embed`.
            questions: any number.
            least: masks with a lower score are left out, before they are enlarged.

        Raises:
            PromptError: as for `segment_batch`.
        """

        def chosen(encoded: EncodedPrompts, quality: NDArray[np.float32]) -> list[int]:
            masks = _AMBIGUOUS if _is_open(encoded) else (CLEAR,)
            return [k for k in masks if clip_score(quality[k]) >= least]

        return self._answers(embedding, questions, chosen)

    def _answers(
        self,
        embedding: SamEmbedding,
        questions: Sequence[Question],
        chosen: Callable[[EncodedPrompts, NDArray[np.float32]], list[int]],
    ) -> list[list[Segmentation]]:
        """The masks that `chosen` picks by question and predicted quality."""
        frame = embedding.frame
        encoded = [
            encode_prompts(self.card, q.prompts, frame, mask_input(q, frame, self._size // STEP))
            for q in questions
        ]
        answers = [[empty_answer(frame.shape)] for _ in encoded]
        answerable = [k for k, q in enumerate(encoded) if len(q.labels) or q.mask is not None]
        decoded = decode_prompts(
            self._decoder, embedding.features, [encoded[k] for k in answerable]
        )
        for k, (logits, quality) in zip(answerable, decoded, strict=True):
            answers[k] = []
            for index in chosen(encoded[k], quality):
                low_res = logits[index].copy()  # not the batch that it is part of
                found = Segmentation(frame.to_view(low_res), clip_score(quality[index]), low_res)
                answers[k].append(found)
        return answers


def _is_open(encoded: EncodedPrompts) -> bool:
    """Whether a question leaves open what is meant: clicks alone."""
    return encoded.mask is None and not encoded.has_box


def _channels_first(image: NDArray[np.floating]) -> Floats:
    """(row, column, 3) to (1, 3, row, column), float32."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)


@dataclass(frozen=True)
class Sizes:
    """Sizes of Segment Anything's network; by default ViT-B's.

    Attributes:
        side: of the input in pixels.
        dim: channels of the image encoder.
        depth: its blocks.
        heads: of its attention.
        whole: which of its blocks attend over the whole grid.
        channels: of the embedding.
    """

    side: int = SIZE
    dim: int = 768
    depth: int = 12
    heads: int = 12
    whole: tuple[int, ...] = (2, 5, 8, 11)
    channels: int = 256


SMALL = Sizes(side=64, dim=32, depth=2, heads=2, whole=(1,), channels=32)


def make_network(sizes: Sizes) -> Sam:
    """Segment Anything's network, without weights."""
    from limner.networks.blocks.mask_decoder import MaskDecoder, Sam
    from limner.networks.blocks.prompt_encoder import PromptEncoder
    from limner.networks.blocks.vit import ImageEncoder

    encoder = ImageEncoder(
        sizes.side,
        dim=sizes.dim,
        depth=sizes.depth,
        heads=sizes.heads,
        whole=sizes.whole,
        out_channels=sizes.channels,
    )
    prompts = PromptEncoder(sizes.channels, grid=sizes.side // 16, input_size=sizes.side)
    return Sam(encoder, prompts, MaskDecoder(sizes.channels))


def _parts(sizes: Sizes) -> Sequence[Part]:
    return sam_parts(
        partial(make_network, sizes),
        sizes.side,
        sizes.side // 16,
        low_res=sizes.side // STEP,
        channels=sizes.channels,
    )


MEDSAM = Published(
    CARD,
    WEIGHTS,
    network="sam-vit_b",
    sizes=Sizes(),
    small=SMALL,
    parts=_parts,
    model=lambda c: MedSam(c.card, c["encoder"], c["decoder"], exact=c.exact, size=c.sizes.side),
    wanted=WANTED,
    remap=remap,
)
POINTS = replace(
    MEDSAM,
    card=POINTS_CARD,
    weights=(*POINTS_WEIGHTS, *WEIGHTS),
    model=lambda c: SamPredictor(c.card, c["encoder"], c["decoder"], size=c.sizes.side),
)

VARIANTS = {
    "vit_b": MEDSAM.variant(),
    "vit_b_points": POINTS.variant(),
    **lite.VARIANTS,
}
