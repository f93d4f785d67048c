"""scribbleprompt: ScribblePrompt's U-Net, which takes clicks, boxes and scribbles together on 2D
images (https://arxiv.org/abs/2312.07381, https://github.com/halleewong/ScribblePrompt).

Image and prompts are fused in the first layer, so there is nothing to embed but the image. The
network is squashed to 128x128 by the authors' helper: bilinear without antialiasing, positions cut
to whole numbers. Each round it is shown the logits of its own last answer, not probabilities, in a
channel that it was taught with nothing else; so rough masks and lassos are not understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner.adapters.grey import mean_confidence, to_grey
from limner.adapters.prompt_checks import check_understood, mask_of_prompt
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import Part, Published, Weights
from limner.adapters.sam import log_odds, resize_bilinear, sigmoid
from limner.checkpoints.cards import WeightsCard
from limner.prompts.types import Box, Click, Scribble

if TYPE_CHECKING:
    from torch import nn

    from limner.runtime import Network

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

SIZE = 128  # pixels per side of what the network sees
IMAGE, REGION, POSITIVE, NEGATIVE, PREVIOUS = range(5)  # channels of its input
MOST_AT_ONCE = 8  # questions in one pass: about 0.5 GB

CARD = ModelCard(
    name="scribbleprompt/unet",
    summary="ScribblePrompt: clicks, boxes and scribbles on grey images of any modality",
    ndim=(2,),
    prompts=frozenset({"click", "box", "scribble"}),
    licence="Apache-2.0",
    source="https://arxiv.org/abs/2312.07381, https://github.com/halleewong/ScribblePrompt",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = WeightsCard(
    name="ScribblePrompt_unet_v1_nf192_res128.pt",
    sources=(),
    licence="Apache-2.0",
    note="in a shared folder linked from https://github.com/halleewong/ScribblePrompt; after "
    "downloading: limner models add scribbleprompt/unet ScribblePrompt_unet_v1_nf192_res128.pt",
)


@dataclass(frozen=True, eq=False)
class ScribblePromptEmbedding:
    """A view as the network sees it, without prompts.

    Attributes:
        image: float32 (SIZE, SIZE), 0…1.
        shape: of the view.
    """

    image: Floats
    shape: tuple[int, ...]


class ScribblePrompt(BatchAnswers):
    """The network with everything around it.

    Args:
        network: (B, 5, SIZE, SIZE) to logits (B, 1, SIZE, SIZE).
        card: its facts.
    """

    def __init__(self, network: Network, card: ModelCard) -> None:
        self.card = replace(card, runtime=network.description)
        self._network = network

    def embed(self, view: View) -> ScribblePromptEmbedding:
        """The image in grey, squashed to the network's square."""
        check_understood(self.card, (), view.shape)
        return ScribblePromptEmbedding(resize_bilinear(to_grey(view), (SIZE, SIZE)), view.shape)

    def segment_batch(
        self, embedding: ScribblePromptEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Some questions a pass.

        `Question.memory` is the network's own last answer; without it the logits of the round
        before are squashed like the image. `Segmentation.memory` is float32 (SIZE, SIZE).
        """
        inputs = [network_input(self.card, embedding, question) for question in questions]
        answers: list[Segmentation] = []
        for start in range(0, len(inputs), MOST_AT_ONCE):
            (logits,) = self._network(np.stack(inputs[start : start + MOST_AT_ONCE]))
            answers += [_answer(own[0], embedding.shape) for own in logits]
        return answers


def _answer(logits: Floats, shape: tuple[int, ...]) -> Segmentation:
    """Logits on the view's grid: probabilities are resized, as the authors' demonstration does."""
    resized = logits
    if shape != logits.shape:
        resized = log_odds(resize_bilinear(sigmoid(logits), (shape[0], shape[1])))
    return Segmentation(resized, mean_confidence(resized), logits)


def network_input(
    card: ModelCard, embedding: ScribblePromptEmbedding, question: Question
) -> Floats:
    """Image, prompts and the answer before as channels.

    Args:
        card: of the model.
        embedding: of the view.
        question: about it.

    Returns:
        (5, SIZE, SIZE).

    Raises:
        PromptError: a kind of prompt that the card does not list.
    """
    shape = embedding.shape
    check_understood(card, question.prompts, shape)
    channels = np.zeros((5, SIZE, SIZE), np.float32)
    channels[IMAGE] = embedding.image
    strokes = []
    for prompt in question.prompts:
        if isinstance(prompt, Box):
            _fill_box(channels[REGION], prompt, shape)
        elif isinstance(prompt, Click):
            # A click speaks for both channels of its pixel, so that the later of two counts.
            row, column = _cells(np.clip(np.floor(np.add(prompt.at, 0.5)), 0, _last(shape)), shape)
            channels[POSITIVE, row, column] = float(prompt.positive)
            channels[NEGATIVE, row, column] = float(not prompt.positive)
        elif isinstance(prompt, Scribble):
            strokes.append(prompt)
    for channel in (POSITIVE, NEGATIVE):
        signed = [s for s in strokes if s.positive == (channel == POSITIVE)]
        channels[channel] = np.minimum(channels[channel] + _draw_strokes(signed, shape), 1.0)
    before = question.memory
    if before is None and question.previous is not None:
        before = resize_bilinear(question.previous, (SIZE, SIZE))
    if before is not None:
        channels[PREVIOUS] = before
    return channels


def _fill_box(canvas: Floats, box: Box, shape: tuple[int, ...]) -> None:
    """The box's pixels, in place; at least one, where the authors' helper may leave none."""
    low = _cells(np.clip(box.low, 0, _last(shape)), shape)
    high = _cells(np.clip(box.high, 0, shape), shape)
    high = np.minimum(np.maximum(high, low + 1), SIZE)
    canvas[low[0] : high[0], low[1] : high[1]] = 1.0


def _draw_strokes(strokes: Sequence[Scribble], shape: tuple[int, ...]) -> Floats:
    """Strokes as the authors' helper shrinks them, (SIZE, SIZE), 0…1.

    It looks at some of the view's pixels only. Of a stroke that it would miss altogether, the
    pixels that it passes are marked, as those of clicks are.
    """
    canvas = np.zeros((SIZE, SIZE), np.float32)
    prints = [mask_of_prompt(stroke, shape) for stroke in strokes]
    if prints:
        drawn = np.logical_or.reduce(prints)
        canvas = resize_bilinear(drawn.astype(np.float32), (SIZE, SIZE))
    for mask in prints:
        rows, columns = _cells(np.argwhere(mask), shape).T
        if not canvas[rows, columns].any():
            canvas[rows, columns] = 1.0
    return canvas


def _cells(places: NDArray[np.floating] | NDArray[np.integer], shape: tuple[int, ...]) -> Indices:
    """Index positions of the view, (..., 2), as whole numbers of the network's grid, cut off
    towards 0 in float32, as published.
    """
    scale = np.asarray(SIZE / np.asarray(shape, dtype=np.float64), dtype=np.float32)
    return np.asarray(np.asarray(places, dtype=np.float32) * scale, dtype=np.int64)


def _last(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.asarray(shape, dtype=np.int64) - 1


def make_network(width: int, weights: Weights) -> nn.Module:
    """The network with its weights; the names in it are the published ones."""
    from limner.networks.scribbleprompt import ScribblePromptUNet

    network = ScribblePromptUNet(width=width)
    weights.fill(network)
    return network


def _parts(width: int) -> Sequence[Part]:
    # In float32: it is shown its own logits again, so errors would add up.
    return (Part("unet", partial(make_network, width), [(None, 5, SIZE, SIZE)]),)


SCRIBBLEPROMPT = Published(
    CARD,
    (WEIGHTS,),
    network="scribbleprompt",
    sizes=192,
    small=8,
    parts=_parts,
    model=lambda c: ScribblePrompt(c["unet"], c.card),
)
VARIANTS = {"unet": SCRIBBLEPROMPT.variant()}
