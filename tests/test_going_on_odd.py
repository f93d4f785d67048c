"""Propagations that are cut short, corrected and gone on with in odd ways: whatever happened
before, the masks are those of a propagation of the same prompts.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limner
from limner.errors import SessionError
from limner.models import Segmentation, View
from limner.prompts import MaskPrompt
from limner.sessions.history import journal as _journal
from limner.sessions.history.events import Committed, event_from_json
from limner.sessions.history.journal import read_journal
from limner.sessions.local import LocalSession
from limner.sessions.propagation import snapshots
from sequence_makers import Colours, Follower, Walker, moving

KINDS = {"walk": Walker, "follow": Follower, "recall": Colours}
COUNT = 16
EMPTY = np.zeros((32, 48), bool)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot every three frames, whatever it costs."""
    monkeypatch.setattr(snapshots, "EVERY", 3)
    monkeypatch.setattr(snapshots, "_SHARE", 1.0)


def masks(session: LocalSession) -> dict[int, np.ndarray]:
    found = session.export()
    return {i: np.asarray(found.mask(i)) for i in found.ids}


def afresh(session: LocalSession, image: limner.Image, model: Any) -> dict[int, np.ndarray]:
    """What a new session makes of the prompts that count."""
    with limner.open_session(image, model) as other:
        for e in session.entries:
            other.add(e.prompt, frame=e.frame, object_id=e.object_id)
        list(other.propagate())
        return masks(other)


def some(session: LocalSession, count: int, **options: Any) -> None:
    """The first few frames of a propagation."""
    for _ in zip(range(count), session.propagate(**options), strict=False):
        pass


@pytest.mark.parametrize("seed", range(8))
def test_any_history_ends_in_the_masks_of_its_prompts(kind: str, seed: int, tmp_path: Path) -> None:
    image, labels = moving(COUNT)
    rng = random.Random(seed)
    objects = (1,) if kind == "follow" else (1, 2)  # objects run together may exclude one another
    journal = tmp_path / "case.limner"
    session = limner.open_session(image, KINDS[kind](), journal=journal)
    steps = ["add", "absent", "propagate", "propagate", "undo", "redo", "resume", "reset"]
    for step in ["add", *rng.choices(steps, k=12), "add"]:
        i, k, other = rng.choice(objects), rng.randrange(COUNT), rng.randrange(1, COUNT)
        try:
            if step in ("add", "absent"):
                mask = labels[k] == i if step == "add" else EMPTY
                session.add(MaskPrompt(mask), frame=k, object_id=i)
            elif step == "propagate":
                some(
                    session,
                    rng.choice([99, rng.randrange(1, 12)]),
                    start=rng.choice([None, min(k, other)]),
                    stop=rng.choice([None, max(k, other) + 1]),
                    direction=rng.choice(["both", "both", "forward", "backward"]),
                    object_id=rng.choice([None, None, i]),
                )
            elif step == "undo":
                session.undo(object_id=rng.choice([None, i]))
            elif step == "redo":
                session.redo()
            elif step == "reset" and rng.random() < 0.3:
                session.reset(object_id=i)
            elif step == "resume":
                session.close()
                session = limner.resume(journal, image=image, model=KINDS[kind]())
        except SessionError:  # nothing to undo, nothing to start from
            continue
    list(session.propagate())
    found, whole = masks(session), afresh(session, image, KINDS[kind]())
    assert found.keys() == whole.keys()
    for i, mask in whole.items():
        assert np.array_equal(found[i], mask), i
    session.model.seen.clear()  # type: ignore[attr-defined]
    list(session.propagate())
    marked = {e.frame for e in session.entries}
    assert set(session.model.seen) <= marked  # type: ignore[attr-defined]
    assert [p.name for p in tmp_path.iterdir()] == [journal.name], "no snapshot is left over"
    session.close()


class Rivals(Follower):
    """Finds all that is bright; surer of an object the darker it is."""

    def track_object(
        self, memory: Any, looked: View, before: Any, *, place: Any = None
    ) -> Segmentation:
        sure = np.float32(6 if memory["value"][0] < 150 else 3)
        return Segmentation(np.where(looked.array > 60, sure, -sure), 0.8)


@pytest.mark.parametrize("stop", [1, 4, 9, 14, 21, 25])
def test_an_object_complete_at_the_crash_keeps_what_it_has(stop: int, tmp_path: Path) -> None:
    image, labels = moving(COUNT)
    journal = tmp_path / "case.limner"

    def said(session: LocalSession) -> LocalSession:
        for i, k in ((1, 0), (1, 6), (2, 3)):
            shown = EMPTY if (i, k) == (1, 6) else labels[k] == i
            session.add(MaskPrompt(shown), frame=k, object_id=i)
        return session

    with limner.open_session(image, Rivals()) as undisturbed:
        list(said(undisturbed).propagate())
        whole = masks(undisturbed)
    with limner.open_session(image, Rivals(), journal=journal) as session:
        some(said(session), stop)
    with limner.resume(journal, image=image, model=Rivals()) as session:
        list(session.resume_propagation())
        found = masks(session)
    assert not (found[1] & found[2]).any()
    assert found[1].any(axis=(1, 2)).sum() > 2
    assert all(np.array_equal(found[i], whole[i]) for i in (1, 2))


def test_an_object_that_is_run_alone_gives_way_to_what_is_there() -> None:
    image, labels = moving(COUNT)
    with limner.open_session(image, Rivals()) as session:
        for i, frames in ((1, (0,)), (2, (0, 8))):
            for k in frames:
                session.add(MaskPrompt(labels[k] == i), frame=k, object_id=i)
        list(session.propagate(object_id=2))
        alone = masks(session)[2]
        assert np.array_equal(alone[5], np.asarray(image.array[5] > 60)), "nothing was there yet"
        list(session.propagate(object_id=1))
        found = masks(session)
        assert np.array_equal(found[2], alone)
        assert not (found[1] & found[2])[1:].any()
        assert np.array_equal(found[1][8], labels[8] == 1), "beside what the user drew"
        session.add(MaskPrompt(labels[4] > 0), frame=4, object_id=1)  # they share pixels there
        session.add(MaskPrompt(labels[4] == 2), frame=4, object_id=2)
        list(session.propagate())
        assert (masks(session)[1] & masks(session)[2])[5].any(), "so they may overlap"


def test_an_object_drawn_onto_another_is_not_cut_by_it() -> None:
    array = np.full((10, 40, 40), 20, np.uint8)
    array[:, 5:35, 5:35] = 110  # an organ, and a tumour that appears in it
    array[3:, 15:25, 15:25] = 220

    class Near(Follower):
        def track_object(
            self, memory: Any, looked: View, before: Any, *, place: Any = None
        ) -> Segmentation:
            organ = memory["value"][0] < 150
            there = looked.array > (60 if organ else 150)
            return Segmentation(np.where(there, 6, -6).astype(np.float32), 0.8)

    image = limner.Image(array, limner.Geometry.from_spacing(array.shape), kind="video")
    with limner.open_session(image, Near()) as session:
        session.add(MaskPrompt(array[0] > 60), frame=0, object_id=1)
        list(session.propagate())
        session.add(MaskPrompt(array[6] > 150), frame=6, object_id=2)
        list(session.propagate())
        found = masks(session)
        assert np.array_equal(found[1], array > 60)
        assert np.array_equal(found[2], array > 150)
        session.add(MaskPrompt(array[2] > 60), frame=2, object_id=1)
        list(session.propagate())
        assert np.array_equal(masks(session)[1], array > 60), "nor the other way round"


def test_a_prompt_in_the_middle_ends_a_loop_that_only_repeats(kind: str) -> None:
    image, labels = moving(COUNT)
    with limner.open_session(image, KINDS[kind]()) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0)
        some(session, 6)
        walk = session.propagate()
        assert next(walk).known
        session.add(MaskPrompt(labels[9] == 1), frame=9)
        with pytest.raises(SessionError, match="object 1 went on in between"):
            list(walk)
        assert 9 not in session._log.committed(1)
        list(session.propagate())
        assert 9 not in session._log.committed(1)


def test_another_journal_of_the_same_name_leaves_no_snapshot_to_go_on_from(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "case.limner"
    image, labels = moving(COUNT)
    brighter = limner.Image(np.asarray(image.array) + np.uint8(25), image.geometry, kind="video")
    with limner.open_session(brighter, KINDS[kind](), journal=journal) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0)
        some(session, 8)
    journal.unlink()
    model = KINDS[kind]()
    with limner.open_session(image, model, journal=journal) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0)
        monkeypatch.setattr(snapshots, "EVERY", 99)
        some(session, 10)
        list(session.resume_propagation())
        whole = afresh(session, image, KINDS[kind]())
        assert np.array_equal(masks(session)[1], whole[1])


def test_a_full_disk_loses_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, labels = moving(COUNT)
    journal = tmp_path / "case.limner"
    room = [12]

    def fsync(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def savez(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    session = limner.open_session(image, KINDS[kind](), journal=journal)
    session.add(MaskPrompt(labels[0] == 1), frame=0)
    with monkeypatch.context() as patched:
        patched.setattr(_journal.os, "fsync", fsync)
        patched.setattr(snapshots.np, "savez", savez)
        with pytest.raises(SessionError, match="free some space and repeat it"):
            list(session.propagate())
        done = len(session._log.committed(1))
        assert done == 10, "a request, the beginning of a propagation, and its frames"
        with pytest.raises(SessionError, match="free some space"):
            list(session.propagate())
    assert caplog.text.count("cannot be kept") == (kind != "walk"), "said once"
    _, events = read_journal(journal)
    assert sum(isinstance(event_from_json(e), Committed) for e in events) == done
    found = list(session.resume_propagation())
    assert [p.known for p in found] == [k < done for k in range(COUNT - 1)]
    whole = afresh(session, image, KINDS[kind]())
    session.close()
    with limner.resume(journal, image=image, model=KINDS[kind]()) as session:
        assert np.array_equal(masks(session)[1], whole[1])


@pytest.mark.parametrize("where", ["consumer", "model"])
def test_ctrl_c_anywhere_loses_at_most_the_frame_under_way(
    kind: str, where: str, tmp_path: Path
) -> None:
    image, labels = moving(COUNT)
    journal = tmp_path / "case.limner"

    model = KINDS[kind]()
    see = model._see

    def interrupted(view: View) -> None:
        see(view)
        if where == "model" and view.array[0, 0] == 9:
            raise KeyboardInterrupt

    model._see = interrupted  # type: ignore[method-assign]
    session = limner.open_session(image, model, journal=journal)
    session.add(MaskPrompt(labels[0] == 1), frame=0)
    walk: Iterator[Any] = session.propagate()
    with pytest.raises(KeyboardInterrupt):
        for found in walk:
            if where == "consumer" and found.frame == 8:
                walk.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert sorted(session._log.committed(1)) == list(range(1, 9))
    session.close()
    model = KINDS[kind]()
    with limner.resume(journal, image=image, model=model) as session:
        found = list(session.resume_propagation())
        assert [p.known for p in found] == [k < 9 for k in range(1, COUNT)]
        assert not set(range(1, 6)) & set(model.seen), "it goes on from its snapshot"
        whole = afresh(session, image, KINDS[kind]())
        assert np.array_equal(masks(session)[1], whole[1])


def test_frames_outside_the_range_stay_until_their_turn(kind: str) -> None:
    image, labels = moving(COUNT)
    with limner.open_session(image, KINDS[kind]()) as session:
        session.add(MaskPrompt(labels[1] == 1), frame=1)
        assert [p.frame for p in session.propagate(start=2, stop=5)] == [2, 3, 4]
        list(session.propagate())
        before = masks(session)[1]
        session.add(MaskPrompt(labels[10] == 2), frame=10)
        found = {p.frame for p in session.propagate(start=9, stop=13)}
        assert found == {9, 11, 12}
        now = masks(session)[1]
        assert all(np.array_equal(now[k], before[k]) for k in range(COUNT) if k not in {*found, 10})
        list(session.propagate())
        whole = afresh(session, image, KINDS[kind]())
        assert np.array_equal(masks(session)[1], whole[1])


def test_a_journal_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = moving(4)
    journal = tmp_path / "case.limner"
    limner.open_session(image, Walker(), journal=journal).close()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SessionError, match=r"Permission denied\. Continuing writes to it: copy it"):
        limner.resume(journal, image=image, model=Walker())
