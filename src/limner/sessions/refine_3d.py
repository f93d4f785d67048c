"""Refinement in 3D: after a propagation over slices, a 3D model goes over the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import SessionError
from limner.io.labels import Labels
from limner.models import PromptableModel
from limner.prompts.types import MaskPrompt
from limner.sessions.open import open_session
from limner.sessions.protocol import Session

Mask = NDArray[np.bool_]


def refine_3d(session: Session, model: str | PromptableModel = "limner-3d") -> Labels:
    """The masks of a session on a volume as a model makes them that sees in 3D.

    Each object's mask is handed to the model as a mask prompt. Annotated slices are kept
    unchanged, and so are objects that are locked; others are kept off those. The session itself is
    not changed. Whether it helps depends on the object: compare before you rely on it.

    Args:
        session: on a volume, with masks on some of its slices.
        model: a name or an object; it works in 3D and understands masks.

    Returns:
        All objects. The manifest says under ``"finished"`` which model it was and how many voxels
        of each object came and went.

    Raises:
        SessionError: no volume, or the model does not work in 3D.
        PromptError: the model understands no masks.
    """
    if session.image.kind != "volume":
        raise SessionError(f"Only masks on a volume are finished in 3D, not on a {_kind(session)}.")
    before = session.export()
    drawn: dict[int, set[int]] = {}
    for entry in session.entries:
        if entry.frame is not None:
            drawn.setdefault(entry.object_id, set()).add(entry.frame)
    masks: dict[int, Mask] = {}
    changed: dict[str, dict[str, int]] = {}
    with open_session(session.image, model, window=session.options.window_requested) as other:
        card = other.card
        if 3 not in card.ndim:
            raise SessionError(f"{card.name} does not work in 3D; name a model that does.")
        for object_id in before.ids:
            mask = np.asarray(before.mask(object_id), dtype=np.bool_)
            if mask.any() and object_id not in session.locked:
                masks[object_id] = _refine_mask(other, object_id, mask, drawn.get(object_id, set()))
            else:
                masks[object_id] = mask
            other.reset()
    for object_id, mask in masks.items():
        for locked in session.locked:
            if object_id not in session.locked and locked in masks:
                masks[object_id] = mask = mask & ~masks[locked]
        changed[str(object_id)] = _change(before.mask(object_id), masks[object_id])
    manifest = {
        **(before.manifest or {}),
        "finished": {"model": card.to_json(), "changed_voxels": changed},
    }
    return Labels(
        before.geometry,
        masks=masks,
        names=before.names,
        manifest=manifest,
        priority=before.priority,
    )


def _refine_mask(other: Session, object_id: int, mask: Mask, drawn: set[int]) -> Mask:
    other.add(MaskPrompt(mask), object_id=object_id)
    found = np.array(other.predict(object_id=object_id).mask)
    for k in drawn:
        found[k] = mask[k]
    return found


def _change(before: Mask, after: Mask) -> dict[str, int]:
    return {
        "added": int(np.count_nonzero(after & ~before)),
        "removed": int(np.count_nonzero(before & ~after)),
    }


def _kind(session: Session) -> Any:
    return {"image": "picture"}.get(session.image.kind, session.image.kind)
