"""What intensities alone tell where a network was never taught: the half-maximum outline of tiny
objects, cavities under a negative mark, and slices that an object does not reach.

Each needs contrast well above the noise; without it nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import mask_of_prompt
from limner.prompts.types import Box, Mark, Prompt

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

TINY, SMALL = 6, 10  # longest side of a box in pixels: intensities alone decide, or not any more
THICK = 2.5  # times the pixel's size: slices so thick are told apart by their intensities
_CLEAR = 4.0  # times the noise, that a contrast has at least
_LOGIT = 4.0  # of what intensities decide
_RING = 3  # pixels around a box, at least, that are its background
_TO_SIGMA = 1.4826  # of the median absolute deviation


def outline_tiny(logits: Floats, pixels: Floats, boxes: Sequence[Box]) -> Floats:
    """An answer to boxes around tiny objects, drawn towards the outline at half of their contrast,
    as small nodules and PET lesions are measured.

    Args:
        logits: of the network.
        pixels: of the same shape, in any unit.
        boxes: the answer is to; others than tiny ones leave it.
    """
    for box in boxes:
        share = _tininess(box)
        inside = mask_of_prompt(box, logits.shape)
        if not share or not inside.any():
            continue
        background, noise = _level(pixels[_ring(box, logits.shape) & ~inside])
        away = pixels - np.float32(background)
        if abs(away[inside].min()) > away[inside].max():
            away = -away
        contrast = float(np.percentile(away[inside], 97))
        if contrast <= _CLEAR * noise or contrast <= 0:
            continue
        found = _largest(inside & (away > contrast / 2))
        sure = np.where(found, _LOGIT, -_LOGIT)
        logits = np.where(inside, (1 - share) * logits + share * sure, logits).astype(np.float32)
    return logits


def open_cavities(logits: Floats, pixels: Floats, prompts: Sequence[Prompt]) -> Floats:
    """An answer without the parts around negative marks whose intensities are those at the mark and
    not those of the rest.

    Args:
        logits: of the answer.
        pixels: of the same shape, in any unit.
        prompts: all of them.
    """
    from scipy import ndimage

    answer = logits > 0
    kept = np.zeros(answer.shape, np.bool_)
    for prompt in prompts:
        if isinstance(prompt, Mark) and prompt.positive:
            kept |= mask_of_prompt(prompt, answer.shape)
    for prompt in prompts:
        if not isinstance(prompt, Mark) or prompt.positive or not answer.any():
            continue
        mark = mask_of_prompt(prompt, answer.shape)
        near = ndimage.binary_dilation(mark, np.ones((3,) * mark.ndim))
        level, noise = _level(pixels[near])
        away = np.abs(pixels - np.float32(level))
        contrast = float(np.percentile(away[answer], 80))
        if contrast <= _CLEAR * noise:
            continue
        labels, _ = ndimage.label(answer & (away < contrast / 2))
        held = np.unique(labels[_opened(answer, mark)])
        part = np.isin(labels, held[held > 0])
        if (part & kept).any() or part.sum() > answer.sum() / 2:
            continue
        logits = np.where(part, np.minimum(logits, -_LOGIT), logits).astype(np.float32)
        answer &= ~part
    return logits


def stop_across(
    logits: Floats, pixels: Floats, prompts: Sequence[Prompt], spacing: Sequence[float]
) -> Floats:
    """An answer in a volume of thick slices, without the slices on which its intensities are those
    of what surrounds it on the slices that were marked.

    Args:
        logits: (slice, row, column).
        pixels: of the same shape, in any unit.
        prompts: positive marks say where the object is.
        spacing: of the view, millimetres.
    """
    from scipy import ndimage

    answer = logits > 0
    marks = [p for p in prompts if isinstance(p, Mark) and p.positive]
    if spacing[0] < THICK * min(spacing[1:]) or not marks:
        return logits
    marked = np.zeros(len(answer), np.bool_)
    for mark in marks:
        marked |= mask_of_prompt(mark, answer.shape).any(axis=(1, 2))
    here = answer & marked[:, None, None]
    flat = np.ones((1, 3, 3), np.bool_)
    around = ndimage.binary_dilation(here, flat, 2 * _RING) & ~ndimage.binary_dilation(here, flat)
    if not here.any() or not around.any():
        return logits
    (level, noise), (outside, other) = _level(pixels[here]), _level(pixels[around])
    if abs(level - outside) <= _CLEAR / 2 * max(noise, other):
        return logits
    drop = np.zeros(len(answer), np.bool_)
    for steps in (range(len(answer)), range(len(answer) - 1, -1, -1)):
        reached = ended = False
        for k in steps:
            reached, ended = reached or bool(marked[k]), ended and not marked[k]
            if not reached or marked[k] or not answer[k].any():
                continue
            here_level = float(np.median(pixels[k][answer[k]]))
            ended = ended or abs(here_level - outside) < abs(here_level - level)
            drop[k] |= ended
    result = np.where(drop[:, None, None], np.minimum(logits, -_LOGIT), logits)
    return np.asarray(result, np.float32)


def _opened(answer: Mask, mark: Mask) -> Mask:
    """A mark, with the hole that the network has made there already, and a pixel around."""
    from scipy import ndimage

    holes = ndimage.binary_fill_holes(answer) & ~answer
    labels, _ = ndimage.label(holes)
    held = np.unique(labels[mark])
    hole = np.isin(labels, held[held > 0])
    return np.asarray(ndimage.binary_dilation(hole | mark, np.ones((3,) * mark.ndim)))


def _tininess(box: Box) -> float:
    """1 where intensities alone decide, 0 where the network does."""
    longest = max(b - a for a, b in zip(box.low, box.high, strict=True))
    return float(np.clip((SMALL - longest) / (SMALL - TINY), 0, 1))


def _ring(box: Box, shape: tuple[int, ...]) -> Mask:
    """A box with what surrounds it."""
    result = np.zeros(shape, np.bool_)
    sides = [max(_RING, b - a) for a, b in zip(box.low, box.high, strict=True)]
    parts = zip(box.low, box.high, sides, strict=True)
    result[tuple(slice(max(0, int(a - s)), max(0, int(b + s))) for a, b, s in parts)] = True
    return result


def _level(values: NDArray[Any]) -> tuple[float, float]:
    """Median and robust deviation."""
    if not values.size:
        return 0.0, np.inf
    middle = float(np.median(values))
    return middle, _TO_SIGMA * float(np.median(np.abs(values - middle)))


def _largest(mask: Mask) -> Mask:
    """The largest connected part."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if count < 2:
        return mask
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())
