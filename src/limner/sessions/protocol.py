"""The session contract: every verb of a segmentation session, local or remote, 2D, 3D or video.

Command line, benchmark and clients use these verbs and nothing else, so whatever has them can stand
in for a session that runs here.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.models import ModelCard
from limner.prompts.types import Prompt
from limner.sessions.answers.prediction import Prediction
from limner.sessions.history.events import PropagationRequest
from limner.sessions.history.manifest import Options
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.propagation.review import ReviewFrame


@runtime_checkable
class Session(Protocol):
    """One image, volume or video and the prompts about it.

    Positions are in index order: ``(row, column)`` in images and frames, ``(slice, row, column)``
    in volumes. Object ids count from 1; 0 is background. Frames are those of a video or the slices
    of a volume across its first axis.
    """

    # -- what the session is about ------------------------------------------------------------

    @property
    def image(self) -> Image:
        """The image, volume or video."""

    @property
    def card(self) -> ModelCard:
        """The facts of the model that answers prompts."""

    @property
    def propagator_card(self) -> ModelCard | None:
        """The facts of the model that carries masks to other frames; None: the same model does."""

    @property
    def options(self) -> Options:
        """Zoom, intensity window and the other options that the session was opened with."""

    @property
    def num_frames(self) -> int:
        """Number of frames or slices; 1 for a 2D image."""

    @property
    def journal(self) -> Path | None:
        """The file that keeps the session; None where there is none."""

    # -- prompts ------------------------------------------------------------------------------

    def add(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> Prompt:
        """Add a prompt and return it. Cheap: nothing is predicted until `predict`.

        Args:
            prompt: positions in index order; see `limner.prompts`.
            object_id: which object it is about, from 1.
            frame: frame of a video, or slice of a volume, that a 2D prompt is about.
            axis: of a volume, across which that slice lies: 0, 1 or 2 in index order. The prompt
                has the coordinates of the two others, in their order.

        Raises:
            PromptError: the model does not understand it, or it does not fit the image.
            SessionError: the session is closed, or its journal cannot be written.
        """

    def check_prompt(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> None:
        """Refuse what `add` would refuse, and change nothing.

        Raises:
            PromptError: the model does not understand it, or it does not fit the image.
        """

    def name(self, object_id: int, name: str) -> None:
        """Name an object, such as ``"liver"``; exports carry the name."""

    def lock(self, object_id: int) -> None:
        """Keep an object as it is, and others off its pixels.

        Until `unlock`, prompts, undo, redo and reset about it are refused, and every other object's
        mask, what is predicted next included, leaves its pixels out. Of two that are locked the one
        that was so first keeps what they share. A propagation still carries it.

        Raises:
            SessionError: there is no such object.
        """

    def unlock(self, object_id: int) -> None:
        """Inverse of `lock`; the pixels that others were kept off come back to them.

        Raises:
            SessionError: there is no such object.
        """

    @property
    def locked(self) -> tuple[int, ...]:
        """Ids of the objects that are locked, in the order in which they were."""

    def set_priority(self, object_ids: Sequence[int]) -> None:
        """Say which objects keep the pixels that they share with others where a file or `labels`
        holds one object per pixel. Masks are not changed by it.

        Args:
            object_ids: the uppermost first; they lie above all others. Empty: as without it.

        Raises:
            SessionError: there is no such object.
        """

    @property
    def priority(self) -> tuple[int, ...]:
        """What `set_priority` said last."""

    def undo(self, *, object_id: int | None = None) -> None:
        """Take back the last prompt, reset or propagation, of one object or of the session.

        Raises:
            SessionError: there is nothing to undo, or no such object.
        """

    def redo(self, *, object_id: int | None = None) -> None:
        """Bring back what was undone last, at its old place in time; a new prompt about an object
        ends its redo.

        Raises:
            SessionError: there is nothing to redo, or no such object.
        """

    def reset(self, *, object_id: int | None = None) -> None:
        """Drop all prompts and propagated frames of one object, or of all. Can be undone."""

    @property
    def can_undo(self) -> bool:
        """Whether `undo` has something to take back."""

    @property
    def can_redo(self) -> bool:
        """Whether `redo` has something to bring back."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that count, oldest first."""

    @property
    def entries(self) -> tuple[PromptEntry, ...]:
        """The prompts that count with object and frame, oldest first."""

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects that have prompts or propagated frames, ascending."""

    @property
    def names(self) -> MutableMapping[int, str]:
        """Names given to objects, by id; ``names[1] = "liver"`` is ``name(1, "liver")``."""

    # -- masks --------------------------------------------------------------------------------

    def predict(self, *, object_id: int = 1, frame: int | None = None) -> Prediction:
        """Answer all prompts about an object; runs only what is stale.

        Args:
            object_id: whose mask.
            frame: for prompts on one frame or slice; None for the whole image or volume.

        Raises:
            SessionError: the object has no prompts there.
        """

    def predict_all(self, *, frame: int | None = None) -> tuple[Prediction, ...]:
        """Answer all objects, wherever they have prompts; the same as `predict` for each.

        Args:
            frame: only the prompts on this frame or slice; None for all.

        Returns:
            One per object and frame, grouped by frame, in the order they were first mentioned.
            Empty where there are no prompts.
        """

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
        """Carry masks from the frames with prompts to the others, one answer at a time.

        Frames with prompts stay as they are. Stop by leaving the loop; what was yielded stays. Only
        what is missing is run: frames that an earlier call wrote, and that still follow from the
        prompts, are yielded first with `Prediction.known` set.

        Args:
            start: first frame to write, default 0.
            stop: first frame not to write, default the number of frames.
            direction: ``"forward"``, ``"backward"`` or ``"both"`` (forward first).
            object_id: one object, default all that have prompts on a frame.
            how: ``"carry"``: from mask to mask. ``"interpolate"``: a box that moves evenly between
                frames with prompts.
            again: also run what still holds.

        Yields:
            A `Prediction` per object and frame, with `frame` set.

        Raises:
            SessionError: a 2D image, too few frames with prompts, a model that cannot carry, or a
                prompt was added, undone or redone in between.
            ValueError: an unknown way or direction, an empty range of frames, or no object id.
        """

    def resume_propagation(self) -> Iterator[Prediction]:
        """Repeat the last call of `propagate`, which runs only what is missing: after a crash, or
        after a correction.

        Raises:
            SessionError: none was asked for, or it cannot begin.
        """

    @property
    def requested(self) -> PropagationRequest | None:
        """The arguments of the last call of `propagate`; None before the first one."""

    def frames_to_review(
        self, count: int = 5, *, object_id: int | None = None
    ) -> tuple[ReviewFrame, ...]:
        """The propagated frames that most need a look, the worst first.

        A frame is listed where its score is low, or where the mask jumps in area or place against
        the frames beside it. Frames near one another are one entry: correct the worst, propagate,
        and ask again.

        Args:
            count: of frames, at most.
            object_id: one object, default all.

        Returns:
            Tuples ``(frame, score, object_id)``; the score is 0…1, and the object the one that is
            in doubt there. Empty for a 2D image.
        """

    # -- results ------------------------------------------------------------------------------

    @property
    def labels(self) -> LabelArray:
        """What would be saved: label map of the image's shape, read-only, 0 is background.

        Where objects overlap it holds the one that `set_priority` names first, else the lower id,
        but for an object of which more than half lies in the other one, such as a tumour in its
        organ; `export` keeps both.
        """

    def export(self) -> Labels:
        """All objects with their names, overlaps kept, and how they were made (the manifest)."""

    # -- old names, for one release -----------------------------------------------------------

    def go_on(self) -> Iterator[Prediction]:
        """Old name of `resume_propagation`."""

    def doubtful(self, count: int = 5, *, object_id: int | None = None) -> tuple[ReviewFrame, ...]:
        """Old name of `frames_to_review`."""

    # -- end ----------------------------------------------------------------------------------

    def discard(self) -> None:
        """Close a session that is not worth keeping, and remove its journal."""

    def close(self) -> None:
        """Release memory, device, journal or lease; a journal stays for `limner.resume`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
