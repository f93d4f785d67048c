"""Adapter for early-fusion networks in 2D and 3D: upsampling, padding, prompt rasterisation,
post-processing.

The families limner-2d and limner-3d say how large a view is and which network answers; all else
about them is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.evidence import open_cavities, outline_tiny, stop_across
from limner.adapters.prompt_checks import check_understood, mask_of_prompt
from limner.adapters.protocols import ModelCard, Segmentation, View
from limner.networks import fusion2d as fusion
from limner.prompts.raster import PromptMaps, rasterize
from limner.prompts.types import Area, Box, GridMap, Mark, MaskPrompt, Prompt

if TYPE_CHECKING:
    from limner.runtime import Network

Array = NDArray[Any]
Floats = NDArray[np.float32]
Factors = tuple[int, ...]


@dataclass(frozen=True)
class FusionOptions:
    """Inference options of an early-fusion network (stride, upsampling, logit bias).

    Attributes:
        stride: sizes of what it sees are multiples of it, per axis.
        upsampling: of a view along each axis before the network sees it, whole factors.
        logit_bias: added to all logits.
        region_bias: added inside the guess that a first box or lasso makes, taken away outside it.
        mirrored: answer with the mean of the answers on the view and on its mirror image, at twice
            the cost.
    """

    stride: tuple[int, ...]
    upsampling: Callable[[View], Factors]
    logit_bias: float
    region_bias: float
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class FusionEmbedding:
    """A view as the network sees it, without prompts.

    Attributes:
        image: float32 ``(3, *axes)``, -1…1, enlarged and padded.
        shape: of the view.
        upsampling: steps of `image` per step of the view, along each axis.
        pixels: of the view, 0…1 and beyond: what is small and bright is beyond the limits of
            black and white, which are those of the whole image. Without channels.
        spacing: of the view, millimetres.
    """

    image: Floats
    shape: tuple[int, ...]
    upsampling: Factors
    pixels: Floats
    spacing: tuple[float, ...]


class EarlyFusionModel:
    """The network with everything around it.

    Args:
        network: answers ``(N, 7, *axes)`` with logits ``(N, 1, *axes)`` and the quality's ``(N,)``;
            N is 2 where it is asked on the mirror image, too.
        card: its facts.
        options: what it needs.
    """

    def __init__(self, network: Network, card: ModelCard, options: FusionOptions) -> None:
        self.card = replace(card, runtime=network.description)
        self._network = network
        self._options = options

    def on(self, network: Network) -> EarlyFusionModel:
        """The same model on another network, or on the same one run in another way."""
        return EarlyFusionModel(network, self.card, self._options)

    def embed(self, view: View) -> FusionEmbedding:
        """Pixels as three channels, enlarged if the view is small, padded with black."""
        check_understood(self.card, (), view.shape)
        return embed_view(view, self._options.upsampling(view), self._options.stride)

    def segment(
        self,
        embedding: FusionEmbedding,
        prompts: Sequence[Prompt],
        previous: Floats | None = None,
    ) -> Segmentation:
        """One pass.

        A mask among the prompts is shown as a rough answer when it is the newest prompt, or when
        there is no answer before.
        """
        check_understood(self.card, prompts, embedding.shape)
        factors = embedding.upsampling
        shape = tuple(n * t for n, t in zip(embedding.shape, factors, strict=True))
        inside = tuple(slice(n) for n in shape)
        fused = np.zeros((1, fusion.NUM_CHANNELS, *embedding.image.shape[1:]), np.float32)
        fused[0, : fusion.PREVIOUS] = embedding.image
        painted = fused[0, fusion.PREVIOUS :][(slice(None), *inside)]
        drawn = [_scale_prompt(p, factors) for p in prompts if not isinstance(p, MaskPrompt)]
        before = _initial_logits(prompts, previous)
        guess = (
            _guess_from_regions(drawn, shape, factors)
            if before is None
            else upsample(before, factors)
        )
        if guess is not None:
            painted[0] = np.tanh(guess / fusion.LOGIT_SCALE)
        maps = rasterize(drawn, shape, click_radius=fusion.CLICK_RADIUS)
        _fill_channels(painted, maps)
        logits, quality = self._ask(fused)
        answer = downsample(logits[inside], factors) + np.float32(self._options.logit_bias)
        if before is None and guess is not None:
            answer += np.float32(self._options.region_bias / fusion.MASK_LOGIT) * downsample(
                guess, factors
            )
        if not _has_positive(prompts, previous):
            answer = np.minimum(answer, np.float32(-fusion.MASK_LOGIT))
        answer = _add_evidence(answer, embedding, prompts, previous)
        _enforce_marks(answer, prompts)
        return Segmentation(answer, float(1.0 / (1.0 + np.exp(-quality))))

    def _ask(self, fused: Floats) -> tuple[Floats, float]:
        """Logits and the quality's logit of ``(1, 7, *axes)``."""
        if not self._options.mirrored:
            logits, quality = self._network(fused)
            return logits[0, 0], float(quality[0])
        logits, quality = self._network(np.concatenate([fused, fused[..., ::-1]]))
        return (logits[0, 0] + logits[1, 0, ..., ::-1]) / 2, float(quality.mean())


def _add_evidence(
    answer: Floats, embedding: FusionEmbedding, prompts: Sequence[Prompt], previous: Floats | None
) -> Floats:
    """What intensities tell where the network was never taught; see `limner.adapters.evidence`."""
    boxes = [p for p in prompts if isinstance(p, Box)]
    if previous is None and boxes:
        answer = outline_tiny(answer, embedding.pixels, boxes)
    if answer.ndim == 3:
        answer = open_cavities(answer, embedding.pixels, prompts)
        if previous is None and not boxes:
            answer = stop_across(answer, embedding.pixels, prompts, embedding.spacing)
    return answer


def embed_view(view: View, factors: Factors, stride: Sequence[int]) -> FusionEmbedding:
    """A view as a network sees it."""
    channels = to_three_channels(view.normalized(), len(view.shape))
    upsampled = [upsample(c, factors) for c in channels]
    image = np.stack(upsampled if len(upsampled) == 3 else upsampled * 3)
    image = pad_to_stride((image - fusion.IMAGE_CENTRE) * fusion.IMAGE_SCALE, stride)
    return FusionEmbedding(image, view.shape, factors, _unclipped(view), view.spacing)


_FURTHEST = 1e6  # of intensities mapped to 0…1: an infinite pixel is as far


def _unclipped(view: View) -> Floats:
    """The pixels as float32, `View.intensity` mapped to 0…1, without channels."""
    low, high = view.intensity
    pixels = (view.array - np.float64(low)) / max(high - low, 1e-30)
    if pixels.ndim > len(view.shape):
        pixels = pixels.mean(axis=-1)
    return np.asarray(np.clip(np.nan_to_num(pixels), -_FURTHEST, _FURTHEST), np.float32)


def to_three_channels(pixels: Floats, num_axes: int) -> Floats:
    """Channels first: ``(1, *axes)`` for grey, else ``(3, *axes)``: a third channel mixed from two,
    the first three of more.
    """
    if pixels.ndim == num_axes:
        return pixels[None]
    if pixels.shape[-1] == 2:
        pixels = np.concatenate([pixels, pixels.mean(axis=-1, keepdims=True)], axis=-1)
    count = 3 if pixels.shape[-1] >= 3 else 1
    return np.moveaxis(pixels[..., :count], -1, 0)


def upsample(pixels: Floats, factors: Factors) -> Floats:
    """Whole times as large along each axis, interpolated linearly; edges are repeated."""
    for axis, count in enumerate(factors):
        if count > 1:
            pixels = _upsample_axis(pixels, axis, count)
    return pixels


def downsample(logits: Floats, factors: Factors) -> Floats:
    """Inverse of enlarging: the mean of each block. A copy, also where there is nothing to do."""
    if max(factors) == 1:
        return np.array(logits, dtype=np.float32)
    sizes = [part for n, t in zip(logits.shape, factors, strict=True) for part in (n // t, t)]
    within = tuple(range(1, len(sizes), 2))
    return np.asarray(logits.reshape(sizes).mean(axis=within, dtype=np.float32))


def pad_to_stride(image: Floats, stride: Sequence[int]) -> Floats:
    """Black after the last pixels, up to multiples of the stride; the channel axis comes first."""
    missing = [(0, -n % s) for n, s in zip(image.shape[1:], stride, strict=True)]
    black = np.float32(-fusion.IMAGE_CENTRE * fusion.IMAGE_SCALE)
    return np.pad(image, [(0, 0), *missing], constant_values=black)


def _upsample_axis(pixels: Floats, axis: int, count: int) -> Floats:
    """Each step of an axis becomes `count` steps, whose centres lie evenly within it."""
    pixels = np.moveaxis(pixels, axis, 0)
    before = np.concatenate([pixels[:1], pixels[:-1]])
    after = np.concatenate([pixels[1:], pixels[-1:]])
    result = np.empty((len(pixels), count, *pixels.shape[1:]), np.float32)
    for k in range(count):
        away = (k + 0.5) / count - 0.5
        other = after if away > 0 else before
        result[:, k] = pixels + np.float32(abs(away)) * (other - pixels)
    return np.moveaxis(result.reshape(-1, *pixels.shape[1:]), 0, axis)


def _has_positive(prompts: Sequence[Prompt], previous: Floats | None) -> bool:
    """Whether anything has been pointed at: an answer before, or a prompt that is not a "no"."""
    if previous is not None and (previous > 0).any():
        return True
    return any(not isinstance(p, Mark) or p.positive for p in prompts)


def _initial_logits(prompts: Sequence[Prompt], previous: Floats | None) -> Floats | None:
    """What is shown as the answer of the round before."""
    masks = [p for p in prompts if isinstance(p, MaskPrompt)]
    if not masks or (previous is not None and prompts[-1] is not masks[-1]):
        return previous
    mask = masks[-1].mask
    return _logits_of_mask(
        mask, _extent_of(mask, (1,) * mask.ndim) if mask.any() else _whole(mask.shape)
    )


def _guess_from_regions(
    prompts: Sequence[Prompt], shape: tuple[int, ...], factors: Factors
) -> Floats | None:
    """What boxes and lassos say by themselves: inscribed ellipses, and all that is encircled."""
    result: Floats | None = None
    for prompt in prompts:
        if isinstance(prompt, Box):
            region = mask_of_prompt(prompt, shape)
            inside = region & _ellipse(prompt, shape)
        elif isinstance(prompt, Area):
            region = inside = mask_of_prompt(prompt, shape)
        else:
            continue
        if region.any():
            guess = _logits_of_mask(inside, _extent_of(region, factors))
            result = guess if result is None else np.maximum(result, guess)
    return result


def _ellipse(box: Box, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The ellipse or ellipsoid that a box touches on all sides."""
    distance: Any = 0.0
    for grid, low, high in zip(np.ogrid[_whole(shape)], box.low, box.high, strict=True):
        distance = distance + ((grid - (low + high - 1) / 2) / ((high - low) / 2)) ** 2
    return np.asarray(distance < 1)


def _extent_of(region: NDArray[np.bool_], factors: Factors) -> tuple[slice, ...]:
    """The part of a view that a region speaks of: of a volume only its slice where it is one slice
    thick, or, enlarged, as thick as one has become; else everything.
    """
    extent = []
    for axis, count in enumerate(factors):
        others = tuple(k for k in range(region.ndim) if k != axis)
        places = np.flatnonzero(region.any(axis=others))
        thin = region.ndim == 3 and places[-1] - places[0] < count < region.shape[axis]
        extent.append(slice(int(places[0]), int(places[-1]) + 1) if thin else slice(None))
    return tuple(extent)


def _whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(n) for n in shape)


def _logits_of_mask(mask: NDArray[np.bool_], extent: tuple[slice, ...]) -> Floats:
    """A guess where something was told, 0 elsewhere."""
    guess = np.zeros(mask.shape, np.float32)
    guess[extent] = np.where(mask[extent], fusion.MASK_LOGIT, -fusion.MASK_LOGIT)
    return guess


def _fill_channels(channels: Floats, maps: PromptMaps) -> None:
    """Marks and regions into channels 1 to 3 of ``(4, *axes)``, in place."""
    first = fusion.PREVIOUS
    for channel, drawn in (
        (fusion.POSITIVE, (maps.positive,)),
        (fusion.NEGATIVE, (maps.negative,)),
        (fusion.REGION, (maps.box, maps.lasso)),
    ):
        for mask in drawn:
            if mask is not None:
                np.maximum(channels[channel - first], mask, out=channels[channel - first])


def _enforce_marks(logits: Floats, prompts: Sequence[Prompt]) -> None:
    """What the user has marked is as the user said, in place, the later mark where two conflict;
    the network nearly always agrees.
    """
    for prompt in prompts:
        if isinstance(prompt, Mark):
            marked = mask_of_prompt(prompt, logits.shape)
            if prompt.positive:
                logits[marked] = np.maximum(logits[marked], fusion.MASK_LOGIT)
            else:
                logits[marked] = np.minimum(logits[marked], -fusion.MASK_LOGIT)


def _scale_prompt(prompt: Prompt, factors: Factors) -> Prompt:
    """A prompt on the enlarged view; strokes are as wide as those in training at least."""
    return prompt.mapped(
        GridMap(
            lambda at: tuple((a + 0.5) * t - 0.5 for a, t in zip(at, factors, strict=True)),
            lambda edge: tuple(np.multiply(edge, factors).tolist()),
            radius=lambda r: max(r * _mean_factor(factors), fusion.LEAST_STROKE_RADIUS),
        )
    )


def _mean_factor(factors: Factors) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(factors).mean()))
