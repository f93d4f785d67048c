"""Sessions: one image, volume or video, and a conversation about what to delineate in it.

`open_session` starts one, `resume` continues one from its journal. All kinds answer the verbs of
`Session`.
"""

from __future__ import annotations

from limner.sessions.answers.prediction import Prediction
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.open import open_session, resume
from limner.sessions.protocol import Session

__all__ = ["Prediction", "PromptEntry", "Session", "open_session", "resume"]
