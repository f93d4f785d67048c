"""medsam2: MedSAM2, SAM 2.1 with Hiera-tiny trained on with medical volumes and videos
(https://arxiv.org/abs/2504.03600, https://github.com/bowang-lab/MedSAM2), and SAM 2.1 itself
(https://arxiv.org/abs/2408.00714).

Clicks, boxes and masks are answered on a frame, and the answer is propagated through the others
by a memory: all frames that the user answered for, features of the six frames before, and
pointers to the object on fifteen. ``tiny`` is MedSAM2 as its authors run it, at 512 pixels;
``sam2_tiny`` is SAM 2.1 at 1024. Both are squashed to a square; the authors' file of either loads
in the other.

The network is that of `transformers` (`limner.models.medsam2.network`); what is kept of a frame,
and when, is decided here and in `limner.models.medsam2.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import (
    Array,
    BatchAnswers,
    ModelCard,
    PreviousFrame,
    Question,
    Segmentation,
    View,
)
from limner.adapters.published import Compiled, Part, Published, Weights
from limner.adapters.sam import (
    HIGH_CORNER,
    LOW_CORNER,
    MASK_LOGIT,
    NEGATIVE,
    PADDING,
    POSITIVE,
    Floats,
    InputFrame,
    clip_score,
    mask_input,
    one_box,
    resize_bilinear,
    sigmoid,
    to_eight_bit,
)
from limner.checkpoints.cards import WeightsCard
from limner.errors import PromptError
from limner.models.medsam2.memory import add_frame, read_memory
from limner.prompts.types import Click, MaskPrompt, Prompt

if TYPE_CHECKING:
    from torch import nn

    from limner.runtime import Network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue, 0…1
CLEAR = 0  # the mask for prompts that leave no doubt; the others are for those that do
MOST_LOGIT = 32.0  # of a mask that is shown to the network again
STABLE_BY, STABLE_FROM = (
    0.05,
    0.98,
)  # logits around 0, and the share of a mask that they may not move

CARD = ModelCard(
    name="medsam2/tiny",
    summary="MedSAM2: clicks, boxes and masks on a frame, propagated through volumes and videos",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask"}),
    licence="CC-BY-SA-4.0",  # of the weights; the code is Apache-2.0
    source="https://arxiv.org/abs/2504.03600, https://github.com/bowang-lab/MedSAM2",
    zoom=False,
    window={2: 512},
    published=True,
)
SAM2_CARD = ModelCard(
    name="medsam2/sam2_tiny",
    summary="SAM 2.1 (Hiera-tiny): clicks, boxes and masks on a frame, propagated through videos",
    ndim=(2,),
    prompts=frozenset({"click", "box", "mask"}),
    licence="Apache-2.0",
    source="https://arxiv.org/abs/2408.00714, https://github.com/facebookresearch/sam2",
    zoom=False,
    window={2: 1024},
    published=True,
)


def _medsam2(name: str, note: str) -> WeightsCard:
    return WeightsCard(f"{name}.pt", (f"hf:wanglab/MedSAM2/{name}.pt",), CARD.licence, note=note)


WEIGHTS = (
    _medsam2("MedSAM2_latest", "recommended by the authors"),
    _medsam2("MedSAM2_2411", "the first release, of November 2024"),
    _medsam2("MedSAM2_CTLesion", "trained on with lesions in CT"),
    _medsam2("MedSAM2_MRI_LiverLesion", "trained on with lesions of the liver in MRI"),
    _medsam2("MedSAM2_US_Heart", "trained on with ultrasound of the heart"),
)
SAM2_WEIGHTS = (
    WeightsCard(
        name="sam2.1_hiera_tiny.pt",
        sources=(
            "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
            "hf:facebook/sam2.1-hiera-tiny/sam2.1_hiera_tiny.pt",
        ),
        licence="Apache-2.0",
        note="SAM 2.1's own weights, trained on photographs and videos of everyday life",
    ),
)


@dataclass(frozen=True, eq=False)
class TrackedMask:
    """What was found on a frame by a memory.

    Attributes:
        memory: that memory.
        logits: as the session got them.
        low_res: (4g, 4g), logits of the whole input.
        pointer: (256,).
        present: whether there is an object.
    """

    memory: Mapping[str, Array]
    logits: Floats
    low_res: Floats
    pointer: Floats
    present: bool


@dataclass(frozen=True, eq=False)
class EncodedView:
    """A frame as the network sees it; g is the side of the input divided by 16.

    Attributes:
        fine: (1, 32, 4g, 4g).
        middle: (1, 64, 2g, 2g).
        coarse: (1, 256, g, g).
        alone: (1, 256), added to `coarse` where there is no memory.
        frame: where the view lies in the input.
        found: what was found here by memories, so that the network's own words of it are
            remembered; by their identity.
    """

    fine: Floats
    middle: Floats
    coarse: Floats
    alone: Floats
    frame: InputFrame
    found: dict[int, TrackedMask] = field(default_factory=dict)


@dataclass(frozen=True)
class Sam2Parts:
    """The network in parts; see `limner.models.medsam2.network`."""

    encoder: Network
    decoder: Network
    memory: Network
    attention: Network


class Sam2(BatchAnswers):
    """SAM 2's network with everything around it.

    Args:
        card: its facts.
        parts: the network.
        size: side of its input, a multiple of 32.
        smooth: enlarge and shrink single images as SAM 2's predictor for images does, and not
            like frames of a video.
    """

    def __init__(
        self, card: ModelCard, parts: Sam2Parts, size: int, *, smooth: bool = False
    ) -> None:
        self.card = replace(card, runtime=parts.encoder.description)
        self.size, self._parts, self._smooth = size, parts, smooth

    # One frame.

    def embed(self, view: View) -> EncodedView:
        """The image, encoded."""
        return self._encode_view(view, smooth=self._smooth)

    def segment_batch(
        self, embedding: EncodedView, questions: Sequence[Question]
    ) -> list[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone.

        As in SAM 2 a mask is taken as it is, and what was said before it is forgotten. One click
        may mean several things: of three masks the one that the network trusts most counts. More
        clicks or a box have one answer, unless that is unstable.

        `Segmentation.memory` is logits (4g, 4g) of the whole input, not above 32.

        Raises:
            PromptError: nothing was asked, several boxes for one object, or a kind of prompt that
                the card does not list.
        """
        return [self._answer(embedding, question) for question in questions]

    def _answer(self, encoded: EncodedView, question: Question) -> Segmentation:
        frame, prompts = encoded.frame, question.prompts
        check_understood(self.card, prompts, frame.shape)
        masks = [k for k, p in enumerate(prompts) if isinstance(p, MaskPrompt)]
        since = prompts[masks[-1] + 1 :] if masks else prompts
        if masks and not since:
            return self._drawn(prompts[masks[-1]], frame)
        coords, labels = encode_points(self.card, since, frame)
        mask_logits = mask_input(question, frame, self.size // 4)
        if not len(labels) and mask_logits is None:
            raise PromptError(f"{self.card.name} needs a click, a box or a mask. Give one.")
        coarse = encoded.coarse + encoded.alone[..., None, None]
        logits, quality, _, _ = self._decoded(encoded, coarse, coords, labels, mask_logits)
        index = most_trusted(quality) if len(labels) <= 1 else most_stable(logits, quality)
        low_res = np.clip(logits[index], -MOST_LOGIT, MOST_LOGIT)
        return Segmentation(
            resize_bilinear(logits[index], frame.shape), clip_score(quality[index]), low_res
        )

    def _drawn(self, prompt: Prompt, frame: InputFrame) -> Segmentation:
        """A mask as it was drawn."""
        assert isinstance(prompt, MaskPrompt)
        logits = np.where(prompt.mask, np.float32(MASK_LOGIT), np.float32(-MASK_LOGIT))
        low_res = frame.to_low_res(logits, self.size // 4, outside=-MASK_LOGIT)
        return Segmentation(logits, 1.0 if prompt.mask.any() else 0.0, low_res)

    # From frame to frame.

    def encode_window(self, view: View, origin: tuple[float, float]) -> EncodedView:
        """A frame, encoded; several objects may be followed on the same look.

        Args:
            view: what is seen.
            origin: not looked at: the network was taught whole frames.
        """
        return self._encode_view(view, smooth=False)

    def remember(
        self,
        memory: Mapping[str, Array] | None,
        encoded: EncodedView,
        logits: Floats,
        *,
        place: int,
        given: bool,
    ) -> dict[str, Array]:
        """The memory with one frame more.

        What `track_object` found on this view with this memory is remembered in the network's own
        words. All else, given or changed since, is remembered as SAM 2 does masks: their pixels,
        and the decoder's pointer to them.

        Args:
            memory: so far; None for none.
            encoded: of `encode_window`.
            logits: of the view's shape, above 0 inside the object.
            place: the frame's number.
            given: whether the user said so; ten such frames are not forgotten.
        """
        found = encoded.found.get(id(memory))
        if given or found is None or not np.array_equal(found.logits, logits):
            features, pointer = self._as_mask(encoded, logits > 0)
        else:
            mask = sigmoid(resize_bilinear(found.low_res, (self.size, self.size)))
            features, _, nobody = self._encoded(encoded, mask, found.present)
            pointer = found.pointer if found.present else nobody[0]
        return add_frame(memory, place, features, pointer, given=given)

    def track_object(
        self,
        memory: Mapping[str, Array],
        encoded: EncodedView,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        """The object on a frame, by memory.

        The score is the predicted IoU times the probability that there is an object; where that is
        below a half, the mask is empty.

        Args:
            memory: with one given frame at least.
            encoded: of `encode_window`.
            before: not looked at.
            place: the frame's number; None: frames are asked about one after the other.
        """
        known = read_memory(memory, place)
        (coarse,) = self._parts.attention(
            encoded.coarse, known.features, known.slots, known.pointers, known.ago
        )
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        logits, quality, pointers, presence = self._decoded(encoded, coarse, *nothing, None)
        index, present = most_trusted(quality), bool(presence[0] > 0)
        low_res = logits[index].copy() if present else np.full_like(logits[index], -MOST_LOGIT)
        full = resize_bilinear(low_res, encoded.frame.shape)
        encoded.found[id(memory)] = TrackedMask(
            memory, full, low_res, pointers[index].copy(), present
        )
        return Segmentation(full, clip_score(quality[index]) * float(sigmoid(presence)[0]))

    # The network.

    def _encode_view(self, view: View, *, smooth: bool) -> EncodedView:
        check_understood(self.card, (), view.shape)
        frame = InputFrame.squashed(view.shape, self.size)
        fine, middle, coarse, alone = self._parts.encoder(
            network_input(view, self.size, smooth=smooth)
        )
        return EncodedView(fine, middle, coarse, alone, frame)

    def _decoded(
        self,
        encoded: EncodedView,
        coarse: Floats,
        coords: Floats,
        labels: Floats,
        mask: Floats | None,
    ) -> tuple[Floats, ...]:
        """Logits (4, 4g, 4g), predicted IoU (4,), pointers (4, 256), logit of presence (1,)."""
        if not len(labels):
            coords, labels = np.zeros((1, 2), np.float32), np.full(1, PADDING, np.float32)
        side = self.size // 4
        mask_logits = np.zeros((side, side), np.float32) if mask is None else mask
        return self._parts.decoder(
            coarse,
            encoded.fine,
            encoded.middle,
            coords[None],
            labels[None],
            np.ascontiguousarray(mask_logits[None, None]),
            np.full(1, mask is not None, np.float32),
        )

    def _as_mask(self, encoded: EncodedView, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Features and pointer of a mask that is sure."""
        here = on_grid(mask, self.size)
        present = bool(here.any())
        features, prompt, nobody = self._encoded(encoded, here, present)
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        _, _, pointers, presence = self._decoded(encoded, encoded.coarse, *nothing, prompt[0, 0])
        return features, pointers[CLEAR] if present and presence[0] > 0 else nobody[0]

    def _encoded(self, encoded: EncodedView, mask: Floats, present: bool) -> tuple[Floats, ...]:
        """Features (T, 64), the mask for the decoder (1, 1, 4g, 4g), the pointer to nobody."""
        return self._parts.memory(encoded.coarse, mask[None, None], np.full(1, present, np.float32))


def network_input(view: View, size: int, *, smooth: bool) -> Floats:
    """An image as (1, 3, size, size), squashed and normalised.

    Args:
        view: two-dimensional.
        size: of a side.
        smooth: triangles over float32 instead of cubics over bytes.
    """
    pixels = to_eight_bit(view)
    if smooth:
        channels = [
            resize_smooth(pixels[..., k].astype(np.float32) / np.float32(255), size)
            for k in range(3)
        ]
        colours = np.stack(channels)
    else:
        squashed = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        colours = np.asarray(squashed).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return np.ascontiguousarray(((colours - mean) / std)[None])


def resize_smooth(values: Floats, size: int) -> Floats:
    """(row, column) to (size, size) by triangles that are as wide as the pixels that vanish."""
    return np.asarray(
        Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32
    )


def on_grid(mask: NDArray[np.bool_], size: int) -> Floats:
    """A mask as 0 and 1 (size, size); one that is too small for that is all that it touches."""
    if mask.shape == (size, size):
        return mask.astype(np.float32)
    shares = resize_smooth(mask.astype(np.float32), size)
    least = min(0.5, float(shares.max())) or 0.5
    return (shares >= least).astype(np.float32)


def encode_points(
    card: ModelCard, prompts: Sequence[Prompt], frame: InputFrame
) -> tuple[Floats, Floats]:
    """The corners of the box, then clicks: x and y in pixels of the input (N, 2), labels (N,).

    Raises:
        PromptError: several boxes.
    """
    box, places, labels = one_box(card, prompts), [], []
    if box is not None:
        places = [frame.to_xy(np.clip(at, 0, frame.shape).tolist()) for at in (box.low, box.high)]
        labels = [LOW_CORNER, HIGH_CORNER]
    for click in (p for p in prompts if isinstance(p, Click)):
        places.append(frame.to_xy(click.at))
        labels.append(POSITIVE if click.positive else NEGATIVE)
    return np.array(places, np.float32).reshape(-1, 2), np.array(labels, np.float32)


def most_trusted(quality: Floats) -> int:
    """Of the masks for prompts that leave something open, the one with the highest IoU."""
    return 1 + int(np.argmax(quality[1:]))


def most_stable(logits: Floats, quality: Floats) -> int:
    """The mask for clear prompts; where a small change would move it, the most trusted other."""
    least = (logits[CLEAR] > STABLE_BY).sum()
    most = (logits[CLEAR] > -STABLE_BY).sum()
    return CLEAR if least >= STABLE_FROM * most else most_trusted(quality)


@dataclass(frozen=True)
class Sizes:
    """Side of the input in pixels; whether the encoder is a reduced one."""

    side: int
    small: bool = False


def make_network(sizes: Sizes, weights: Weights) -> Any:
    """The network with its weights, a `transformers.Sam2VideoModel`.

    Raises:
        CheckpointError: weights of another network.
        MissingDependency: transformers is not installed.
    """
    from limner.models.medsam2 import network

    made = network.make_network(sizes.side, small=sizes.small)
    weights.fill(made)
    return made


def _part(sizes: Sizes, which: str, weights: Weights) -> nn.Module:
    from limner.models.medsam2 import network

    made = {
        "encoder": network.ImageEncoder,
        "decoder": network.MaskDecoder,
        "memory": network.MemoryEncoder,
        "attention": network.MemoryAttention,
    }
    return made[which](make_network(sizes, weights))


def _parts(sizes: Sizes) -> Sequence[Part]:
    size = sizes.side
    grid = size // 16
    coarse, low_res = (1, 256, grid, grid), (1, 1, 4 * grid, 4 * grid)
    features = (1, 32, 4 * grid, 4 * grid), (1, 64, 2 * grid, 2 * grid)
    known = [(None, grid**2, 64), (None,), (None, 256), (None,)]
    inputs: dict[str, list[tuple[int | None, ...]]] = {
        "encoder": [(1, 3, size, size)],
        "decoder": [coarse, *features, (1, None, 2), (1, None), low_res, (1,)],
        "memory": [coarse, (1, 1, size, size), (1,)],
        "attention": [coarse, *known],
    }
    # The authors compute all in bf16. Here those parts are that take the time and were measured to
    # leave masks as they are (`docs/notes/medsam2.md`).
    return [
        Part(
            which,
            partial(_part, sizes, which),
            shapes,
            precision="auto" if which in ("encoder", "attention") else "fp32",
            examples=[tuple(3 if n is None else n for n in shape) for shape in shapes],
            encodes=which == "encoder",
        )
        for which, shapes in inputs.items()
    ]


def _remap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    from limner.models.medsam2.network import remap

    return remap(state)


def _model(compiled: Compiled[Sizes]) -> Sam2:
    parts = Sam2Parts(*(compiled[which] for which in ("encoder", "decoder", "memory", "attention")))
    smooth = compiled.card.name == SAM2_CARD.name
    return Sam2(compiled.card, parts, compiled.sizes.side, smooth=smooth)


def _published(card: ModelCard, weights: tuple[WeightsCard, ...], side: int) -> Published[Sizes]:
    return Published(
        card,
        weights,
        network=f"sam2-{side}",
        sizes=Sizes(side),
        small=Sizes(128, small=True),
        parts=_parts,
        model=_model,
        wanted=_WANTED,
        remap=_remap,
    )


_WANTED = ("image_encoder.trunk.pos_embed", "maskmem_tpos_enc", "sam_mask_decoder.iou_token.weight")
MEDSAM2 = _published(CARD, WEIGHTS, 512)
SAM2_TINY = _published(SAM2_CARD, SAM2_WEIGHTS, 1024)
VARIANTS = {"tiny": MEDSAM2.variant(), "sam2_tiny": SAM2_TINY.variant()}
