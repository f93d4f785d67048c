"""Report of a propagation, frame by frame: for ``--scores``, the film and the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from limner.render.film import FrameTimeline
    from limner.sessions import Prediction, PropagationRequest, Session

LOOK_AT = 5  # frames that are named


@dataclass(frozen=True)
class FrameResult:
    """One object on one frame.

    Attributes:
        score: 0…1.
        pixels: of its mask.
        centre: of its mask, row and column; None where it is not there.
        annotated: whether it has prompts.
    """

    score: float
    pixels: int
    centre: tuple[float, float] | None
    annotated: bool = False


class PropagationReport:
    """Collects predictions on frames; keeps numbers, no pixels.

    Args:
        frames: that were requested.
    """

    def __init__(self, frames: range) -> None:
        self.requested = frames
        self.rows: dict[tuple[int, int], FrameResult] = {}  # by frame and object
        self._run: set[int] = set()
        self._known: set[int] = set()

    @property
    def num_run(self) -> int:
        """Frames that a model was run on."""
        return len(self._run)

    @property
    def num_known(self) -> int:
        """Frames of which all was there before."""
        return len(self._known)

    @property
    def num_frames(self) -> int:
        """Frames that something was carried to."""
        return self.num_run + self.num_known

    def collect(self, predictions: Iterable[Prediction], title: str, total: int) -> None:
        """Take all of a propagation, and show how far it is: speed and time left are those of the
        frames that are run.

        Args:
            predictions: the propagation.
            title: what is done, a few words.
            total: frames that something will be carried to.
        """
        from limner.cli._progress import bar

        with bar(title, "frames") as tell:
            for found in predictions:
                self.add(found)
                tell(self.num_run, total - self.num_known)

    def add(self, found: Prediction, *, annotated: bool = False) -> None:
        """Note a prediction on a frame."""
        assert found.frame is not None
        rows, columns = np.nonzero(found.region.inside)
        centre = None
        if rows.size:
            low = [part.start or 0 for part in found.region.slices]
            centre = (float(rows.mean()) + low[0], float(columns.mean()) + low[1])
        row = FrameResult(float(found.score), int(rows.size), centre, annotated)
        self.rows[found.frame, found.object_id] = row
        if annotated:
            return
        if not found.known:
            self._run.add(found.frame)
            self._known.discard(found.frame)
        elif found.frame not in self._run:
            self._known.add(found.frame)

    def timeline(self, session: Session) -> FrameTimeline:
        """What the film tells of it."""
        scores: dict[int, float] = {}
        for (frame, _), row in self.rows.items():
            if not row.annotated:
                scores[frame] = min(row.score, scores.get(frame, 1.0))
        to_review = frozenset(frame for frame, *_ in session.frames_to_review(LOOK_AT))
        return replace(
            session_timeline(session), scores=scores, to_review=to_review, frames=self.requested
        )

    def write(self, path: Path, session: Session) -> None:
        """Write ``--scores``."""
        from limner.atomic import atomic_bytes

        atomic_bytes(path, json.dumps(self.report(session), indent=1).encode())

    def report(self, session: Session) -> dict[str, Any]:
        """All frames and objects as JSON values, and the frames to look at first."""
        image = session.image
        pixel = image.geometry.slice_at(0).voxel_volume if image.geometry.has_spacing else None
        return {
            "image": None if image.path is None else str(image.path),
            "kind": image.kind,
            "model": session.card.name,
            "propagator": None if session.propagator_card is None else session.propagator_card.name,
            "names": {str(i): name for i, name in session.names.items()},
            "look_at": [
                {"frame": frame, "object": object_id, "score": round(score, 4)}
                for frame, score, object_id in session.frames_to_review(LOOK_AT)
            ],
            "damaged": {str(k): reason for k, reason in sorted(image.damaged.items())},
            "frames": [
                _to_json(frame, object_id, row, pixel)
                for (frame, object_id), row in sorted(self.rows.items())
            ],
        }


def count_expected(session: Session, request: PropagationRequest) -> int:
    """How many frames something will be carried to."""
    last = session.image.geometry.shape[0]
    frames = range(request.start or 0, last if request.stop is None else request.stop)
    marked: dict[int, set[int]] = {}
    for entry in session.entries:
        if entry.frame is not None and request.object_id in (None, entry.object_id):
            marked.setdefault(entry.object_id, set()).add(entry.frame)
    count = set()
    for own in marked.values():
        between = request.how == "interpolate"
        low = min(own) if between or request.direction == "forward" else -1
        high = max(own) if between or request.direction == "backward" else last
        count |= {k for k in frames if low < k < high and k not in own}
    return len(count)


def session_timeline(session: Session) -> FrameTimeline:
    """Make the timeline of a film from the prompts of a session."""
    from limner.render.film import FrameTimeline

    prompts: dict[int, list[Any]] = {}
    for entry in session.entries:
        if entry.frame is not None:
            prompts.setdefault(entry.frame, []).append(entry.prompt)
    return FrameTimeline(
        annotated=frozenset(prompts),
        unreadable=frozenset(session.image.damaged),
        prompts=prompts,
    )


def _to_json(frame: int, object_id: int, row: FrameResult, pixel: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "frame": frame,
        "object": object_id,
        "score": round(row.score, 4),
        "annotated": row.annotated,
        "pixels": row.pixels,
    }
    if pixel is not None:
        facts["area_mm2"] = float(f"{row.pixels * pixel:.6g}")
    facts["centre"] = None if row.centre is None else [round(x, 2) for x in row.centre]
    return facts
