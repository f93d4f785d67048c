"""Looking twice: the whole image coarsely, then a window around the object that grows while it
must.

SegVol's zoom-out-zoom-in (https://arxiv.org/abs/2311.13385) and nnInteractive's AutoZoom
(https://arxiv.org/abs/2503.08373) as one mechanism for 2D, 3D and video, usable with any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Bounds
from limner.adapters.resize import bin_edges, shrink_all
from limner.models import BatchModel, PromptableModel, Question, Segmentation
from limner.prompts.types import Area, Box, MaskPrompt, Prompt
from limner.sessions.answers.answer import Answer, ModelMemory, Query
from limner.sessions.answers.image_view import ImageView, Shape
from limner.sessions.answers.sparse_logits import SparseLogits, true_bounds
from limner.sessions.answers.window import around, ever_larger, grown, is_close, view_shape

Array = NDArray[Any]

MOST_GROWTHS = 4
MOST_TOGETHER = 64  # questions at once
_TOGETHER_BYTES = 256 << 20  # of logits, asked and answered, at once


@dataclass(frozen=True, eq=False)
class ViewPrediction:
    """An answer on a view's own grid.

    Attributes:
        logits: float32 of the view's shape.
        bounds: of the view in the image.
        score: predicted quality, 0…1.
        memory: what the model wants to see again.
    """

    logits: NDArray[np.float32]
    bounds: Bounds
    score: float
    memory: ModelMemory | None

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


def answer_queries(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], *, zoom: bool
) -> Iterator[Answer]:
    """The model's answers to questions about an image, in their order.

    Args:
        model: what to ask.
        view: what it sees.
        queries: one per object, in the index order as stored, as are the answers; a model that can
            is asked about many together.
        zoom: look twice; otherwise the model sees the whole image at full resolution.
    """
    open_asks = [query for query in queries if _exact_mask(model, query) is None]
    turned = open_asks if view.axes.is_same else [turn_query(view, query) for query in open_asks]
    found = predict_views(model, view, turned, zoom=zoom)
    for query in queries:
        mask = _exact_mask(model, query)
        if mask is not None:
            yield Answer(SparseLogits.of_mask(mask), 1.0 if mask.any() else 0.0)
            continue
        prediction = next(found)
        region = to_image_grid(view, prediction).turned(view.axes.inverse)
        yield Answer(region, prediction.score, prediction.memory)


def _exact_mask(model: PromptableModel, query: Query) -> NDArray[np.bool_] | None:
    """The mask that is the answer as it is, if the model says that of masks."""
    last = query.prompts[-1] if query.prompts and model.card.mask_is_answer else None
    return last.mask if isinstance(last, MaskPrompt) else None


def turn_query(view: ImageView, query: Query) -> Query:
    """A question in the order in which models see the scene."""
    prompts = [view.axes.prompt(p, view.stored_shape) for p in query.prompts]
    previous = None if query.previous is None else query.previous.turned(view.axes)
    return replace(query, prompts=prompts, previous=previous)


def questions_at_once(model: PromptableModel, shape: Shape, *, zoom: bool) -> int:
    """How many questions about an image of `shape` go to the model at once; 1 where each has a view
    of its own.
    """
    if not isinstance(model, BatchModel) or (zoom and len(shape) in model.card.window):
        return 1
    return int(np.clip(_TOGETHER_BYTES // (8 * math.prod(shape)), 1, MOST_TOGETHER))


def predict_views(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], *, zoom: bool
) -> Iterator[ViewPrediction]:
    """As `answer_queries`, each on the grid of the view that it was given on, in the index order
    in which models see the image.
    """
    limits = model.card.limits(len(view.shape))
    if zoom and limits is not None:
        for query in queries:
            yield _zoom_in(model, view, query, limits)
        return
    size = questions_at_once(model, view.shape, zoom=zoom)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        yield from _ask_model(model, view, part, view.whole, view.shape)


def _zoom_in(
    model: PromptableModel, view: ImageView, query: Query, limits: Shape
) -> ViewPrediction:
    """The answer after looking twice, on the last view."""
    prompts = query.prompts
    found = None if query.previous is None else query.previous.mask_bounds
    if found is None:  # an answer of nothing, as to a lone negative click, says nothing
        query = Query(prompts)
    if query.previous is None and not any(isinstance(p, Area) for p in prompts):
        prediction = _locate_object(model, view, query, limits)
        found = prediction.found
        if prediction.logits.shape == view.shape or (
            model.card.predicts_quality
            and is_close(prediction.bounds, around(view, prompts, found, limits))
        ):
            return prediction
    bounds = around(view, prompts, found, limits)
    for _ in range(MOST_GROWTHS + 1):
        prediction = _ask_once(model, view, query, bounds, view_shape(view, bounds, limits))
        wider = grown(prediction.logits, bounds, view.shape)
        if wider == bounds:
            break
        bounds = wider
    return prediction


def _locate_object(
    model: PromptableModel, view: ImageView, query: Query, limits: Shape
) -> ViewPrediction:
    """The look that tells how large the object is, where only marks were given.

    A model that judges its answers sees ever larger windows around the marks, up to the whole, and
    the answer that it trusts most counts; one that is cut off by its window is trusted less than
    any that is not. Other models see the whole.
    """
    windows = [view.whole]
    if model.card.predicts_quality:
        windows = ever_larger(view, query.prompts, limits)
    best: tuple[tuple[bool, float], ViewPrediction] | None = None
    for bounds in windows:
        prediction = _ask_once(model, view, query, bounds, view_shape(view, bounds, limits))
        whole = bool((prediction.logits > 0).any()) and (
            grown(prediction.logits, bounds, view.shape) == bounds
        )
        rank = (whole, prediction.score)
        if best is None or rank > best[0]:
            best = rank, prediction
    assert best is not None
    return best[1]


def prompt_to_view(prompt: Prompt, bounds: Bounds, shape: Shape) -> Prompt | None:
    """A prompt in the index order of a view of `bounds` shrunk to `shape`; None if outside it."""
    return prompt.in_view(*bounds, shape, shrink_all)


def _ask_once(
    model: PromptableModel, view: ImageView, query: Query, bounds: Bounds, shape: Shape
) -> ViewPrediction:
    """One question to the model."""
    return _ask_model(model, view, [query], bounds, shape)[0]


def _ask_model(
    model: PromptableModel, view: ImageView, queries: Sequence[Query], bounds: Bounds, shape: Shape
) -> list[ViewPrediction]:
    """Questions about one view: together where the model can, else one by one."""
    embedding = view.embedding(model, bounds, shape)
    whole = (bounds, shape) == (view.whole, view.shape)
    questions = [_make_question(query, bounds, shape, whole=whole) for query in queries]
    results: Sequence[Segmentation]
    if isinstance(model, BatchModel):
        results = model.segment_batch(embedding, questions)
        if len(results) != len(questions):
            raise ValueError(
                f"{model.card.name} answered {len(results)} of {len(questions)} questions."
            )
    else:
        results = [model.segment(embedding, q.prompts, q.previous) for q in questions]
    return [_check_logits(model, result, bounds, shape) for result in results]


def _make_question(query: Query, bounds: Bounds, shape: Shape, *, whole: bool) -> Question:
    """A question in the index order of a view of `bounds` shrunk to `shape`.

    On a view that is the whole scene boxes stay as they were said, also where they reach over it: a
    box that a model carries on does, and its numbers are the published ones.
    """
    placed = (
        p if whole and isinstance(p, Box) else prompt_to_view(p, bounds, shape)
        for p in query.prompts
    )
    shown = [p for p in placed if p is not None]
    before = None
    if query.previous is not None:
        before = query.previous.shrunk(*bounds, shape)
    return Question(shown, before, None if query.memory is None else query.memory.on(bounds, shape))


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
