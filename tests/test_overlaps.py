"""Objects that share pixels: who keeps them, what is said of it, locks and priorities."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.cli.__main__ import run
from limner.errors import SessionError
from limner.geometry import Geometry
from limner.io.labels import Labels
from limner.io.overlaps import count_shared, order_objects
from session_makers import CASES, Case
from session_proxy import open_proxy

GRID = Geometry((20, 20))


def square(low: int, high: int, columns: tuple[int, int] | None = None) -> np.ndarray:
    mask = np.zeros(GRID.shape, np.bool_)
    mask[low:high, slice(*(columns or (low, high)))] = True
    return mask


def test_what_came_first_keeps_its_pixels() -> None:
    first, second = square(2, 10), square(8, 18)
    labels = Labels(GRID, masks={1: first, 2: second})
    assert labels.overlaps == {(1, 2): 4}
    assert np.array_equal(labels.to_array() == 1, first)
    assert np.array_equal(labels.to_array() == 2, second & ~first)


@pytest.mark.parametrize("inner", [1, 2])
def test_what_lies_in_another_is_seen_whichever_came_first(inner: int) -> None:
    tumour, organ = square(6, 9), square(2, 15)
    labels = Labels(GRID, masks={inner: tumour, 3 - inner: organ})
    assert np.array_equal(labels.to_array() == inner, tumour)


def test_a_priority_stands_over_that() -> None:
    masks = {1: square(2, 15), 2: square(6, 9), 3: square(0, 4)}
    assert Labels(GRID, masks=masks).order == (2, 1, 3)
    labels = Labels(GRID, masks=masks, priority=(3, 1, 9))
    assert labels.order == (3, 1, 2)
    assert not (labels.to_array() == 2).any()


def test_order_of_many_follows_the_rule_for_every_pair() -> None:
    rng = np.random.default_rng(0)
    masks = {}
    for i in range(1, 40):
        low, size = rng.integers(0, 14, 2), rng.integers(1, 7, 2)
        mask = np.zeros(GRID.shape, np.bool_)
        mask[low[0] : low[0] + size[0], low[1] : low[1] + size[1]] = True
        masks[i] = mask
    labels = Labels(GRID, masks=masks)
    expected = {
        (i, k): int((masks[i] & masks[k]).sum())
        for i in masks
        for k in masks
        if i < k and (masks[i] & masks[k]).any()
    }
    assert labels.overlaps == expected
    order = labels.order
    assert sorted(order) == list(labels.ids)
    for (i, k), shared in expected.items():
        if 2 * shared > masks[k].sum() < masks[i].sum():
            assert order.index(k) < order.index(i)


def test_nothing_is_shared_by_empty_and_single_objects() -> None:
    assert count_shared({}) == {}
    labels = Labels(GRID, masks={1: square(0, 0), 2: square(3, 5), 3: square(0, 0)})
    assert labels.overlaps == {}
    assert order_objects({1: 0, 2: 4, 3: 0}, {}) == (1, 2, 3)


def test_the_warning_names_who_loses_how_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = {1: square(2, 10), 2: square(8, 18), 3: square(3, 6)}
    with caplog.at_level(logging.WARNING):
        limner.write(
            tmp_path / "a.png", masks, like=GRID, names={1: "tooth", 2: "bone"}, priority=[1]
        )
    (record,) = caplog.records
    text = record.getMessage()
    assert "13 pixels belong to several objects" in text
    assert "tooth (1) keeps 9 from object 3; tooth (1) keeps 4 from bone (2)" in text
    assert "nothing is left of object 3" in text
    with pytest.raises(ValueError, match=r"list of object ids"):
        limner.write(tmp_path / "a.png", masks, like=GRID, priority=["1"])


@pytest.fixture(params=[limner.open_session, open_proxy])
def open_session(request: pytest.FixtureRequest) -> Callable[..., limner.Session]:
    return request.param


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def test_objects_are_kept_off_one_that_is_locked(
    open_session: Callable[..., limner.Session], case: Case, tmp_path: Path
) -> None:
    journal = tmp_path / "j.limner"
    with open_session(case.image, "toy", journal=journal) as session:
        for object_id in (1, 2):
            session.add(case.box, object_id=object_id, frame=case.frame)
        alone = session.predict(object_id=2, frame=case.frame).mask
        session.add(case.click, object_id=1, frame=case.frame)
        held = session.predict(object_id=1, frame=case.frame).mask
        session.lock(1)
        found = session.predict(object_id=2, frame=case.frame)
        assert held.any()
        assert np.array_equal(found.mask, alone & ~held)
        assert np.array_equal(found.logits > 0, found.mask)
        together = {p.object_id: p.mask for p in session.predict_all()}
        assert np.array_equal(together[1], held)
        assert np.array_equal(together[2], found.mask)
        assert session.export().num_overlapping() == 0
        assert session.export().manifest["locked"] == [1]
        for change in (
            lambda: session.add(case.click, object_id=1, frame=case.frame),
            lambda: session.check_prompt(case.click, object_id=1, frame=case.frame),
            lambda: session.undo(object_id=1),
            session.undo,
            session.reset,
            lambda: session.reset(object_id=1),
        ):
            with pytest.raises(SessionError, match="locked"):
                change()
        session.lock(1)
        assert session.locked == (1,)
        masks = {i: session.export().mask(i) for i in (1, 2)}
    with limner.resume(journal, image=case.image) as again:
        assert again.locked == (1,)
        assert all(np.array_equal(again.export().mask(i), masks[i]) for i in masks)
        again.unlock(1)
        assert np.array_equal(again.predict(object_id=2, frame=case.frame).mask, alone)


def test_of_two_locked_objects_the_first_keeps_what_they_share() -> None:
    phantom = phantoms.image(3, (96, 80))
    with limner.open_session(phantom.image, "toy") as session:
        for object_id in (1, 2):
            session.add(limner.Box((30, 20), (60, 60)), object_id=object_id)
        session.lock(2)
        session.lock(1)
        assert not session.predict(object_id=1).mask.any()
        assert session.predict(object_id=2).mask.any()
        with pytest.raises(SessionError, match="no object 3"):
            session.lock(3)


def test_propagated_masks_are_kept_off_a_locked_object() -> None:
    phantom = phantoms.sequence(3, (8, 48, 48))
    box = limner.Box((10, 10), (36, 36))
    with limner.open_session(phantom.image, "toy") as session:
        for object_id in (1, 2):
            session.add(box, object_id=object_id, frame=2)
        carried = {p.frame: p.mask for p in session.propagate(object_id=1)}
        assert any(mask.any() for mask in carried.values())
        session.lock(1)
        for found in session.propagate(object_id=2):
            assert not (found.mask & carried[found.frame]).any()
        labels = session.export()
        assert labels.num_overlapping() == 0
        for frame, mask in carried.items():
            assert np.array_equal(labels.mask(1)[frame], mask)


def test_priority_decides_in_the_label_map_only(
    open_session: Callable[..., limner.Session], case: Case, tmp_path: Path
) -> None:
    journal = tmp_path / "j.limner"
    with open_session(case.image, "toy", journal=journal) as session:
        for object_id in (2, 5):
            session.add(case.box, object_id=object_id, frame=case.frame)
        assert set(np.unique(session.labels)) == {0, 2}
        session.set_priority([5, 2])
        assert session.priority == (5, 2)
        assert set(np.unique(session.labels)) == {0, 5}
        assert session.export().num_overlapping() > 0
        with pytest.raises(SessionError, match="no object 3"):
            session.set_priority([3])
    with limner.resume(journal, image=case.image) as again:
        assert set(np.unique(again.labels)) == {0, 5}


# -- command line ---------------------------------------------------------------------------------

BOXES = ("--box", "30,20,60,60", "--box", "35,25,80,75")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    limner.io.write_image(tmp_path / "image.png", phantoms.image(3, (96, 80)).image)
    return tmp_path / "image.png"


def masks_of(path: Path) -> dict[int, np.ndarray]:
    labels = limner.read_labels(path)
    return {i: labels.mask(i) for i in (1, 2)}


def test_lock_and_priority_on_the_command_line(image: Path, tmp_path: Path) -> None:
    journal, out = tmp_path / "j.limner", tmp_path / "out.json"
    segment = ["segment", str(image), *BOXES, "--model", "toy", "-o"]
    assert run([*segment, str(out)]) == 0
    both = masks_of(out)
    shared = both[1] & both[2]
    assert shared.any()
    assert run([*segment, str(out), "--lock", "2", "--journal", str(journal)]) == 0
    assert np.array_equal(masks_of(out)[1], both[1] & ~both[2])
    assert np.array_equal(masks_of(out)[2], both[2])
    manifest = Path(f"{out}.limner.json")
    again = tmp_path / "again.json"
    assert run(["segment", str(image), "--prompts", str(manifest), "-o", str(again)]) == 0
    assert np.array_equal(masks_of(again)[1], both[1] & ~both[2])
    flat = tmp_path / "flat.png"
    for order in ("1,2", "2,1"):
        assert run([*segment, str(flat), "--priority", order]) == 0
        assert (limner.read_labels(flat).to_array()[shared] == int(order[0])).all()
    resume = ["resume", str(journal), "-o", str(out)]
    assert run([*resume, "--click", "32,22", "--object", "2"]) == 2
    assert run([*resume, "--unlock", "2"]) == 0
    assert np.array_equal(masks_of(out)[1], both[1])


def test_resume_takes_back_and_brings_back(image: Path, tmp_path: Path) -> None:
    journal = tmp_path / "j.limner"
    out = ["-o", str(tmp_path / "a.png"), "--journal", str(journal)]
    assert run(["segment", str(image), *BOXES, "--model", "toy", *out]) == 0

    def objects() -> tuple[int, ...]:
        with limner.resume(journal) as session:
            return session.object_ids

    assert run(["resume", str(journal), "--undo"]) == 0
    assert objects() == (1,)
    assert run(["resume", str(journal), "--redo", "--redo"]) == 2  # there was one only: none is
    assert objects() == (1,)
    assert run(["resume", str(journal), "--redo"]) == 0
    assert objects() == (1, 2)
    assert run(["resume", str(journal), "--undo", "--undo"]) == 0
    assert objects() == ()


@pytest.mark.parametrize("text", ["", "1,,2", "a", "0", "-1"])
def test_odd_priorities_are_refused(image: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out.png"
    arguments = ["segment", str(image), *BOXES, "--model", "toy", "-o", str(out)]
    assert run([*arguments, "--priority", text]) == 2
    assert not out.exists()


def test_prompt_files_lock_and_order_objects(image: Path, tmp_path: Path) -> None:
    prompts = [
        {"kind": "box", "low": [30, 20], "high": [60, 60]},
        {"kind": "box", "low": [35, 25], "high": [80, 75], "object": 2},
    ]
    file, out = tmp_path / "p.json", tmp_path / "out.png"
    arguments = ["segment", str(image), "--prompts", str(file), "--model", "toy", "-o", str(out)]
    file.write_text(json.dumps({"prompts": prompts, "priority": [2], "locked": []}))
    assert run(arguments) == 0
    upper = limner.read_labels(out).mask(2)
    file.write_text(json.dumps({"prompts": prompts, "locked": [2]}))
    assert run(arguments) == 0
    assert np.array_equal(limner.read_labels(out).mask(2), upper)
    for odd in ({"locked": 1}, {"priority": ["a"]}, {"locked": [3]}):
        file.write_text(json.dumps({"prompts": prompts, **odd}))
        assert run(arguments) == 2
