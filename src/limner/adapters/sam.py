"""Adapter functions of the SAM family: images, prompts and masks to the network's square input, and
back.

The networks think in (x, y) pixels of a square input; nothing outside these adapters does. Arrays
only, so that listing models stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import ModelCard, Question, Segmentation, View
from limner.errors import PromptError
from limner.prompts.types import Box, Click, MaskPrompt, Prompt

if TYPE_CHECKING:
    from limner.runtime import Network

Array = NDArray[Any]
Floats = NDArray[np.float32]

PADDING, NEGATIVE, POSITIVE, LOW_CORNER, HIGH_CORNER = -1.0, 0.0, 1.0, 2.0, 3.0  # labels of points
CERTAIN = 1e-7  # probabilities are kept this far from 0 and 1, so that their logits are finite
MASK_LOGIT = 10.0  # of a rough mask's pixels, the order of what the networks answer inside objects
MAX_BATCH = 4  # questions in one pass of a decoder, 55 MB each; more are no faster


def to_eight_bit(view: View) -> NDArray[np.uint8]:
    """The image that the reference would have read from an 8-bit file.

    Args:
        view: two-dimensional. Stored bytes are taken as they are unless a window was asked for;
            everything else is mapped to 0…255 by the view's limits of intensity.

    Returns:
        (row, column, 3). Grey is repeated, the third of two channels is their mean, and of more
        than three (opacity) the first three count.
    """
    pixels = view.array
    if pixels.dtype != np.uint8 or view.windowed:
        shares = np.nan_to_num(view.normalized())  # no number is black
        pixels = np.rint(shares * np.float32(255.0)).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    elif pixels.shape[2] == 2:
        third = np.rint(pixels.mean(axis=2, keepdims=True)).astype(np.uint8)
        pixels = np.concatenate([pixels, third], axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def resize_bilinear(maps: Floats, shape: tuple[int, int]) -> Floats:
    """Resize by bilinear interpolation, without antialiasing and without aligning corners.

    The same as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` up to
    rounding.

    Args:
        maps: (..., row, column).
        shape: rows and columns of the result.

    Returns:
        (..., *shape), never the memory of `maps`.
    """
    rows, columns = maps.shape[-2:]
    if (rows, columns) == tuple(shape):
        return maps.astype(np.float32)
    first, second, share = _neighbours(columns, shape[1])
    wide = maps[..., first] * (np.float32(1.0) - share)
    wide += maps[..., second] * share
    first, second, share = _neighbours(rows, shape[0])
    out = wide[..., first, :] * (np.float32(1.0) - share[:, None])
    out += wide[..., second, :] * share[:, None]
    return np.asarray(out, dtype=np.float32)


def _neighbours(old: int, new: int) -> tuple[Array, Array, Floats]:
    """Of each new pixel along an axis: the two old ones it lies between and the second's share."""
    scale = float(np.float32(old) / np.float32(new))
    exact = scale * (np.arange(new, dtype=np.float64) + 0.5) - 0.5
    place = exact.astype(np.float32)  # rounded once, as by the fused operation that PyTorch uses
    place = np.maximum(place, np.float32(0.0))
    first = np.minimum(place.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (place - first).astype(np.float32)


def log_odds(probability: Floats) -> Floats:
    """Logits of probabilities; above 0 exactly where the probability is above a half."""
    p = np.clip(probability, np.float32(CERTAIN), np.float32(1.0 - CERTAIN))
    return np.asarray(np.log(p / (np.float32(1.0) - p)), dtype=np.float32)


def sigmoid(logits: Floats) -> Floats:
    """Probabilities of logits, float32; large logits do not overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1.0 + small), dtype=np.float32)


def empty_answer(shape: tuple[int, int]) -> Segmentation:
    """The answer to a question that says nothing about the object."""
    return Segmentation(np.full(shape, -MASK_LOGIT, np.float32), 0.0)


def clip_score(quality: float) -> float:
    """A predicted IoU, which the networks do not bound, within 0…1."""
    return float(np.clip(np.nan_to_num(quality), 0.0, 1.0))


@dataclass(frozen=True)
class InputFrame:
    """Where a view lies in the network's square input: at the top left, the rest is padding.

    Attributes:
        shape: rows and columns of the view.
        inside: rows and columns of the input that the view covers.
        size: side of the input.
    """

    shape: tuple[int, int]
    inside: tuple[int, int]
    size: int

    @classmethod
    def squashed(cls, shape: Sequence[int], size: int) -> InputFrame:
        """The view fills the input, whatever its aspect."""
        rows, columns = shape
        return cls((rows, columns), (size, size), size)

    @classmethod
    def longest(cls, shape: Sequence[int], size: int) -> InputFrame:
        """The longer side fills the input, the aspect is kept; rounded half up, as published."""
        rows, columns = shape
        scale = size / max(rows, columns)
        inside = max(1, int(rows * scale + 0.5)), max(1, int(columns * scale + 0.5))
        return cls((rows, columns), inside, size)

    def to_xy(self, position: Sequence[float]) -> tuple[float, float]:
        """(row, column) of the view to (x, y) of the input, both in pixels.

        Published scripts scale coordinates as they are, so the input's pixel 0 is the view's.
        """
        row, column = position
        return (
            column * (self.inside[1] / self.shape[1]),
            row * (self.inside[0] / self.shape[0]),
        )

    def to_view(self, low_res: Floats) -> Floats:
        """The network's low-resolution planes on the view's grid, as published: enlarged to the
        input, cut, resized to the view.

        Args:
            low_res: (..., side, side) of logits or probabilities over the whole input.

        Returns:
            (..., *shape).
        """
        maps = resize_bilinear(low_res, (self.size, self.size))
        return resize_bilinear(maps[..., : self.inside[0], : self.inside[1]], self.shape)

    def to_low_res(self, values: Floats, side: int, *, outside: float) -> Floats:
        """Values on the view's grid as (side, side) over the whole input: the inverse of `to_view`
        as far as there is one.

        Args:
            values: of the view's shape.
            side: a divisor of the input's.
            outside: for the padding.
        """
        whole = np.full((self.size, self.size), outside, np.float32)
        whole[: self.inside[0], : self.inside[1]] = resize_bilinear(values, self.inside)
        step = self.size // side
        return np.asarray(whole.reshape(side, step, side, step).mean(axis=(1, 3)), np.float32)


@dataclass(frozen=True, eq=False)
class SamEmbedding:
    """An image as a network of the family sees it.

    Attributes:
        features: float32 (1, channels, grid, grid).
        frame: where the view lies in the network's input.
    """

    features: Floats
    frame: InputFrame


class ImageEncoding:
    """`embed` and `embed_batch` for adapters with an encoder of images.

    Attributes:
        card: the model's facts.
    """

    card: ModelCard
    _encoder: Network

    def prepared(self, view: View) -> tuple[Floats, InputFrame]:
        """A view as the encoder takes it, float32 (1, 3, size, size), and where it lies in that."""
        raise NotImplementedError

    @property
    def views_at_once(self) -> int:
        """How many views are worth encoding together: several on a GPU only."""
        return getattr(self._encoder, "at_once", 1)

    def embed(self, view: View) -> SamEmbedding:
        """The image as the network was taught to see it, encoded."""
        return self.embed_batch([view])[0]

    def embed_batch(self, views: Sequence[View]) -> list[SamEmbedding]:
        """Several images, as many together as is worth it."""
        size, embeddings = self.views_at_once, []
        for start in range(0, len(views), size):
            inputs, frames = zip(*map(self.prepared, views[start : start + size]), strict=True)
            (features,) = self._encoder(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
            embeddings += [SamEmbedding(features[k : k + 1], f) for k, f in enumerate(frames)]
        return embeddings


def one_box(card: ModelCard, prompts: Sequence[Prompt]) -> Box | None:
    """The box among the prompts about one object, None if there is none.

    Raises:
        PromptError: there are several; the published networks were shown one.
    """
    boxes = [p for p in prompts if isinstance(p, Box)]
    if len(boxes) > 1:
        raise PromptError(
            f"{card.name} takes one box per object, not {len(boxes)}. Undo the others, or give "
            "each object its own object_id."
        )
    return boxes[0] if boxes else None


def rough_mask(prompts: Sequence[Prompt], answered: bool) -> MaskPrompt | None:
    """The newest mask among the prompts if it counts more than the answer before.

    Args:
        prompts: all that was said, oldest first.
        answered: whether there is an answer of the round before; only a mask that was drawn since,
            so the newest prompt, counts more.
    """
    masks = [p for p in prompts if isinstance(p, MaskPrompt)]
    if not masks or (answered and prompts[-1] is not masks[-1]):
        return None
    return masks[-1]


def mask_input(
    question: Question, frame: InputFrame, side: int, *, most: float = MASK_LOGIT
) -> Floats | None:
    """The mask that a network is shown with the prompts: one drawn since the last answer, or that
    answer.

    Args:
        question: about one object; `memory` is (side, side) logits of the round before.
        frame: of the view.
        side: of the network's low resolution.
        most: an answer on another view is clipped to ± this.

    Returns:
        Logits (side, side); None where there is nothing to show, as for an empty mask.
    """
    answered = question.memory is not None or question.previous is not None
    drawn = rough_mask(question.prompts, answered)
    if drawn is not None:
        if not drawn.mask.any():
            return None
        values = np.where(drawn.mask, np.float32(MASK_LOGIT), np.float32(-MASK_LOGIT))
    elif question.memory is not None:
        return np.asarray(question.memory, dtype=np.float32)
    elif question.previous is not None:  # an answer on another view
        values = np.clip(question.previous, -most, most)
    else:
        return None
    return frame.to_low_res(values, side, outside=-MASK_LOGIT)


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """One question as the networks take it.

    Attributes:
        coords: float32 (N, 2), x and y in pixels of the input; N may be 0.
        labels: float32 (N,).
        mask: float32 (side, side), a rough mask in the network's low resolution, or None.
    """

    coords: NDArray[np.float32]
    labels: NDArray[np.float32]
    mask: Floats | None = None

    @property
    def has_box(self) -> bool:
        """Whether a box is among the points."""
        return HIGH_CORNER in self.labels


def encode_prompts(
    card: ModelCard, prompts: Sequence[Prompt], frame: InputFrame, mask: Floats | None = None
) -> EncodedPrompts:
    """Clicks, then a point that says nothing or the corners of the box, as published.

    Box corners are the numbers that the user gave: low as the first, high as the last pixel, which
    is how the networks' authors wrote boxes. What reaches over the view is cut.

    Args:
        card: of the model.
        prompts: about one object; other kinds than clicks and boxes are passed over.
        frame: of the view.
        mask: in low resolution.

    Raises:
        PromptError: a kind that the card does not list, or several boxes.
    """
    check_understood(card, prompts, frame.shape)
    clicks = [p for p in prompts if isinstance(p, Click)]
    box = one_box(card, prompts)
    places = [frame.to_xy(c.at) for c in clicks]
    labels = [POSITIVE if c.positive else NEGATIVE for c in clicks]
    if box is not None:
        places += [frame.to_xy(np.clip(at, 0, frame.shape).tolist()) for at in (box.low, box.high)]
        labels += [LOW_CORNER, HIGH_CORNER]
    elif clicks:
        places.append((0.0, 0.0))
        labels.append(PADDING)
    coords = np.array(places, dtype=np.float32).reshape(-1, 2)
    return EncodedPrompts(coords, np.array(labels, dtype=np.float32), mask)


def group_by_length(
    encoded: Sequence[EncodedPrompts], most: int = MAX_BATCH
) -> Iterator[list[int]]:
    """Indices of the questions that can be answered in one pass: with equally many points.

    Padding with points that say nothing would change the answers, so unequal ones stay apart.
    """
    by_number: dict[int, list[int]] = {}
    for index, question in enumerate(encoded):
        by_number.setdefault(len(question.labels), []).append(index)
    for indices in by_number.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]


def stack_prompts(
    encoded: Sequence[EncodedPrompts], side: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Questions with equally many points as the inputs of a decoder.

    Args:
        encoded: B of them, at least one.
        side: of rough masks.

    Returns:
        Coordinates (B, N, 2), labels (B, N), masks (B, 1, side, side) and whether there is a mask,
        (B,), all float32.
    """
    masks = np.zeros((len(encoded), 1, side, side), np.float32)
    has_mask = np.zeros(len(encoded), np.float32)
    for index, question in enumerate(encoded):
        if question.mask is not None:
            masks[index, 0], has_mask[index] = question.mask, 1.0
    coords, labels = np.stack([q.coords for q in encoded]), np.stack([q.labels for q in encoded])
    return coords, labels, masks, has_mask


def decode_prompts(
    network: Network, features: Floats, encoded: Sequence[EncodedPrompts]
) -> list[tuple[Floats, NDArray[np.float32]]]:
    """Answers of `limner.networks.blocks.mask_decoder.SamDecode` to questions about one image.

    Args:
        network: takes features, coordinates, labels, masks and whether there are masks.
        features: (1, C, g, g).
        encoded: any number of questions; each is answered as if it had been asked alone.

    Returns:
        Per question the logits (M, 4g, 4g) and the predicted IoU (M,).
    """
    answers: dict[int, tuple[Floats, NDArray[np.float32]]] = {}
    for indices in group_by_length(encoded):
        inputs = stack_prompts([encoded[k] for k in indices], 4 * features.shape[2])
        logits, quality = network(features, *inputs)[:2]
        for index, maps, values in zip(indices, logits, quality, strict=True):
            answers[index] = maps, values
    return [answers[k] for k in range(len(encoded))]
