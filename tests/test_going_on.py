"""Propagations that go on: after a crash, after leaving the loop, after a correction and its undo.
Only what is missing is run, and the masks are those of a propagation that nothing happened to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import limner
from limner.errors import SessionError
from limner.prompts import MaskPrompt
from limner.sessions.history.events import (
    Committed,
    Propagated,
    PropagationRequest,
    event_from_json,
)
from limner.sessions.history.journal import read_journal
from limner.sessions.local import LocalSession
from limner.sessions.propagation import snapshots
from sequence_makers import Colours, Follower, Walker, moving

KINDS = {"walk": Walker, "follow": Follower, "recall": Colours}
EMPTY = np.zeros((32, 48), bool)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot every three frames, whatever it costs."""
    monkeypatch.setattr(snapshots, "EVERY", 3)
    monkeypatch.setattr(snapshots, "_SHARE", 1.0)


def say(session: LocalSession, labels: np.ndarray, marks: dict[int, tuple[int, ...]]) -> None:
    """The true masks of objects on frames."""
    for object_id, frames in marks.items():
        for k in frames:
            session.add(MaskPrompt(labels[k] == object_id), frame=k, object_id=object_id)


def masks(session: LocalSession) -> dict[int, np.ndarray]:
    found = session.export()
    return {i: np.asarray(found.mask(i)) for i in found.ids}


def scores(session: LocalSession) -> dict[tuple[int, int], float]:
    return {
        (i, k): found.score
        for i in session.object_ids
        for k, found in session._log.committed(i).items()
    }


def same(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[i], other[i]) for i in one)


def undisturbed(kind: str, marks: dict[int, tuple[int, ...]], frames: int = 24) -> LocalSession:
    image, labels = moving(frames)
    session = limner.open_session(image, KINDS[kind]())
    say(session, labels, marks)
    list(session.propagate())
    return session


@pytest.mark.parametrize("stop", [1, 9, 20, 33])
@pytest.mark.parametrize("with_journal", [False, True])
def test_leaving_the_loop_and_going_on(
    kind: str, stop: int, with_journal: bool, tmp_path: Path
) -> None:
    image, labels = moving(24)
    model = KINDS[kind]()
    marks = {1: (6,), 2: (6, 15)}
    journal = tmp_path / "case.limner" if with_journal else None
    with limner.open_session(image, model, journal=journal) as session:
        say(session, labels, marks)
        first = [p for p, _ in zip(session.propagate(), range(stop), strict=False)]
        model.seen.clear()
        found = list(session.propagate())
        expected = {(i, k) for i in (1, 2) for k in range(24) if k not in marks[i]}
        assert {(p.object_id, p.frame) for p in found} == expected
        assert len(found) == len(expected)
        whole = undisturbed(kind, marks)
        assert same(masks(session), masks(whole))
        assert scores(session) == scores(whole)
        for before, after in zip(first, found, strict=False):
            assert (before.object_id, before.frame) == (after.object_id, after.frame)
            assert np.array_equal(before.mask, after.mask)
        if stop > 5:  # not everything again
            assert len(set(model.seen)) < 24 - stop // 2 + 6
        model.seen.clear()
        assert len(list(session.propagate())) == len(expected)
        assert set(model.seen) <= {6, 15}, "all of it is there"
        session.undo()  # what the second call wrote
        session.undo()  # what the first did
        assert {k for k in range(24) if session.labels[k].any()} == {6, 15}


CHILD = """
import sys
import tracemalloc
import limner
from limner.sessions.propagation import snapshots
from sequence_makers import moving
from test_going_on import KINDS, say
snapshots.EVERY, snapshots._SHARE = 3, 1.0
image, labels = moving(24)
session = limner.open_session(image, KINDS[{kind!r}](pause=0.002), journal={journal!r})
say(session, labels, {{1: (6,), 2: (6, 15)}})
for found in session.propagate():
    print(found.frame, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("last", [11, 30])
def test_kill_9_and_going_on_gives_the_same_masks(kind: str, last: int, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    script = CHILD.format(kind=kind, journal=str(journal))
    folders = Path(__file__).parent, Path(limner.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        count = sum(1 for _ in zip(child.stdout, range(last), strict=False))
        child.send_signal(signal.SIGKILL)
    assert count == last
    image, _ = moving(24)
    model = KINDS[kind]()
    with limner.resume(journal, image=image, model=model) as session:
        done = len(scores(session))
        assert last <= done < 45
        found = list(session.resume_propagation())
        assert len(found) == 45
        whole = undisturbed(kind, {1: (6,), 2: (6, 15)})
        assert same(masks(session), masks(whole))
        assert scores(session) == scores(whole)
        if last > 5:
            assert len(model.seen) < len(whole.model.seen) - last // 2 + 4  # type: ignore[attr-defined]
    _, events = read_journal(journal)
    written = [e for e in map(event_from_json, events) if isinstance(e, Committed)]
    assert len(written) == 45, "nothing is written twice"
    assert not journal.with_name("case.limner.state").exists(), "removed with the end"


@pytest.mark.parametrize("damage", ["torn", "garbage", "gone", "other"])
@pytest.mark.parametrize("kind", ["follow", "recall"])
def test_without_a_good_snapshot_the_pass_begins_again(
    kind: str, damage: str, tmp_path: Path
) -> None:
    image, labels = moving(24)
    journal = tmp_path / "case.limner"
    model = KINDS[kind]()
    with limner.open_session(image, model, journal=journal) as session:
        say(session, labels, {1: (0,)})
        for found in session.propagate():
            if found.frame == 14:
                break
    file = tmp_path / "case.limner.state" / "forward.npz"
    file.with_name(".forward-half.npz").write_bytes(b"PK")  # a crash while it was written
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "other":
        np.savez(file, limner=np.array('{"frame": 12, "bases": {"all": "1", "1-0": "1"}}'))
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "torn" else b"PK" * 999)
    model.seen.clear()
    with limner.resume(journal, image=image, model=model) as session:
        list(session.resume_propagation())
        assert same(masks(session), masks(undisturbed(kind, {1: (0,)})))
    assert model.seen[:3] == [0, 1, 2]
    assert not file.parent.exists()
    _, events = read_journal(journal)
    assert sum(e["op"] == "commit" for e in events) == 23


def test_a_snapshot_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, labels = moving(24)
    journal = tmp_path / "case.limner"
    (tmp_path / "case.limner.state").write_text("in the way")
    with limner.open_session(image, Colours(), journal=journal) as session:
        say(session, labels, {1: (0,)})
        assert len(list(session.propagate())) == 23
    assert "cannot be kept" in caplog.text


def test_a_correction_runs_again_only_what_depends_on_it(kind: str) -> None:
    image, labels = moving(24)
    model = KINDS[kind]()
    with limner.open_session(image, model) as session:
        say(session, labels, {1: (2, 10, 20)})
        list(session.propagate())
        before = masks(session)
        model.seen.clear()
        session.add(MaskPrompt(labels[16] == 2), frame=16)  # something else, to see it carried
        found = {p.frame: p.mask for p in session.propagate()}
        assert sorted(found) == [k for k in range(24) if k not in (2, 10, 16, 20)]
        after = masks(session)
        changed = {k for k in range(24) if not np.array_equal(before[1][k], after[1][k])}
        assert 16 in changed
        run = set(model.seen) - {2, 10, 16, 20}
        if kind == "walk":  # frames nearest to the new mark
            assert run == {14, 15, 17, 18}
        elif kind == "follow":  # also those that see it ahead
            assert run == {*range(11, 16), 17, 18, 19}
        else:  # a memory that has seen it remembers it
            assert not changed & {3, 4, 5, 6}
        assert changed <= run | {16}
        assert np.array_equal(after[1][16], labels[16] == 2)
        session.undo()
        assert same(
            masks(session),
            {1: np.where(np.arange(24)[:, None, None] == 16, labels == 2, before[1])},
        )
        session.undo()
        assert same(masks(session), before)
        model.seen.clear()
        assert len(list(session.propagate())) == 21
        assert same(masks(session), before)
        assert set(model.seen) <= {2, 10, 20}


def test_a_correction_of_one_object_leaves_the_others_alone() -> None:
    for kind in ("walk", "follow"):
        image, labels = moving(24)
        model = KINDS[kind]()
        with limner.open_session(image, model) as session:
            say(session, labels, {1: (0,), 2: (0,)})
            list(session.propagate())
            before = masks(session)
            session.add(MaskPrompt(EMPTY), frame=12, object_id=2)
            list(session.propagate())
            assert np.array_equal(masks(session)[1], before[1])
            events = session._log._done[-1]
            assert events.object_id == 2
            assert all(k > 0 for k in events.frames)


def test_frames_of_another_call_are_taken_over(kind: str) -> None:
    image, labels = moving(24)
    model = KINDS[kind]()
    with limner.open_session(image, model) as session:
        say(session, labels, {1: (4, 16)})
        list(session.propagate())
        both = masks(session)
        list(session.propagate(direction="forward"))
        model.seen.clear()
        list(session.propagate())
        assert same(masks(session), both)
        assert set(model.seen) <= {4, 16}, "what was written over is taken back, not run"
        assert len(list(session.propagate(start=5, stop=9))) == 4
        model.seen.clear()
        list(session.propagate(start=5, stop=9, again=True))
        assert set(model.seen) >= {5, 6, 7, 8}


def test_boxes_between_marks_are_asked_about_once() -> None:
    image, labels = moving(24)
    model = create_boxed()
    with limner.open_session(image, model) as session:
        for k in (2, 8, 14):
            session.add(box_of(labels[k] == 1), frame=k)
        assert len(list(session.propagate(how="interpolate"))) == 10
        before = masks(session)
        model.seen.clear()
        assert len(list(session.propagate(how="interpolate"))) == 10
        assert set(model.seen) <= {2, 8, 14}
        session.add(limner.Box((0, 0), (9, 9)), frame=11)
        model.seen.clear()
        list(session.propagate(how="interpolate"))
        assert set(model.seen) - {2, 8, 14} == {9, 10, 11, 12, 13}
        session.undo()
        session.undo()
        assert same(masks(session), before)


def create_boxed() -> Walker:
    class Boxed(Walker):
        def segment(self, view, prompts, previous=None):  # type: ignore[no-untyped-def]
            self._see(view)
            logits = np.full(view.shape, -9, np.float32)
            box = prompts[-1]
            logits[
                tuple(slice(round(a), round(b)) for a, b in zip(box.low, box.high, strict=True))
            ] = 9
            return limner.models.Segmentation(logits, 0.5)

    return Boxed("box")


def box_of(mask: np.ndarray) -> limner.Box:
    found = np.nonzero(mask)
    return limner.Box([f.min() for f in found], [f.max() + 1 for f in found])


def test_a_model_with_its_own_way_begins_its_leg_again() -> None:
    class Carrying(Walker):
        def next_prompts(self, view, before, prompts):  # type: ignore[no-untyped-def]
            return (MaskPrompt(before.logits > 0),) if (before.logits > 0).any() else ()

    image, labels = moving(12)
    model = Carrying()
    with limner.open_session(image, model) as session:
        say(session, labels, {1: (0,)})
        for found in session.propagate():
            if found.frame == 6:
                break
        model.seen.clear()
        assert [p.frame for p in session.propagate()] == list(range(1, 12))
        assert model.seen == list(range(1, 12))
        assert len(session._log._done[-1].frames) == 5, "what is there is not written again"
        model.seen.clear()
        list(session.propagate())
        assert model.seen == []


def test_going_on_without_a_beginning_says_so() -> None:
    image, labels = moving(6)
    with limner.open_session(image, Walker()) as session:
        with pytest.raises(SessionError, match="No propagation was begun"):
            session.resume_propagation()
        say(session, labels, {1: (0,)})
        next(iter(session.propagate(stop=3, direction="forward")))
        assert session._log.requested == PropagationRequest(None, 3, "forward", None, "carry")
        assert [p.frame for p in session.resume_propagation()] == [1, 2]


def test_what_is_propagated_together_is_undone_together(kind: str) -> None:
    image, labels = moving(8)
    with limner.open_session(image, KINDS[kind]()) as session:
        say(session, labels, {1: (2,), 2: (2,)})
        list(session.propagate())
        whole = masks(session)
        session.undo()
        assert [k for k in range(8) if session.labels[k].any()] == [2]
        session.redo()
        assert same(masks(session), whole)
        session.undo(object_id=2)
        assert masks(session)[1].any(axis=(1, 2)).all()
        assert masks(session)[2].any(axis=(1, 2)).sum() == 1


def test_undo_in_the_middle_of_a_loop_ends_it() -> None:
    image, labels = moving(12)
    with limner.open_session(image, Walker()) as session:
        say(session, labels, {1: (2,)})
        walk = session.propagate()
        next(walk), next(walk)
        session.undo()
        with pytest.raises(SessionError, match="went on in between"):
            next(walk)
        session.add(MaskPrompt(labels[8] == 1), frame=8)
        assert len(list(session.propagate())) == 10


def test_journals_from_before_digests_are_read_and_run_again(tmp_path: Path) -> None:
    image, labels = moving(8)
    journal = tmp_path / "case.limner"
    with limner.open_session(image, Walker(), journal=journal) as session:
        say(session, labels, {1: (0,)})
        session._recorder.record(Propagated((1,)))
        session._recorder.record(Committed(1, 1, (1536,), 0.5))
    model = Walker()
    with limner.resume(journal, image=image, model=model) as session:
        assert not session.labels[1].any()
        assert len(list(session.propagate())) == 7
        assert session.labels[1].any()


# Objects that are annotated later, corrected, and that leave and come back.


@pytest.fixture(params=["video", "volume"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_object_said_to_be_absent_for_a_while(kind: str, form: str) -> None:
    image, labels = moving(24, absent=range(8, 16), kind=form)
    with limner.open_session(image, KINDS[kind]()) as session:
        say(session, labels, {1: (2, 10, 13, 20), 2: (5,)})
        list(session.propagate())
        found = masks(session)
        there = {k for k in range(24) if found[1][k].any()}
        assert not there & {10, 11, 12, 13}
        assert there >= {0, 1, 2, 3, 17, 18, 19, 20, 21, 22, 23}
        assert found[2].any(axis=(1, 2)).all()
        for k in (2, 20):
            assert np.array_equal(found[1][k], labels[k] == 1)


def test_absence_said_later_takes_the_object_off(kind: str) -> None:
    image, labels = moving(16)
    with limner.open_session(image, KINDS[kind]()) as session:
        say(session, labels, {1: (0, 15)})
        list(session.propagate())
        before = masks(session)
        assert before[1].any(axis=(1, 2)).all()
        session.add(MaskPrompt(EMPTY), frame=7)
        list(session.propagate())
        there = masks(session)[1].any(axis=(1, 2))
        assert not there[5:11].any()
        assert there[[0, 1, 14, 15]].all()
        session.undo()
        session.undo()
        assert same(masks(session), before)


def test_an_object_annotated_on_a_later_frame_joins(kind: str) -> None:
    image, labels = moving(16)
    model = KINDS[kind]()
    with limner.open_session(image, model) as session:
        say(session, labels, {1: (0,)})
        list(session.propagate())
        before = masks(session)
        say(session, labels, {2: (9,)})
        list(session.propagate())
        after = masks(session)
        assert after[2].any(axis=(1, 2)).all()
        if kind != "recall":  # where objects share a memory they exclude one another
            assert np.array_equal(after[1], before[1])
        assert limner.metrics.dice(after[1], labels == 1) > 0.9


def test_what_the_user_left_on_a_frame_stays(kind: str) -> None:
    image, labels = moving(16)
    odd = labels[5] == 2
    odd[:26] = False
    with limner.open_session(image, KINDS[kind]()) as session:
        say(session, labels, {1: (0,)})
        for direction in ("forward", "both", "backward", "both"):
            list(session.propagate(direction=direction))
            session.add(MaskPrompt(odd), frame=5)
            left = session.predict(frame=5).mask
            assert (left & odd).any()
            list(session.propagate(direction=direction))
            assert np.array_equal(session.labels[5] == 1, left)
            assert np.array_equal(session.labels[0] == 1, labels[0] == 1)
        assert 5 not in {p.frame for p in session.propagate()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["classical/region", "limner-2d"])
def test_clicks_corrections_and_absence_with_real_models(model: str) -> None:
    truth = np.zeros((12, 96, 112), np.uint8)
    rows, columns = np.ogrid[:96, :112]
    for k in range(12):
        truth[k][np.hypot(rows - 30 - k, columns - 30) < 16] = 1 if k not in (7, 8) else 0
        truth[k][np.hypot(rows - 62, columns - 80 + k) < 18] = 2
    noise = np.random.default_rng(0).normal(0, 4, truth.shape)
    array = (np.choose(truth, [40, 130, 220]) + noise).clip(0, 255).astype(np.uint8)
    video = limner.Image(array, limner.Geometry.from_spacing(array.shape), kind="video")
    with limner.open_session(video, model) as session:
        session.add(box_of(truth[2] == 1), frame=2)
        list(session.propagate(stop=7))
        session.add(box_of(truth[10] == 1), frame=10)
        session.add(MaskPrompt(np.zeros(truth.shape[1:], bool)), frame=8)
        session.add(box_of(truth[4] == 2), frame=4, object_id=2)
        list(session.propagate())
        found = masks(session)
        assert not found[1][8].any()
        assert not found[1][7].any()
        for i in (1, 2):
            assert limner.metrics.dice(found[i][2:6], truth[2:6] == i) > 0.9
        again = list(session.propagate())
        assert same(masks(session), found)
        assert len(again) >= 11


# Frames that could not be read, and long videos.


@pytest.mark.parametrize("stop", [7, 8, 9])
def test_a_frame_that_could_not_be_read_does_not_end_an_object(kind: str, stop: int) -> None:
    image, labels = moving(16)
    array = np.asarray(image.array).copy()
    array[8, 1:] = array[7, 1:]  # what stands in for it
    damaged = {8: "frame 8 is damaged"}
    video = limner.Image(array, image.geometry, kind="video", damaged=damaged)
    model = KINDS[kind]()
    with limner.open_session(video, model) as session:
        say(session, labels, {1: (0,)})
        for found in session.propagate():
            if found.frame == stop:
                break
        list(session.propagate())
        there = session.labels.any(axis=(1, 2))
        assert not there[8]
        assert there[[7, 9, 15]].all()
        assert 8 not in {d.frame for d in session.frames_to_review(16)}
        model.seen.clear()
        list(session.propagate())
        assert set(model.seen) <= {0}


@pytest.mark.slow
def test_the_label_map_is_all_the_memory_that_labels_take() -> None:
    image, labels = moving(400)
    with limner.open_session(image, Walker()) as session:
        say(session, labels, {1: (0,), 2: (0,)})
        list(session.propagate())
        before = session.labels
        tracemalloc.start()
        found = session.labels
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(found, before)
        assert most < 1.5 * found.nbytes
