"""Rasterised prompts: boolean maps on the grid of an image, by what the prompts say.

A pixel belongs to a shape when its centre, which is its integer index, lies in the shape or on its
edge; boxes are half-open. Clicks and strokes always paint at least the pixels they pass through.
Whatever reaches over the image's edge is cut off there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from limner.errors import PromptError
from limner.prompts.kinds.base import Layer, Mask
from limner.prompts.types import Prompt


@dataclass(frozen=True, eq=False)
class PromptMaps:
    """Prompts of one object as boolean arrays of the image's spatial shape, by what they say; None
    where no prompt says it.

    Attributes:
        positive: positive clicks and scribbles.
        negative: negative clicks and scribbles. May overlap `positive`.
        box: boxes, filled.
        lasso: closed lines, filled: lassos; in 3D one slice thick.
        mask: mask prompts.
    """

    positive: Mask | None = None
    negative: Mask | None = None
    box: Mask | None = None
    lasso: Mask | None = None
    mask: Mask | None = None


def rasterize(
    prompts: Iterable[Prompt],
    shape: Sequence[int],
    *,
    click_radius: float | Sequence[float] = 2.0,
) -> PromptMaps:
    """Paint prompts onto a grid. Prompts of one kind and polarity are united; text and examples,
    which have no place, are passed over.

    Args:
        prompts: positions in index order, with as many axes as `shape`.
        shape: 2 or 3 sizes in index order.
        click_radius: of the disk (2D) or ball (3D) around a click, in pixels: one number, or one
            per axis; 0 paints the nearest pixel only.

    Raises:
        PromptError: a prompt has another number of axes, or a mask another shape.
        ValueError: `shape` or `click_radius` is impossible.
    """
    size = _shape(shape)
    maps: dict[Layer, Mask] = {}
    for prompt in prompts:
        axes, layer = prompt.num_axes, prompt.layer
        if layer is None:
            continue
        if axes != len(size):
            raise PromptError(
                f"A {prompt.kind} with {axes} coordinates cannot be painted on a grid of {size}."
            )
        if layer not in maps:
            maps[layer] = np.zeros(size, dtype=bool)
        prompt.paint(maps[layer], click_radius)
    return PromptMaps(**maps)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    size = tuple(int(n) for n in shape)
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"A grid has 2 or 3 axes of at least one pixel, not shape {size}.")
    return size
