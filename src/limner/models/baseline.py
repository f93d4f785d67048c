"""Baselines that never look at the image: the filled box and the ellipse inscribed in it.

What a model gains over them is what it learnt from the pixels; the benchmark always shows both.
Lassos and masks are filled as drawn; clicks switch their own pixel, or a small disk when they are
all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood, mask_of_prompt
from limner.adapters.protocols import ModelCard, Segmentation, Variant, View
from limner.prompts.types import AREAS, MARKS, Area, Box, Mark, Prompt

Array = NDArray[Any]

CLICK_RADIUS = 3.0  # pixels


def filled_box(box: Box, shape: Sequence[int]) -> NDArray[np.float32]:
    """Logits of the box itself: 1 inside, -1 outside."""
    return np.where(mask_of_prompt(box, tuple(shape)), 1.0, -1.0).astype(np.float32)


def inscribed_ellipse(box: Box, shape: Sequence[int]) -> NDArray[np.float32]:
    """Logits of the ellipse or ellipsoid that touches the box's sides, about 1 in its centre."""
    squares: Array = np.zeros(tuple(shape))
    for axis, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        place = (np.arange(shape[axis]) - (low + high - 1) / 2) / ((high - low) / 2)
        squares = squares + (place**2).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return np.asarray(np.maximum(1.0 - squares, -4.0), dtype=np.float32)


class Baseline:
    """Answers from the prompts alone.

    Args:
        card: its facts.
        draw: logits of a box on a grid of some shape.
    """

    def __init__(
        self, card: ModelCard, draw: Callable[[Box, Sequence[int]], NDArray[np.float32]]
    ) -> None:
        self.card = card
        self._draw = draw

    def embed(self, view: View) -> tuple[int, ...]:
        """The shape is all that is used of the view."""
        return view.shape

    def segment(
        self,
        embedding: tuple[int, ...],
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """Union of the areas, then clicks and scribbles in the order they were made.

        The score is a constant: without the image there is nothing to judge by. `previous` is not
        needed, since the prompts say everything.
        """
        check_understood(self.card, prompts, embedding)
        logits = np.full(embedding, -1.0, dtype=np.float32)
        for prompt in prompts:
            if isinstance(prompt, Box):
                logits = np.maximum(logits, self._draw(prompt, embedding))
            elif isinstance(prompt, Area):
                logits[mask_of_prompt(prompt, embedding)] = 1.0
        alone = not any(isinstance(p, Area) for p in prompts)
        marks = [p for p in prompts if isinstance(p, Mark)]
        for radius in (CLICK_RADIUS, 0.0) if alone else (0.0,):  # no disk covers a clicked pixel
            for prompt in marks:
                reach = radius if prompt.positive else 0.0
                sign = 1.0 if prompt.positive else -1.0
                logits[mask_of_prompt(prompt, embedding, click_radius=reach)] = sign
        return Segmentation(logits, 0.5 if (logits > 0).any() else 0.0)


def _variant(
    name: str, summary: str, draw: Callable[[Box, Sequence[int]], NDArray[np.float32]]
) -> Variant:
    card = ModelCard(
        name=f"baseline/{name}",
        summary=summary,
        ndim=(2, 3),
        prompts=MARKS | AREAS,
        licence="Apache-2.0",
        source="this package; no weights",
        zoom=False,
        window={2: 1024, 3: 256},
    )

    def build(
        *, weights: Path | None = None, device: str = "auto", exact: bool = False
    ) -> Baseline:
        return Baseline(card, draw)

    return Variant(card, build)


VARIANTS = {
    "box": _variant("box", "the filled box; never looks at the image", filled_box),
    "ellipse": _variant(
        "ellipse", "the ellipse inscribed in the box; never looks at the image", inscribed_ellipse
    ),
}
