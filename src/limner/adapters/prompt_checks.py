"""Checks of prompts against a model card, and the pixels of one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from limner.adapters.protocols import ModelCard
from limner.errors import PromptError
from limner.prompts.raster import rasterize
from limner.prompts.types import Mark, MaskPrompt, Prompt


def check_understood(
    card: ModelCard, prompts: Iterable[Prompt], shape: Sequence[int] | None = None
) -> None:
    """Refuse prompts that a model does not understand.

    Args:
        card: of the model.
        prompts: what the user said.
        shape: spatial shape of the view, to check the number of axes as well; None to check kinds
            only.

    Raises:
        PromptError: names what the model understands and how to find one that takes the prompt.
    """
    for prompt in prompts:
        if prompt.kind not in card.prompts:
            raise PromptError(
                f"{card.name} understands {', '.join(sorted(card.prompts))}, not {prompt.kind}. "
                f"Choose a model that does: limner models --prompt {prompt.kind}"
            )
        axes = prompt.num_axes
        if shape is not None and axes is not None and axes != len(shape):
            raise PromptError(
                f"A {prompt.kind} with {axes} coordinates does not fit a view of {len(shape)} axes."
            )


def mask_of_prompt(
    prompt: Prompt, shape: tuple[int, ...], *, click_radius: float = 0.0
) -> NDArray[np.bool_]:
    """All pixels that one prompt covers, whatever it says about them; none for text and examples.

    Args:
        prompt: positions in index order.
        shape: of the view.
        click_radius: pixels around a click; 0 is the clicked pixel alone.
    """
    maps = rasterize([prompt], shape, click_radius=click_radius)
    for layer in (maps.positive, maps.negative, maps.box, maps.lasso, maps.mask):
        if layer is not None:
            return layer
    return np.zeros(shape, dtype=np.bool_)


def draw_mask(
    prompts: Iterable[Prompt],
    shape: tuple[int, ...],
    previous: NDArray[np.float32] | None = None,
) -> NDArray[np.bool_]:
    """What the user drew, as it is, on what there was before.

    Args:
        prompts: a mask replaces everything, a line around adds, a brush adds or takes away.
        shape: of the view.
        previous: logits of what there was before.
    """
    mask = np.zeros(shape, np.bool_) if previous is None else previous > 0
    for prompt in prompts:
        area = mask_of_prompt(prompt, shape)
        if isinstance(prompt, MaskPrompt):
            mask = area
        elif isinstance(prompt, Mark) and not prompt.positive:
            mask = mask & ~area
        else:
            mask = mask | area
    return mask
