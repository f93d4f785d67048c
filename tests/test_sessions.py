"""One suite for every kind of session, then what is special to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.adapters.protocols import BatchModel, ModelCard, Question, Segmentation, View
from limner.errors import FormatError, PromptError, SessionError
from limner.models import create_model
from limner.prompts.types import Prompt
from limner.sessions.answers.answer_cache import AnswerCache
from limner.sessions.base import BaseSession
from limner.sessions.history.events import event_to_json


@dataclass(frozen=True)
class Case:
    """A kind of session with prompts that fit it."""

    image: limner.Image
    truth: np.ndarray
    click: Prompt
    other: Prompt
    box: Prompt
    frame: int | None


def _image_case() -> Case:
    phantom = phantoms.image(3, (96, 80))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((48, 40)),
        limner.Click((5, 5), positive=False),
        limner.Box((30, 20), (60, 60)),
        None,
    )


def _volume_case() -> Case:
    phantom = phantoms.volume(3, (20, 48, 40))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((10, 24, 20)),
        limner.Click((2, 3, 4), positive=False),
        limner.Box((5, 10, 8), (15, 30, 30)),
        None,
    )


def _video_case() -> Case:
    phantom = phantoms.sequence(3, (8, 48, 48))
    return Case(
        phantom.image,
        phantom.truth,
        limner.Click((24, 24)),
        limner.Click((3, 4), positive=False),
        limner.Box((10, 10), (36, 36)),
        2,
    )


CASES: dict[str, Callable[[], Case]] = {
    "image": _image_case,
    "volume": _volume_case,
    "video": _video_case,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def _session(case: Case, **options: object) -> BaseSession:
    return limner.open_session(case.image, "toy", **options)  # type: ignore[arg-type]


class Watching:
    """The toy model, keeping what it was shown of the round before."""

    def __init__(self) -> None:
        self._toy = create_model("toy")
        self.card = self._toy.card
        self.seen: list[np.ndarray | None] = []

    def embed(self, view: View) -> object:
        return self._toy.embed(view)

    def segment(
        self, embedding: object, prompts: object, previous: np.ndarray | None = None
    ) -> Segmentation:
        self.seen.append(previous)
        return self._toy.segment(embedding, prompts, previous)  # type: ignore[arg-type]


class Recalling:
    """The toy model, asked in batches; it remembers how often it was asked, and says it by its
    score, so that a memory that is lost or of another object shows.
    """

    def __init__(self, kinds: frozenset[str] | None = None) -> None:
        self._toy = create_model("toy")
        card = self._toy.card
        self.card = ModelCard(**{**card.__dict__, "prompts": kinds or card.prompts, "zoom": False})
        self.embedded = 0
        self.batches: list[list[Question]] = []

    def embed(self, view: View) -> object:
        self.embedded += 1
        return self._toy.embed(view)

    def segment(
        self, embedding: object, prompts: Sequence[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        raise AssertionError("a model that answers in batches is asked so")

    def segment_batch(self, embedding: object, questions: Sequence[Question]) -> list[Segmentation]:
        self.batches.append(list(questions))
        return [self._one(embedding, q) for q in questions]

    def _one(self, embedding: object, question: Question) -> Segmentation:
        found = self._toy.segment(embedding, question.prompts, question.previous)  # type: ignore[arg-type]
        times = np.ones(1) if question.memory is None else question.memory[0] + 1
        return Segmentation(found.logits, float(times[0]) / 100, (times, np.zeros(1000)))


def test_a_session_answers_the_verbs_of_the_protocol(case: Case) -> None:
    with _session(case) as session:
        assert isinstance(session, limner.Session)


def test_a_click_is_answered_with_mask_logits_score_and_box(case: Case) -> None:
    shape = case.image.geometry.shape if case.frame is None else case.image.geometry.shape[1:]
    with _session(case) as session:
        session.add(case.click, frame=case.frame)
        prediction = session.predict(frame=case.frame)
        assert prediction.mask.shape == shape
        assert prediction.mask.dtype == np.bool_
        assert prediction.logits.dtype == np.float32
        assert np.array_equal(prediction.logits > 0, prediction.mask)
        assert 0 <= prediction.score <= 1
        assert prediction.mask[tuple(int(x) for x in case.click.at)]
        inside = np.argwhere(prediction.mask)
        assert prediction.box is not None
        assert tuple(inside.min(axis=0)) == prediction.box.low
        assert tuple(inside.max(axis=0) + 1) == prediction.box.high


def test_box_is_what_changed_since_the_last_prediction(case: Case) -> None:
    with _session(case) as session:
        session.add(case.box, frame=case.frame)
        first = session.predict(frame=case.frame)
        assert session.predict(frame=case.frame).box is None
        session.add(case.other, frame=case.frame)
        session.add(case.click, frame=case.frame)
        second = session.predict(frame=case.frame)
        differs = np.argwhere(first.mask != second.mask)
        if len(differs):
            assert tuple(differs.min(axis=0)) == second.box.low
            assert tuple(differs.max(axis=0) + 1) == second.box.high
        else:
            assert second.box is None


def test_undo_and_redo_bring_back_exactly_what_was(case: Case) -> None:
    with _session(case) as session:
        session.add(case.click, frame=case.frame)
        first = session.predict(frame=case.frame)
        session.add(case.other, frame=case.frame)
        second = session.predict(frame=case.frame)
        session.undo()
        assert session.prompts == (case.click,)
        assert np.array_equal(session.predict(frame=case.frame).logits, first.logits)
        session.redo()
        assert session.prompts == (case.click, case.other)
        assert np.array_equal(session.predict(frame=case.frame).logits, second.logits)


def test_undo_is_unlimited_per_object_and_per_session(case: Case) -> None:
    with _session(case) as session:
        for _ in range(5):
            session.add(case.click, object_id=1, frame=case.frame)
            session.add(case.box, object_id=2, frame=case.frame)
        session.undo(object_id=1)
        assert [e.object_id for e in session.entries].count(1) == 4
        assert [e.object_id for e in session.entries].count(2) == 5
        for _ in range(9):
            session.undo()
        assert session.prompts == ()
        with pytest.raises(SessionError, match="nothing to undo"):
            session.undo()
        for _ in range(10):
            session.redo()
        assert len(session.prompts) == 10
        with pytest.raises(SessionError, match="nothing to redo"):
            session.redo()


def test_reset_can_be_undone(case: Case) -> None:
    with _session(case) as session:
        session.add(case.click, object_id=1, frame=case.frame)
        session.add(case.box, object_id=7, frame=case.frame)
        session.reset(object_id=7)
        assert session.object_ids == (1,)
        session.reset()
        assert session.object_ids == ()
        assert not session.labels.any()
        session.undo()
        session.undo()
        assert session.object_ids == (1, 7)


def test_several_objects_share_one_label_map_and_overlaps_are_kept(case: Case) -> None:
    with _session(case) as session:
        session.add(case.box, object_id=2, frame=case.frame)
        session.add(case.box, object_id=5, frame=case.frame)
        session.name(5, "lesion")
        masks = {i: session.predict(object_id=i, frame=case.frame).mask for i in (2, 5)}
        found = session.export()
        assert found.num_overlapping() == int((masks[2] & masks[5]).sum()) > 0
        assert found.names == {5: "lesion"}
        labels = session.labels
        assert labels.shape == case.image.geometry.shape
        assert set(np.unique(labels)) == {0, 5}  # the higher id wins
        assert labels.source.mask(2).sum() == masks[2].sum()


def test_labels_are_read_only_so_that_an_edit_is_never_lost_silently(case: Case) -> None:
    with _session(case) as session:
        session.add(case.box, frame=case.frame)
        labels = session.labels
        with pytest.raises(ValueError, match="read-only"):
            labels[...] = 0
        assert (labels * 2).source is None


def test_wrong_prompts_are_refused_and_leave_no_trace(case: Case) -> None:
    outside = limner.Click(tuple(10_000.0 for _ in case.click.at))
    with _session(case) as session:
        with pytest.raises(PromptError, match="outside"):
            session.add(outside, frame=case.frame)
        with pytest.raises(PromptError, match="understands"):
            session.add(limner.Example(np.zeros((4, 4)), np.ones((4, 4))), frame=case.frame)
        with pytest.raises(ValueError, match="object id"):
            session.add(case.click, object_id=0, frame=case.frame)
        assert session.prompts == ()
        assert not session.can_undo


def test_unknown_objects_and_empty_conversations_are_errors(case: Case) -> None:
    with _session(case) as session:
        with pytest.raises(SessionError, match="no prompts"):
            session.predict(object_id=4, frame=case.frame)
        with pytest.raises(SessionError, match="no object 9"):
            session.undo(object_id=9)
        session.add(case.click, frame=case.frame)
        with pytest.raises(SessionError, match="no object 9"):
            session.reset(object_id=9)


def test_a_closed_session_says_so(case: Case) -> None:
    session = _session(case)
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.add(case.click, frame=case.frame)
    with pytest.raises(SessionError, match="closed"):
        session.predict(frame=case.frame)
    with pytest.raises(SessionError, match="closed"):
        _ = session.labels


def test_a_failing_model_leaves_the_conversation_as_it_was(case: Case) -> None:
    toy = create_model("toy")

    class Failing:
        card = toy.card
        fail = True

        def embed(self, view: View) -> object:
            return toy.embed(view)

        def segment(self, *arguments: object) -> Segmentation:
            if self.fail:
                raise RuntimeError("out of order")
            return toy.segment(*arguments)  # type: ignore[arg-type]

    model = Failing()
    with limner.open_session(case.image, model) as session:
        session.add(case.click, frame=case.frame)
        with pytest.raises(RuntimeError):
            session.predict(frame=case.frame)
        model.fail = False
        assert session.predict(frame=case.frame).mask.any()
        assert session.prompts == (case.click,)


def test_nothing_is_run_twice(case: Case) -> None:
    toy = create_model("toy")
    calls = []

    class Counting:
        card = toy.card

        def embed(self, view: View) -> object:
            calls.append("embed")
            return toy.embed(view)

        def segment(self, *arguments: object) -> Segmentation:
            calls.append("segment")
            return toy.segment(*arguments)  # type: ignore[arg-type]

    with limner.open_session(case.image, Counting(), zoom=False) as session:
        session.add(case.click, frame=case.frame)
        session.predict(frame=case.frame)
        session.predict(frame=case.frame)
        session.add(case.other, frame=case.frame)
        session.undo()
        session.predict(frame=case.frame)
        _ = session.labels
        assert calls == ["embed", "segment"]


def test_the_previous_logits_are_those_of_the_last_answered_round() -> None:
    model = Watching()
    case = _image_case()
    with limner.open_session(case.image, model, zoom=False) as session:
        session.add(case.click)
        session.add(case.other)
        first = session.predict()
        session.add(limner.Click((60, 40)))
        session.predict()
    assert len(model.seen) == 2
    assert model.seen[0] is None
    assert np.array_equal(model.seen[1], first.logits)


def test_the_default_model_works_on_every_kind(case: Case) -> None:
    with limner.open_session(case.image) as session:
        session.add(case.box, frame=case.frame)
        assert session.predict(frame=case.frame).mask.any()


def test_zoom_finds_the_same_small_object_in_a_large_picture() -> None:
    rng = np.random.default_rng(0)
    picture = rng.normal(50, 4, (1500, 2000)).astype(np.float32)
    rows, columns = np.ogrid[:1500, :2000]
    disk = (rows - 1200) ** 2 + (columns - 340) ** 2 <= 8**2
    picture[disk] += 120
    for prompt in (limner.Click((1200, 340)), limner.Box((1190, 330), (1211, 351))):
        with limner.open_session(picture, "classical/region") as session:
            session.add(prompt)
            prediction = session.predict()
            assert limner.metrics.dice(prediction.mask, disk) > 0.8
            assert prediction.region.steps.size < 300 * 300  # a window, not the picture


def test_the_window_grows_until_a_large_object_is_whole() -> None:
    picture = np.zeros((1200, 1200), dtype=np.uint8)
    picture[100:1100, 550:650] = 200
    with limner.open_session(picture, "classical/region") as session:
        session.add(limner.Click((600, 600)))
        mask = session.predict().mask
    truth = picture > 0
    assert limner.metrics.dice(mask, truth) > 0.9
    assert mask[110].any()
    assert mask[1090].any()


def test_the_same_volume_in_any_orientation_gives_the_same_world_mask() -> None:
    phantom = phantoms.volume(5, (18, 26, 22), spacing=(3.0, 3.0, 3.0))
    geometry, array = phantom.image.geometry, np.asarray(phantom.image.array)
    low, high = np.array((5, 6, 5)), np.array((14, 20, 18))
    with limner.open_session(phantom.image, "toy") as session:
        session.add(limner.Box(tuple(low), tuple(high)))
        reference = session.predict().mask
    assert reference.any()
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        for flips in np.ndindex(2, 2, 2):
            affine = np.array(geometry.affine)
            for axis, flip in enumerate(flips):
                if flip:
                    affine[:3, 3] += affine[:3, axis] * (geometry.shape[axis] - 1)
                    affine[:3, axis] *= -1
            affine[:3, :3] = affine[:3, :3][:, list(order)]
            axes = [axis for axis, flip in enumerate(flips) if flip]
            turned = np.transpose(np.flip(array, axes), order)
            image = limner.Image(turned, limner.Geometry(turned.shape, affine))
            corners = geometry.index_to_world(np.stack((low, high - 1)))
            index = image.geometry.world_to_index(corners).round()
            box = limner.Box(tuple(index.min(axis=0)), tuple(index.max(axis=0) + 1))
            with limner.open_session(image, "toy") as session:
                session.add(box)
                mask = session.predict().mask
            back = np.flip(np.transpose(mask, np.argsort(order)), axes)
            assert np.array_equal(back, reference), (order, flips)


def test_slice_prompts_stand_over_the_volume_answer_and_propagate() -> None:
    phantom = phantoms.volume(3, (12, 48, 40))
    with limner.open_session(phantom.image, "toy") as session:
        session.add(limner.Box((0, 10, 8), (12, 30, 30)))
        whole = session.predict().mask
        session.add(limner.Box((20, 5), (40, 35)), frame=6)
        on_slice = session.predict(frame=6).mask
        labels = session.labels
        assert np.array_equal(labels[6] > 0, on_slice)
        assert np.array_equal(np.delete(labels, 6, 0) > 0, np.delete(whole, 6, 0))


def test_a_first_correction_on_a_slice_starts_from_what_is_there() -> None:
    model = Watching()
    phantom = phantoms.volume(3, (12, 48, 40))
    with limner.open_session(phantom.image, model, zoom=False) as session:
        session.add(limner.Box((2, 10, 8), (10, 30, 30)))
        whole = session.predict().mask
        session.add(limner.Click((20, 20)), frame=5)
        session.predict(frame=5)
    assert np.array_equal(model.seen[-1] > 0, whole[5])


def test_2d_only_models_take_3d_prompts_that_lie_in_one_slice() -> None:
    toy = create_model("toy")
    card = ModelCard(**{**toy.card.__dict__, "ndim": (2,)})

    class Flat:
        def __init__(self) -> None:
            self.card = card
            self.embed, self.segment = toy.embed, toy.segment

    phantom = phantoms.volume(3, (12, 48, 40))
    with limner.open_session(phantom.image, Flat()) as session:
        session.add(limner.Click((5, 20, 20)))
        assert session.predict(frame=5).mask.shape == (48, 40)
        with pytest.raises(PromptError, match="slice by slice"):
            session.add(limner.Box((2, 10, 8), (10, 30, 30)))


def test_3d_only_models_get_slice_prompts_lifted() -> None:
    toy = create_model("toy")
    card = ModelCard(**{**toy.card.__dict__, "ndim": (3,)})

    class Solid:
        def __init__(self) -> None:
            self.card = card
            self.embed, self.segment = toy.embed, toy.segment

    phantom = phantoms.volume(3, (12, 48, 40))
    with limner.open_session(phantom.image, Solid()) as session:
        session.add(limner.Click((20, 20)), frame=5)
        assert session.predict(frame=5).mask.shape == (12, 48, 40)
        assert session.prompts == (limner.Click((5, 20, 20)),)
    picture = phantoms.image(1, (32, 32)).image
    with pytest.raises(SessionError, match="works on volumes"):
        limner.open_session(picture, Solid())


@pytest.mark.parametrize("kind", ["volume", "video"])
def test_propagation_writes_each_frame_once_and_keeps_annotated_ones(kind: str) -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    image = limner.Image(phantom.image.array, phantom.image.geometry, kind=kind)  # type: ignore[arg-type]
    target = phantom.truth == 1
    with limner.open_session(image, "toy") as session:
        for frame in (2, 7):
            session.add(limner.MaskPrompt(target[frame]), frame=frame)
        kept = {k: session.predict(frame=k).mask for k in (2, 7)}
        frames = [p.frame for p in session.propagate()]
        assert sorted(frames) == [0, 1, 3, 4, 5, 6, 8, 9]
        labels = session.labels
        assert all(np.array_equal(labels[k] > 0, kept[k]) for k in kept)
        assert all(labels[k].any() for k in range(10))
        carried = session.export().manifest["objects"]["1"]["propagated_frames"]
        assert carried == [0, 1, 3, 4, 5, 6, 8, 9]
        session.undo()  # the whole propagation
        assert [k for k in range(10) if session.labels[k].any()] == [2, 7]
        session.redo()
        assert np.array_equal(session.labels, labels)


def test_propagation_obeys_range_and_direction_and_can_be_left() -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    target = phantom.truth == 1
    with limner.open_session(phantom.image, "toy") as session:
        session.add(limner.MaskPrompt(target[4]), frame=4)
        assert [p.frame for p in session.propagate(direction="forward", stop=7)] == [5, 6]
        assert [p.frame for p in session.propagate(direction="backward", start=2)] == [3, 2]
        for prediction in session.propagate():
            if prediction.frame == 8:
                break
        assert [k for k in range(10) if session.labels[k].any()] == [2, 3, 4, 5, 6, 7, 8]
        with pytest.raises(ValueError, match="Direction"):
            session.propagate(direction="up")
        with pytest.raises(ValueError, match="range"):
            session.propagate(start=9, stop=3)


def test_a_carried_mask_that_leaks_is_held_back_and_scored_down() -> None:
    frames = np.full((6, 64, 64), 20, dtype=np.uint8)
    frames[:, 20:40, 20:40] = 200
    frames[3:, 28:32, 40:] = 200  # a bridge to the border opens
    frames[3:, :, 58:] = 200
    image = limner.Image(frames, limner.Geometry.from_spacing(frames.shape), kind="video")
    target = np.zeros((64, 64), dtype=bool)
    target[20:40, 20:40] = True
    with limner.open_session(image, "classical/region", zoom=False) as session:
        session.add(limner.MaskPrompt(target), frame=0)
        found = {p.frame: p for p in session.propagate()}
    assert all(found[k].mask.sum() < 1.5 * target.sum() for k in found)


def test_propagation_needs_a_frame_with_prompts_and_other_frames() -> None:
    with _session(_video_case()) as session, pytest.raises(SessionError, match="prompts"):
        session.propagate()
    with _session(_image_case()) as session, pytest.raises(SessionError, match="no other frames"):
        session.propagate()


def test_a_prompt_in_the_middle_of_a_propagation_ends_it_cleanly() -> None:
    case = _video_case()
    with _session(case) as session:
        session.add(case.box, frame=2)
        walk = session.propagate()
        assert next(walk).frame == 3
        session.add(case.click, frame=2)
        with pytest.raises(SessionError, match="object 1 went on in between; call propagate"):
            next(walk)
        assert session.labels[3].any()
        walk = session.propagate()
        assert next(walk).frame == 3
        session.add(case.click, frame=6)
        with pytest.raises(SessionError, match="went on in between"):
            next(walk)


def test_video_frames_are_read_when_needed_only() -> None:
    read: list[int] = []
    array = phantoms.sequence(4, (40, 32, 32)).image.array

    def plane(index: int) -> np.ndarray:
        read.append(index)
        return array[index]

    def everything() -> np.ndarray:
        raise AssertionError("the whole video was decoded")

    image = limner.Image(
        everything,
        limner.Geometry.from_spacing(array.shape),
        kind="video",
        dtype=array.dtype,
        read_slice=plane,
    )
    with limner.open_session(image, "toy", window=(0, 255)) as session:
        session.add(limner.Box((8, 8), (24, 24)), frame=20)
        session.predict(frame=20)
        for _ in session.propagate(start=18, stop=23):
            pass
    assert set(read) == {18, 19, 20, 21, 22}


def test_arrays_and_paths_open_too_and_wrong_combinations_are_refused() -> None:
    with limner.open_session(np.zeros((8, 9, 3), np.uint8), "toy") as session:
        assert session.image.kind == "image"
    with limner.open_session(np.zeros((8, 9, 3), np.int16), "toy") as session:
        assert session.image.kind == "volume"
    with pytest.raises(TypeError, match="weights"):
        limner.open_session(np.zeros((8, 9)), create_model("toy"), weights="w.pt")
    with pytest.raises(ValueError, match="Unknown model"):
        limner.open_session(np.zeros((8, 9)), "medsam/vit_z")
    with pytest.raises(ValueError, match="window"):
        limner.open_session(np.zeros((8, 9)), "toy", window="liverish")


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((2, 2, 2, 2)), [["a"]], 5, [[1j]], None])
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(TypeError, match="An image is"):
        limner.open_session(image, "toy")


def test_what_is_no_model_prompt_or_number_is_refused(case: Case) -> None:
    with pytest.raises(TypeError, match="A model is"):
        limner.open_session(case.image, 5)
    with _session(case) as session:
        with pytest.raises(TypeError, match="A prompt is one of Click, Box"):
            session.add((3, 4), frame=case.frame)
        session.add(case.click, frame=case.frame)
        for wrong in ("1", 1.0, True, -1):
            with pytest.raises(ValueError, match="object id"):
                session.undo(object_id=wrong)
            with pytest.raises(ValueError, match="object id"):
                session.predict(object_id=wrong, frame=case.frame)
        with pytest.raises(PromptError, match="whole number"):
            session.predict(frame=1.5)
        with pytest.raises(ValueError, match="name"):
            session.name(1, 5)
        assert session.prompts == (case.click,)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 5000), (5000, 1), (1, 1, 1), (1, 40, 40), (40, 1, 40)]
)
@pytest.mark.parametrize("dtype", [np.bool_, np.uint16, np.float32])
def test_thin_and_tiny_images_of_any_type_work(shape: tuple[int, ...], dtype: type) -> None:
    array = (np.random.default_rng(0).random(shape) * 900).astype(dtype)
    middle = tuple(n // 2 for n in shape)
    with limner.open_session(array, "toy") as session:
        session.add(limner.Click(middle))
        assert session.predict().mask[middle]
        session.add(limner.Click((0,) * len(shape), positive=False))
        assert not session.predict().mask.flat[0]
        assert session.labels.shape == shape


def test_a_3d_prompt_in_one_frame_is_about_that_frame() -> None:
    case = _video_case()
    said = [
        (limner.Click((2, 24, 25), positive=False), limner.Click((24, 25), positive=False)),
        (limner.Box((2, 10, 11), (3, 30, 31)), limner.Box((10, 11), (30, 31))),
        (
            limner.Scribble(((2, 3, 4), (2, 5, 6)), radius=1),
            limner.Scribble(((3, 4), (5, 6)), radius=1),
        ),
        (
            limner.Lasso(((2, 3, 4), (2, 5, 6), (2, 9, 4))),
            limner.Lasso(((3, 4), (5, 6), (9, 4))),
        ),
    ]
    with _session(case) as session:
        for solid, _ in said:
            session.add(solid)
        assert session.prompts == tuple(flat for _, flat in said)
        assert {e.frame for e in session.entries} == {2}
        for several in (limner.Box((2, 1, 1), (4, 9, 9)), limner.Scribble(((2, 3, 4), (4, 5, 6)))):
            with pytest.raises(PromptError, match="needs its frame"):
                session.add(several)


def test_a_propagation_whose_prompts_were_taken_back_says_so() -> None:
    case = _video_case()
    with _session(case) as session:
        session.add(case.box, frame=2)
        walk = session.propagate()
        session.undo()
        with pytest.raises(SessionError, match="taken back"):
            next(walk)
        assert not session.can_undo
    with _session(case) as session:
        for object_id in (1, 2):
            session.add(case.box, frame=2, object_id=object_id)
        walk = session.propagate()
        next(walk)
        session.undo(object_id=2)  # of which nothing has been written yet
        with pytest.raises(SessionError, match="object 2 went on in between"):
            list(walk)
        assert session.labels[3].any()


def test_a_propagation_with_nowhere_to_go_leaves_nothing_to_undo() -> None:
    case = _video_case()
    with _session(case) as session:
        session.add(case.box, frame=7)
        assert list(session.propagate(direction="forward")) == []
        assert list(session.propagate(start=7)) == []
        session.undo()
        assert not session.can_undo
    one = limner.Image(np.ones((1, 20, 20)), limner.Geometry((1, 20, 20)))
    with limner.open_session(one, "toy") as session:
        session.add(limner.Box((4, 4), (9, 9)), frame=0)
        assert list(session.propagate()) == []


def test_objects_on_different_frames_propagate_together_and_undo_together() -> None:
    phantom = phantoms.sequence(4, (8, 48, 48))
    with limner.open_session(phantom.image, "toy") as session:
        session.add(limner.MaskPrompt(phantom.truth[1] == 1), frame=1)
        session.add(limner.MaskPrompt(phantom.truth[6] == 2), frame=6, object_id=2)
        shown = {(p.object_id, p.frame) for p in session.propagate()}
        assert shown == {(1, k) for k in range(8) if k != 1} | {(2, k) for k in range(8) if k != 6}
        found = session.export()
        session.undo(object_id=2)
        assert np.array_equal(session.export().mask(1), found.mask(1))
        assert [k for k in range(8) if session.export().mask(2)[k].any()] == [6]
        session.undo()
        assert [k for k in range(8) if session.export().mask(1)[k].any()] == [1]


def test_what_is_kept_of_a_shown_frame_is_small() -> None:
    frames = 60
    array = np.zeros((frames, 200, 200), np.uint8)
    array[:, 20:180, 20:180] = 200
    image = limner.Image(array, limner.Geometry(array.shape), kind="video")
    with limner.open_session(image, "toy", window=(0, 255)) as session:
        session.add(limner.Box((20, 20), (180, 180)), frame=0)
        for _ in session.propagate():
            pass
        kept = sum(len(mask.bits) for mask in session._shown._packed.values())
        written = [frame.runs for frame in session._log.committed(1).values()]
        runs = sum(len(r) * r.itemsize for r in written)
        assert len(session._shown._packed) == frames - 2  # the newest is not packed
        assert kept + runs < frames * 5000  # a mask has 40,000 pixels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CASES)
def test_non_finite_intensities_are_refused_or_on_request_harmless(name: str, value: float) -> None:
    case = CASES[name]()
    broken = np.asarray(case.image.array, dtype=np.float32)
    broken[(0,) * broken.ndim if name != "video" else (case.frame, 0, 0)] = value
    image = limner.Image(broken, case.image.geometry, kind=case.image.kind)
    with limner.open_session(image, "toy") as session:
        session.add(case.box, frame=case.frame)
        with pytest.raises(FormatError, match=r"1 NaN or infinite intensities .*--lenient"):
            session.predict(frame=case.frame)
    image.read_options = {"strict": False}
    with _session(case) as clean, limner.open_session(image, "toy") as session:
        for one in (clean, session):
            one.add(case.box, frame=case.frame)
        expected, found = (s.predict(frame=case.frame).mask for s in (clean, session))
        assert limner.metrics.dice(found, expected) > 0.9


def test_the_manifest_says_how_the_mask_was_made(case: Case) -> None:
    with _session(case, window=(0, 500)) as session:
        session.add(case.box, object_id=3, frame=case.frame)
        session.name(3, "lesion")
        facts = session.export().manifest
    assert facts["model"]["name"] == "toy"
    assert facts["image"]["pixel_sha256"] == case.image.pixel_hash()
    assert facts["objects"]["3"]["name"] == "lesion"
    assert facts["objects"]["3"]["prompts"][0]["kind"] == "box"
    assert facts["options"]["window"] == [0, 500]
    assert "not a medical device" in facts["notice"]


def test_a_box_that_reaches_over_the_image_is_taken_with_a_warning(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    wide = limner.Box((0,) * len(case.box.low), tuple(n + 9_000 for n in case.box.high))
    with _session(case) as session:
        session.add(case.box, frame=case.frame)
        assert not caplog.records
        session.add(wide, frame=case.frame)
        assert "reaches over the image" in caplog.text
        assert session.predict(frame=case.frame).mask.any()


def _said(session: BaseSession, case: Case, prompt: Prompt, **where: int) -> float:
    session.add(prompt, frame=case.frame, **where)
    return session.predict(frame=case.frame, **where).score


def test_a_model_gets_back_what_it_remembered_of_this_object_on_this_view(case: Case) -> None:
    model = Recalling()
    assert isinstance(model, BatchModel)
    with limner.open_session(case.image, model) as session:
        assert _said(session, case, case.click) == 0.01
        assert _said(session, case, case.box, object_id=2) == 0.01
        assert _said(session, case, case.other) == 0.02
        assert _said(session, case, case.click) == 0.03
        session.undo()
        session.undo()
        assert session.predict(frame=case.frame).score == 0.01
        assert _said(session, case, case.box) == 0.02
    assert model.embedded == 1
    assert all(len(batch) == 1 for batch in model.batches)


def test_replaying_the_rounds_brings_the_memory_back(case: Case) -> None:
    with limner.open_session(case.image, Recalling()) as session:
        scores = [_said(session, case, p) for p in (case.click, case.other, case.box)]
        found = session.predict(frame=case.frame)
        session._answers = AnswerCache()
        again = session.predict(frame=case.frame)
        assert scores == [0.01, 0.02, 0.03]
        assert again.score == found.score
        assert np.array_equal(again.logits, found.logits)


def test_a_memory_of_one_view_is_not_shown_on_another() -> None:
    picture = phantoms.image(3, (400, 380)).image  # larger than the toy's window
    model = Recalling()
    with limner.open_session(picture, model, zoom=True) as session:
        session.add(limner.Box((30, 20), (60, 60)))
        session.predict()
        session.add(limner.Box((300, 300), (380, 360)))
        session.predict()
    seen = [question.memory for (question,) in model.batches]
    assert len(seen) >= 2
    assert all(memory is None for memory in seen)


def test_memories_count_in_the_budget_of_the_answers() -> None:
    case = _image_case()
    with limner.open_session(case.image, Recalling()) as session:
        session._answers = AnswerCache(budget=20_000)
        for _ in range(12):  # 8,000 bytes of memory each
            session.add(case.click)
            session.predict()
        assert len(session._answers._answers) <= 2
        assert session.predict().score == 0.12


def test_a_batch_with_an_answer_missing_is_refused() -> None:
    class Short(Recalling):
        def segment_batch(
            self, embedding: object, questions: Sequence[Question]
        ) -> list[Segmentation]:
            return super().segment_batch(embedding, questions)[:-1]

    case = _image_case()
    with limner.open_session(case.image, Short()) as session:
        session.add(case.box)
        with pytest.raises(ValueError, match="answered 0 of 1 questions"):
            session.predict()


def _several(session: BaseSession, case: Case) -> None:
    """Three objects, one of them with a round behind it."""
    session.add(case.box, object_id=3, frame=case.frame)
    session.add(case.click, object_id=1, frame=case.frame)
    session.predict(object_id=1, frame=case.frame)
    session.add(case.other, object_id=1, frame=case.frame)
    session.add(case.click, object_id=2, frame=case.frame)


@pytest.mark.parametrize("model", ["toy", "batch"])
def test_all_objects_are_answered_as_each_by_itself(case: Case, model: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    models = [Recalling() if model == "batch" else create_model("toy") for _ in range(2)]
    journals = [tmp_path / "one", tmp_path / "all"]
    found = []
    for built, journal in zip(models, journals, strict=True):
        with limner.open_session(case.image, built, journal=journal) as session:
            _several(session, case)
            if journal.name == "all":
                found.append(session.predict_all())
                assert [p.box for p in session.predict_all()] == [None] * 3
            else:
                found.append(
                    tuple(session.predict(object_id=i, frame=case.frame) for i in (3, 1, 2))
                )
            assert {e.answered for e in session.entries} == {True}
    for one, questions_at_once in zip(*found, strict=True):
        assert (one.object_id, one.frame, one.score) == (
            questions_at_once.object_id,
            questions_at_once.frame,
            questions_at_once.score,
        )
        assert np.array_equal(one.logits, questions_at_once.logits)
        assert one.box == questions_at_once.box
    lines = [journal.read_text().splitlines()[1:] for journal in journals]
    assert lines[0] == lines[1]


def test_many_objects_are_one_question_to_a_model_that_can(case: Case) -> None:
    model = Recalling()
    with limner.open_session(case.image, model) as session:
        _several(session, case)
        model.batches.clear()
        session.predict_all()
        assert [len(batch) for batch in model.batches] == [3]
        assert [q.memory is not None for q in model.batches[0]] == [False, True, False]
        session.predict_all()
        _ = session.labels
        assert len(model.batches) == 1
        session._answers = AnswerCache()  # as after resume: round by round, still together
        session.predict_all()
        assert [len(batch) for batch in model.batches] == [3, 3, 1]
    assert model.embedded == 1


def test_nothing_said_is_nothing_answered_and_frames_can_be_chosen() -> None:
    case = _video_case()
    model = Recalling()
    with limner.open_session(case.image, model) as session:
        assert session.predict_all() == ()
        for frame, object_id in ((4, 1), (2, 1), (4, 2)):
            session.add(case.box, frame=frame, object_id=object_id)
        assert [(p.object_id, p.frame) for p in session.predict_all(frame=2)] == [(1, 2)]
        assert [(p.object_id, p.frame) for p in session.predict_all()] == [(1, 4), (2, 4), (1, 2)]
        assert session.predict_all(frame=7) == ()
        assert [len(batch) for batch in model.batches] == [1, 2]
        with pytest.raises(PromptError, match="whole number"):
            session.predict_all(frame=1.5)  # type: ignore[arg-type]
    with pytest.raises(SessionError, match="closed"):
        session.predict_all()


def test_a_batch_is_no_larger_than_memory_allows() -> None:
    from limner.sessions.answers.zoom import MOST_TOGETHER, questions_at_once

    model = Recalling()
    assert questions_at_once(model, (64, 64), zoom=False) == MOST_TOGETHER
    assert 1 <= questions_at_once(model, (4096, 4096), zoom=False) <= 4
    assert questions_at_once(model, (400, 4096, 4096), zoom=False) == 1
    assert questions_at_once(model, (64, 64), zoom=True) == 1
    assert questions_at_once(create_model("classical/region"), (64, 64), zoom=False) == 1
    case = _image_case()
    with limner.open_session(case.image, model) as session:
        for object_id in range(1, MOST_TOGETHER + 4):
            session.add(case.box, object_id=object_id)
        assert len(session.predict_all()) == MOST_TOGETHER + 3
    assert [len(batch) for batch in model.batches] == [MOST_TOGETHER, 3]


def test_the_journal_says_how_masks_were_propagated() -> None:
    case = _video_case()
    with _session(case) as session:
        session.add(case.box, frame=1)
        session.add(case.box, frame=4)
        list(session.propagate(how="interpolate"))
        list(session.propagate(start=5))
        facts = session.export().manifest["objects"]["1"]
        assert facts["propagated_frames"] == [2, 3, 5, 6, 7]
        assert facts["propagated_how"] == ["carry", "interpolate"]


def test_a_journal_from_before_ways_of_propagating_is_read() -> None:
    from limner.sessions.history.events import Propagated, event_from_json

    assert event_from_json({"op": "propagate", "object_ids": [1]}) == Propagated((1,), "carry")
    event = Propagated((1, 2), "interpolate")
    assert event_from_json(event_to_json(event)) == event
