"""What all sessions share: the conversation, its journal, answers and export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError, SessionError
from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.models import CheckingModel, ModelCard, PromptableModel, list_models
from limner.prompts.types import Prompt, check_prompt
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.answer_cache import AnswerCache
from limner.sessions.answers.changed_box import LastMasks
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.keep_mask import answer_keeping_masks
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.round_queue import RoundQueue
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.answers.zoom import answer_queries, questions_at_once
from limner.sessions.history.events import (
    Added,
    Cleared,
    Event,
    Named,
    Predicted,
    PropagationRequest,
    Redone,
    Undone,
    event_to_json,
)
from limner.sessions.history.ids import check_frame, check_object_id
from limner.sessions.history.interrupt import uninterrupted
from limner.sessions.history.journal import Journal
from limner.sessions.history.log import Action, PromptLog
from limner.sessions.history.manifest import Options, manifest
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.propagation.review import ReviewFrame

_log = logging.getLogger(__name__)

Part: TypeAlias = tuple[tuple[int | slice, ...], NDArray[np.bool_]]  # where, and the mask


class BaseSession:
    """One image and what was said about it. Made by `limner.open_session` and `limner.resume`."""

    def __init__(
        self,
        image: Image,
        model: PromptableModel,
        options: Options,
        *,
        log: PromptLog | None = None,
        journal: Journal | None = None,
        propagator: PromptableModel | None = None,
    ) -> None:
        self.image = image
        self.model = model
        self.propagator = propagator  # carries answers to other frames; None: `model` does it
        self.options = options
        self.journal = journal
        self._log = log or PromptLog()
        self._answers = AnswerCache()
        self._shown = LastMasks()
        self._closed = False

    @property
    def card(self) -> ModelCard:
        """The facts of the model that answers prompts."""
        return self.model.card

    @property
    def propagator_card(self) -> ModelCard | None:
        """The facts of the model that carries masks; None: the same model does."""
        return None if self.propagator is None else self.propagator.card

    @property
    def num_frames(self) -> int:
        """Number of frames or slices; 1 for a 2D image."""
        return 1

    # -- the conversation ---------------------------------------------------------------------

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
        event = self._placed_as(prompt, object_id, frame, axis)
        whole = self.image.geometry.shape
        shape = whole if event.frame is None else whole[1:]
        if event.prompt.reaches_over(shape):
            _log.warning("%r reaches over the image of %s; that part has no effect.", prompt, shape)
        self._record(event)
        return prompt

    def check_prompt(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> None:
        """Refuse what `add` would refuse, and change nothing.

        Raises:
            PromptError: the model does not understand it, or it does not fit the image.
        """
        self._placed_as(prompt, object_id, frame, axis)

    def _placed_as(self, prompt: Prompt, object_id: int, frame: int | None, axis: int) -> Added:
        """The event of adding a prompt, checked."""
        self._check_kind(prompt)
        object_id = check_object_id(object_id)
        frame = None if frame is None else check_frame(frame)
        lifted = (self._lifted(prompt, frame, axis), None) if axis != 0 else (prompt, frame)
        placed, where = self._placed(*lifted)
        return Added(placed, object_id, where)

    def name(self, object_id: int, name: str) -> None:
        """Name an object, such as ``"liver"``; exports carry the name."""
        object_id = check_object_id(object_id)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"An object's name is a word with at least one letter, not {name!r}.")
        self._record(Named(object_id, name.strip()))

    def undo(self, *, object_id: int | None = None) -> None:
        """Take back the last prompt, reset or propagation, of one object or of the session.

        Raises:
            SessionError: there is nothing to undo, or no such object.
        """
        self._record(Undone(_any_object(object_id)))

    def redo(self, *, object_id: int | None = None) -> None:
        """Bring back what was undone last; a new prompt about an object ends its redo.

        Raises:
            SessionError: there is nothing to redo, or no such object.
        """
        self._record(Redone(_any_object(object_id)))

    def reset(self, *, object_id: int | None = None) -> None:
        """Drop all prompts of one object, or of all. Can be undone."""
        self._record(Cleared(_any_object(object_id)))

    @property
    def can_undo(self) -> bool:
        """Whether `undo` has something to take back."""
        return self._log.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether `redo` has something to bring back."""
        return self._log.can_redo

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts that count, oldest first."""
        return tuple(entry.prompt for entry in self.entries)

    @property
    def entries(self) -> tuple[PromptEntry, ...]:
        """All prompts that count with object and frame, oldest first."""
        return tuple(
            PromptEntry(a.prompt, a.object_id, a.frame, self._log.ends_round(a))
            for a in self._log.all_prompts()
            if a.prompt is not None
        )

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects that have prompts or propagated frames, ascending."""
        return self._log.object_ids

    @property
    def names(self) -> dict[int, str]:
        """Names given to objects."""
        return dict(self._log.names)

    # -- answers ------------------------------------------------------------------------------

    def predict(self, *, object_id: int = 1, frame: int | None = None) -> Prediction:
        """Answer all prompts about an object; runs only what is stale.

        Args:
            object_id: whose mask.
            frame: for prompts on one frame or slice; None for the whole image or volume.

        Raises:
            SessionError: the object has no prompts there.
        """
        self._check_open()
        object_id = check_object_id(object_id)
        frame = self._answered_frame(object_id, None if frame is None else check_frame(frame))
        self._log.check(Predicted(object_id, frame))
        return self._predicted((object_id,), frame)[0]

    def predict_all(self, *, frame: int | None = None) -> tuple[Prediction, ...]:
        """Answer all objects, wherever they have prompts; the same as `predict` for each.

        A model that answers several questions together is asked so where no zoom gives every object
        a view of its own; it then sees an image once for all of them.

        Args:
            frame: only the prompts on this frame or slice; None for all.

        Returns:
            One per object and frame, grouped by frame, in the order they were first mentioned.
            Empty where nothing was said.
        """
        self._check_open()
        wanted = None if frame is None else self._answered_frame(0, check_frame(frame))
        places: dict[int | None, dict[int, None]] = {}
        for action in self._log.all_prompts():
            if wanted in (None, action.frame):
                places.setdefault(action.frame, {})[action.object_id] = None
        found: list[Prediction] = []
        for where, objects in places.items():
            shape = self.image.geometry.shape if where is None else self.image.geometry.shape[1:]
            size = questions_at_once(self.model, shape, zoom=self.options.zoom)
            ids = tuple(objects)
            for start in range(0, len(ids), size):
                found += self._predicted(ids[start : start + size], where)
        return tuple(found)

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
        """Carry masks to other frames or slices; only videos and volumes have any."""
        raise SessionError("A 2D image has no other frames to propagate to.")

    def resume_propagation(self) -> Iterator[Prediction]:
        """Repeat the last call of `propagate`; only videos and volumes have any."""
        return self.propagate()

    @property
    def requested(self) -> PropagationRequest | None:
        """The arguments of the last call of `propagate`; None before the first one."""
        return self._log.requested

    def frames_to_review(
        self, count: int = 5, *, object_id: int | None = None
    ) -> tuple[ReviewFrame, ...]:
        """The propagated frames that most need a look, the worst first; none in a 2D image."""
        return ()

    def go_on(self) -> Iterator[Prediction]:
        """Old name of `resume_propagation`."""
        _warn_renamed("go_on", "resume_propagation")
        return self.resume_propagation()

    def doubtful(self, count: int = 5, *, object_id: int | None = None) -> tuple[ReviewFrame, ...]:
        """Old name of `frames_to_review`."""
        _warn_renamed("doubtful", "frames_to_review")
        return self.frames_to_review(count, object_id=object_id)

    @property
    def labels(self) -> LabelArray:
        """What would be saved: label map of the image's shape, read-only, 0 is background.

        Where objects overlap the higher id wins; `export` keeps both.
        """
        return self.export().to_array()

    def export(self) -> Labels:
        """All objects with their names, overlaps kept, and how they were made (the manifest)."""
        self._check_open()
        painted = self._painted()
        masks = {i: partial(self._mask, i) for i in self.object_ids}  # made one by one
        facts = manifest(
            self.image,
            self.model.card,
            self.options,
            self.entries,
            self.names,
            {i: self._log.ways(i) for i in self.object_ids},
            propagator=self.propagator_card,
        )
        return Labels(
            self.image.geometry,
            array=painted,
            masks=None if painted is not None else masks,
            names=self.names,
            manifest=facts,
        )

    # -- end ----------------------------------------------------------------------------------

    def discard(self) -> None:
        """Close a session that is not worth keeping, and remove its journal."""
        if self.journal is not None:
            self.journal.discard()
        self.close()

    def close(self) -> None:
        """Release memory and the journal; the journal stays on disk for `limner.resume`."""
        self._closed = True
        self._answers = AnswerCache()
        self._shown.clear()
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- for the kinds of session -------------------------------------------------------------

    def _placed(self, prompt: Prompt, frame: int | None) -> tuple[Prompt, int | None]:
        """The prompt as the model will see it, and the frame it is about. Checks that it fits."""
        raise NotImplementedError

    def _lifted(self, prompt: Prompt, frame: int | None, axis: int) -> Prompt:
        """A 2D prompt on a slice across another axis than the first, in 3D."""
        raise PromptError(
            f"Only a volume has slices across axis {axis!r}; this is one {self.image.kind}."
        )

    def _scene(self, frame: int | None) -> ImageView:
        """What the model sees of the whole image, or of one frame."""
        raise NotImplementedError

    def _answered_frame(self, object_id: int, frame: int | None) -> int | None:
        """The frame that `predict` means."""
        return frame

    def _base(self, object_id: int, frame: int | None, first: Action) -> SparseLogits | None:
        """What was known of the object on this frame before its first prompt there."""
        return None

    def _parts(self, object_id: int) -> Iterator[Part]:
        """The object's mask as it is exported, in parts to paint one by one; nowhere else it is."""
        region = self._answer(object_id, None, self._log.prompts(object_id, None)).region
        yield region.slices, region.inside

    # -- inside -------------------------------------------------------------------------------

    def _predicted(self, object_ids: Sequence[int], frame: int | None) -> list[Prediction]:
        """The answers about objects with prompts on a frame, each a round from now on."""
        said = {i: self._log.prompts(i, frame) for i in object_ids}
        found = self._answered(frame, said)
        result = []
        for object_id, actions in said.items():
            if not self._log.is_round(actions):
                self._record(Predicted(object_id, frame))  # after the answer: a model's failure
            answer = found[object_id]  # leaves no round behind
            result.append(self._prediction(answer.region, answer.score, object_id, frame))
        return result

    def _answer(self, object_id: int, frame: int | None, actions: Sequence[Action]) -> Answer:
        return self._answered(frame, {object_id: actions})[object_id]

    def _answered(
        self, frame: int | None, said: Mapping[int, Sequence[Action]]
    ) -> dict[int, Answer]:
        """The answers to prompts by object, each round fed what the round before left."""
        held = {
            i: RoundQueue((i, frame), actions, self._log, self._answers)
            for i, actions in said.items()
        }
        for object_id, rounds in held.items():
            if rounds.answer is None:
                rounds.base = self._base(object_id, frame, said[object_id][0])
        while waiting := [rounds for rounds in held.values() if rounds.waiting]:
            asks = [rounds.ask() for rounds in waiting]
            answer = answer_keeping_masks if self.options.keep_masks else answer_queries
            found = answer(self.model, self._scene(frame), asks, zoom=self.options.zoom)
            for rounds, answer in zip(waiting, found, strict=True):
                rounds.take(answer)
        return {i: rounds.answer for i, rounds in held.items() if rounds.answer is not None}

    def _prediction(
        self, region: SparseLogits, score: float, object_id: int, frame: int | None
    ) -> Prediction:
        box = self._shown.show((object_id, frame), region)
        return Prediction(region, score, box, object_id, frame)

    def _painted(self) -> NDArray[np.unsignedinteger] | None:
        """The label map, or None where objects overlap."""
        dtype = np.min_scalar_type(max(self.object_ids, default=0))
        labels = np.zeros(self.image.geometry.shape, dtype=dtype)
        for object_id in self.object_ids:
            for place, inside in self._parts(object_id):
                part = labels[place]
                if part[inside].any():
                    return None
                part[inside] = object_id
        return labels

    def _mask(self, object_id: int) -> NDArray[np.bool_]:
        whole = np.zeros(self.image.geometry.shape, dtype=np.bool_)
        for place, inside in self._parts(object_id):
            whole[place] = inside
        return whole

    def _record(self, event: Event) -> None:
        """Check an event, put it on the disk, then let it count."""
        self._check_open()
        self._log.check(event)
        with uninterrupted():
            if self.journal is not None:
                self.journal.append(event_to_json(event))
            self._log.apply(event)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("The session is closed; open another one or resume its journal.")

    def _check_kind(self, prompt: Prompt) -> None:
        check_prompt(prompt)
        card = self.model.card
        if prompt.kind not in card.prompts:
            others = [c.name for c in list_models() if prompt.kind in c.prompts]
            raise PromptError(
                f"{card.name} understands {', '.join(sorted(card.prompts))}, not {prompt.kind}. "
                + (f"Models that do: {', '.join(others)}." if others else "No model here does.")
            )
        if isinstance(self.model, CheckingModel):
            self.model.check(prompt)


def _any_object(object_id: int | None) -> int | None:
    return None if object_id is None else check_object_id(object_id)


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"Session.{old}() is now Session.{new}(); the old name goes with the next release.",
        DeprecationWarning,
        stacklevel=3,
    )
