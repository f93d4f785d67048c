"""Models of a server: each is built once and shared by all sessions."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from limner.models import (
    ModelCard,
    PromptableModel,
    check_promptable,
    create_model,
    kept_weights,
    list_models,
    variants,
)
from limner.server.failures import NotFound


class ModelStore:
    """The models that clients may use, by name.

    Args:
        names: that are offered; empty: all that are ready here, that is need no weights file or
            have it.
        objects: models of your own, by name.
    """

    def __init__(
        self, names: tuple[str, ...] = (), objects: Mapping[str, PromptableModel] | None = None
    ) -> None:
        self._names = names
        self._objects = dict(objects or {})
        self._built: dict[tuple[str, bool], PromptableModel] = {}
        self._lock = threading.Lock()
        self._ready: tuple[ModelCard, ...] | None = None

    def add(self, name: str, model: PromptableModel) -> None:
        """Offer a model of your own."""
        self._objects[name] = model

    def cards(self) -> tuple[ModelCard, ...]:
        """Cards of what is offered and takes prompts."""
        with self._lock:
            if self._ready is None:
                known = {card.name: card for card in list_models()}
                ready = [
                    v.card.name for v in variants() if not v.weights or kept_weights(v) is not None
                ]
                names = self._names or tuple(ready)
                chosen = [known[n] for n in names if n in known]
                self._ready = tuple(c for c in chosen if c.prompts)
        return (*self._ready, *(m.card for m in self._objects.values()))

    def get(self, name: str, *, exact: bool = False) -> PromptableModel:
        """A model, built at first use.

        Raises:
            NotFound: it is not offered.
            ValueError, CheckpointError: it takes no prompts, or its weights are not here.
        """
        if name in self._objects:
            return self._objects[name]
        offered = {card.name for card in self.cards()}
        if name not in offered:
            raise NotFound(f"model (there are {', '.join(sorted(offered))}) named", name)
        with self._lock:
            if (name, exact) not in self._built:
                self._built[name, exact] = check_promptable(create_model(name, exact=exact))
            return self._built[name, exact]
