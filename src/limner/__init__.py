"""limner delineates anything in a medical image, volume or video.

Public names are resolved on first use, so that ``import limner`` costs NumPy at most::

    image = limner.read("ct.nii.gz")
    with limner.open_session(image, model="classical/region") as session:
        session.add(limner.Click((40, 210, 188)))
        mask = session.predict().mask

Research use only; not a medical device.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from limner._version import __version__ as __version__

_HOMES = {
    "Box": "limner.prompts",
    "Click": "limner.prompts",
    "Example": "limner.prompts",
    "Geometry": "limner.geometry",
    "Image": "limner.io",
    "Lasso": "limner.prompts",
    "LimnerError": "limner.errors",
    "MaskPrompt": "limner.prompts",
    "ModelCard": "limner.models",
    "Prediction": "limner.sessions",
    "Scribble": "limner.prompts",
    "Session": "limner.sessions",
    "TextPrompt": "limner.prompts",
    "connect": "limner.client",
    "create_model": "limner.models",
    "everything": "limner.sessions.everything",
    "list_models": "limner.models",
    "open_session": "limner.sessions",
    "read": "limner.io",
    "read_labels": "limner.io",
    "refine_3d": "limner.sessions.refine_3d",
    "render_overlay": "limner.render.overlay",
    "resume": "limner.sessions",
    "segment_automatically": "limner.pipeline.automatic",
    "write": "limner.io",
}
_MODULES = ("metrics", "models")
_RENAMED = {"finish": "refine_3d"}  # old names work for one release

__all__ = [
    "Box",
    "Click",
    "Example",
    "Geometry",
    "Image",
    "Lasso",
    "LimnerError",
    "MaskPrompt",
    "ModelCard",
    "Prediction",
    "Scribble",
    "Session",
    "TextPrompt",
    "connect",
    "create_model",
    "everything",
    "list_models",
    "metrics",
    "models",
    "open_session",
    "read",
    "read_labels",
    "refine_3d",
    "render_overlay",
    "resume",
    "segment_automatically",
    "write",
]

if TYPE_CHECKING:
    from limner import metrics as metrics
    from limner.client import connect
    from limner.errors import LimnerError
    from limner.geometry import Geometry
    from limner.io import Image, read, read_labels, write
    from limner.models import ModelCard, ModelsModule, create_model, list_models
    from limner.pipeline.automatic import segment_automatically
    from limner.prompts import Box, Click, Example, Lasso, MaskPrompt, Scribble, TextPrompt
    from limner.render.overlay import render_overlay
    from limner.sessions import Prediction, Session, open_session, resume
    from limner.sessions.everything import everything
    from limner.sessions.refine_3d import refine_3d

    models: ModelsModule


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(
            f"limner.{name} is now limner.{new}; the old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return __getattr__(new)
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"limner.{name}")
    else:
        raise AttributeError(f"module 'limner' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
