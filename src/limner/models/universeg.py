"""universeg: UniverSeg, which is shown images with masks and does the same to another image
(https://arxiv.org/abs/2304.06131, https://github.com/JJGO/UniverSeg).

No clicks, no boxes: the only prompts are examples, and the more the better, up to the 64 it was
trained with. Each image, query or example, is squashed to 128x128 in grey of 0…1 by the same
rule. Nothing is remembered between rounds: an answer depends on image and examples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.grey import mean_confidence, to_grey
from limner.adapters.intensity import robust_limits
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import ModelCard, Segmentation, View
from limner.adapters.published import Compiled, Part, Published, Weights
from limner.adapters.sam import resize_bilinear
from limner.checkpoints.cards import WeightsCard
from limner.errors import PromptError
from limner.prompts.types import Example, Prompt

if TYPE_CHECKING:
    from torch import nn

    from limner.runtime import Network

Floats = NDArray[np.float32]

SIZE = 128  # pixels per side of what the network sees
WIDTH = 64  # features at every level
AT_ONCE = 8  # pairs that the first level sees at a time
MOST_EXAMPLES = 64  # as in training; with them an answer takes some 3 s and 0.6 GB
NOTHING = -10.0  # logit everywhere where no example says what is meant

CARD = ModelCard(
    name="universeg/v1",
    summary="UniverSeg: does to an image what was done to the examples that it is shown",
    ndim=(2,),
    prompts=frozenset({"example"}),
    licence="OpenRAIL++-M, research only",
    source="https://arxiv.org/abs/2304.06131, https://github.com/JJGO/UniverSeg",
    zoom=False,
    window={2: SIZE},
    published=True,
)
WEIGHTS = WeightsCard(
    name="universeg_v1_nf64_ss64_STA.pt",
    sources=(
        "https://github.com/JJGO/UniverSeg/releases/download/weights/universeg_v1_nf64_ss64_STA.pt",
    ),
    licence="OpenRAIL++-M, research only",
)


@dataclass(frozen=True, eq=False)
class UniverSegEmbedding:
    """A view as the network sees it.

    Attributes:
        image: float32 (SIZE, SIZE), 0…1.
        shape: of the view.
        window: the intensities that the user asked to see as black and white; None for none.
    """

    image: Floats
    shape: tuple[int, ...]
    window: tuple[float, float] | None


class UniverSegModel:
    """The network with everything around it.

    Args:
        network: an image (1, 1, SIZE, SIZE) and pairs (S, 2, SIZE, SIZE) to logits
            (1, 1, SIZE, SIZE).
        card: its facts.
    """

    def __init__(self, network: Network, card: ModelCard) -> None:
        self.card = replace(card, runtime=network.description)
        self._network = network

    def embed(self, view: View) -> UniverSegEmbedding:
        """The image in grey, squashed to the network's square."""
        check_understood(self.card, (), view.shape)
        return UniverSegEmbedding(
            _squash(to_grey(view)), view.shape, view.intensity if view.windowed else None
        )

    def segment(
        self,
        embedding: UniverSegEmbedding,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """One pass over all examples; `previous` says nothing to this network.

        Raises:
            PromptError: another kind of prompt, or more examples than `MOST_EXAMPLES`.
        """
        check_understood(self.card, prompts, embedding.shape)
        examples = [p for p in prompts if isinstance(p, Example)]
        if not examples:
            return Segmentation(np.full(embedding.shape, NOTHING, np.float32), 0.0)
        if len(examples) > MOST_EXAMPLES:
            raise PromptError(
                f"{self.card.name} takes up to {MOST_EXAMPLES} examples, not {len(examples)}; "
                "leave some out."
            )
        pairs = np.stack([encode_example(example, embedding.window) for example in examples])
        (logits,) = self._network(embedding.image[None, None], pairs)
        rows, columns = embedding.shape
        answer = resize_bilinear(logits[0, 0], (rows, columns))
        return Segmentation(answer, mean_confidence(answer))


class SplitNetwork:
    """The network in two parts, the first of which sees some pairs at a time: much less memory.

    Args:
        first: `limner.networks.universeg.FirstLevel`.
        further: `limner.networks.universeg.Further`.
    """

    def __init__(self, first: Network, further: Network) -> None:
        self.description = first.description
        self._first, self._further = first, further

    def __call__(self, *inputs: Floats) -> tuple[Floats, ...]:
        """An image and pairs to logits; see `UniverSegModel`."""
        image, pairs = inputs
        groups = [pairs[k : k + AT_ONCE] for k in range(0, len(pairs), AT_ONCE)]
        own, seen, small = zip(*(self._first(image, some) for some in groups), strict=True)
        count = np.float32(len(pairs))
        return self._further(image, sum(own) / count, sum(seen) / count, np.concatenate(small))


def encode_example(example: Example, window: tuple[float, float] | None) -> Floats:
    """An example as the network sees it.

    Its image is treated like the query: bytes divided by 255; other numbers by
    the window the user asked for, else by robust limits of that image. Its mask is squashed by
    taking the nearest pixel, so that it stays a mask: each of the network's pixels is in it if the
    pixel under its centre is.

    Args:
        example: any size.
        window: of the image that is asked about. Images in bytes have been windowed already.

    Returns:
        (2, SIZE, SIZE): image 0…1, and mask 0 or 1.
    """
    pixels = example.image
    if window is None or pixels.dtype == np.uint8:
        view = View(pixels, (1.0, 1.0), robust_limits(pixels))
    else:
        view = View(pixels, (1.0, 1.0), window, windowed=True)
    rows, columns = (((np.arange(SIZE) + 0.5) * n / SIZE).astype(int) for n in example.mask.shape)
    mask = example.mask[np.ix_(rows, columns)]
    return np.stack([_squash(to_grey(view)), mask.astype(np.float32)])


def _squash(image: Floats) -> Floats:
    """To (SIZE, SIZE), bilinear over all pixels (antialiased), as the authors' examples do it."""
    if image.shape == (SIZE, SIZE):
        return image
    from PIL import Image

    whole: Any = Image.fromarray(np.ascontiguousarray(image))
    small = whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(small, dtype=np.float32), 0.0, 1.0)


def make_part(width: int, which: str, weights: Weights) -> nn.Module:
    """The network, or part of it; its names are the published ones.

    Args:
        width: features at every level.
        which: ``"whole"``, ``"first"`` level or ``"further"`` ones.
        weights: of the network.
    """
    from limner.networks.universeg import FirstLevel, Further, UniverSeg

    network = UniverSeg(width)
    weights.fill(network)
    if which == "whole":
        return network
    return FirstLevel(network) if which == "first" else Further(network)


def _parts(width: int) -> Sequence[Part]:
    image, pairs = (1, 1, SIZE, SIZE), (None, 2, SIZE, SIZE)
    maps, small = (1, width, SIZE, SIZE), (None, width, SIZE // 2, SIZE // 2)
    part = partial(partial, make_part, width)
    return (
        Part("whole", part("whole"), [image, pairs], deferred=True),
        Part("first", part("first"), [image, pairs], deferred=True),
        Part("further", part("further"), [image, maps, maps, small], deferred=True),
    )


def _model(compiled: Compiled[int]) -> UniverSegModel:
    """Whole where the authors' arithmetic is asked for, else in parts."""
    made = compiled.deferred
    if compiled.exact:
        return UniverSegModel(made["whole"](), compiled.card)
    return UniverSegModel(SplitNetwork(made["first"](), made["further"]()), compiled.card)


UNIVERSEG = Published(
    CARD,
    (WEIGHTS,),
    network="universeg",
    sizes=WIDTH,
    small=8,
    parts=_parts,
    model=_model,
)
VARIANTS = {"v1": UNIVERSEG.variant()}
