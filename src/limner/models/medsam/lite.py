"""LiteMedSAM: MedSAM with a small encoder, fast on a laptop
(https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM, baseline of the CVPR 2024 challenge).

Unlike MedSAM, the aspect of the image is kept and the rest is padding, the box is cut to whole
pixels of the network's input, and logits are resized before they become probabilities. Volumes are
done slice by slice: the box of a slice follows from the mask on the one before
(`LiteMedSam.next_prompts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import Part, Published
from limner.adapters.resize_area import resize_area
from limner.adapters.sam import (
    HIGH_CORNER,
    LOW_CORNER,
    EncodedPrompts,
    Floats,
    ImageEncoding,
    InputFrame,
    SamEmbedding,
    clip_score,
    decode_prompts,
    one_box,
    resize_bilinear,
    to_eight_bit,
)
from limner.adapters.sam_network import sam_parts
from limner.checkpoints.cards import WeightsCard
from limner.errors import PromptError
from limner.prompts.types import Box, Prompt

if TYPE_CHECKING:
    from limner.networks.blocks.mask_decoder import Sam
    from limner.runtime import Network

SIZE = 256  # side of the network's input and of its answer
GRID = 64  # side of the embedding
CLEAR = 0  # the mask for prompts that leave no doubt, the only one that was trained
MARGIN = 3  # pixels of the input: how far a box reaches over the mask on the slice before

CARD = ModelCard(
    name="medsam/lite",
    summary="LiteMedSAM: what is in a box, fast; carries boxes through volumes",
    ndim=(2,),
    prompts=frozenset({"box"}),
    licence="Apache-2.0",
    source="https://doi.org/10.1038/s41467-024-44824-z, "
    "https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = WeightsCard(
    name="lite_medsam.pth",
    sources=(),
    licence="Apache-2.0",
    note="on Google Drive, linked from https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM; "
    "after downloading: limner models add medsam/lite lite_medsam.pth",
)


class LiteMedSam(ImageEncoding, BatchAnswers):
    """The network with everything around it: one box, one answer.

    Args:
        card: its facts.
        encoder: (1, 3, SIZE, SIZE) to features.
        decoder: `limner.networks.blocks.mask_decoder.SamDecode`.
    """

    def __init__(self, card: ModelCard, encoder: Network, decoder: Network) -> None:
        self.card = replace(card, runtime=encoder.description)
        self._encoder, self._decoder = encoder, decoder

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """Resized by area, spread to 0…1, padded with 0."""
        check_understood(self.card, (), view.shape)
        frame = InputFrame.longest(view.shape, SIZE)
        return network_input(view, frame), frame

    def segment_batch(
        self, embedding: SamEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        Raises:
            PromptError: a question has no box, several, or another kind of prompt.
        """
        frame = embedding.frame
        encoded = [encode_box(self.card, question.prompts, frame) for question in questions]
        answers = []
        for logits, quality in decode_prompts(self._decoder, embedding.features, encoded):
            inside = logits[CLEAR, : frame.inside[0], : frame.inside[1]]
            answers.append(
                Segmentation(resize_bilinear(inside, frame.shape), clip_score(quality[CLEAR]))
            )
        return answers

    def next_prompts(
        self, view: View, before: Segmentation, prompts: Sequence[Prompt]
    ) -> Sequence[Prompt]:
        """What to ask on the next slice of a volume or frame of a video, as published.

        Args:
            view: of the slice that is to be asked about.
            before: the answer on the slice before, on a view of the same shape.
            prompts: of the first slice, which the user gave; not what was carried since.

        Returns:
            A box around the mask before, or `prompts` where nothing of that is left.
        """
        low, high = next_box(before.logits > 0) or ((), ())
        if not low:
            return prompts
        # The middles of the input's pixels, so that they are cut to the same ones again.
        step = max(view.shape) / SIZE
        start, stop = (tuple((n + 0.5) * step for n in corner) for corner in (low, high))
        return [Box(start, tuple(max(b, a + 1.0) for a, b in zip(start, stop, strict=True)))]


def network_input(view: View, frame: InputFrame) -> Floats:
    """The image at the top left of (1, 3, SIZE, SIZE), 0…1; the padding is 0, which is black
    only because the darkest pixel of every image is.
    """
    image = resize_area(to_eight_bit(view), frame.inside)
    low, high = int(image.min()), int(image.max())
    spread = (image - float(low)) / max(float(high - low), 1e-8)
    padded = np.zeros((1, 3, SIZE, SIZE), np.float32)
    padded[0, :, : frame.inside[0], : frame.inside[1]] = spread.transpose(2, 0, 1)
    return padded


def encode_box(card: ModelCard, prompts: Sequence[Prompt], frame: InputFrame) -> EncodedPrompts:
    """A box as the decoder takes it: (x, y) of its corners in pixels of the input, cut off towards
    0, as published.

    Raises:
        PromptError: no box, several, or another kind of prompt.
    """
    check_understood(card, prompts, frame.shape)
    box = one_box(card, prompts)
    if box is None:
        raise PromptError(f"{card.name} needs a box around the object. Give one.")
    scale = SIZE / max(frame.shape)
    cut = np.trunc(np.array([box.low, box.high], dtype=np.float64) * scale)
    coords_xy = np.clip(cut, 0, SIZE)[:, ::-1].astype(np.float32)
    return EncodedPrompts(coords_xy, np.array([LOW_CORNER, HIGH_CORNER], np.float32))


def next_box(
    mask: NDArray[np.bool_], number: int = 1
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The box on the next slice that follows from a mask, in pixels of the network's input.

    Args:
        mask: (row, column), on the slice before.
        number: of the object. The mask is shrunk as an image of this grey level, so that of a
            number of 2 or more also thin parts survive the rounding; as published.

    Returns:
        (row, column) of the first and the last corner, `MARGIN` outside the mask; None where
        nothing of it is left.
    """
    image = mask.astype(np.uint8) * np.uint8(number)
    small = resize_area(image, InputFrame.longest(mask.shape, SIZE).inside)
    rows, columns = (np.flatnonzero((small > 0).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    low = max(0, int(rows[0]) - MARGIN), max(0, int(columns[0]) - MARGIN)
    high = min(SIZE, int(rows[-1]) + MARGIN), min(SIZE, int(columns[-1]) + MARGIN)
    return low, high


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network: channels, blocks, heads and windows of the encoder's stages, channels
    of the embedding.
    """

    dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    channels: int = 256


SMALL = Sizes((8, 8, 16, 16), (1, 1, 1, 1), (1, 1, 2, 2), channels=32)


def make_network(sizes: Sizes = Sizes()) -> Sam:
    """The network, without weights; its names are the published ones."""
    from limner.networks.blocks.mask_decoder import MaskDecoder, Sam
    from limner.networks.blocks.prompt_encoder import PromptEncoder
    from limner.networks.blocks.tiny_vit import TinyViT

    encoder = TinyViT(
        SIZE, sizes.dims, sizes.depths, sizes.heads, sizes.windows, out_channels=sizes.channels
    )
    prompts = PromptEncoder(sizes.channels, grid=GRID, input_size=SIZE)
    return Sam(encoder, prompts, MaskDecoder(sizes.channels))


def _parts(sizes: Sizes) -> Sequence[Part]:
    network = partial(make_network, sizes)
    return sam_parts(network, SIZE, GRID, low_res=SIZE, channels=sizes.channels)


LITE = Published(
    CARD,
    (WEIGHTS,),
    network="litemedsam",
    sizes=Sizes(),
    small=SMALL,
    parts=_parts,
    model=lambda c: LiteMedSam(c.card, c["encoder"], c["decoder"]),
)
VARIANTS = {"lite": LITE.variant()}
