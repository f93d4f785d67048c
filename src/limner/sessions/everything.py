"""Automatic mask proposals for a whole 2D image: a grid of clicks, and the answers that hold.

The mode of Segment Anything (https://arxiv.org/abs/2304.02643, appendix B) for any model that takes
clicks; the default numbers are those by which the masks of IMed-361M
(https://arxiv.org/abs/2411.12814) were made, as far as they are known.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.adapters.axes import Bounds
from limner.errors import PromptError, SessionError
from limner.io.image import Image
from limner.models import (
    ModelCard,
    PromptableModel,
    ProposingModel,
    Question,
    default_model,
    list_models,
)
from limner.prompts.types import Click
from limner.sessions.answers.answer import Query
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.sparse_logits import true_bounds
from limner.sessions.answers.zoom import (
    ViewPrediction,
    answer_queries,
    predict_views,
    questions_at_once,
    to_image_grid,
)
from limner.sessions.click_grid import MOST_CROPS, lay_clicks
from limner.sessions.history.ids import check_frame
from limner.sessions.history.manifest import header
from limner.sessions.local import LocalSession
from limner.sessions.open import as_image, open_session
from limner.sessions.proposal import Candidate, Proposal, distinct, runs_of
from limner.sessions.protocol import Session

__all__ = [
    "Proposal",
    "Settings",
    "everything",
    "label_map",
    "manifest_of",
    "proposed",
    "to_coco",
]

Progress: TypeAlias = Callable[[int, int], object]  # clicks done, of how many; False stops


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Where to click, and which answers to keep.

    Attributes:
        points: clicks per side of the image.
        rounds: how often each click is asked about; from the second time on with the answer before.
        crops: layers of crops beside the whole image: layer k has 2ᵏ × 2ᵏ overlapping ones, with
            ``points / 2ᵏ`` clicks per side each.
        least_score: predicted quality at least.
        least_stability: IoU of the masks at the thresholds ± `offset`, at least.
        offset: logits on either side of 0.
        box_iou: of two answers whose boxes have a larger IoU the better one stays; 1 for all.
        same_mask: likewise for masks.
        least_area: pixels of the smallest mask.
        largest_share: of the image, covered by the largest mask: more is background.
        most: so many of the best, None for all.

    Raises:
        ValueError: a number out of range.
    """

    points: int = 32
    rounds: int = 1
    crops: int = 0
    least_score: float = 0.85
    least_stability: float = 0.85
    offset: float = 1.0
    box_iou: float = 0.7
    same_mask: float = 0.8
    least_area: int = 1
    largest_share: float = 0.8
    most: int | None = None

    def __post_init__(self) -> None:
        for name in ("points", "rounds", "least_area"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)}.")
        for name in ("least_score", "least_stability", "box_iou", "same_mask", "largest_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0…1, not {getattr(self, name)}.")
        if not 0 <= self.crops <= MOST_CROPS or self.points < 2**self.crops:
            raise ValueError(
                f"crops is 0…{MOST_CROPS} layers, with a click in each; not {self.crops} of "
                f"{self.points} points."
            )
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"offset is in logits, 0 or more, not {self.offset}.")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most is 1 or more, or None for all, not {self.most}.")

    @classmethod
    def of(cls, card: ModelCard, **chosen: Any) -> Settings:
        """The defaults for a model, and what is chosen otherwise.

        A model that predicts the quality of its answers on any view (`ModelCard.predicts_quality`)
        doubts most answers to a lone click, and rightly: it is asked twice, and less is expected
        of it. (For limner-2d on validation images the median score on objects is 0.42 after one
        round and 0.75 after two.)
        """
        defaults = {"rounds": 2, "least_score": 0.75, "least_stability": 0.8}
        return cls(**({**defaults, **chosen} if card.predicts_quality else chosen))


def everything(
    image: Image | ArrayLike | str | Path,
    model: str | PromptableModel | None = None,
    *,
    settings: Settings | None = None,
    frame: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Proposal, ...]:
    """Propose masks for all that can be told apart in a 2D image.

    Memory is that of a few answers, however many clicks there are: of each only the runs are kept.
    The same image, model and settings give the same proposals.

    Args:
        image: a 2D image, or a volume or video and `frame`.
        model: a name or an object; it must understand clicks.
        settings: where to click, and which answers to keep; default: those of the model,
            ``Settings.of(card)``.
        frame: the slice or frame.
        progress: called now and then with the number of clicks done and of all; where it returns
            False, no more is asked, and what was found so far is screened and returned.
        options: as for `limner.open_session`: ``weights``, ``device``, ``exact``, ``zoom``,
            ``window``.

    Returns:
        Proposals, the highest score first.

    Raises:
        PromptError: the model does not understand clicks, or `frame` does not fit the image.
        SessionError: the model does not work in 2D.
    """
    opened = as_image(image)
    with open_session(opened, model or default_model(opened.kind, flat=True), **options) as session:
        chosen = settings or Settings.of(session.card)
        return proposed(session, chosen, frame=frame, progress=progress)


def proposed(
    session: Session,
    settings: Settings,
    *,
    frame: int | None = None,
    progress: Progress | None = None,
) -> tuple[Proposal, ...]:
    """As `everything`, in a session that is open here; its prompts are left alone."""
    if not isinstance(session, LocalSession):
        raise TypeError(f"Masks are proposed by a session that runs here, not by {session!r}.")
    check_model(session.card)
    view = _view(session, frame)
    crops = list(lay_clicks(view.shape, settings.points, settings.crops))
    total = sum(len(points) for _, _, points in crops)
    found: list[Candidate] = []
    for done, candidates in _ask_at_clicks(session, view, crops, settings):
        found += candidates
        if progress is not None and progress(done, total) is False:
            break
    kept = distinct(found, box_iou=settings.box_iou, same_mask=settings.same_mask)
    kept.sort(key=lambda c: -c.score)
    _log.info("%d good answers to %d clicks, %d of them distinct", len(found), total, len(kept))
    return tuple(c.proposal() for c in kept[: settings.most])


def check_model(card: ModelCard) -> None:
    """Refuse a model that cannot be asked with clicks in 2D.

    Raises:
        PromptError: it does not understand clicks; the message names models that do.
        SessionError: it works on volumes only.
    """
    if 2 not in card.ndim:
        raise SessionError(f"{card.name} works on volumes; everything is looked for in pictures.")
    if "click" not in card.prompts:
        others = [c.name for c in list_models() if "click" in c.prompts and 2 in c.ndim]
        raise PromptError(
            f"{card.name} understands {', '.join(sorted(card.prompts))}, and everything is asked "
            f"for with clicks. Models that take them: {', '.join(others)}."
        )


def label_map(proposals: Sequence[Proposal], shape: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Proposals as labels 1, 2, …; where they overlap the one with the higher score is seen.

    Args:
        proposals: in the order of their ids, the highest score first.
        shape: of the image.
    """
    labels = np.zeros(tuple(shape), dtype=np.min_scalar_type(len(proposals)))
    for number in range(len(proposals), 0, -1):
        labels[proposals[number - 1].mask] = number
    return labels


def to_coco(
    proposals: Sequence[Proposal], image: Image, frame: int | None = None
) -> dict[str, Any]:
    """A COCO file of one image, overlaps kept; `limner.read_labels` reads it.

    Args:
        proposals: the highest score first; their places from 1 are the ids.
        image: that they were found in.
        frame: slice or frame of it.
    """
    geometry = image.geometry if frame is None else image.geometry.slice_at(frame)
    rows, columns = geometry.shape
    name = "picture" if image.path is None else image.path.name
    about: dict[str, Any] = {"id": 1, "width": columns, "height": rows, "file_name": name}
    if frame is not None:
        about["slice"] = frame
    ids = list(range(1, len(proposals) + 1))
    return {
        "info": {"description": "Everything that limner found", "version": "1.0"},
        "limner": {"geometry": geometry.to_json(), "object_ids": ids, "names": {}},
        "licenses": [],
        "images": [about],
        "categories": [{"id": 1, "name": "object", "supercategory": ""}],
        "annotations": [p.to_coco(k) for k, p in zip(ids, proposals, strict=True)],
    }


def manifest_of(
    session: Session, proposals: Sequence[Proposal], settings: Settings, frame: int | None
) -> dict[str, Any]:
    """How the masks were made: image, model, settings, and the facts of each proposal by id.

    Args:
        session: on the same image with the same model and options.
        proposals: the result.
        settings: that led to it.
        frame: slice or frame.
    """
    return {
        **header(session.image, session.card, session.options),
        "everything": {**asdict(settings), "frame": frame},
        "proposals": {str(k): p.to_json() for k, p in enumerate(proposals, start=1)},
        "overlap": "where proposals overlap, a label map holds the one with the higher score",
        "notice": "Research use only; not a medical device.",
    }


def _view(session: LocalSession, frame: int | None) -> ImageView:
    """What the model sees of the image, or of the frame."""
    if session.image.kind == "image":
        if frame is not None:
            raise PromptError(f"A 2D image has no frames, so frame={frame} means nothing here.")
        return session.views.view(None)
    last = session.image.geometry.shape[0] - 1
    if frame is None or not 0 <= check_frame(frame) <= last:
        what = "slice" if session.image.kind == "volume" else "frame"
        raise PromptError(
            f"Everything is looked for in one {what} of a {session.image.kind}: frame=K (--slice "
            f"K), 0…{last}" + ("." if frame is None else f", not {frame}.")
        )
    return session.views.view(frame)


def _ask_at_clicks(
    session: LocalSession,
    view: ImageView,
    crops: Sequence[tuple[int, Bounds, list[tuple[float, float]]]],
    settings: Settings,
) -> Iterator[tuple[int, list[Candidate]]]:
    """The answers that are good enough by themselves, with the number of clicks done so far."""
    done, model, zoom = 0, session.model, session.options.zoom
    for layer, bounds, points in crops:
        part = _part(view, bounds)
        size = questions_at_once(model, part.shape, zoom=zoom)
        for start in range(0, len(points), size):
            clicks = points[start : start + size]
            queries = [Query([Click(at)]) for at in clicks]
            for _ in range(settings.rounds - 1):
                before = answer_queries(model, part, queries, zoom=zoom)
                queries = [
                    Query(query.prompts, answer.region, answer.memory)
                    for query, answer in zip(queries, before, strict=True)
                ]
            found: list[Candidate] = []
            offered_here = _predict_all_masks(
                model, part, queries, zoom=zoom, least=settings.least_score
            )
            for at, given in zip(clicks, offered_here, strict=True):
                for prediction in given:
                    found += _screened(part, prediction, at, bounds[0], layer, view.shape, settings)
            done += len(clicks)
            yield done, found


def _predict_all_masks(
    model: PromptableModel, part: ImageView, queries: Sequence[Query], *, zoom: bool, least: float
) -> Iterator[list[ViewPrediction]]:
    """The answers to each click: all that a model offers to a first one, where no window of its own
    shows one of them only; else one. Scores below `least` may be missing.
    """
    first = all(query.previous is None for query in queries)
    if not (first and isinstance(model, ProposingModel)) or (zoom and 2 in model.card.window):
        yield from ([prediction] for prediction in predict_views(model, part, queries, zoom=zoom))
        return
    embedding = part.embedding(model, part.whole, part.shape)
    questions = [Question(query.prompts) for query in queries]
    for offered in model.propose(embedding, questions, least):
        for answer in offered:
            if answer.logits.shape != part.shape:
                raise ValueError(
                    f"{model.card.name} answered logits of shape {answer.logits.shape} to a view "
                    f"of {part.shape}."
                )
        yield [
            ViewPrediction(s.logits, part.whole, float(np.nan_to_num(s.score)), None)
            for s in offered
        ]


def _part(view: ImageView, bounds: Bounds) -> ImageView:
    if bounds == view.whole:
        return view
    (top, left), (bottom, right) = bounds
    return ImageView(
        view.array[top:bottom, left:right],
        view.spacing,
        view.intensity,
        view.modality,
        windowed=view.windowed,
    )


def _screened(
    part: ImageView,
    prediction: ViewPrediction,
    at: tuple[float, float],
    corner: Sequence[int],
    layer: int,
    shape: tuple[int, ...],
    settings: Settings,
) -> list[Candidate]:
    """An answer as a candidate, if it is good enough by itself; else nothing."""
    if prediction.score < settings.least_score:
        return []
    sure, possible = (
        int(np.count_nonzero(prediction.logits > t)) for t in (settings.offset, -settings.offset)
    )
    stability = sure / max(1, possible)
    if stability < settings.least_stability:
        return []
    region = to_image_grid(part, prediction)
    mask = region.inside
    area = np.count_nonzero(mask)
    if not max(1, settings.least_area) <= area <= settings.largest_share * math.prod(shape):
        return []
    low, high = (np.add(edge, np.add(region.low, corner)) for edge in true_bounds(mask))
    ends = np.add(corner, part.shape)
    cut = ((low == corner) & (low > 0)) | ((high == ends) & (high < shape))
    if cut.any():  # by its crop: another one shows it whole
        return []
    rows, columns = shape
    starts, stops = runs_of(region, corner, (rows, columns))
    bounds = tuple(int(a) for a in low), tuple(int(b) for b in high)
    point = at[0] + corner[0], at[1] + corner[1]
    return [
        Candidate(starts, stops, (rows, columns), bounds, prediction.score, stability, point, layer)
    ]
