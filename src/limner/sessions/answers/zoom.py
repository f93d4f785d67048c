"""Zoom: a model sees the whole image coarsely, then a window around the object that grows while it
must.

SegVol's zoom-out-zoom-in (https://arxiv.org/abs/2311.13385) and nnInteractive's AutoZoom
(https://arxiv.org/abs/2503.08373) as one mechanism for 2D, 3D and video, usable with any model.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Bounds
from limner.adapters.resize import bin_edges, shrink_all
from limner.models import BatchModel, PromptableModel, Question, Segmentation
from limner.prompts.types import Area, Box, Prompt
from limner.sessions.answers.answer import Answer, ModelMemory, Query, exact_answer
from limner.sessions.answers.image_view import ImageView, Shape
from limner.sessions.answers.merge import merge_answer
from limner.sessions.answers.sparse_logits import SparseLogits, true_bounds
from limner.sessions.answers.window import around, ever_larger, grown, is_close, view_shape

Array = NDArray[Any]

MOST_GROWTHS = 4
MOST_TOGETHER = 64  # questions at once
_TOGETHER_BYTES = 256 << 20  # of logits of questions and answers at once


@dataclass(frozen=True, eq=False)
class ViewPrediction:
    """An answer on a view's own grid.

    Attributes:
        logits: float32 of the view's shape.
        bounds: of the view in the image.
        score: predicted quality, 0…1.
        memory: what the model wants to see again.
        withheld: pixels that the model would have changed, too; None for none.
    """

    logits: NDArray[np.float32]
    bounds: Bounds
    score: float
    memory: ModelMemory | None
    withheld: NDArray[np.bool_] | None = None

    @property
    def found(self) -> Bounds | None:
        """Bounding box of the mask at full resolution, None if it is empty."""
        positive = self.logits > 0
        if not positive.any():
            return None
        low, high = true_bounds(positive)
        edges = [
            a + bin_edges(b - a, n) for a, b, n in zip(*self.bounds, positive.shape, strict=True)
        ]
        return (
            tuple(int(e[a]) for e, a in zip(edges, low, strict=True)),
            tuple(int(e[b]) for e, b in zip(edges, high, strict=True)),
        )

    def to_answer(self, view: ImageView) -> Answer:
        """The answer at full resolution, in the index order as stored."""
        region = to_image_grid(view, self).turned(view.axes.inverse)
        return Answer(region, self.score, self.memory, self._count_withheld())

    def _count_withheld(self) -> int:
        """Pixels of the image."""
        if self.withheld is None or not self.withheld.any():
            return 0
        sizes = zip(*self.bounds, self.withheld.shape, np.nonzero(self.withheld), strict=True)
        counts = [np.diff(bin_edges(b - a, n))[at] for a, b, n, at in sizes]
        return int(np.prod(counts, axis=0).sum())


def predict_views(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], *, zoom: bool
) -> Iterator[ViewPrediction]:
    """Ask a model about objects in an image, or frame; one prediction per question, in their order.

    Args:
        model: what to ask.
        view: what it sees.
        queries: one per object, in the index order as stored; `ViewPrediction.to_answer` turns the
            answers back to it.
        zoom: look twice; otherwise the model sees the whole image at full resolution, and answers
            many questions together if it can.
    """
    if not view.axes.is_same:
        queries = [turn_query(view, query) for query in queries]
    limits = model.card.limits(len(view.shape))
    if zoom and limits is not None:
        for query in queries:
            search = ZoomSearch(view, query, limits, compares=model.card.predicts_quality)
            while search.window is not None:
                shape = view_shape(view, search.window, limits)
                (prediction,) = ask_model(model, view, [search.query], search.window, shape)
                search.take(prediction)
            yield search.result
        return
    size = questions_at_once(model, view.shape, zoom=zoom)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        yield from ask_model(model, view, part, view.whole, view.shape)


def answer_queries(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], *, zoom: bool
) -> Iterator[Answer]:
    """As `predict_views`, on the image's own grid; a mask that is the answer is not asked about."""
    is_answer = model.card.mask_is_answer
    exact = [exact_answer(query.prompts) if is_answer else None for query in queries]
    rest = [query for query, answer in zip(queries, exact, strict=True) if answer is None]
    predictions = predict_views(model, view, rest, zoom=zoom)
    for answer in exact:
        yield next(predictions).to_answer(view) if answer is None else answer


def ask_model(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], bounds: Bounds, shape: Shape
) -> list[ViewPrediction]:
    """Ask a model about objects in one window of an image, shrunk to `shape`: together where the
    model can, else one by one.
    """
    embedding = view.embedding(model, bounds, shape)
    whole = (bounds, shape) == (view.whole, view.shape)
    questions = [_make_question(query, bounds, shape, whole=whole) for query in queries]
    if isinstance(model, BatchModel):
        results = list(model.segment_batch(embedding, questions))
        if len(results) != len(questions):
            raise ValueError(
                f"{model.card.name} answered {len(results)} of {len(questions)} questions."
            )
    else:
        results = []
        for q in questions:
            results.append(model.segment(embedding, q.prompts, q.previous))
    found = []
    for query, question, result in zip(queries, questions, results, strict=True):
        prediction = _check_logits(model, result, bounds, shape)
        if query.answered is not None and not model.card.published:
            fresh = _on_view(query.prompts[query.answered :], bounds, shape, whole=whole)
            merged = merge_answer(prediction.logits, question.previous, question.prompts, fresh)
            prediction = replace(prediction, logits=merged.logits, withheld=merged.withheld)
        found.append(prediction)
    return found


def questions_at_once(model: PromptableModel, shape: Shape, *, zoom: bool) -> int:
    """How many questions about an image of `shape` go to the model at once; 1 where each has a view
    of its own.
    """
    if not isinstance(model, BatchModel) or (zoom and len(shape) in model.card.window):
        return 1
    return int(np.clip(_TOGETHER_BYTES // (8 * math.prod(shape)), 1, MOST_TOGETHER))


Windows: TypeAlias = Generator[Bounds, ViewPrediction, ViewPrediction]


class ZoomSearch:
    """Where a model looks for one object: windows of the image, each chosen after the answer on the
    one before.

    Args:
        view: the image.
        query: the question, in the index order in which models see the image.
        limits: the most pixels per axis that the model works well on.
        compares: whether the model's scores compare answers on different windows.

    Attributes:
        query: what to ask there.
        window: where to ask next; None when the search has ended.
        result: the prediction that counts, when it has ended.
    """

    result: ViewPrediction

    def __init__(self, view: ImageView, query: Query, limits: Shape, *, compares: bool) -> None:
        self._view, self._limits, self._compares = view, limits, compares
        self._found = None if query.previous is None else query.previous.mask_bounds
        # an answer of nothing, as to a lone negative click, says nothing
        self.query = query
        if self._found is None and query.previous is not None:
            self.query = replace(query, previous=None, memory=None)
        self._steps = self._zoom_in()
        self.window: Bounds | None = next(self._steps)

    def take(self, prediction: ViewPrediction) -> None:
        """The prediction on the window that was asked about."""
        try:
            self.window = self._steps.send(prediction)
        except StopIteration as end:
            self.window, self.result = None, end.value

    def _zoom_in(self) -> Windows:
        """A window around the object, which grows while the mask touches its sides."""
        view, limits, prompts, found = self._view, self._limits, self.query.prompts, self._found
        if self.query.previous is None and not any(isinstance(p, Area) for p in prompts):
            prediction = yield from self._locate()
            found = prediction.found
            if prediction.logits.shape == view.shape or (
                self._compares and is_close(prediction.bounds, around(view, prompts, found, limits))
            ):
                return prediction
        bounds = around(view, prompts, found, limits)
        for _ in range(MOST_GROWTHS + 1):
            prediction = yield bounds
            wider = grown(prediction.logits, bounds, view.shape)
            if wider == bounds:
                break
            bounds = wider
        return prediction

    def _locate(self) -> Windows:
        """The prediction that tells how large the object is, where only marks were given.

        A model that predicts the quality of its answers sees ever larger windows around the marks,
        up to the whole, and the best answer counts; one that is cut off by its window is trusted
        less than any that is not. Other models see the whole.
        """
        view, windows = self._view, [self._view.whole]
        if self._compares:
            windows = ever_larger(view, self.query.prompts, self._limits)
        best: tuple[tuple[bool, float], ViewPrediction] | None = None
        for bounds in windows:
            prediction = yield bounds
            is_whole = bool((prediction.logits > 0).any()) and (
                grown(prediction.logits, bounds, view.shape) == bounds
            )
            rank = (is_whole, prediction.score)
            if best is None or rank > best[0]:
                best = rank, prediction
        assert best is not None
        return best[1]


def turn_query(view: ImageView, query: Query) -> Query:
    """A question in the order in which models see the image."""
    prompts = [view.axes.prompt(p, view.stored_shape) for p in query.prompts]
    previous = None if query.previous is None else query.previous.turned(view.axes)
    return replace(query, prompts=prompts, previous=previous)


def prompt_to_view(prompt: Prompt, bounds: Bounds, shape: Shape) -> Prompt | None:
    """A prompt in the index order of a view of `bounds` shrunk to `shape`; None if outside it."""
    return prompt.in_view(*bounds, shape, shrink_all)


def _make_question(query: Query, bounds: Bounds, shape: Shape, *, whole: bool) -> Question:
    """A question in the index order of a view of `bounds` shrunk to `shape`."""
    shown = _on_view(query.prompts, bounds, shape, whole=whole)
    before = None
    if query.previous is not None:
        before = query.previous.shrunk(*bounds, shape)
    return Question(shown, before, None if query.memory is None else query.memory.on(bounds, shape))


def _on_view(
    prompts: Sequence[Prompt], bounds: Bounds, shape: Shape, *, whole: bool
) -> list[Prompt]:
    """The prompts that lie on a view of `bounds` shrunk to `shape`, in its index order.

    On a view that is the whole image boxes stay as they were given, also where they reach over it:
    a box that a model carries on does, and its numbers are the published ones.
    """
    placed = (
        p if whole and isinstance(p, Box) else prompt_to_view(p, bounds, shape) for p in prompts
    )
    return [p for p in placed if p is not None]


def _check_logits(
    model: PromptableModel, result: Segmentation, bounds: Bounds, shape: Shape
) -> ViewPrediction:
    logits = np.asarray(result.logits, dtype=np.float32)
    if logits.shape != shape:
        raise ValueError(
            f"{model.card.name} answered logits of shape {logits.shape} to a view of {shape}."
        )
    kept = None if result.memory is None else ModelMemory(bounds, shape, result.memory)
    return ViewPrediction(logits, bounds, float(np.nan_to_num(result.score)), kept)


def to_image_grid(view: ImageView, prediction: ViewPrediction) -> SparseLogits:
    """An answer at full resolution, cut to the object and a rim of background around it."""
    logits = prediction.logits
    positive = logits > 0
    if not positive.any():
        return SparseLogits.empty(view.shape)
    rim = 2
    low, high = true_bounds(positive)
    low = tuple(max(0, a - rim) for a in low)
    high = tuple(min(n, b + rim) for b, n in zip(high, logits.shape, strict=True))
    edges = [
        a + bin_edges(b - a, n)[c : d + 1]
        for a, b, n, c, d in zip(*prediction.bounds, logits.shape, low, high, strict=True)
    ]
    kept = logits[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return SparseLogits.of_bins(view.shape, kept, edges)
