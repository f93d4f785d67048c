"""The verbs that every session has, local or remote, 2D, 3D or video; written down once."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from limner.io.labels import LabelArray
from limner.prompts.types import Prompt
from limner.sessions.answers.prediction import Prediction


@runtime_checkable
class Session(Protocol):
    """One image, volume or video and its prompts. `limner.sessions.base` documents the verbs."""

    def add(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> Prompt:
        """Add a prompt and return it. Cheap: nothing is predicted until `predict`."""

    def predict(self, *, object_id: int = 1, frame: int | None = None) -> Prediction:
        """Answer all prompts about an object; runs only what is stale."""

    def predict_all(self, *, frame: int | None = None) -> tuple[Prediction, ...]:
        """Answer all objects, wherever they have prompts; the same as `predict` for each."""

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
        """Carry masks to other frames or slices, one answer at a time."""

    def undo(self, *, object_id: int | None = None) -> None:
        """Take back the last action of one object or of the session."""

    def redo(self, *, object_id: int | None = None) -> None:
        """Bring back what was undone last."""

    def reset(self, *, object_id: int | None = None) -> None:
        """Drop all prompts of one object, or of all."""

    @property
    def labels(self) -> LabelArray:
        """What would be saved: a label map of the image's shape."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What was said and still counts, oldest first."""

    def close(self) -> None:
        """Release memory, device, journal or lease."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
