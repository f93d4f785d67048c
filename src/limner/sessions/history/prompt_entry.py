"""Prompt entries: one prompt as a session lists it."""

from __future__ import annotations

from dataclasses import dataclass

from limner.prompts.types import Prompt


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a session.

    Attributes:
        prompt: as the model sees it.
        object_id: which object it is about.
        frame: which frame or slice, None for the whole image.
        answered: whether an answer was asked for after it and before the next prompt there. Each
            answer is fed to the next, so masks repeat exactly only round by round.
    """

    prompt: Prompt
    object_id: int
    frame: int | None
    answered: bool
