"""A session that runs here: prompts in, masks out, with undo, journal, propagation and export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from limner.errors import PromptError, SessionError
from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.models import CheckingModel, ModelCard, PromptableModel, list_models
from limner.prompts.convert import from_xyz
from limner.prompts.types import Prompt, check_prompt
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.answer_table import AnswerTable
from limner.sessions.answers.changed_box import LastMasks
from limner.sessions.answers.label_painter import LabelPainter
from limner.sessions.answers.prediction import Prediction
from limner.sessions.history.events import (
    Added,
    Cleared,
    Locked,
    Named,
    Predicted,
    Prioritized,
    PropagationRequest,
    Redone,
    Undone,
)
from limner.sessions.history.ids import check_frame, check_object_id
from limner.sessions.history.journal import Journal
from limner.sessions.history.log import Action, PromptLog
from limner.sessions.history.manifest import Options, manifest
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.history.recorder import Recorder
from limner.sessions.object_names import ObjectNames
from limner.sessions.propagation.propagation import Propagation
from limner.sessions.propagation.review import ReviewFrame, find_review_frames
from limner.sessions.views import FrameViews, ImageViews

_log = logging.getLogger(__name__)


class LocalSession:
    """One image and the prompts about it. Made by `limner.open_session` and `limner.resume`; the
    verbs are those of `limner.Session`.

    Each part of the work has an owner: what models see (`views`), the log and its journal
    (`Recorder`), answers to prompts (`AnswerTable`), the masks handed out last (`LastMasks`), the
    label map (`LabelPainter`), and masks on other frames (`Propagation`).

    Args:
        views: of the image.
        model: answers prompts.
        options: as the session was opened with.
        log: what happened so far, of a session that is resumed.
        journal: where every event is written.
        propagator: carries answers to other frames; None: the model does it.
    """

    def __init__(
        self,
        views: ImageViews,
        model: PromptableModel,
        options: Options,
        *,
        log: PromptLog | None = None,
        journal: Journal | None = None,
        propagator: PromptableModel | None = None,
    ) -> None:
        self.views = views
        self.model = model
        self.propagator = propagator
        self.options = options
        self.journal: Path | None = None if journal is None else journal.path
        self._recorder = Recorder(log or PromptLog(), journal)
        self._log = self._recorder.log
        self._answers = AnswerTable(
            model,
            views.view,
            self._log,
            self.image.geometry.shape,
            zoom=options.zoom,
            keep_masks=options.keep_masks,
        )
        self._painter = LabelPainter(self._log, self._answers, self.image.geometry.shape)
        self._last_masks = LastMasks()

    # -- what the session is about ------------------------------------------------------------

    @property
    def image(self) -> Image:
        """The image, volume or video."""
        return self.views.image

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
        return self.image.geometry.shape[0] if isinstance(self.views, FrameViews) else 1

    # -- prompts ------------------------------------------------------------------------------

    def add(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> Prompt:
        """Add a prompt and return it; see `limner.Session.add`."""
        event = self._place_prompt(prompt, object_id, frame, axis)
        whole = self.image.geometry.shape
        shape = whole if event.frame is None else whole[1:]
        if event.prompt.reaches_over(shape):
            turned = not from_xyz(event.prompt).reaches_over(shape)
            _log.warning(
                "%r reaches over the image of %s; that part has no effect.%s",
                prompt,
                shape,
                " Positions are in index order, row before column; of x, y say --order xyz "
                "(limner.prompts.from_xyz)."
                if turned
                else "",
            )
        self._recorder.record(event)
        return prompt

    def check_prompt(
        self, prompt: Prompt, *, object_id: int = 1, frame: int | None = None, axis: int = 0
    ) -> None:
        """Refuse what `add` would refuse, and change nothing."""
        self._place_prompt(prompt, object_id, frame, axis)

    def name(self, object_id: int, name: str) -> None:
        """Name an object, such as ``"liver"``; exports carry the name."""
        object_id = check_object_id(object_id)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"An object's name is a word with at least one letter, not {name!r}.")
        self._recorder.record(Named(object_id, name.strip()))

    def lock(self, object_id: int) -> None:
        """Keep an object as it is, and others off its pixels; see `limner.Session.lock`."""
        self._recorder.record(Locked(check_object_id(object_id)))

    def unlock(self, object_id: int) -> None:
        """Inverse of `lock`; the pixels that others were kept off come back to them."""
        self._recorder.record(Locked(check_object_id(object_id), locked=False))

    @property
    def locked(self) -> tuple[int, ...]:
        """Ids of the objects that are locked, in that order."""
        return self._log.locked

    def set_priority(self, object_ids: Sequence[int]) -> None:
        """Say which objects keep shared pixels; see `limner.Session.set_priority`."""
        ids = tuple(dict.fromkeys(check_object_id(i) for i in object_ids))
        self._recorder.record(Prioritized(ids))

    @property
    def priority(self) -> tuple[int, ...]:
        """What `set_priority` said last."""
        return self._log.priority

    def undo(self, *, object_id: int | None = None) -> None:
        """Take back the last prompt, reset or propagation, of one object or of the session."""
        self._recorder.record(Undone(_check_any_object(object_id)))

    def redo(self, *, object_id: int | None = None) -> None:
        """Bring back what was undone last; a new prompt about an object ends its redo."""
        self._recorder.record(Redone(_check_any_object(object_id)))

    def reset(self, *, object_id: int | None = None) -> None:
        """Drop all prompts and propagated frames of one object, or of all. Can be undone."""
        self._recorder.record(Cleared(_check_any_object(object_id)))

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
        """The prompts that count, oldest first."""
        return tuple(entry.prompt for entry in self.entries)

    @property
    def entries(self) -> tuple[PromptEntry, ...]:
        """The prompts that count with object and frame, oldest first."""
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
    def names(self) -> ObjectNames:
        """Names given to objects, by id; ``names[1] = "liver"`` is ``name(1, "liver")``."""
        return ObjectNames(self._log.names, self.name)

    # -- masks --------------------------------------------------------------------------------

    def predict(self, *, object_id: int = 1, frame: int | None = None) -> Prediction:
        """Answer all prompts about an object; see `limner.Session.predict`."""
        self._recorder.check_open()
        object_id = check_object_id(object_id)
        frame = None if frame is None else check_frame(frame)
        frame = self.views.resolve_frame(frame, object_id, self._log.frames)
        self._log.check(Predicted(object_id, frame))
        prompts = {object_id: self._log.prompts(object_id, frame)}
        answer = self._answers.answer_prompts(prompts, frame)[object_id]
        self._end_round(object_id, frame, prompts[object_id])
        return self._to_prediction(answer, object_id, frame)

    def predict_all(self, *, frame: int | None = None) -> tuple[Prediction, ...]:
        """Answer all objects, wherever they have prompts; see `limner.Session.predict_all`.

        A model that answers several questions together is asked so where no zoom gives every object
        a view of its own; it then sees an image once for all of them.
        """
        self._recorder.check_open()
        if frame is not None:
            frame = self.views.resolve_frame(check_frame(frame), 0, self._log.frames)
        places: dict[int | None, dict[int, None]] = {}
        for action in self._log.all_prompts():
            if frame in (None, action.frame):
                places.setdefault(action.frame, {})[action.object_id] = None
        found: list[Prediction] = []
        for where, objects in places.items():
            ids, size = tuple(objects), self._answers.objects_at_once(where)
            for start in range(0, len(ids), size):
                found += self._predict_together(ids[start : start + size], where)
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
        """Carry masks to other frames or slices; see `limner.Session.propagate`, and `Propagation`
        for how.
        """
        if self._propagation is None:
            raise SessionError("A 2D image has no other frames to propagate to.")
        request = PropagationRequest(start, stop, direction, object_id, how)
        return self._keep_off_locked(self._propagation.start(request, again=again))

    def resume_propagation(self) -> Iterator[Prediction]:
        """Repeat the last call of `propagate`, which runs only what is missing."""
        if self.requested is None and self._propagation is not None:
            raise SessionError("No propagation was begun in this session; call propagate().")
        request = self.requested or PropagationRequest()
        return self.propagate(
            start=request.start,
            stop=request.stop,
            direction=request.direction,
            object_id=request.object_id,
            how=request.how,
        )

    @property
    def requested(self) -> PropagationRequest | None:
        """The arguments of the last call of `propagate`; None before the first one."""
        return self._log.requested

    def frames_to_review(
        self, count: int = 5, *, object_id: int | None = None
    ) -> tuple[ReviewFrame, ...]:
        """The propagated frames that most need a look; see `limner.Session.frames_to_review`."""
        if self._propagation is None:
            return ()
        self._recorder.check_open()
        objects = self.object_ids if object_id is None else (check_object_id(object_id),)
        return find_review_frames(self._log, self._answers, objects, self.image.damaged, count)

    # -- results ------------------------------------------------------------------------------

    @property
    def labels(self) -> LabelArray:
        """What would be saved: label map of the image's shape, read-only, 0 is background."""
        return self.export().to_array()

    def export(self) -> Labels:
        """All objects with their names, overlaps kept, and how they were made (the manifest)."""
        self._recorder.check_open()
        painted = self._painter.paint_labels()
        paint = self._painter.paint_mask
        masks = {i: partial(paint, i) for i in self.object_ids}  # made one by one
        facts = manifest(
            self.image,
            self.card,
            self.options,
            self.entries,
            dict(self.names),
            {i: self._log.ways(i) for i in self.object_ids},
            propagator=self.propagator_card,
            locked=self.locked,
            priority=self.priority,
        )
        return Labels(
            self.image.geometry,
            array=painted,
            masks=None if painted is not None else masks,
            names=self.names,
            manifest=facts,
            priority=(*self.locked, *self.priority),
        )

    # -- end ----------------------------------------------------------------------------------

    def discard(self) -> None:
        """Close a session that is not worth keeping, and remove its journal."""
        self._recorder.close(discard=True)
        self.close()

    def close(self) -> None:
        """Release memory and the journal; the journal stays on disk for `limner.resume`."""
        self._recorder.close()
        self._answers.clear()
        self._last_masks.clear()

    def __repr__(self) -> str:
        objects = ", ".join(self.names.get(i, f"object {i}") for i in self.object_ids)
        return (
            f"<Session {self.card.name} on {self.image!r}: {len(self.entries)} prompts about "
            f"{objects or 'nothing'}>"
        )

    def _repr_png_(self) -> bytes | None:
        """In a notebook: the image with what was found so far."""
        from limner.render.overlay import render_overlay

        window, prompts = self.options.window_requested, self.entries
        shown = render_overlay(self.image, self.export(), prompts=prompts, window=window)
        return shown._repr_png_()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- old names, for one release -----------------------------------------------------------

    def go_on(self) -> Iterator[Prediction]:
        """Old name of `resume_propagation`."""
        _warn_renamed("go_on", "resume_propagation")
        return self.resume_propagation()

    def doubtful(self, count: int = 5, *, object_id: int | None = None) -> tuple[ReviewFrame, ...]:
        """Old name of `frames_to_review`."""
        _warn_renamed("doubtful", "frames_to_review")
        return self.frames_to_review(count, object_id=object_id)

    # -- inside -------------------------------------------------------------------------------

    @cached_property
    def _propagation(self) -> Propagation | None:
        """None for a 2D image."""
        if not isinstance(self.views, FrameViews):
            return None
        return Propagation(
            self.views,
            self._recorder,
            self._answers,
            self._last_masks,
            self.model,
            self.propagator,
            self.options,
        )

    def _place_prompt(self, prompt: Prompt, object_id: int, frame: int | None, axis: int) -> Added:
        """The event of adding a prompt, which is checked."""
        self._check_kind(prompt)
        object_id = check_object_id(object_id)
        self._log.check_unlocked(object_id)
        frame = None if frame is None else check_frame(frame)
        placed, where = self.views.place_prompt(prompt, frame, axis)
        return Added(placed, object_id, where)

    def _predict_together(
        self, object_ids: Sequence[int], frame: int | None
    ) -> Iterator[Prediction]:
        """Predictions of objects with prompts on a frame."""
        prompts = {i: self._log.prompts(i, frame) for i in object_ids}
        for object_id, answer in self._answers.answer_prompts(prompts, frame).items():
            self._end_round(object_id, frame, prompts[object_id])
            yield self._to_prediction(answer, object_id, frame)

    def _to_prediction(self, answer: Answer, object_id: int, frame: int | None) -> Prediction:
        """An answer as it is handed out."""
        region = self._painter.keep_off_locked(answer.region, object_id, frame)
        shown = replace(answer, region=region)
        return self._last_masks.to_prediction(shown, object_id, frame)

    def _keep_off_locked(self, predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        """Predictions without the pixels of objects that are locked."""
        keep_off = self._painter.keep_off_locked
        for found in predictions:
            region = keep_off(found.region, found.object_id, found.frame)
            yield found if region is found.region else replace(found, region=region)

    def _end_round(self, object_id: int, frame: int | None, prompts: Sequence[Action]) -> None:
        """Note that the prompts were answered. That is after the answer, so that a model that fails
        leaves no round behind.
        """
        where = "" if frame is None else f" on {frame}"
        _log.info("object %d%s: %d prompts are answered", object_id, where, len(prompts))
        if not self._log.is_round(prompts):
            self._recorder.record(Predicted(object_id, frame))

    def _check_kind(self, prompt: Prompt) -> None:
        check_prompt(prompt)
        if prompt.kind not in self.card.prompts:
            others = [c.name for c in list_models() if prompt.kind in c.prompts]
            raise PromptError(
                f"{self.card.name} understands {', '.join(sorted(self.card.prompts))}, not "
                f"{prompt.kind}. "
                + (f"Models that do: {', '.join(others)}." if others else "No model here does.")
            )
        if isinstance(self.model, CheckingModel):
            self.model.check(prompt)


def _check_any_object(object_id: int | None) -> int | None:
    return None if object_id is None else check_object_id(object_id)


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"Session.{old}() is now Session.{new}(); the old name goes with the next release.",
        DeprecationWarning,
        stacklevel=3,
    )
