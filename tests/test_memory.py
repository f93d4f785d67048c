"""Carrying by memory: what is remembered and forgotten, and what a session makes of it. No network:
a model that tells pixels by their colour stands in for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import limner
from limner.errors import SessionError
from limner.models import (
    EncodedFrame,
    MemoryLimits,
    MemoryModel,
    Segmentation,
    View,
    create_model,
)
from limner.networks.blocks import memory as reading
from limner.prompts import Lasso, MaskPrompt
from limner.sessions.propagation.memory_bank import MemoryBank, _Elements, potentiated
from limner.sessions.propagation.memory_propagator import MemoryPropagator

CELL = 4


class Colours:
    """Remembers the grey value of each cell, and whether it was the object's."""

    sensory_channels = 1

    def __init__(self, **limits: int | bool | None) -> None:
        card = create_model("toy").card
        self.card = replace(card, prompts=frozenset({"mask"}), ndim=(2,), zoom=False, window={})
        self.memory = MemoryLimits(**{"every": 2, "top": 4, **limits})  # type: ignore[arg-type]
        self.seen: list[int] = []
        self.handed: list[np.ndarray] = []

    def embed(self, view: View) -> tuple[int, ...]:
        return view.shape

    def segment(
        self, shape: tuple[int, ...], prompts: Sequence[limner.Prompt], previous: object = None
    ) -> Segmentation:
        return Segmentation(np.where(prompts[-1].mask, 9, -9).astype(np.float32), 1.0)

    def encode_frame(self, view: View) -> EncodedFrame:
        self.seen.append(int(view.array[0, 0]))
        rows, columns = (n // CELL for n in view.shape)
        cells = view.array.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3)) / 10
        key = cells.reshape(-1, 1).astype(np.float32)
        return EncodedFrame(
            (rows, columns), key, np.ones(len(key), np.float32), np.ones_like(key), view.shape
        )

    def encode_memory(
        self, frame: EncodedFrame, probabilities: np.ndarray, sensory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = frame.grid
        cells = probabilities.reshape(-1, rows, CELL, columns, CELL).mean(axis=(2, 4))
        return cells.reshape(len(cells), -1).T[:, :, None].copy(), sensory + 100

    def segment_frame(
        self, frame: EncodedFrame, readout: np.ndarray, sensory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self.handed.append(sensory[:, 0, 0, 0].copy())
        cells = readout[:, :, 0].T.reshape(-1, *frame.grid)
        large = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)
        return np.clip(large, 0.01, 0.99).astype(np.float32), sensory + 1

    def to_grid(self, frame: EncodedFrame, mask: np.ndarray) -> np.ndarray:
        return mask.astype(np.float32)

    def to_view(self, frame: EncodedFrame, probabilities: np.ndarray) -> np.ndarray:
        return probabilities


def moving(frames: int = 12) -> tuple[limner.Image, np.ndarray]:
    """Two squares of their own brightness that move; the number of a frame is in its corner."""
    labels = np.zeros((frames, 32, 48), np.uint8)
    for k in range(frames):
        column = 4 * (k % 8)
        labels[k, 4:12, column : column + 8] = 1
        labels[k, 20:28, 36 - column : 44 - column] = 2
    array = np.choose(labels, [20, 120, 220]).astype(np.uint8)
    array[:, 0, 0] = range(frames)
    return limner.Image(array, limner.Geometry.from_spacing(array.shape), kind="video"), labels


def encoded(value: float, count: int = 6) -> EncodedFrame:
    key = np.full((count, 2), value, np.float32) + np.arange(count, dtype=np.float32)[:, None] / 9
    ones = np.ones(count, np.float32)
    return EncodedFrame((1, count), key, ones, np.ones_like(key), None)


def fill(bank: MemoryBank, frames: int, *, first: int = 0) -> None:
    for k in range(first, first + frames):
        bank.add(encoded(k), np.full((6, 2, 3), k, np.float32))
        bank.read(encoded(k))


# Reading.


def test_similarity_is_the_weighted_distance() -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(2, 5, 4)).astype(np.float32)
    shrinkage, selection = 1 + rng.random(5), rng.random((5, 4))
    near = reading.similarity(keys, shrinkage.astype("f4"), queries, selection.astype("f4"))
    apart = (selection[:, None] * (queries[:, None] - keys[None]) ** 2).sum(axis=2)
    assert np.allclose(near, -apart * shrinkage / 2, atol=1e-5)
    assert near.max() <= 1e-5
    plain = reading.similarity(keys, None, queries, None)
    assert np.allclose(
        np.ptp(plain + ((queries[:, None] - keys) ** 2).sum(2) / 2, axis=1), 0, atol=1e-5
    )


@pytest.mark.parametrize("count", [None, 1, 3, 7, 9])
def test_reading_is_a_softmax_over_the_nearest(count: int | None) -> None:
    rng = np.random.default_rng(1)
    near, values = -rng.random((4, 7)).astype("f4") * 300, rng.random((7, 2)).astype("f4")
    chosen, weights = reading.top(near, count)
    expected = np.zeros((4, 7))
    for row, order in enumerate(np.argsort(-near, axis=1)[:, : count or 7]):
        share = np.exp(near[row, order] - near[row].max())
        expected[row, order] = share / share.sum()
    assert np.allclose(reading.read(chosen, weights, values), expected @ values, atol=1e-5)
    assert np.allclose(reading.usage(chosen, weights, 7), expected.sum(axis=0), atol=1e-5)


def test_aggregated_probabilities_exclude_one_another() -> None:
    p = np.array([[[0.0, 1.0, 0.6]], [[0.0, 1.0, 0.6]]], np.float32)
    q = reading.aggregated(p)
    assert np.allclose(q.sum(axis=0), 1)
    assert q[:, 0, 0].argmax() == 0
    assert np.allclose(q[1], q[2])
    assert q[1, 0, 1] == pytest.approx(0.5, abs=1e-4)


# The bank.


def test_old_frames_are_condensed_and_the_first_and_the_newest_stay() -> None:
    bank = MemoryBank(MemoryLimits(most_frames=4, least_frames=2, prototypes=5, most_elements=50))
    bank.add(encoded(0), np.zeros((6, 2, 3), np.float32), permanent=0)
    fill(bank, 2, first=1)
    assert (bank.size, bank.num_prototypes) == (18, 0)
    fill(bank, 1, first=3)
    assert (bank.size, bank.num_prototypes) == (5 + 12, 5)
    values = bank.elements.value
    assert (values[5:11] == 0).all()  # the permanent one
    assert (values[11:] == 3).all()  # the newest
    assert ((values[:5] >= 1) & (values[:5] <= 2)).all()  # of those between


def test_memory_is_bounded() -> None:
    limits = MemoryLimits(most_frames=4, least_frames=2, prototypes=4, most_elements=11)
    bank = MemoryBank(limits)
    bank.add(encoded(0), np.zeros((6, 2, 3), np.float32), permanent=0)
    sizes, nbytes = [], []
    for k in range(1, 60):
        fill(bank, 1, first=k)
        sizes.append((bank.size, bank.num_prototypes))
        nbytes.append(bank.nbytes)
    assert max(s for s, _ in sizes) <= 4 * 6 + 11
    assert max(p for _, p in sizes) <= 11
    assert max(nbytes[30:]) <= max(nbytes[:30])


def test_without_long_term_memory_the_oldest_go() -> None:
    bank = MemoryBank(MemoryLimits(most_frames=3, least_frames=1, long_term=False))
    bank.add(encoded(0), np.zeros((6, 2, 3), np.float32), permanent=0)
    fill(bank, 6, first=1)
    assert (bank.size, bank.num_prototypes) == (18, 0)
    assert bank.elements.value[::6, 0].tolist() == [0, 5, 6]


def test_the_least_used_prototypes_are_forgotten() -> None:
    limits = MemoryLimits(most_frames=3, least_frames=1, prototypes=6, most_elements=14, top=1)
    bank = MemoryBank(limits)
    bank.add(encoded(0), np.zeros((6, 2, 3), np.float32), permanent=0)
    for k in range(1, 9):
        bank.add(encoded(k), np.full((6, 2, 3), k, np.float32))
        for _ in range(5):
            bank.read(encoded(1))
    kept = bank.elements.key[: bank.num_prototypes, 0]
    assert ((kept > 0.9) & (kept < 1.6)).sum() >= 5  # what was asked for again and again


def test_permanent_frames_stay_are_replaced_and_make_room() -> None:
    bank = MemoryBank(MemoryLimits(most_frames=4, least_frames=2, prototypes=2, most_permanent=2))
    for place, value in ((7, 1), (9, 2), (7, 3)):
        bank.add(encoded(place), np.full((6, 1, 3), value, np.float32), permanent=place)
    assert bank.elements.value[::6, 0].tolist() == [3, 2]
    for k in range(20):
        bank.add(encoded(k), np.full((6, 1, 3), 50, np.float32))
    at = bank.num_prototypes
    assert bank.elements.value[at : at + 12 : 6, 0].tolist() == [3, 2]
    bank.add(encoded(4), np.full((6, 1, 3), 4, np.float32), permanent=4)
    assert bank.places == [9, 4]
    assert bank.elements.value[at : at + 12 : 6, 0].tolist() == [2, 4]


def test_prototypes_are_the_most_used_with_the_values_of_all() -> None:
    rng = np.random.default_rng(3)
    old = _Elements.new(*(rng.random(s).astype("f4") for s in ((9, 2), 9, (9, 2), (9, 4))))
    old.uses[:], old.reads[:] = np.arange(9), 2
    made = potentiated(old, 3)
    assert np.array_equal(made.key, old.key[[8, 7, 6]])
    near = reading.similarity(old.key, old.shrinkage, made.key, old.selection[[8, 7, 6]])
    share = np.exp(near) / np.exp(near).sum(axis=1, keepdims=True)
    assert np.allclose(made.value, share @ old.value, atol=1e-6)
    assert np.allclose(made.shrinkage, share @ old.shrinkage, atol=1e-6)


def test_limits_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="most_frames=5 has to be above least_frames=5"):
        MemoryLimits(most_frames=5)
    with pytest.raises(ValueError, match="every=0"):
        MemoryLimits(every=0)
    with pytest.raises(ValueError, match="top=0 has to be 1 at least, or None"):
        MemoryLimits(top=0)
    with pytest.raises(ValueError, match="hold the 128 prototypes"):
        MemoryLimits(most_elements=100)
    with pytest.raises(LookupError, match="Nothing is remembered"):
        MemoryBank(MemoryLimits()).read(encoded(0))


# Sessions.


def test_the_stand_in_is_a_propagating_model() -> None:
    assert isinstance(Colours(), MemoryModel)
    assert not isinstance(create_model("toy"), MemoryModel)


@pytest.mark.parametrize("source", [0, 5, 11])
def test_objects_are_carried_both_ways_from_one_frame(source: int) -> None:
    image, labels = moving()
    model = Colours()
    with limner.open_session(image, model) as session:
        for i in (1, 2):
            session.add(MaskPrompt(labels[source] == i), frame=source, object_id=i)
        model.seen.clear()
        found = list(session.propagate())
        expected = [*range(source + 1, 12), *reversed(range(source))]
        assert [p.frame for p in found[::2]] == expected
        assert [p.object_id for p in found[:2]] == [1, 2]
        assert np.array_equal(session.labels, labels)
        assert all(0.8 < p.score <= 1 for p in found)
        assert len(model.seen) == 11 + (0 < source < 11) + 1  # each pass sees the source, too


def test_both_directions_begin_anew() -> None:
    image, labels = moving()
    model = Colours(every=3)
    with limner.open_session(image, model) as session:
        session.add(MaskPrompt(labels[6] == 1), frame=6)
        list(session.propagate())
    handed = [float(h[0]) for h in model.handed]
    forward, backward = handed[:5], handed[5:]
    assert forward == backward[:5]
    assert forward[0] == 100  # the deep update of the annotated frame, from nothing
    assert forward[1:3] == [101, 102]  # then the decoder's, frame by frame
    assert forward[3] == 202  # and the deep one where a frame was remembered, instead


def test_annotated_frames_stay_and_are_remembered_ahead() -> None:
    image, labels = moving()
    odd = np.zeros((32, 48), bool)
    odd[0:3, 0:5] = True  # nothing like the object
    model = Colours()
    with limner.open_session(image, model) as session:
        session.add(MaskPrompt(labels[1] == 1), frame=1)
        session.add(MaskPrompt(odd), frame=8)
        model.seen.clear()
        found = list(session.propagate(direction="forward"))
        assert [p.frame for p in found] == [2, 3, 4, 5, 6, 7, 9, 10, 11]
        assert model.seen == [1, 8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        assert np.array_equal(session.labels[8], odd)
        assert np.array_equal(session.labels[1], labels[1] == 1)
        assert np.array_equal(session.predict(frame=8).mask, odd)


def test_an_object_may_enter_later() -> None:
    image, labels = moving()
    with limner.open_session(image, Colours()) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0, object_id=1)
        session.add(MaskPrompt(labels[5] == 2), frame=5, object_id=2)
        found = list(session.propagate(direction="forward"))
        assert [p.frame for p in found if p.object_id == 2] == list(range(6, 12))
        expected = labels.copy()
        expected[:5][labels[:5] == 2] = 0
        assert np.array_equal(session.labels, expected)
        list(session.propagate(direction="backward"))
        assert np.array_equal(session.labels, labels)


def test_ranges_single_objects_and_leaving_the_loop() -> None:
    image, labels = moving()
    model = Colours()
    with limner.open_session(image, model) as session:
        for i in (1, 2):
            session.add(MaskPrompt(labels[3] == i), frame=3, object_id=i)
        found = list(session.propagate(start=5, stop=8, object_id=2))
        assert [(p.object_id, p.frame) for p in found] == [(2, 5), (2, 6), (2, 7)]
        session.undo()
        model.seen.clear()
        for prediction in session.propagate():
            if prediction.frame == 6:
                break
        assert model.seen == [3, 4, 5, 6]  # frames are seen as they are asked for
        assert [k for k in range(12) if session.labels[k].any()] == [3, 4, 5, 6]
        walk = session.propagate()
        next(walk)
        session.undo(object_id=2)  # what was propagated
        session.undo(object_id=2)  # the mask
        with pytest.raises(SessionError, match="went on in between"):
            list(walk)


def test_a_gap_before_the_range_loses_nothing() -> None:
    image, labels = moving()
    with limner.open_session(image, Colours()) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0, object_id=1)
        session.add(MaskPrompt(labels[3] == 2), frame=3, object_id=2)
        found = list(session.propagate(start=7, direction="forward"))
        assert len(found) == 10
        assert np.array_equal(session.labels[7:], labels[7:])


@pytest.mark.slow
@given(st.data())
def test_every_object_gets_every_frame_once(data: st.DataObject) -> None:
    image, labels = moving()
    frames = st.sets(st.integers(0, 11), min_size=1, max_size=4)
    marks = {i: sorted(data.draw(frames)) for i in (1, 2, 3)}
    low = data.draw(st.integers(0, 11))
    high = data.draw(st.integers(low + 1, 12))
    absent = data.draw(st.booleans())
    with limner.open_session(image, Colours()) as session:
        for i, places in marks.items():
            for k in places:
                mask = labels[k] == min(i, 2)
                session.add(MaskPrompt(mask & (not absent or i < 3)), frame=k, object_id=i)
        said = {(i, k): session.predict(object_id=i, frame=k).mask for i in marks for k in marks[i]}
        walk = list(session.propagate(start=low, stop=high))
        found = [(p.object_id, p.frame) for p in walk]
        expected = {(i, k) for i in marks for k in range(low, high) if k not in marks[i]}
        assert len(found) == len(set(found))
        assert set(found) == {(i, k) for i, k in expected if not absent or i < 3}
        for (i, k), mask in said.items():
            assert np.array_equal(session.predict(object_id=i, frame=k).mask, mask)


def test_an_object_said_to_be_absent_is_taken_off() -> None:
    image, labels = moving()
    with limner.open_session(image, Colours()) as session:
        session.add(MaskPrompt(labels[0] == 1), frame=0)
        list(session.propagate())
        session.add(MaskPrompt(np.zeros((32, 48), bool)), frame=6)
        list(session.propagate())
        assert [k for k in range(12) if session.labels[k].any()] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_video_is_never_in_memory() -> None:
    held, most = set[int](), 0

    class Pixels(np.ndarray):
        def __del__(self) -> None:
            held.discard(id(self))

    def plane(k: int) -> np.ndarray:
        nonlocal most
        made = np.full((32, 48), 20, np.uint8)
        made[4:12, 4:12] = 120
        shown = made.view(Pixels)
        held.add(id(shown))
        most = max(most, len(held))
        return shown

    def everything() -> np.ndarray:
        raise AssertionError("the whole video was asked for")

    geometry = limner.Geometry.from_spacing((400, 32, 48))
    image = limner.Image(everything, geometry, kind="video", dtype=np.uint8, read_slice=plane)
    limits = {"most_frames": 4, "least_frames": 2, "prototypes": 8, "most_elements": 64}
    with limner.open_session(image, Colours(**limits)) as session:
        session.add(MaskPrompt(plane(0) == 120), frame=0)
        areas = [p.mask.sum() for p in session.propagate()]
    assert areas == [64] * 399
    assert most < 20


def test_slices_of_a_volume_and_a_journal(tmp_path: Path) -> None:
    image, labels = moving()
    volume = limner.Image(image.array, image.geometry)
    assert volume.kind == "volume"
    journal = tmp_path / "case.limner"
    model = Colours()
    with limner.open_session(volume, model, journal=journal) as session:
        session.add(MaskPrompt(labels[4] == 1), frame=4)
        for prediction in session.propagate():
            if prediction.frame == 2:
                break
        before = session.labels
    with limner.sessions.resume(journal, image=volume, model=model) as again:
        assert np.array_equal(again.labels, before)
        assert np.array_equal(before[2:], (labels == 1)[2:])
        assert not before[:2].any()


def test_a_step_that_is_given_a_mask_keeps_the_other_objects() -> None:
    image, labels = moving(3)
    model = Colours(every=1)
    recall = MemoryPropagator(model)
    views = [View(plane, (1.0, 1.0), (0.0, 255.0)) for plane in image.array]
    frames = [model.encode_frame(view) for view in views]
    recall.step(frames[0], {1: (labels[0] == 1).astype("f4")}, [1], place=0)
    drawn = np.zeros((32, 48), np.float32)
    drawn[labels[1] == 1] = 1
    drawn[:, :12] = 0  # what the user drew for the second object reaches into the first
    found = recall.step(frames[1], {2: drawn}, [1, 2], place=1)
    assert found.objects == (1, 2)
    best = found.probabilities.argmax(axis=0)
    assert ((best == 2) == (drawn > 0)).all()
    assert ((best == 1) == ((labels[1] == 1) & (drawn == 0))).all()
    assert [members for members, _ in recall.banks] == [(1,), (2,)]
    last = recall.step(frames[2], {}, [1, 2], place=2, last=True)
    assert last.objects == (1, 2)
    assert [bank.size for _, bank in recall.banks] == [2 * 96, 96]


def test_what_a_lasso_draws_stays() -> None:
    from limner.models import xmem

    line = Lasso([(2, 2), (2, 10), (10, 10), (10, 2)])
    model = xmem.XMem.__new__(xmem.XMem)
    model.card = xmem.CARD
    answer = model.segment((16, 16), [line])
    assert 49 <= (answer.logits > 0).sum() <= 81
    erased = model.segment((16, 16), [limner.Scribble([(6, 0), (6, 15)], False, 1)], answer.logits)
    assert not (erased.logits[6] > 0).any()
    assert (erased.logits > 0).sum() < (answer.logits > 0).sum()
    assert model.segment((16, 16), []).score == 0
