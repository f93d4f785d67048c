"""Sessions: one image, volume or video, and a conversation about what to delineate in it.

`open_session` starts one, `resume` continues one from its journal. All kinds answer the verbs of
`Session`.
"""

from __future__ import annotations

from limner.sessions._entry import Entry
from limner.sessions._open import open_session, resume
from limner.sessions._prediction import Prediction
from limner.sessions._protocol import Session

__all__ = ["Entry", "Prediction", "Session", "open_session", "resume"]
