"""Segmentation sessions: one image, volume or video, and the prompts about what to delineate in it.

`open_session` starts one, `resume` continues one from its journal. All kinds answer the verbs of
`Session`.
"""

from __future__ import annotations

import warnings
from typing import Any

from limner.sessions.answers.prediction import Prediction
from limner.sessions.history.events import PropagationRequest
from limner.sessions.history.journal import read_journal
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.object_names import ObjectNames
from limner.sessions.open import as_image, open_session, resume
from limner.sessions.propagation.review import ReviewFrame
from limner.sessions.protocol import Session

__all__ = [
    "ObjectNames",
    "Prediction",
    "PromptEntry",
    "PropagationRequest",
    "ReviewFrame",
    "Session",
    "as_image",
    "open_session",
    "read_journal",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name == "Entry":
        warnings.warn(
            "limner.sessions.Entry is now PromptEntry; the old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return PromptEntry
    raise AttributeError(f"module 'limner.sessions' has no attribute {name!r}")
