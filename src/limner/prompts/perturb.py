"""Perturbed prompts: moved by a few pixels, as by an unsteady hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.prompts.convert import fit_box
from limner.prompts.kinds.base import CornersPrompt, PointsPrompt
from limner.prompts.regions import bounds
from limner.prompts.types import MaskPrompt, Placeless, Prompt

Array = NDArray[Any]


def perturb_prompt(
    prompt: Prompt, sigma: float, rng: np.random.Generator, *, shape: Sequence[int]
) -> Prompt:
    """Move a prompt by a few whole pixels, still inside the image; a click may leave its target.

    Clicks, scribbles, lassos and masks move as a whole, each side of a box by itself. Text and
    examples come back unchanged.

    Args:
        prompt: in index order.
        sigma: standard deviation of the movement along each axis, in pixels.
        rng: source of every random choice.
        shape: of the image, in index order.
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma={sigma} must be finite and not below 0 pixels.")
    if prompt.num_axes not in (None, len(shape)):
        raise ValueError(f"A {prompt.kind} with {prompt.num_axes} axes is not in shape {shape}.")

    def offset(places: ArrayLike) -> Array:
        """A movement that keeps the places in the image."""
        points = np.atleast_2d(np.asarray(places, dtype=np.float64))
        move = np.rint(rng.normal(0.0, sigma, len(shape)))
        least, most = -points.min(axis=0), np.asarray(shape) - 1 - points.max(axis=0)
        return np.asarray(
            np.where(least > most, 0.0, np.clip(move, least, np.maximum(least, most)))
        )

    if isinstance(prompt, PointsPrompt):
        moved = np.asarray(prompt.positions) + offset(prompt.positions)
        return prompt.moved_to(tuple(map(tuple, moved)))
    if isinstance(prompt, CornersPrompt):
        low, high = np.asarray(prompt.low), np.asarray(prompt.high)
        move = rng.normal(0.0, sigma, (2, len(shape)))
        moved_box = fit_box(low + move[0], high + move[1], tuple(shape))
        return prompt.moved_to(moved_box.low, moved_box.high)
    if isinstance(prompt, MaskPrompt):
        return _shift_mask(prompt, offset)
    if isinstance(prompt, Placeless):
        return prompt
    assert_never(prompt)


def _shift_mask(prompt: MaskPrompt, offset: Callable[[ArrayLike], Array]) -> MaskPrompt:
    if not prompt.mask.any():
        return prompt
    low, high = bounds(prompt.mask)
    move = offset([low, high - 1]).astype(int)
    shifted = np.zeros(prompt.mask.shape, dtype=bool)
    part = prompt.mask[tuple(map(slice, low, high))]
    shifted[tuple(map(slice, low + move, high + move))] = part
    return MaskPrompt(shifted)
