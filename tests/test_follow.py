"""Following objects in windows: with a model that knows grey values, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.geometry import Geometry
from limner.io.image import Image
from limner.models import ModelCard, PreviousFrame, Segmentation, View
from limner.prompts.types import MaskPrompt, Prompt
from limner.sessions.answers.image_view import ImageView
from limner.sessions.propagation.object_tracker import TrackingOptions, track_objects
from limner.sessions.propagation.schedule import FrameSpan

CARD = ModelCard(
    name="test/grey",
    summary="finds what is as bright as what it remembers",
    ndim=(2,),
    prompts=frozenset({"mask"}),
    licence="Apache-2.0",
    source="test",
    zoom=True,
    window={2: 64},
)


class Grey:
    """Remembers how bright the object is; `views` are the shapes that it was shown."""

    def __init__(self, card: ModelCard = CARD) -> None:
        self.card = card
        self.views: list[tuple[int, ...]] = []
        self.origins: list[tuple[float, float]] = []
        self.places: list[list[int]] = []
        self.asked: list[int | None] = []

    def embed(self, view: View) -> View:
        return view

    def segment(
        self, embedding: View, prompts: Sequence[Prompt], previous: Any = None
    ) -> Segmentation:
        (mask,) = (p.mask for p in prompts if isinstance(p, MaskPrompt))
        return Segmentation(np.where(mask, np.float32(9), np.float32(-9)), 1.0)

    def encode_window(self, view: View, origin: tuple[float, float]) -> View:
        self.views.append(view.shape)
        self.origins.append(origin)
        return view

    def remember(
        self,
        memory: Mapping[str, NDArray[Any]] | None,
        looked: View,
        logits: NDArray[np.float32],
        *,
        place: int,
        given: bool,
    ) -> Mapping[str, NDArray[Any]]:
        if memory is None:
            level = looked.array[logits > 0].max(keepdims=True)
            return {"level": level, "places": np.array([place]), "given": np.array([given])}
        return {
            "level": memory["level"],
            "places": np.append(memory["places"], place),
            "given": np.append(memory["given"], given),
        }

    def track_object(
        self,
        memory: Mapping[str, NDArray[Any]],
        looked: View,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        self.asked.append(place)
        self.places.append(memory["places"][memory["given"]].tolist())
        inside = np.abs(looked.array - memory["level"][0]) < 8
        return Segmentation(np.where(inside, np.float32(4), np.float32(-4)), 0.9)


def disc(shape: tuple[int, int], at: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - at[0]) ** 2 + (columns - at[1]) ** 2 < radius**2)


def painted(masks: Sequence[Mapping[int, NDArray[np.bool_]]]) -> NDArray[np.float32]:
    """Frames in which each object has its grey value."""
    frames = np.zeros((len(masks), *next(iter(masks[0].values())).shape), np.float32)
    for frame, objects in zip(frames, masks, strict=True):
        for level, mask in objects.items():
            frame[mask] = level
    return frames


def run(
    frames: NDArray[np.float32],
    marks: Mapping[int, Mapping[int, NDArray[np.bool_]]],
    *,
    legs: Sequence[FrameSpan],
    model: Grey | None = None,
    returns: bool = True,
) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Masks by object and frame."""

    def scene(frame: int) -> ImageView:
        return ImageView(frames[frame], (1.0, 1.0), (0.0, 255.0), None)

    found = track_objects(
        model or Grey(),
        legs,
        {i: sorted(own) for i, own in marks.items()},
        scene,
        lambda i, k: marks[i][k],
        TrackingOptions(zoom=True, returns=returns),
    )
    return {(leg.object_id, frame): answer.region.mask() for leg, frame, answer in found}


def test_the_window_goes_with_the_object_and_keeps_its_size() -> None:
    shape, model = (300, 300), Grey()
    masks = [{100: disc(shape, (40 + 9 * k, 30 + 8 * k), 9)} for k in range(20)]
    found = run(
        painted(masks), {1: {0: masks[0][100]}}, legs=[FrameSpan(1, 0, range(1, 20))], model=model
    )
    assert all(np.array_equal(found[1, k], masks[k][100]) for k in range(1, 20))
    assert max(max(v) for v in model.views) <= 64
    assert len(set(model.views)) == 1
    assert model.origins[-1][0] - model.origins[0][0] > 120


def test_an_object_that_outgrows_its_window_gets_a_wider_one() -> None:
    shape, model = (200, 200), Grey()
    masks = [{100: disc(shape, (100, 100), 8 * 1.25**k)} for k in range(10)]
    found = run(
        painted(masks), {1: {0: masks[0][100]}}, legs=[FrameSpan(1, 0, range(1, 10))], model=model
    )
    for k in range(1, 10):  # larger ones are seen coarsely
        both = (found[1, k] & masks[k][100]).sum()
        assert 2 * both / (found[1, k].sum() + masks[k][100].sum()) > 0.95
    assert max(max(v) for v in model.views) <= 64


@pytest.mark.parametrize("returns", [True, False])
def test_in_a_video_an_object_comes_back_and_in_a_volume_it_has_ended(returns: bool) -> None:
    shape = (200, 200)
    there = [0, 1, 2, 7, 8, 9]
    masks = [
        {100: disc(shape, (30, 30) if k < 5 else (160, 150), 9 if k in there else 0)}
        for k in range(10)
    ]
    found = run(
        painted(masks),
        {1: {0: masks[0][100]}},
        legs=[FrameSpan(1, 0, range(1, 10))],
        returns=returns,
    )
    assert np.array_equal(found[1, 2], masks[2][100])
    assert not found[1, 3].any()
    assert not found[1, 4].any()
    if returns:
        assert all(2 * (found[1, k] & masks[k][100]).sum() > masks[k][100].sum() for k in (8, 9))
    else:
        assert not any((1, k) in found for k in range(5, 10))


def test_objects_exclude_one_another_unless_they_were_drawn_overlapping() -> None:
    class Greedy(Grey):
        """Finds everything that is not black; surer of the first object."""

        def track_object(
            self, memory: Any, looked: View, before: Any, *, place: Any
        ) -> Segmentation:
            sure = np.float32(6 if memory["level"][0] < 150 else 3)
            return Segmentation(np.where(looked.array > 0, sure, -sure), 0.9)

    shape = (60, 60)
    one, other = disc(shape, (30, 20), 9), disc(shape, (30, 40), 9)
    frames = painted([{100: one, 200: other}] * 3)
    legs = [FrameSpan(1, 0, range(1, 3)), FrameSpan(2, 0, range(1, 3))]
    found = run(frames, {1: {0: one}, 2: {0: other}}, legs=legs, model=Greedy())
    assert found[1, 1].sum() == one.sum() + other.sum()
    assert not found[2, 1].any()
    both = run(frames, {1: {0: one | other}, 2: {0: other}}, legs=legs, model=Greedy())
    assert both[2, 1].any()
    assert (both[1, 1] & both[2, 1]).any()


def test_the_next_annotated_frame_is_remembered_and_no_other() -> None:
    shape, model = (80, 80), Grey()
    masks = [{100: disc(shape, (40, 20 + 2 * k), 8)} for k in range(20)]
    marks = {k: masks[k][100] for k in (0, 10, 19)}
    run(painted(masks), {1: marks}, legs=[FrameSpan(1, 10, range(11, 15))], model=model)
    assert all(sorted(p) == [10, 19] for p in model.places)
    assert model.asked == [11, 12, 13, 14]


def test_answers_of_another_shape_are_an_error() -> None:
    class Wrong(Grey):
        def track_object(
            self, memory: Any, looked: View, before: Any, *, place: Any
        ) -> Segmentation:
            return Segmentation(np.zeros((3, 3), np.float32), 1.0)

    mask = disc((60, 60), (30, 30), 8)
    with pytest.raises(ValueError, match="test/grey answered logits of shape"):
        run(
            painted([{9: mask}] * 2),
            {1: {0: mask}},
            legs=[FrameSpan(1, 0, range(1, 2))],
            model=Wrong(),
        )


def test_a_session_follows_both_ways_and_leaves_annotated_frames_alone(tmp_path: Path) -> None:
    shape = (90, 120)
    masks = [{100: disc(shape, (40, 30 + 5 * k), 10)} for k in range(12)]
    frames = painted(masks)
    image = Image(
        lambda: frames, Geometry.from_spacing(frames.shape), kind="video", dtype=np.float32
    )
    rough = disc(shape, (40, 30 + 5 * 6), 8)
    with limner.open_session(image, model=Grey()) as session:
        session.add(MaskPrompt(rough), frame=6)
        written = {p.frame: np.asarray(p.mask) for p in session.propagate()}
        labels = np.asarray(session.labels)
    assert sorted(written) == [*range(6), *range(7, 12)]
    assert all(np.array_equal(written[k], masks[k][100]) for k in written)
    assert np.array_equal(labels[6] > 0, rough)
