"""The session contract: one suite for every implementation of `limner.Session`, on every kind of
image. Another implementation is one more line in `OPENERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.adapters.protocols import BatchModel, Segmentation, View
from limner.errors import PromptError, SessionError
from limner.models import create_model
from limner.prompts.types import Prompt
from served import Served, serve
from session_makers import CASES, Case, Recalling
from session_proxy import open_proxy

OPENERS: dict[str, Callable[[Served], Callable[..., limner.Session]]] = {
    "local": lambda server: limner.open_session,
    "proxy": lambda server: open_proxy,
    "remote": lambda server: server.open_session,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for the sessions of `limner.connect`."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(params=OPENERS)
def open_session(request: pytest.FixtureRequest, server: Served) -> Callable[..., limner.Session]:
    """How the implementation opens a session."""
    return OPENERS[request.param](server)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """The kind of image."""
    return CASES[request.param]()


Open = Callable[..., limner.Session]


def test_a_session_answers_the_verbs_of_the_protocol(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
        assert isinstance(session, limner.Session)
        assert session.image.kind == case.image.kind
        assert session.card.name == "toy"
        assert session.propagator_card is None
        assert session.options.zoom == session.card.zoom
        assert session.num_frames == (
            1 if case.frame is None and case.image.kind == "image" else case.image.geometry.shape[0]
        )


def test_a_click_is_answered_with_mask_logits_score_and_box(open_session: Open, case: Case) -> None:
    shape = case.image.geometry.shape if case.frame is None else case.image.geometry.shape[1:]
    with open_session(case.image, "toy") as session:
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


def test_box_is_what_changed_since_the_last_prediction(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
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


def test_undo_and_redo_bring_back_exactly_what_was(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
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


def test_undo_is_unlimited_per_object_and_per_session(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
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


def test_reset_can_be_undone(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
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


def test_several_objects_share_one_label_map_and_overlaps_are_kept(
    open_session: Open, case: Case
) -> None:
    with open_session(case.image, "toy") as session:
        session.add(case.box, object_id=2, frame=case.frame)
        session.add(case.box, object_id=5, frame=case.frame)
        session.name(5, "lesion")
        masks = {i: session.predict(object_id=i, frame=case.frame).mask for i in (2, 5)}
        found = session.export()
        assert found.num_overlapping() == int((masks[2] & masks[5]).sum()) > 0
        assert found.names == {5: "lesion"}
        labels = session.labels
        assert labels.shape == case.image.geometry.shape
        assert set(np.unique(labels)) == {0, 2}  # what came first keeps its pixels
        assert labels.source.mask(2).sum() == masks[2].sum()


def test_labels_are_read_only_so_that_an_edit_is_never_lost_silently(
    open_session: Open, case: Case
) -> None:
    with open_session(case.image, "toy") as session:
        session.add(case.box, frame=case.frame)
        labels = session.labels
        with pytest.raises(ValueError, match="read-only"):
            labels[...] = 0
        assert (labels * 2).source is None


def test_wrong_prompts_are_refused_and_leave_no_trace(open_session: Open, case: Case) -> None:
    outside = limner.Click(tuple(10_000.0 for _ in case.click.at))
    with open_session(case.image, "toy") as session:
        with pytest.raises(PromptError, match="outside"):
            session.add(outside, frame=case.frame)
        with pytest.raises(PromptError, match="understands"):
            session.add(limner.Example(np.zeros((4, 4)), np.ones((4, 4))), frame=case.frame)
        with pytest.raises(ValueError, match="object id"):
            session.add(case.click, object_id=0, frame=case.frame)
        assert session.prompts == ()
        assert not session.can_undo


def test_unknown_objects_and_empty_conversations_are_errors(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
        with pytest.raises(SessionError, match="no prompts"):
            session.predict(object_id=4, frame=case.frame)
        with pytest.raises(SessionError, match="no object 9"):
            session.undo(object_id=9)
        session.add(case.click, frame=case.frame)
        with pytest.raises(SessionError, match="no object 9"):
            session.reset(object_id=9)


def test_a_closed_session_says_so(open_session: Open, case: Case) -> None:
    session = open_session(case.image, "toy")
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.add(case.click, frame=case.frame)
    with pytest.raises(SessionError, match="closed"):
        session.predict(frame=case.frame)
    with pytest.raises(SessionError, match="closed"):
        _ = session.labels


def test_a_failing_model_leaves_the_conversation_as_it_was(open_session: Open, case: Case) -> None:
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
    with open_session(case.image, model) as session:
        session.add(case.click, frame=case.frame)
        with pytest.raises(RuntimeError):
            session.predict(frame=case.frame)
        model.fail = False
        assert session.predict(frame=case.frame).mask.any()
        assert session.prompts == (case.click,)


def test_nothing_is_run_twice(open_session: Open, case: Case) -> None:
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

    with open_session(case.image, Counting(), zoom=False) as session:
        session.add(case.click, frame=case.frame)
        session.predict(frame=case.frame)
        session.predict(frame=case.frame)
        session.add(case.other, frame=case.frame)
        session.undo()
        session.predict(frame=case.frame)
        _ = session.labels
        assert calls == ["embed", "segment"]


def test_the_default_model_works_on_every_kind(open_session: Open, case: Case) -> None:
    with open_session(case.image) as session:
        session.add(case.box, frame=case.frame)
        assert session.predict(frame=case.frame).mask.any()


@pytest.mark.parametrize("kind", ["volume", "video"])
def test_propagation_writes_each_frame_once_and_keeps_annotated_ones(
    open_session: Open, kind: str
) -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    image = limner.Image(phantom.image.array, phantom.image.geometry, kind=kind)  # type: ignore[arg-type]
    target = phantom.truth == 1
    with open_session(image, "toy") as session:
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


def test_propagation_obeys_range_and_direction_and_can_be_left(open_session: Open) -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    target = phantom.truth == 1
    with open_session(phantom.image, "toy") as session:
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


def test_what_is_no_model_prompt_or_number_is_refused(open_session: Open, case: Case) -> None:
    with pytest.raises(TypeError, match="A model is"):
        open_session(case.image, 5)
    with open_session(case.image, "toy") as session:
        with pytest.raises(TypeError, match="A prompt is one of Click, "):
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


def test_the_manifest_says_how_the_mask_was_made(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy", window=(0, 500)) as session:
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
    open_session: Open, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    wide = limner.Box((0,) * len(case.box.low), tuple(n + 9_000 for n in case.box.high))
    with open_session(case.image, "toy") as session:
        session.add(case.box, frame=case.frame)
        assert not caplog.records
        session.add(wide, frame=case.frame)
        assert "reaches over the image" in caplog.text
        assert session.predict(frame=case.frame).mask.any()


def _said(session: limner.Session, case: Case, prompt: Prompt, **where: int) -> float:
    session.add(prompt, frame=case.frame, **where)
    return session.predict(frame=case.frame, **where).score


def test_a_model_gets_back_what_it_remembered_of_this_object_on_this_view(
    open_session: Open, case: Case
) -> None:
    model = Recalling()
    assert isinstance(model, BatchModel)
    with open_session(case.image, model) as session:
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


def _several(session: limner.Session, case: Case) -> None:
    """Three objects, one of them with a round behind it."""
    session.add(case.box, object_id=3, frame=case.frame)
    session.add(case.click, object_id=1, frame=case.frame)
    session.predict(object_id=1, frame=case.frame)
    session.add(case.other, object_id=1, frame=case.frame)
    session.add(case.click, object_id=2, frame=case.frame)


@pytest.mark.parametrize("model", ["toy", "batch"])
def test_all_objects_are_answered_as_each_by_itself(
    open_session: Open, case: Case, model: str, tmp_path: Path
) -> None:
    models = [Recalling() if model == "batch" else create_model("toy") for _ in range(2)]
    journals = [tmp_path / "one", tmp_path / "all"]
    found = []
    for built, journal in zip(models, journals, strict=True):
        with open_session(case.image, built, journal=journal) as session:
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


def test_a_prompt_can_be_checked_before_it_is_added(open_session: Open, case: Case) -> None:
    outside = limner.Click(tuple(10_000.0 for _ in case.click.at))
    with open_session(case.image, "toy") as session:
        session.check_prompt(case.click, frame=case.frame)
        with pytest.raises(PromptError, match="outside"):
            session.check_prompt(outside, frame=case.frame)
        assert session.entries == ()
        assert not session.can_undo


def test_prompts_are_listed_with_object_frame_and_whether_they_were_answered(
    open_session: Open, case: Case
) -> None:
    with open_session(case.image, "toy") as session:
        session.add(case.click, object_id=2, frame=case.frame)
        session.predict(object_id=2, frame=case.frame)
        session.add(case.other, object_id=2, frame=case.frame)
        session.name(2, "liver")
        assert [(e.prompt, e.object_id, e.frame, e.answered) for e in session.entries] == [
            (case.click, 2, case.frame, True),
            (case.other, 2, case.frame, False),
        ]
        assert session.object_ids == (2,)
        assert session.names == {2: "liver"}
        assert session.can_undo
        assert not session.can_redo
        session.undo()
        assert session.can_redo


def test_redo_restores_the_order_in_time(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
        session.add(case.click, object_id=1, frame=case.frame)
        session.add(case.box, object_id=2, frame=case.frame)
        session.undo(object_id=1)
        session.redo(object_id=1)
        assert session.prompts == (case.click, case.box)
        session.undo()
        assert session.prompts == (case.click,)


def test_undo_takes_back_a_reset_of_all_objects_as_one_step(open_session: Open, case: Case) -> None:
    with open_session(case.image, "toy") as session:
        for object_id in (1, 2, 3):
            session.add(case.click, object_id=object_id, frame=case.frame)
        session.reset()
        session.undo()
        assert session.object_ids == (1, 2, 3)


def test_a_2d_image_has_nothing_to_propagate_to(open_session: Open) -> None:
    case = CASES["image"]()
    with open_session(case.image, "toy") as session:
        session.add(case.click)
        for propagate in (session.propagate, session.resume_propagation):
            with pytest.raises(SessionError, match="no other frames"):
                propagate()
        assert session.requested is None
        assert session.frames_to_review() == ()


def test_a_propagation_is_remembered_resumed_and_reviewed(open_session: Open) -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    with open_session(phantom.image, "toy") as session:
        assert session.requested is None
        with pytest.raises(SessionError, match="No propagation was begun"):
            session.resume_propagation()
        session.add(limner.MaskPrompt(phantom.truth[3] == 1), frame=3)
        frames = [p.frame for p in islice(session.propagate(start=1, stop=8), 3)]
        assert frames == [4, 5, 6]
        asked = session.requested
        assert asked is not None
        assert (asked.start, asked.stop, asked.direction, asked.how) == (1, 8, "both", "carry")
        rest = [(p.frame, p.known) for p in session.resume_propagation()]
        assert [frame for frame, known in rest if known] == [4, 5, 6]
        assert [frame for frame, known in rest if not known] == [7, 2, 1]
        worst = session.frames_to_review(2)
        assert 1 <= len(worst) <= 2
        assert all(0 <= w.score <= 1 and w.object_id == 1 and w.frame != 3 for w in worst)


def test_a_session_can_be_discarded_with_its_journal(
    open_session: Open, case: Case, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    session = open_session(case.image, "toy", journal=journal)
    session.add(case.click, frame=case.frame)
    assert journal.exists()
    session.discard()
    assert not journal.exists()
    with pytest.raises(SessionError, match="closed"):
        session.add(case.click, frame=case.frame)
