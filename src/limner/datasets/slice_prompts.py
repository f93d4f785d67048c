"""Prompts that belong to one slice of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limner.prompts.types import MaskPrompt, Prompt


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """A prompt on one slice.

    Attributes:
        prompt: 2D.
        frame: the slice, across axis 0.
        within: the slices that the object is said to be on, half-open; None if nothing was said.
    """

    prompt: Prompt
    frame: int
    within: tuple[int, int] | None = None

    def lifted(self, shape: Sequence[int]) -> Prompt:
        """The prompt in a volume of a shape."""
        if not isinstance(self.prompt, MaskPrompt):
            return self.prompt.on_slice(self.frame)
        volume = np.zeros(tuple(shape), dtype=bool)
        volume[self.frame] = self.prompt.mask
        return MaskPrompt(volume)
