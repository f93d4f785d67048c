"""Embeddings shared between sessions: an image is encoded once for all its objects."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.models import (
    BatchModel,
    MaskCarrier,
    ModelCard,
    PromptableModel,
    Question,
    Segmentation,
    View,
)
from limner.prompts.types import Prompt

_KEPT = 4  # pictures; an embedding of a ViT-B has 4 to 12 MB
_KEPT_SLICES = 64  # of a volume, all of whose slices are looked at again with every prompt


class EncodedOnce:
    """A model with an expensive `embed`, around which nothing else changes.

    The first prompt about a picture bears the time of encoding it, those about its other objects do
    not.

    Args:
        model: the one that is asked.
        kept: pictures whose encoding is kept.
    """

    def __init__(self, model: BatchModel, *, kept: int = _KEPT) -> None:
        self._model = model
        self._most = kept
        self._kept: OrderedDict[str, Any] = OrderedDict()

    @property
    def card(self) -> ModelCard:
        """The model's own."""
        return self._model.card

    def embed(self, view: View) -> Any:
        """What the model says of the view, or said of its like."""
        key = _key(view)
        if key not in self._kept:
            self._kept[key] = self._model.embed(view)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """As the model does."""
        return self._model.segment(embedding, prompts, previous)

    def segment_batch(
        self, embedding: Any, questions: Sequence[Question]
    ) -> Sequence[Segmentation]:
        """As the model does."""
        return self._model.segment_batch(embedding, questions)


class PropagatingEncodedOnce(EncodedOnce):
    """Likewise, of a model that says itself how an answer is carried to the next slice."""

    def next_prompts(
        self, view: View, before: Segmentation, prompts: Sequence[Prompt]
    ) -> Sequence[Prompt]:
        """As the model does."""
        assert isinstance(self._model, MaskCarrier)
        return self._model.next_prompts(view, before, prompts)


def encoded_once(
    model: PromptableModel, *, dimensions: int = 2, by_slices: bool = False
) -> PromptableModel:
    """The model, encoding each picture once if it is one whose encoding is worth keeping.

    Args:
        model: as made.
        dimensions: of what it is asked about. A model that looks at a volume as a whole sees
            another window of it for every object, and stays as it is.
        by_slices: whether it is asked slice by slice although it could look at the whole.
    """
    if not isinstance(model, BatchModel):
        return model
    if dimensions == 2:
        return EncodedOnce(model)
    if 3 in model.card.ndim and not by_slices:
        return model
    kind = PropagatingEncodedOnce if isinstance(model, MaskCarrier) else EncodedOnce
    return kind(model, kept=_KEPT_SLICES)


def _key(view: View) -> str:
    facts = (view.array.shape, view.array.dtype.str, view.spacing, view.intensity, view.windowed)
    digest = hashlib.sha256(repr((*facts, view.modality)).encode())
    digest.update(np.ascontiguousarray(view.array).data)
    return digest.hexdigest()
