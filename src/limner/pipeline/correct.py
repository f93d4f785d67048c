"""Automatic first, then corrected: a session whose objects begin as the labels of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from limner.models import PromptableModel, default_model
from limner.pipeline.automatic import AutomaticSegmentation
from limner.prompts.types import MaskPrompt
from limner.sessions import Session, open_session


def open_correction(
    found: AutomaticSegmentation,
    model: str | PromptableModel | None = None,
    *,
    journal: str | Path | None = None,
    **options: Any,
) -> Session:
    """Open a session on an automatic result: each label is an object, named as on the model's card,
    whose first prompt is its mask. Clicks then correct it.

    Args:
        found: of `limner.segment_automatically`; labels without a pixel become no object.
        model: that corrects, a name or an object; by default limner-3d for volumes and limner-2d
            for 2D images and videos, whose masks lie on single frames.
        journal: file that survives a crash; `limner.resume` continues it.
        options: more of `limner.open_session`. Labels stay to the pixel where no click changes
            them; with ``keep_masks=False`` the model draws each of them anew.

    Raises:
        SessionError: the model does not work on this kind of image, or the journal exists.
        PromptError: the model takes no masks; then no journal is left behind.
    """
    image = found.image
    chosen = model or default_model(image.kind, flat=image.kind == "video")
    options.setdefault("keep_masks", True)
    session = open_session(image, chosen, journal=journal, **options)
    whole = image.geometry.ndim == 2 or (image.kind == "volume" and 3 in session.card.ndim)
    try:
        for facts in found.statistics:
            if not facts.voxels:
                continue
            mask = found.labels.mask(facts.id)
            if whole:
                session.add(MaskPrompt(mask), object_id=facts.id)
            else:
                for frame in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
                    session.add(MaskPrompt(mask[frame]), object_id=facts.id, frame=frame)
            session.name(facts.id, facts.name)
    except BaseException:
        session.discard()
        raise
    return session
