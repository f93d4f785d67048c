"""Provenance of a propagated frame: a hash of all it follows from; unchanged, the stored mask is
still valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from limner.adapters.protocols import MemoryModel
from limner.models import MaskCarrier, PromptableModel
from limner.prompts.types import to_json
from limner.sessions.history.log import Action, PromptLog

_DIGITS = 16  # 64 bits: a journal has some thousands of digests


def digest(*facts: Any) -> str:
    """A digest of JSON values, in their order."""
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def of_model(model: PromptableModel, *, zoom: bool, exact: bool) -> str:
    """What a model answers depends on, besides the question."""
    card = model.card
    limits = repr(model.memory) if isinstance(model, MemoryModel) else ""
    own_way = isinstance(model, MaskCarrier)
    return digest(card.name, card.weights_sha256, zoom, exact, limits, own_way)


def of_prompts(log: PromptLog, actions: Sequence[Action]) -> str:
    """What an answer to prompts follows from: the prompts, and after which of them it was asked for
    before, since each round is fed to the next.
    """
    prompts = [to_json(a.prompt) for a in actions if a.prompt is not None]
    rounds = [n for n in range(1, len(actions)) if log.is_round(actions[:n])]
    return digest(prompts, rounds)


def of_mark(log: PromptLog, object_id: int, frame: int) -> str:
    """What an object's mask on an annotated frame follows from: the prompts there, and what was
    on the frame before, which a first correction starts from.
    """
    actions = log.prompts(object_id, frame)
    if not actions:
        return digest(frame, None)
    first = actions[0].number
    base: Any = None
    earlier = log.propagated_before(object_id, frame, first)
    if earlier is not None:
        base = hashlib.sha256(",".join(map(str, earlier.runs)).encode()).hexdigest()
    else:
        whole = [a for a in log.prompts(object_id, None) if a.number < first]
        base = of_prompts(log, whole) if whole else None
    return digest(frame, of_prompts(log, actions), base)
