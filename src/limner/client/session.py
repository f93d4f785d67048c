"""Remote session: the verbs of `limner.Session`, answered by a server."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from limner.client._http import Connection
from limner.errors import SessionError
from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.models import ModelCard
from limner.prompts import to_json
from limner.prompts.types import Prompt
from limner.sessions import (
    ObjectNames,
    Prediction,
    PromptEntry,
    PropagationRequest,
    ReviewFrame,
)
from limner.sessions.wire import (
    card_from_json,
    entries_from_json,
    labels_from_json,
    options_from_json,
    prediction_from_json,
    request_from_json,
)

_log = logging.getLogger(__name__)


class RemoteSession:
    """A session on a server. Made by `RemoteClient`; the verbs are those of `limner.Session`.

    It stays on the server when it is closed here, and `RemoteClient.resume` continues it.

    Args:
        connection: to the server.
        session_id: its id there.
        image: that it is about.
        facts: what the server said of it when it was opened.

    Attributes:
        id: of the session on the server.
    """

    def __init__(
        self, connection: Connection, session_id: str, image: Image, facts: Mapping[str, Any]
    ) -> None:
        self.id = session_id
        self._connection = connection
        self._image = image
        self._closed = False
        self._card = card_from_json(facts["card"])
        carrier = facts["propagator_card"]
        self._propagator_card = None if carrier is None else card_from_json(carrier)
        self._options = options_from_json(facts["options"])
        self._num_frames = int(facts["num_frames"])

    # -- what the session is about ------------------------------------------------------------

    @property
    def image(self) -> Image:
        """The image, volume or video."""
        return self._image

    @property
    def card(self) -> ModelCard:
        """The facts of the model that answers prompts."""
        return self._card

    @property
    def propagator_card(self) -> ModelCard | None:
        """The facts of the model that carries masks; None: the same model does."""
        return self._propagator_card

    @property
    def options(self) -> Any:
        """Zoom, intensity window and the other options that the session was opened with."""
        return self._options

    @property
    def num_frames(self) -> int:
        """Number of frames or slices; 1 for a 2D image."""
        return self._num_frames

    @property
    def journal(self) -> Path | None:
        """None: the server keeps the journal."""
        return None

    # -- prompts ------------------------------------------------------------------------------

    def add(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> Prompt:
        """Add a prompt and return it; see `limner.Session.add`."""
        self._send_prompt(prompt, object_id, frame, axis, check_only=False)
        return prompt

    def check_prompt(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> None:
        """Refuse what `add` would refuse, and change nothing."""
        self._send_prompt(prompt, object_id, frame, axis, check_only=True)

    def name(self, object_id: int, name: str) -> None:
        """Name an object, such as ``"liver"``; exports carry the name."""
        self._call("PUT", f"objects/{object_id}", {"name": name})

    def lock(self, object_id: int) -> None:
        """Keep an object as it is, and others off its pixels; see `limner.Session.lock`."""
        self._call("PUT", f"objects/{object_id}/lock", {"locked": True})

    def unlock(self, object_id: int) -> None:
        """Inverse of `lock`; the pixels that others were kept off come back to them."""
        self._call("PUT", f"objects/{object_id}/lock", {"locked": False})

    @property
    def locked(self) -> tuple[int, ...]:
        """Ids of the objects that are locked, in that order."""
        return tuple(self._call("GET", "")["locked"])

    def set_priority(self, object_ids: Sequence[int]) -> None:
        """Say which objects keep shared pixels; see `limner.Session.set_priority`."""
        self._call("PUT", "priority", {"object_ids": [int(i) for i in object_ids]})

    @property
    def priority(self) -> tuple[int, ...]:
        """What `set_priority` said last."""
        return tuple(self._call("GET", "")["priority"])

    def undo(self, *, object_id: int | None = None) -> None:
        """Take back the last prompt, reset or propagation, of one object or of the session."""
        self._call("POST", "undo", {"object_id": object_id})

    def redo(self, *, object_id: int | None = None) -> None:
        """Bring back what was undone last; a new prompt about an object ends its redo."""
        self._call("POST", "redo", {"object_id": object_id})

    def reset(self, *, object_id: int | None = None) -> None:
        """Drop all prompts and propagated frames of one object, or of all. Can be undone."""
        self._call("POST", "reset", {"object_id": object_id})

    @property
    def can_undo(self) -> bool:
        """Whether `undo` has something to take back."""
        return bool(self._call("GET", "")["can_undo"])

    @property
    def can_redo(self) -> bool:
        """Whether `redo` has something to bring back."""
        return bool(self._call("GET", "")["can_redo"])

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that count, oldest first."""
        return tuple(entry.prompt for entry in self.entries)

    @property
    def entries(self) -> tuple[PromptEntry, ...]:
        """The prompts that count with object and frame, oldest first."""
        return entries_from_json(self._call("GET", "prompts")["prompts"])

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects that have prompts or propagated frames, ascending."""
        return tuple(self._call("GET", "")["object_ids"])

    @property
    def names(self) -> ObjectNames:
        """Names given to objects, by id; ``names[1] = "liver"`` is ``name(1, "liver")``."""
        found = self._call("GET", "")["names"].items()
        return ObjectNames({int(i): name for i, name in found}, self.name)

    # -- masks --------------------------------------------------------------------------------

    def predict(self, *, object_id: int = 1, frame: int | None = None) -> Prediction:
        """Answer all prompts about an object; see `limner.Session.predict`."""
        body = {"object_id": object_id, "frame": frame}
        return prediction_from_json(self._call("POST", "predict", body, form="logits"))

    def predict_all(self, *, frame: int | None = None) -> tuple[Prediction, ...]:
        """Answer all objects, wherever they have prompts; see `limner.Session.predict_all`."""
        found = self._call("POST", "predict-all", {"frame": frame}, form="logits")
        return tuple(map(prediction_from_json, found["predictions"]))

    def propagate(
        self,
        *,
        start: int | None = None,
        stop: int | None = None,
        direction: str = "both",
        object_id: int | None = None,
        how: str = "carry",
        again: bool = False,
    ) -> Iterator[Prediction]:
        """Carry masks to other frames or slices; see `limner.Session.propagate`. A frame is run
        when it is asked for.
        """
        return self._propagate(
            {
                "start": start,
                "stop": stop,
                "direction": direction,
                "object_id": object_id,
                "how": how,
                "again": again,
            }
        )

    def resume_propagation(self) -> Iterator[Prediction]:
        """Repeat the last call of `propagate`, which runs only what is missing."""
        return self._propagate({"resume": True})

    @property
    def requested(self) -> PropagationRequest | None:
        """The arguments of the last call of `propagate`; None before the first one."""
        return request_from_json(self._call("GET", "")["requested"])

    def frames_to_review(
        self, count: int = 5, *, object_id: int | None = None
    ) -> tuple[ReviewFrame, ...]:
        """The propagated frames that most need a look; see `limner.Session.frames_to_review`."""
        found = self._call("GET", "review", count=count, object_id=object_id)["frames"]
        return tuple(ReviewFrame(**row) for row in found)

    # -- results ------------------------------------------------------------------------------

    @property
    def labels(self) -> LabelArray:
        """What would be saved: label map of the image's shape, read-only, 0 is background."""
        return self.export().to_array()

    def export(self) -> Labels:
        """All objects with their names, overlaps kept, and how they were made (the manifest)."""
        found = labels_from_json(self._call("GET", "labels"), self.image.geometry)
        if found.manifest is not None and self.image.path is not None:
            image = {
                **found.manifest["image"],
                "path": str(self.image.path.resolve()),
                "read_options": self.image.read_options,
            }
            found.manifest = {**found.manifest, "image": image}
        return found

    # -- old names, for one release -----------------------------------------------------------

    def go_on(self) -> Iterator[Prediction]:
        """Old name of `resume_propagation`."""
        _warn_renamed("go_on", "resume_propagation")
        return self.resume_propagation()

    def doubtful(self, count: int = 5, *, object_id: int | None = None) -> tuple[ReviewFrame, ...]:
        """Old name of `frames_to_review`."""
        _warn_renamed("doubtful", "frames_to_review")
        return self.frames_to_review(count, object_id=object_id)

    # -- end ----------------------------------------------------------------------------------

    def discard(self) -> None:
        """Remove the session from the server."""
        self._call("DELETE", "")
        self._closed = True

    def close(self) -> None:
        """Let go of the session; it stays on the server, on disk."""
        if not self._closed:
            with suppress(SessionError):  # a server that is gone has let go
                self._call("POST", "close")
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------

    def _call(self, method: str, verb: str, body: Any = None, **query: Any) -> Any:
        if self._closed:
            raise SessionError("The session is closed; open another one or resume it by its id.")
        path = f"sessions/{self.id}" + (f"/{verb}" if verb else "")
        return self._connection.call(method, path, body, **query)

    def _send_prompt(
        self, prompt: Prompt, object_id: int, frame: int | None, axis: int, *, check_only: bool
    ) -> None:
        body = {
            "prompt": to_json(prompt),
            "object_id": object_id,
            "frame": frame,
            "axis": axis,
            "check_only": check_only,
        }
        for text in self._call("POST", "prompts", body)["warnings"]:
            _log.warning("%s", text)

    def _propagate(self, arguments: dict[str, Any]) -> Iterator[Prediction]:
        number = self._call("POST", "propagations", arguments)["id"]

        def run() -> Iterator[Prediction]:
            done = False
            try:
                while True:
                    path = f"propagations/{number}/next"
                    found = self._call("POST", path, form="logits")["prediction"]
                    if found is None:
                        done = True
                        return
                    yield prediction_from_json(found)
            finally:
                if not done and not self._closed:
                    with suppress(SessionError):
                        self._call("DELETE", f"propagations/{number}")

        return run()


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"Session.{old} is now {new}.", DeprecationWarning, stacklevel=3)
