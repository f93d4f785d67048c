"""Looking twice: the whole image coarsely, then a window around the object that grows while it
must.

SegVol's zoom-out-zoom-in (https://arxiv.org/abs/2311.13385) and nnInteractive's AutoZoom
(https://arxiv.org/abs/2503.08373) as one mechanism for 2D, 3D and video, usable with any model.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.models import BatchModel, PromptableModel, Question, Segmentation, View
from limner.prompts.convert import extent, map_positions
from limner.prompts.types import Box, Click, MaskPrompt, Prompt, Scribble, num_axes
from limner.sessions._answer import Answer, Ask, Memory
from limner.sessions._region import STEP, Bounds, Region, in_steps, true_bounds
from limner.sessions._resize import bin_edges, enlarge, shrink

Array = NDArray[Any]
Shape = tuple[int, ...]

MARGIN = 0.3  # of the object's size, around it on each side
LEAST_MARGIN = 12  # pixels around even the smallest object, on the finest axis
GROWTH = 0.5  # of the window's size, on a side that the mask touches
MOST_GROWTHS = 4
CLOSE = 4.0  # times as large as the window that was wanted, a window does as well
LEAST_WINDOW = 0.5  # of the model's window: smaller windows are not looked at
_CACHED_VIEWS = 6
MOST_TOGETHER = 64  # questions at once
_TOGETHER_BYTES = 256 << 20  # of logits, asked and answered, at once


@dataclass(frozen=True, eq=False)
class Look:
    """An answer on a view's own grid.

    Attributes:
        logits: float32 of the view's shape.
        bounds: of the view in the scene.
        score: predicted quality, 0…1.
        memory: what the model wants to see again.
    """

    logits: NDArray[np.float32]
    bounds: Bounds
    score: float
    memory: Memory | None

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


class Scene:
    """One image, volume or frame that a model looks at, with the embeddings of recent views.

    Args:
        array: spatial axes, then perhaps channels; intensities as stored.
        spacing: millimetres per step.
        intensity: limits for black and white, the same for all views.
        modality: DICOM's term where known.
        windowed: whether the limits are a window that the user asked for.
    """

    def __init__(
        self,
        array: Array,
        spacing: tuple[float, ...],
        intensity: tuple[float, float],
        modality: str | None,
        *,
        windowed: bool = False,
    ) -> None:
        self.array = array
        self.spacing = spacing
        self.intensity = intensity
        self.modality = modality
        self.windowed = windowed
        self.shape: Shape = array.shape[: len(spacing)]
        self._embeddings: OrderedDict[tuple[Bounds, Shape], Any] = OrderedDict()

    @property
    def whole(self) -> Bounds:
        """The bounds of everything."""
        return (0,) * len(self.shape), self.shape

    def embedding(self, model: PromptableModel, bounds: Bounds, shape: Shape) -> Any:
        """What the model's expensive half says of a window shrunk to `shape`; cached."""
        key = (bounds, shape)
        if key in self._embeddings:
            self._embeddings.move_to_end(key)
            return self._embeddings[key]
        embedding = model.embed(self.view(bounds, shape))
        self._embeddings[key] = embedding
        while len(self._embeddings) > _CACHED_VIEWS:
            self._embeddings.popitem(last=False)
        return embedding

    def view(self, bounds: Bounds, shape: Shape) -> View:
        """A window shrunk to `shape`, as a model is shown it."""
        low, high = bounds
        window = self.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        steps = (np.subtract(high, low) / shape * self.spacing).tolist()
        return View(
            shrink(window, shape), tuple(steps), self.intensity, self.modality, self.windowed
        )


def answers(
    model: PromptableModel, scene: Scene, asks: Sequence[Ask], *, zoom: bool
) -> Iterator[Answer]:
    """The model's answers to questions about a scene, in their order.

    Args:
        model: what to ask.
        scene: what it sees.
        asks: one per object; a model that can is asked about many together.
        zoom: look twice; otherwise the model sees the whole scene at full resolution.
    """
    for look in looks(model, scene, asks, zoom=zoom):
        yield Answer(region_of(scene, look), look.score, look.memory)


def together(model: PromptableModel, shape: Shape, *, zoom: bool) -> int:
    """How many questions about a scene of `shape` go to the model at once; 1 where each has a view
    of its own.
    """
    if not isinstance(model, BatchModel) or (zoom and len(shape) in model.card.window):
        return 1
    return int(np.clip(_TOGETHER_BYTES // (8 * math.prod(shape)), 1, MOST_TOGETHER))


def looks(
    model: PromptableModel, scene: Scene, asks: Sequence[Ask], *, zoom: bool
) -> Iterator[Look]:
    """As `answers`, each on the grid of the view that it was given on."""
    limit = model.card.window.get(len(scene.shape))
    if zoom and limit is not None:
        for ask in asks:
            yield _closer(model, scene, ask, limit)
        return
    size = together(model, scene.shape, zoom=zoom)
    for start in range(0, len(asks), size):
        part = asks[start : start + size]
        yield from _looks(model, scene, part, scene.whole, scene.shape)


def _closer(model: PromptableModel, scene: Scene, ask: Ask, limit: int) -> Look:
    """The answer after looking twice, on the last view."""
    prompts = ask.prompts
    found = None if ask.previous is None else ask.previous.mask_bounds
    if found is None:  # an answer of nothing, as to a lone negative click, says nothing
        ask = Ask(prompts)
    if ask.previous is None and not any(p.kind in ("box", "lasso", "mask") for p in prompts):
        look = _first_look(model, scene, ask, limit)
        found = look.found
        if look.logits.shape == scene.shape or (
            model.card.judges and _is_close(look.bounds, _around(scene, prompts, found, limit))
        ):
            return look
    bounds = _around(scene, prompts, found, limit)
    for _ in range(MOST_GROWTHS + 1):
        look = _look(model, scene, ask, bounds, _view_shape(scene, bounds, limit))
        grown = _grown(look.logits, bounds, scene.shape)
        if grown == bounds:
            break
        bounds = grown
    return look


def _first_look(model: PromptableModel, scene: Scene, ask: Ask, limit: int) -> Look:
    """The look that tells how large the object is, where only marks were given.

    A model that judges its answers sees ever larger windows around the marks, up to the whole, and
    the answer that it trusts most counts; one that is cut off by its window is trusted less than
    any that is not. Other models see the whole.
    """
    windows = [scene.whole]
    if model.card.judges:
        windows = _ever_larger(scene, ask.prompts, limit)
    best: tuple[tuple[bool, float], Look] | None = None
    for bounds in windows:
        look = _look(model, scene, ask, bounds, _view_shape(scene, bounds, limit))
        whole = bool((look.logits > 0).any()) and (
            _grown(look.logits, bounds, scene.shape) == bounds
        )
        rank = (whole, look.score)
        if best is None or rank > best[0]:
            best = rank, look
    assert best is not None
    return best[1]


def _is_close(window: Bounds, wanted: Bounds) -> bool:
    """Whether a window shows the object about as large as the one that was wanted."""
    sizes = np.subtract(window[1], window[0]) / np.subtract(wanted[1], wanted[0])
    return bool(sizes.max() <= CLOSE)


def _ever_larger(scene: Scene, prompts: Sequence[Prompt], limit: int) -> list[Bounds]:
    """Windows around marks: the least one, then each half as large again on every side, as far as
    the image goes, up to the whole.
    """
    bounds = _around(scene, prompts, None, limit)
    windows = [bounds]
    while bounds != scene.whole:
        size = np.subtract(bounds[1], bounds[0])
        low = np.maximum(0, np.asarray(bounds[0]) - (size + 1) // 2)
        high = np.minimum(scene.shape, np.asarray(bounds[1]) + (size + 1) // 2)
        bounds = tuple(int(a) for a in low), tuple(int(b) for b in high)
        windows.append(bounds)
    return windows


def to_view(prompt: Prompt, bounds: Bounds, shape: Shape) -> Prompt | None:
    """A prompt in the index order of a view of `bounds` shrunk to `shape`; None if outside it."""
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1])
    if num_axes(prompt) is None:
        return prompt
    if isinstance(prompt, MaskPrompt):
        window = prompt.mask[tuple(slice(a, b) for a, b in zip(*bounds, strict=True))]
        share = shrink(window, shape) if window.shape != shape else window
        return MaskPrompt(share >= 0.5 if (share >= 0.5).any() else share > 0)
    scale = np.asarray(shape) / (high - low)
    if isinstance(prompt, Box):
        start = np.clip((np.asarray(prompt.low) - low) * scale, 0, shape)
        stop = np.clip((np.asarray(prompt.high) - low) * scale, 0, shape)
        if (stop <= start).any():
            return None
        start = np.minimum(start, np.maximum(stop - 1, 0))  # at least one pixel of the view
        return Box(tuple(start), tuple(np.maximum(stop, start + 1)))
    begin, end = extent(prompt)
    if (end <= low).any() or (begin >= high).any():
        return None
    moved = map_positions(
        prompt, lambda p: tuple(((np.asarray(p) - low + 0.5) * scale - 0.5).tolist())
    )
    if isinstance(moved, Click):  # half a pixel over the edge is still on the edge's pixel
        return Click(tuple(np.clip(moved.at, 0, np.asarray(shape) - 1)), moved.positive)
    if isinstance(moved, Scribble):
        radius = moved.radius * float(np.exp(np.log(scale).mean()))
        return Scribble(moved.points, moved.positive, radius)
    return moved


def _look(model: PromptableModel, scene: Scene, ask: Ask, bounds: Bounds, shape: Shape) -> Look:
    """One question to the model."""
    return _looks(model, scene, [ask], bounds, shape)[0]


def _looks(
    model: PromptableModel, scene: Scene, asks: Sequence[Ask], bounds: Bounds, shape: Shape
) -> list[Look]:
    """Questions about one view: together where the model can, else one by one."""
    embedding = scene.embedding(model, bounds, shape)
    whole = (bounds, shape) == (scene.whole, scene.shape)
    questions = [_question(ask, bounds, shape, whole=whole) for ask in asks]
    results: Sequence[Segmentation]
    if isinstance(model, BatchModel):
        results = model.segment_batch(embedding, questions)
        if len(results) != len(questions):
            raise ValueError(
                f"{model.card.name} answered {len(results)} of {len(questions)} questions."
            )
    else:
        results = [model.segment(embedding, q.prompts, q.previous) for q in questions]
    return [_checked(model, result, bounds, shape) for result in results]


def _question(ask: Ask, bounds: Bounds, shape: Shape, *, whole: bool) -> Question:
    """A question in the index order of a view of `bounds` shrunk to `shape`.

    On a view that is the whole scene boxes stay as they were said, also where they reach over it: a
    box that a model carries on does, and its numbers are the published ones.
    """
    placed = (p if whole and isinstance(p, Box) else to_view(p, bounds, shape) for p in ask.prompts)
    shown = [p for p in placed if p is not None]
    before = None
    if ask.previous is not None:
        steps = shrink(ask.previous.window(*bounds), shape)
        before = np.asarray(steps, dtype=np.float32) * np.float32(STEP)
    return Question(shown, before, None if ask.memory is None else ask.memory.on(bounds, shape))


def _checked(model: PromptableModel, result: Segmentation, bounds: Bounds, shape: Shape) -> Look:
    logits = np.asarray(result.logits, dtype=np.float32)
    if logits.shape != shape:
        raise ValueError(
            f"{model.card.name} answered logits of shape {logits.shape} to a view of {shape}."
        )
    kept = None if result.memory is None else Memory(bounds, shape, result.memory)
    return Look(logits, bounds, float(np.nan_to_num(result.score)), kept)


def region_of(scene: Scene, look: Look) -> Region:
    """An answer at full resolution, cut to the object and a rim of background around it."""
    logits = look.logits
    positive = logits > 0
    if not positive.any():
        return Region.empty(scene.shape)
    rim = 2
    low, high = true_bounds(positive)
    low = tuple(max(0, a - rim) for a in low)
    high = tuple(min(n, b + rim) for b, n in zip(high, logits.shape, strict=True))
    edges = [
        a + bin_edges(b - a, n)[c : d + 1]
        for a, b, n, c, d in zip(*look.bounds, logits.shape, low, high, strict=True)
    ]
    kept = in_steps(logits[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    return Region(scene.shape, tuple(int(e[0]) for e in edges), enlarge(kept, edges))


def _view_shape(scene: Scene, bounds: Bounds, limit: int) -> Shape:
    """Pixels of a view of `bounds`: native if that fits, else equal steps in millimetres."""
    size = np.subtract(bounds[1], bounds[0])
    if size.max() <= limit:
        return tuple(size.tolist())
    length = size * scene.spacing
    step = float((length / limit).max())
    shape = np.minimum(size, np.maximum(1, np.round(length / step)))
    return tuple(int(n) for n in np.minimum(shape, limit))


def _around(scene: Scene, prompts: Sequence[Prompt], found: Bounds | None, limit: int) -> Bounds:
    """A window around what was said and found, with a margin and a least size."""
    spans = [
        extent(p)
        for p in prompts
        if num_axes(p) is not None
        and getattr(p, "positive", True)
        and not (isinstance(p, MaskPrompt) and not p.mask.any())
    ]
    if found is not None:
        spans.append((np.asarray(found[0], dtype=float), np.asarray(found[1], dtype=float)))
    if not spans:
        return scene.whole
    low = np.min([a for a, _ in spans], axis=0)
    high = np.max([b for _, b in spans], axis=0)
    finest = min(scene.spacing) / np.asarray(scene.spacing)  # 1 on the finest axis, less on others
    margin = np.maximum(MARGIN * (high - low), np.ceil(LEAST_MARGIN * finest))
    least = np.ceil(LEAST_WINDOW * limit * finest)
    margin = np.maximum(margin, (least - (high - low)) / 2)
    low = np.clip(np.floor(low - margin), 0, np.asarray(scene.shape) - 1)
    high = np.clip(np.ceil(high + margin), low + 1, scene.shape)
    return tuple(int(a) for a in low), tuple(int(b) for b in high)


def _grown(logits: NDArray[np.float32], bounds: Bounds, shape: Shape) -> Bounds:
    """The window, wider on every side that the mask touches and the image goes on."""
    low, high = list(bounds[0]), list(bounds[1])
    for axis, n in enumerate(shape):
        step = max(1, math.ceil(GROWTH * (bounds[1][axis] - bounds[0][axis])))
        if low[axis] > 0 and (np.take(logits, 0, axis=axis) > 0).any():
            low[axis] = max(0, low[axis] - step)
        if high[axis] < n and (np.take(logits, -1, axis=axis) > 0).any():
            high[axis] = min(n, high[axis] + step)
    return tuple(low), tuple(high)
