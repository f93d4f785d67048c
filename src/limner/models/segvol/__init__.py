"""segvol: SegVol, which finds what words, clicks and a box mean in a CT volume
(https://arxiv.org/abs/2311.13385, https://github.com/BAAI-DCAI/SegVol).

A network of Segment Anything's kind for volumes of 32 x 256 x 256, one mask at a time. It views
twice (`zoom`), by itself: the whole volume shrunk, then windows at full resolution around
what was found; so sessions show it the whole. ``vit_b`` is limner's own way, ``vit_b_published``
repeats the authors' script to the voxel, with its defects.

As the authors' scripts name it, the first axis runs from feet to head, the others from back to
front and from left to right. ``vit_b`` turns volumes so by their orientation; the published script
means to and does not, so ``vit_b_published`` takes them as they are stored.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, facing
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import BatchAnswers, ModelCard, Question, Segmentation, View
from limner.adapters.published import Compiled, FileWeights, Part, Published, Weights
from limner.adapters.sam import NEGATIVE, POSITIVE, one_box, resize_bilinear, sigmoid
from limner.checkpoints.cards import WeightsCard
from limner.errors import CheckpointError, PromptError
from limner.models.segvol import vocabulary as words
from limner.models.segvol.prompts import VolumePrompts, WindowPrompts
from limner.models.segvol.sizes import PUBLISHED, SMALL, Plan
from limner.models.segvol.tokens import sentence
from limner.models.segvol.volume import (
    SIZE,
    Bounds,
    Floats,
    Volume,
    Window,
    make_finite,
    prepare_volume,
    prepare_volume_as_published,
)
from limner.models.segvol.zoom import ZoomedAnswer, zoom_in, zoom_in_as_published
from limner.prompts.types import Box, Click, Prompt, TextPrompt

if TYPE_CHECKING:
    from torch import nn

    from limner.runtime import Network

_log = logging.getLogger(__name__)

ORIENTATION = "SAR"  # where the axes run to: head, front, right
BACKGROUND = -10.0  # logits where the volume is not looked at: the order of what it says outside
MOST_AT_ONCE = 2  # questions in one pass of the decoder, 100 MB each; more are no faster
MOST_KEPT = 64  # windows of a volume whose encodings are kept, 6 MB each
MOST_WORDS = 256  # that are remembered
_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.", "text_encoder.")
_WANTED = (
    "image_encoder.patch_embedding.position_embeddings",
    "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.iou_token.weight",
    "text_encoder.dim_align.weight",
)

CARD = ModelCard(
    name="segvol/vit_b",
    summary="SegVol: words, clicks and boxes on CT volumes",
    ndim=(3,),
    prompts=frozenset({"click", "box", "text"}),
    licence="MIT",
    source="https://arxiv.org/abs/2311.13385, https://github.com/BAAI-DCAI/SegVol",
    zoom=False,
    window={3: SIZE},
    published=True,
)
PUBLISHED_CARD = replace(
    CARD,
    name="segvol/vit_b_published",
    summary="SegVol exactly as in its authors' script: a word with clicks or a box, or alone",
)
WEIGHTS = WeightsCard(
    name="SegVol_v1.pth",
    sources=("hf:BAAI/SegVol/SegVol_v1.pth",),
    licence="MIT",
    note="the authors' weights, with an optimiser and so larger than the 720 MB that are used",
)


class FeatureCache:
    """Encodings of the windows of one volume, the last regions looked at, at most `MOST_KEPT`."""

    def __init__(self) -> None:
        self._features: OrderedDict[Any, Floats] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, window: Window, encode: Callable[[Floats], Floats]) -> Floats:
        """What the encoder says of a window, from memory if it is there.

        Windows of one region do not push one another out: of a region with more than there is room
        for, the first are kept, which spares more than keeping the last.
        """
        with self._lock:
            if window.key in self._features:
                self._features.move_to_end(window.key)
                return self._features[window.key]
        features = encode(window.image())
        with self._lock:
            while len(self._features) >= MOST_KEPT:
                oldest = next((k for k in self._features if k[1:] != window.key[1:]), None)
                if oldest is None:
                    return features
                del self._features[oldest]
            self._features[window.key] = features
        return features


@dataclass(frozen=True, eq=False)
class VolumeEmbedding:
    """A volume that SegVol has looked at from afar.

    Attributes:
        shape: of the view.
        axes: how the view is turned for the network.
        volume: prepared, turned.
        coarse: features of the whole, float32 (1, dim, *cells).
        windows: those of what was looked at closely.
    """

    shape: tuple[int, ...]
    axes: Axes
    volume: Volume
    coarse: Floats
    windows: FeatureCache = field(default_factory=FeatureCache)


@dataclass(frozen=True, eq=False)
class Networks:
    """What computes.

    Attributes:
        encoder: (1, 1, *SIZE) to features.
        decoder: `limner.models.segvol.network.SegVolDecode`.
        make_speaker: makes `limner.models.segvol.network.TextEncoder`; called where there are new
            words, since it is large and seldom needed.
    """

    encoder: Network
    decoder: Network
    make_speaker: Callable[[], Network]


class SegVol(BatchAnswers):
    """The network with everything around it.

    Args:
        card: its facts.
        networks: what computes.
        weights: their file, beside which CLIP's list of merges may lie; None for nowhere.
        as_published: do all as the authors' script does.
    """

    def __init__(
        self,
        card: ModelCard,
        networks: Networks,
        weights: Path | None = None,
        *,
        as_published: bool = False,
    ) -> None:
        self.card = replace(card, runtime=networks.encoder.description)
        self._networks, self._weights, self._as_published = networks, weights, as_published
        self._vectors: OrderedDict[str, Floats] = OrderedDict()

    def check(self, prompt: Prompt) -> None:
        """Warn of words that the network has not seen, and refuse those that it cannot read."""
        if isinstance(prompt, TextPrompt):
            self._sentence(prompt.text)
            if not words.is_trained(prompt.text):
                _log.warning("%s", words.unknown(prompt.text))

    def embed(self, view: View) -> VolumeEmbedding:
        """Prepare the volume, and encode the whole of it shrunk."""
        check_understood(self.card, (), view.shape)
        pixels = view.array
        if pixels.ndim > len(view.shape):
            pixels = pixels.mean(axis=-1, dtype=np.float32)
        pixels = make_finite(pixels)
        if self._as_published:
            axes = Axes.same(3) if view.turned is None else view.turned.inverse
            if view.windowed:
                _log.warning("%s knows no window of intensities; it is ignored.", self.card.name)
            volume = prepare_volume_as_published(axes.apply(pixels))
        else:
            axes = facing(view.directions, ORIENTATION)
            limits = view.intensity if view.windowed else None
            volume = prepare_volume(axes.apply(pixels), limits)
        return VolumeEmbedding(view.shape, axes, volume, self._encode(volume.coarse().image()))

    def segment_batch(
        self, embedding: VolumeEmbedding, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        All are asked about the whole together, then each is looked at closely. Of several words
        about one object the newest counts. The answer before is not shown to the network, only its
        region is kept where it will do, so that its windows need not be encoded again. The score is
        the Dice that the network itself expects of the mask, taking its probabilities for true.

        Raises:
            PromptError: nothing was asked, a kind of prompt that the model does not know, several
                boxes for one object, words that it cannot read, or in the published way clicks
                together with a box.
            CheckpointError: a word, and the weights file has no text tower.
        """
        texts = [self._word(q.prompts) for q in questions]
        vectors = self._speak([word for word in texts if word is not None])
        volume_prompts = [
            self._volume_prompts(embedding, q.prompts, None if word is None else vectors[word])
            for q, word in zip(questions, texts, strict=True)
        ]
        window_prompts = [m.shrunk(embedding.volume.shape) for m in volume_prompts]
        coarse = self._decode(embedding.coarse, window_prompts)
        decode_window = partial(self._decode_window, embedding)
        answers = []
        for question, m, a, low_res in zip(
            questions, volume_prompts, window_prompts, coarse, strict=True
        ):
            logits = upsample_logits(low_res)
            if self._as_published:
                zoomed = zoom_in_as_published(embedding.volume, a, logits, decode_window)
            else:
                zoomed = zoom_in(embedding.volume, m, logits, decode_window, question.memory)
            answers.append(_answer(embedding, zoomed))
        return answers

    def _word(self, prompts: Sequence[Prompt]) -> str | None:
        """The newest word."""
        texts = [p.text for p in prompts if isinstance(p, TextPrompt)]
        return words.find(texts[-1]) if texts else None

    def _sentence(self, word: str) -> tuple[int, ...]:
        return sentence(word, self.card.name, self._weights)

    def _speak(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Words as the decoder takes them, (dim,)."""
        new = [word for word in dict.fromkeys(texts) if word not in self._vectors]
        if new:
            speaker = self._networks.make_speaker()
            for word in new:
                tokens = np.array([self._sentence(word)], np.float32)
                self._vectors[word] = speaker(tokens)[0][0]
        found = {word: self._vectors[word] for word in texts}
        while len(self._vectors) > MOST_WORDS:
            self._vectors.popitem(last=False)
        return found

    def _volume_prompts(
        self, embedding: VolumeEmbedding, prompts: Sequence[Prompt], text: Floats | None
    ) -> VolumePrompts:
        """Prompts in voxels of the volume; what lies outside it is moved to its edge."""
        check_understood(self.card, prompts, embedding.shape)
        one_box(self.card, prompts)
        volume, points, labels, box = embedding.volume, [], [], None
        last = np.array(volume.shape) - 1
        for prompt in prompts:
            placed = embedding.axes.prompt(prompt, embedding.shape)
            if isinstance(placed, Click):
                points.append(np.clip(np.subtract(placed.at, volume.low), 0, last))
                labels.append(POSITIVE if placed.positive else NEGATIVE)
            elif isinstance(placed, Box):
                box = _inside(placed, volume)
        if not labels and box is None and text is None:
            raise PromptError(f"{self.card.name} needs a click, a box or a word.")
        if self._as_published and labels and box is not None:
            raise PromptError(
                f"{self.card.name} takes clicks or a box, as its authors' script does; "
                f"{CARD.name} takes both."
            )
        places = np.array(points, np.float64).reshape(-1, 3)
        return VolumePrompts(places, np.array(labels, np.float32), box, text)

    def _encode(self, image: Floats) -> Floats:
        return self._networks.encoder(np.ascontiguousarray(image[None, None]))[0]

    def _decode_window(
        self, embedding: VolumeEmbedding, window: Window, window_prompts: WindowPrompts
    ) -> Floats:
        """Logits of `SIZE` for prompts about a window."""
        features = embedding.windows.get(window, self._encode)
        return upsample_logits(self._decode(features, [window_prompts])[0])

    def _decode(self, features: Floats, window_prompts: Sequence[WindowPrompts]) -> list[Floats]:
        """Low-resolution logits, (32, 64, 64) each, for prompts about one image."""
        forms: dict[tuple[int, bool], list[int]] = {}
        tokens = [a.tokens() for a in window_prompts]
        for k, (_, labels) in enumerate(tokens):
            forms.setdefault((len(labels), window_prompts[k].text is not None), []).append(k)
        answers: dict[int, Floats] = {}
        for alike in forms.values():
            for start in range(0, len(alike), MOST_AT_ONCE):
                part = alike[start : start + MOST_AT_ONCE]
                points, labels = (np.stack([tokens[k][j] for k in part]) for j in (0, 1))
                spoken = [[t] for k in part if (t := window_prompts[k].text) is not None]
                nothing = np.zeros((len(part), 0, features.shape[1]), np.float32)
                text = np.array(spoken, np.float32) if spoken else nothing
                (low_res,) = self._networks.decoder(features, points, labels, text)
                answers.update(zip(part, low_res[:, 0], strict=True))
        return [answers[k] for k in range(len(window_prompts))]


def upsample_logits(low_res: Floats) -> Floats:
    """(32, 64, 64) to `SIZE`, linearly; the first axis stays."""
    return resize_bilinear(low_res, SIZE[1:])


def _inside(box: Box, volume: Volume) -> Bounds:
    """A box in voxels of the volume, one at least."""
    shape = np.array(volume.shape)
    low = np.clip(np.floor(np.subtract(box.low, volume.low)), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(np.subtract(box.high, volume.low)), low + 1, shape).astype(int)
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _answer(embedding: VolumeEmbedding, zoomed: ZoomedAnswer) -> Segmentation:
    axes, volume = embedding.axes, embedding.volume
    turned = np.full(volume.array.shape, BACKGROUND, np.float32)
    zoomed.fill(
        turned[tuple(slice(a, a + n) for a, n in zip(volume.low, volume.shape, strict=True))]
    )
    seen = zoomed.coarse if zoomed.logits is None else zoomed.logits
    return Segmentation(axes.undo(turned), _expected_dice(seen), zoomed.bounds)


def _expected_dice(logits: NDArray[np.float32]) -> float:
    """Of a mask, if the probabilities are true; of an empty one 0."""
    inside = shares = common = 0.0
    for slice_logits in logits:
        probability = sigmoid(np.nan_to_num(slice_logits, nan=BACKGROUND))
        found = probability > 0.5
        inside += float(found.sum())
        shares += float(probability.sum(dtype=np.float64))
        common += float(probability.sum(dtype=np.float64, where=found))
    return 2.0 * common / (inside + shares) if inside else 0.0


def make_part(plan: Plan, name: str, weights: Weights, *more: str) -> Any:
    """Parts of the network with their weights.

    Args:
        plan: sizes of the network.
        name: of a part, such as ``"image_encoder"``.
        weights: of the network.
        more: names of further parts.
    """
    from limner.models.segvol.network import parts

    names = (name, *more)
    others = tuple(part for part in _PARTS if part.removesuffix(".") not in names)
    network = parts(plan, *names)
    weights.fill(network, leave_out=others)
    return network


def _encoder(plan: Plan, weights: Weights) -> nn.Module:
    encoder: nn.Module = make_part(plan, "image_encoder", weights).image_encoder
    return encoder


def _decoder(plan: Plan, weights: Weights) -> nn.Module:
    from limner.models.segvol.network import SegVolDecode

    network = make_part(plan, "prompt_encoder", weights, "mask_decoder")
    return SegVolDecode(network.prompt_encoder, network.mask_decoder)


def _text_encoder(plan: Plan, weights: Weights) -> nn.Module:
    part = "text_encoder"
    if isinstance(weights, FileWeights) and not any(n.startswith(part) for n in weights.tensors()):
        raise CheckpointError(
            f"{weights.path} is without the text tower, so it understands clicks and boxes only; "
            f"words need the authors' whole file, {WEIGHTS.name}."
        )
    encoder: nn.Module = make_part(plan, part, weights).text_encoder
    return encoder


def _parts(plan: Plan) -> Sequence[Part]:
    return (
        Part(
            "encoder", partial(_encoder, plan), [(1, 1, *plan.size)], precision="auto", encodes=True
        ),
        Part(
            "decoder",
            partial(_decoder, plan),
            [(1, plan.dim, *plan.cells), (None, None, 3), (None, None), (None, None, plan.dim)],
        ),
        Part("text", partial(_text_encoder, plan), [(1, None)], deferred=True),
    )


def _remap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    from limner.models.segvol.network import remap

    return remap(state)


def _model(compiled: Compiled[Plan]) -> SegVol:
    networks = Networks(compiled["encoder"], compiled["decoder"], compiled.deferred["text"])
    as_published = compiled.card.name == PUBLISHED_CARD.name
    return SegVol(compiled.card, networks, compiled.file, as_published=as_published)


SEGVOL = Published(
    CARD,
    (WEIGHTS,),
    network="segvol",
    sizes=PUBLISHED,
    small=SMALL,
    parts=_parts,
    model=_model,
    wanted=_WANTED,
    remap=_remap,
)
VARIANTS = {
    "vit_b": SEGVOL.variant(),
    "vit_b_published": replace(SEGVOL, card=PUBLISHED_CARD).variant(),
}
