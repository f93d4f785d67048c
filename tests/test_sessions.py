"""What is special to each kind of session that runs here; the contract of all is in
`test_session_contract.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.adapters.protocols import ModelCard, Question, Segmentation, View
from limner.errors import FormatError, PromptError, SessionError
from limner.models import create_model
from limner.models.toy import Toy, ToyEmbedding
from limner.prompts.types import Prompt
from limner.sessions.history.events import event_to_json
from limner.sessions.local import LocalSession
from session_makers import CASES, Case, Recalling, Watching, image_case, video_case


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def _session(case: Case, **options: object) -> LocalSession:
    return limner.open_session(case.image, "toy", **options)  # type: ignore[arg-type]


def test_the_previous_logits_are_those_of_the_last_answered_round() -> None:
    model = Watching()
    case = image_case()
    with limner.open_session(case.image, model, zoom=False) as session:
        session.add(case.click)
        session.add(case.other)
        first = session.predict()
        session.add(limner.Click((60, 40)))
        session.predict()
    assert len(model.seen) == 2
    assert model.seen[0] is None
    assert np.array_equal(model.seen[1], first.logits)


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
    with _session(video_case()) as session, pytest.raises(SessionError, match="prompts"):
        session.propagate()
    with _session(image_case()) as session, pytest.raises(SessionError, match="no other frames"):
        session.propagate()


def test_a_prompt_in_the_middle_of_a_propagation_ends_it_cleanly() -> None:
    case = video_case()
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


def test_black_and_white_of_a_video_are_those_of_frames_all_along_it() -> None:
    """Else a video that begins in the dark is shown to the model burnt out."""
    array = np.random.default_rng(0).integers(0, 50, (30, 20, 24)).astype(np.uint16)
    array[10:] += 3000
    image = limner.Image(array, limner.Geometry.from_spacing(array.shape), kind="video")
    seen: list[tuple[float, float]] = []

    class Noting(Toy):
        def embed(self, view: View) -> ToyEmbedding:
            seen.append(view.intensity)
            return super().embed(view)

    with limner.open_session(image, Noting()) as session:
        for frame in (0, 20):
            session.add(limner.Click((5, 5)), frame=frame)
            session.predict(frame=frame)
    assert len(set(seen)) == 1
    low, high = seen[0]
    assert low < 50
    assert high > 3000


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
    case = video_case()
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
    case = video_case()
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
    case = video_case()
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
        kept = sum(len(mask.bits) for mask in session._last_masks._packed.values())
        written = [frame.runs for frame in session._log.committed(1).values()]
        runs = sum(len(r) * r.itemsize for r in written)
        assert len(session._last_masks._packed) == frames - 2  # the newest is not packed
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


def _said(session: LocalSession, case: Case, prompt: Prompt, **where: int) -> float:
    session.add(prompt, frame=case.frame, **where)
    return session.predict(frame=case.frame, **where).score


def test_replaying_the_rounds_brings_the_memory_back(case: Case) -> None:
    with limner.open_session(case.image, Recalling()) as session:
        scores = [_said(session, case, p) for p in (case.click, case.other, case.box)]
        found = session.predict(frame=case.frame)
        session._answers.clear()
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


def test_memories_count_in_the_budget_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.sessions.answers.answer_table.BUDGET", 20_000)
    case = image_case()
    model = Recalling()
    with limner.open_session(case.image, model) as session:
        for _ in range(12):  # 8,000 bytes of memory each
            session.add(case.click)
            session.predict()
        assert session.predict().score == 0.12
        model.batches.clear()
        for _ in range(6):
            session.undo()
        session.predict()  # long dropped: the rounds up to there are asked about again
        assert len(model.batches) == 6


def test_a_batch_with_an_answer_missing_is_refused() -> None:
    class Short(Recalling):
        def segment_batch(
            self, embedding: object, questions: Sequence[Question]
        ) -> list[Segmentation]:
            return super().segment_batch(embedding, questions)[:-1]

    case = image_case()
    with limner.open_session(case.image, Short()) as session:
        session.add(case.box)
        with pytest.raises(ValueError, match="answered 0 of 1 questions"):
            session.predict()


def _several(session: LocalSession, case: Case) -> None:
    """Three objects, one of them with a round behind it."""
    session.add(case.box, object_id=3, frame=case.frame)
    session.add(case.click, object_id=1, frame=case.frame)
    session.predict(object_id=1, frame=case.frame)
    session.add(case.other, object_id=1, frame=case.frame)
    session.add(case.click, object_id=2, frame=case.frame)


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
        session._answers.clear()  # as after resume: round by round, still together
        session.predict_all()
        assert [len(batch) for batch in model.batches] == [3, 3, 1]
    assert model.embedded == 1


def test_nothing_said_is_nothing_answered_and_frames_can_be_chosen() -> None:
    case = video_case()
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
    case = image_case()
    with limner.open_session(case.image, model) as session:
        for object_id in range(1, MOST_TOGETHER + 4):
            session.add(case.box, object_id=object_id)
        assert len(session.predict_all()) == MOST_TOGETHER + 3
    assert [len(batch) for batch in model.batches] == [MOST_TOGETHER, 3]


def test_the_journal_says_how_masks_were_propagated() -> None:
    case = video_case()
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


@pytest.mark.parametrize(
    ("old", "new"), [("go_on", "resume_propagation"), ("doubtful", "frames_to_review")]
)
def test_old_verbs_still_work_and_say_their_new_name(old: str, new: str) -> None:
    case = video_case()
    with limner.open_session(case.image, "toy") as session:
        session.add(case.box, frame=case.frame)
        list(session.propagate(stop=5))
        with pytest.warns(DeprecationWarning, match=f"now Session.{new}"):
            found = list(getattr(session, old)())
        assert [p.frame for p in found] == [p.frame for p in getattr(session, new)()]


@pytest.mark.parametrize("kind", CASES)
def test_a_model_is_told_of_the_window_that_the_user_asked_for(kind: str) -> None:
    case = CASES[kind]()
    toy = create_model("toy")
    seen: list[View] = []

    class Recording:
        card = toy.card

        def embed(self, view: View) -> object:
            seen.append(view)
            return toy.embed(view)

        def segment(self, *arguments: object) -> Segmentation:
            return toy.segment(*arguments)  # type: ignore[arg-type]

    for window in ((10.0, 500.0), None):
        seen.clear()
        with limner.open_session(case.image, Recording(), window=window) as session:
            session.add(case.click, frame=case.frame)
            session.predict(frame=case.frame)
        assert {view.windowed for view in seen} == {window is not None}
        assert {view.intensity == window for view in seen} == {window is not None}
