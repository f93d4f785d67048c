"""A session behind a wire: each verb and its answer goes through JSON text, as a remote one's does.

It proves that the contract of `limner.Session` can be served. What a client has anyway, its image
and the session's files, is passed as it is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

import limner
from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.models import ModelCard
from limner.prompts import from_json, to_json
from limner.prompts.types import Box, Prompt
from limner.sessions import Prediction, PromptEntry, PropagationRequest, ReviewFrame
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.events import event_from_json, event_to_json
from limner.sessions.history.manifest import Options
from limner.sessions.object_names import ObjectNames

T = TypeVar("T")


def open_proxy(*arguments: Any, **options: Any) -> ProxySession:
    """As `limner.open_session`."""
    return ProxySession(limner.open_session(*arguments, **options))


def over_the_wire(value: T) -> T:
    """A JSON value, written and read."""
    result: T = json.loads(json.dumps(value, allow_nan=False))
    return result


class ProxySession:
    """Forwards to another session."""

    def __init__(self, session: limner.Session) -> None:
        self._session = session

    @property
    def image(self) -> Image:
        return self._session.image

    @property
    def card(self) -> ModelCard:
        return self._session.card

    @property
    def propagator_card(self) -> ModelCard | None:
        return self._session.propagator_card

    @property
    def options(self) -> Options:
        return Options.from_json(over_the_wire(self._session.options.to_json()))

    @property
    def num_frames(self) -> int:
        return over_the_wire(self._session.num_frames)

    @property
    def journal(self) -> Path | None:
        return self._session.journal

    def add(self, prompt: Prompt, **where: Any) -> Prompt:
        self._session.add(_sent(prompt), **over_the_wire(where))
        return prompt

    def check_prompt(self, prompt: Prompt, **where: Any) -> None:
        self._session.check_prompt(_sent(prompt), **over_the_wire(where))

    def name(self, object_id: int, name: str) -> None:
        self._session.name(*over_the_wire([object_id, name]))

    def lock(self, object_id: int) -> None:
        self._session.lock(over_the_wire(object_id))

    def unlock(self, object_id: int) -> None:
        self._session.unlock(over_the_wire(object_id))

    @property
    def locked(self) -> tuple[int, ...]:
        return tuple(over_the_wire(list(self._session.locked)))

    def set_priority(self, object_ids: Sequence[int]) -> None:
        self._session.set_priority(over_the_wire(list(object_ids)))

    @property
    def priority(self) -> tuple[int, ...]:
        return tuple(over_the_wire(list(self._session.priority)))

    def undo(self, **which: Any) -> None:
        self._session.undo(**over_the_wire(which))

    def redo(self, **which: Any) -> None:
        self._session.redo(**over_the_wire(which))

    def reset(self, **which: Any) -> None:
        self._session.reset(**over_the_wire(which))

    @property
    def can_undo(self) -> bool:
        return over_the_wire(self._session.can_undo)

    @property
    def can_redo(self) -> bool:
        return over_the_wire(self._session.can_redo)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(map(_sent, self._session.prompts))

    @property
    def entries(self) -> tuple[PromptEntry, ...]:
        rows = [[e.object_id, e.frame, e.answered] for e in self._session.entries]
        return tuple(
            PromptEntry(prompt, *row)
            for prompt, row in zip(self.prompts, over_the_wire(rows), strict=True)
        )

    @property
    def object_ids(self) -> tuple[int, ...]:
        return tuple(over_the_wire(list(self._session.object_ids)))

    @property
    def names(self) -> ObjectNames:
        return ObjectNames(dict(over_the_wire(list(self._session.names.items()))), self.name)

    def predict(self, **which: Any) -> Prediction:
        return _received(self._session.predict(**over_the_wire(which)))

    def predict_all(self, **which: Any) -> tuple[Prediction, ...]:
        return tuple(map(_received, self._session.predict_all(**over_the_wire(which))))

    def propagate(self, **request: Any) -> Iterator[Prediction]:
        return map(_received, self._session.propagate(**over_the_wire(request)))

    def resume_propagation(self) -> Iterator[Prediction]:
        return map(_received, self._session.resume_propagation())

    @property
    def requested(self) -> PropagationRequest | None:
        asked = self._session.requested
        if asked is None:
            return None
        event = event_from_json(over_the_wire(event_to_json(asked)))
        assert isinstance(event, PropagationRequest)
        return event

    def frames_to_review(self, count: int = 5, **which: Any) -> tuple[ReviewFrame, ...]:
        found = self._session.frames_to_review(over_the_wire(count), **over_the_wire(which))
        return tuple(ReviewFrame(*row) for row in over_the_wire([list(f) for f in found]))

    def go_on(self) -> Iterator[Prediction]:
        return map(_received, self._session.go_on())

    def doubtful(self, count: int = 5, **which: Any) -> tuple[ReviewFrame, ...]:
        return self._session.doubtful(count, **which)

    @property
    def labels(self) -> LabelArray:
        return self._session.labels

    def export(self) -> Labels:
        return self._session.export()

    def discard(self) -> None:
        self._session.discard()

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sent(prompt: Prompt) -> Prompt:
    """A prompt that came through the wire; what is none is left to be refused at the other end."""
    return from_json(over_the_wire(to_json(prompt))) if isinstance(prompt, Prompt) else prompt


def _received(prediction: Prediction) -> Prediction:
    region = prediction.region
    sent = {
        "shape": list(region.shape),
        "low": list(region.low),
        "grid": [list(region.grid.shape), _text(region.grid)],
        "edges": None if region.edges is None else [e.tolist() for e in region.edges],
        "box": None if prediction.box is None else to_json(prediction.box),
        "rest": [prediction.score, prediction.object_id, prediction.frame, prediction.known],
    }
    got = over_the_wire(sent)
    size, text = got["grid"]
    grid = np.frombuffer(base64.b64decode(text), np.int16).reshape(size)
    edges = None if got["edges"] is None else tuple(np.array(e) for e in got["edges"])
    box = None if got["box"] is None else from_json(got["box"])
    assert box is None or isinstance(box, Box)
    score, object_id, frame, known = got["rest"]
    logits = SparseLogits(tuple(got["shape"]), tuple(got["low"]), grid, edges)
    return Prediction(logits, score, box, object_id, frame, known)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
