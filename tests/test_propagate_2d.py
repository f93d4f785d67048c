"""Carrying 2D answers through volumes and videos: from mask to mask, between boxes, the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import limner
from limner import phantoms
from limner.adapters.protocols import Question, Segmentation, View
from limner.cli.__main__ import run
from limner.errors import SessionError
from limner.io import write_image
from limner.models import create_model
from limner.prompts.types import Prompt
from limner.sessions.history.events import Propagated
from limner.sessions.propagation.schedule import interpolate_box


def cone(slices: int = 12) -> tuple[limner.Image, np.ndarray]:
    """A bright square that grows and moves evenly from slice to slice."""
    truth = np.zeros((slices, 64, 64), bool)
    for k in range(slices):
        truth[k, 10 + k : 24 + 2 * k, 8 + k : 28 + k] = True
    array = np.where(truth, 200, 30).astype(np.int16)
    return limner.Image(array, limner.Geometry.from_spacing(array.shape)), truth


def box_of(mask: np.ndarray) -> limner.Box:
    found = np.nonzero(mask)
    return limner.Box([f.min() for f in found], [f.max() + 1 for f in found])


class BoxFiller:
    """Answers the last box, filled; keeps what it was asked.

    Args:
        kinds: prompts that it understands.
    """

    def __init__(self, *kinds: str) -> None:
        card = create_model("toy").card
        self.card = replace(card, prompts=frozenset(kinds or ("box",)), ndim=(2,), zoom=False)
        self.embedded: list[View] = []
        self.batches: list[list[Sequence[Prompt]]] = []

    def embed(self, view: View) -> View:
        self.embedded.append(view)
        return view

    def segment(
        self, view: View, prompts: Sequence[Prompt], previous: object = None
    ) -> Segmentation:
        return self.segment_batch(view, [Question(prompts)])[0]

    def segment_batch(self, view: View, questions: Sequence[Question]) -> list[Segmentation]:
        self.batches.append([q.prompts for q in questions])
        found = []
        for question in questions:
            logits = np.full(view.shape, -5, np.float32)
            box = next((p for p in question.prompts if isinstance(p, limner.Box)), None)
            if box is not None:
                inside = tuple(
                    slice(round(a), round(b)) for a, b in zip(box.low, box.high, strict=True)
                )
                logits[inside] = 5
            found.append(Segmentation(logits, 0.5, memory=np.float32([len(self.batches)])))
        return found


@pytest.mark.parametrize("zoom", [False, True])
def test_boxes_are_interpolated_between_marked_slices(zoom: bool) -> None:
    image, truth = cone()
    model = BoxFiller()
    with limner.open_session(image, model, zoom=zoom) as session:
        for k in (2, 5, 9):
            session.add(box_of(truth[k]), frame=k)
        found = list(session.propagate(how="interpolate"))
        assert [p.frame for p in found] == [3, 4, 6, 7, 8]
        for prediction in found:
            assert np.array_equal(prediction.mask, truth[prediction.frame])
        assert [k for k in range(12) if session.labels[k].any()] == list(range(2, 10))
        session.undo()
        assert [k for k in range(12) if session.labels[k].any()] == [2, 5, 9]


def test_interpolation_obeys_ranges_objects_and_marks_without_a_box() -> None:
    image, truth = cone()
    with limner.open_session(image, "toy") as session:
        session.add(limner.MaskPrompt(truth[0]), frame=0)
        session.add(box_of(truth[8]), frame=8)
        session.add(box_of(truth[4]), frame=4, object_id=2)
        session.add(box_of(truth[11]), frame=11, object_id=2)
        found = list(session.propagate(how="interpolate", start=3, stop=6))
        assert [(p.object_id, p.frame) for p in found] == [(1, 3), (1, 4), (1, 5), (2, 5)]
        for prediction in found:
            assert limner.metrics.dice(prediction.mask, truth[prediction.frame]) > 0.9
        alone = list(session.propagate(how="interpolate", object_id=2))
        assert {p.object_id for p in alone} == {2}
        assert list(session.propagate(how="interpolate", start=9, stop=10, object_id=1)) == []


def test_interpolation_that_cannot_be_says_why() -> None:
    image, truth = cone()
    with limner.open_session(image, "toy") as session:
        with pytest.raises(SessionError, match="prompts to start from"):
            session.propagate(how="interpolate")
        session.add(box_of(truth[3]), frame=3)
        with pytest.raises(SessionError, match="Object 1 has prompts on one slice only"):
            session.propagate(how="interpolate")
        session.add(box_of(truth[7]), frame=7)
        with pytest.raises(ValueError, match="carry or interpolate"):
            session.propagate(how="guess")
        with pytest.raises(ValueError, match="direction is both"):
            session.propagate(how="interpolate", direction="forward")
        walk = session.propagate(how="interpolate")
        next(walk)
        session.undo()  # the propagation
        session.undo()  # the box on slice 7
        with pytest.raises(SessionError, match="object 1 went on in between"):
            next(walk)
    with limner.open_session(image, BoxFiller("click", "mask")) as session:
        session.add(limner.Click((20, 20)), frame=3)
        session.add(limner.Click((20, 20)), frame=7)
        with pytest.raises(SessionError, match="takes no boxes"):
            session.propagate(how="interpolate")


@given(st.integers(0, 20), st.integers(1, 20), st.data())
def test_every_side_of_a_box_moves_evenly(first: int, gap: int, data: st.DataObject) -> None:
    corners = st.tuples(st.integers(0, 40), st.integers(0, 40))
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    boxes = []
    for _ in range(2):
        low, size = data.draw(corners), data.draw(sizes)
        boxes.append(limner.Box(low, tuple(np.add(low, size))))
    marks = {first: boxes[0], first + gap: boxes[1]}
    for frame in range(first - 2, first + gap + 3):
        box = interpolate_box(marks, frame)
        if frame <= first or frame >= first + gap:
            assert box is None
            continue
        assert box is not None
        share = (frame - first) / gap
        for side in ("low", "high"):
            a, b = (np.asarray(getattr(one, side)) for one in boxes)
            assert np.allclose(getattr(box, side), a + share * (b - a), atol=1e-3)


def numbered() -> tuple[limner.Image, np.ndarray]:
    """The cone, each slice with its number in a corner."""
    image, truth = cone()
    array = image.array.copy()
    array[:, 0, 0] = range(len(array))
    return limner.Image(array, image.geometry), truth


class Ahead(BoxFiller):
    """Encodes several views together."""

    views_at_once = 3

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.together: list[list[int]] = []

    def embed_batch(self, views: Sequence[View]) -> list[View]:
        self.together.append([int(view.array[0, 0]) for view in views])
        return list(views)


@pytest.mark.parametrize(
    ("how", "marks", "direction", "expected"),
    [
        ("carry", [2], "forward", [[3, 4, 5], [6, 7, 8], [9, 10, 11]]),
        ("carry", [4], "both", [[5, 6, 7], [8, 9, 10], [11], [3, 2, 1], [0]]),
        ("carry", [2, 9], "both", [[3, 4, 5], [10, 11], [8, 7, 6], [1, 0]]),
        ("interpolate", [1, 7], "both", [[2, 3, 4], [5, 6]]),
    ],
)
def test_slices_are_encoded_together_where_that_is_faster(
    how: str, marks: list[int], direction: str, expected: list[list[int]]
) -> None:
    image, truth = numbered()
    found = []
    for model in (Ahead(), BoxFiller()):
        with limner.open_session(image, model) as session:
            for k in marks:
                session.add(box_of(truth[k]), frame=k)
            walk = session.propagate(how=how, direction=direction)
            found.append([(p.frame, p.mask) for p in walk])
            if isinstance(model, Ahead):
                assert model.together == expected
                assert [int(view.array[0, 0]) for view in model.embedded] == marks
    for (frame, mask), (other, wanted) in zip(*found, strict=True):
        assert frame == other
        assert np.array_equal(mask, wanted)


def test_nothing_is_encoded_ahead_for_windows_of_objects_or_beyond_their_end() -> None:
    image, truth = numbered()
    model = Ahead()
    with limner.open_session(image, model, zoom=True) as session:
        session.add(box_of(truth[2]), frame=2)
        assert len(list(session.propagate())) == 11
        assert model.together == []
    with limner.open_session(image, model) as session:
        session.add(box_of(truth[2]), frame=2)
        walk = session.propagate(direction="forward")
        next(walk)
        walk.close()  # at most one pass was for nothing
        assert model.together == [[3, 4, 5]]


def test_a_model_may_know_its_own_way_to_the_next_slice() -> None:
    image, truth = cone()
    seen: list[tuple[View, Segmentation, Sequence[Prompt]]] = []

    class Carrying(BoxFiller):
        def next_prompts(
            self, view: View, before: Segmentation, prompts: Sequence[Prompt]
        ) -> Sequence[Prompt]:
            seen.append((view, before, prompts))
            box = box_of(before.logits > 0)
            if box.high[0] >= 40:
                return ()  # it knows when to end
            return [limner.Box(np.add(box.low, (1, 1)), np.add(box.high, (2, 1)))]

    model = Carrying()
    with limner.open_session(image, model) as session:
        session.add(box_of(truth[2]), frame=2)
        found = {p.frame: p.mask for p in session.propagate(direction="forward")}
    assert sorted(found) == [3, 4, 5, 6, 7, 8]
    assert all(np.array_equal(mask, truth[k]) for k, mask in found.items())
    for number, (view, before, prompts) in enumerate(seen, start=3):
        assert np.array_equal(view.array, image.array[number])
        assert np.array_equal(before.logits > 0, truth[number - 1])
        assert before.memory == [number - 2]  # what it remembered of the slice before
        assert list(prompts) == [box_of(truth[2])]  # what the user said


def test_words_are_repeated_by_a_model_that_takes_no_masks() -> None:
    image, truth = cone()
    asked: list[Sequence[Prompt]] = []

    class Words(BoxFiller):
        def segment_batch(self, view: View, questions: Sequence[Question]) -> list[Segmentation]:
            asked.extend(q.prompts for q in questions)
            logits = np.where(view.array > 100, 5, -5).astype(np.float32)
            return [Segmentation(logits, 0.5) for _ in questions]

    with limner.open_session(image, Words("text", "click")) as session:
        session.add(limner.Click((20, 20)), frame=4)
        with pytest.raises(SessionError, match="neither masks nor boxes"):
            list(session.propagate())
        session.reset()
        session.add(limner.TextPrompt("square"), frame=4)
        session.predict(frame=4)
        for _ in session.propagate():
            pass
        assert np.array_equal(session.labels > 0, truth)
    assert set(map(tuple, asked[-11:])) == {(limner.TextPrompt("square"),)}


def test_all_objects_see_a_slice_once_and_are_asked_together() -> None:
    image, truth = cone()
    model = BoxFiller()
    with limner.open_session(image, model) as session:
        for object_id in (1, 2, 3):
            session.add(box_of(truth[4]), frame=4, object_id=object_id)
        session.predict_all()
        found = [(p.frame, p.object_id) for p in session.propagate(start=2, stop=7)]
    assert found == [(k, i) for k in (5, 6, 3, 2) for i in (1, 2, 3)]
    assert len(model.embedded) == 5
    assert [len(batch) for batch in model.batches] == [3] * 5


class Bright(BoxFiller):
    """What is bright in the mask that it is shown."""

    def segment_batch(self, view: View, questions: Sequence[Question]) -> list[Segmentation]:
        self.batches.append([q.prompts for q in questions])
        masks = [q.prompts[-1].mask & (view.array > 100) for q in questions]  # type: ignore[union-attr]
        return [Segmentation(np.where(m, 5, -5).astype(np.float32), 0.5) for m in masks]


def test_a_vanished_object_stops_and_the_others_go_on() -> None:
    image, truth = cone()
    array = np.asarray(image.array).copy()
    array[5:, :, :] = 30
    array[:, 50:60, 50:60] = 200
    other = np.zeros((64, 64), bool)
    other[50:60, 50:60] = True
    model = Bright("mask")
    with limner.open_session(limner.Image(array, image.geometry), model) as session:
        session.add(limner.MaskPrompt(truth[3]), frame=3)
        session.add(limner.MaskPrompt(other), frame=3, object_id=2)
        found = list(session.propagate(direction="forward"))
    assert [p.frame for p in found if p.object_id == 2] == list(range(4, 12))
    carried = {p.frame: p.mask.any() for p in found if p.object_id == 1}
    assert carried == {4: True, 5: False}
    assert [len(batch) for batch in model.batches] == [1, 1, 2, 2, *[1] * 6]


def test_a_slice_that_is_emptied_takes_the_object_off_the_slices_it_was_carried_to() -> None:
    image, truth = cone()
    with limner.open_session(image, Bright("mask")) as session:
        session.add(limner.MaskPrompt(truth[5]), frame=5)
        carried = {p.frame: p.mask.any() for p in session.propagate(start=3, stop=9)}
        assert carried == {3: True, 4: True, 6: True, 7: True, 8: True}
        session.add(limner.MaskPrompt(np.zeros_like(truth[5])), frame=5)
        again = {p.frame: p.mask.any() for p in session.propagate(start=3, stop=8)}
        assert again == {3: False, 4: False, 6: False, 7: False}
        left = session.labels
        assert left[8].any(), "outside of what was asked for"
        assert not left[:8].any()
        assert not list(session.propagate(start=9, stop=12)), "nothing was there"


def test_propagations_of_both_kinds_survive_in_the_journal(tmp_path: Path) -> None:
    image, truth = cone()
    journal = tmp_path / "case.limner"
    with limner.open_session(image, "toy", journal=journal) as session:
        session.add(box_of(truth[2]), frame=2)
        session.add(box_of(truth[6]), frame=6)
        for prediction in session.propagate(how="interpolate"):
            if prediction.frame == 4:
                break
        labels = np.asarray(session.labels)
    assert '"how":"interpolate"' in journal.read_text()
    with limner.resume(journal, image=image) as session:
        assert np.array_equal(session.labels, labels)
        assert [k for k in range(12) if labels[k].any()] == [2, 3, 4, 6]
        assert session.export().manifest["objects"]["1"]["propagated_how"] == ["interpolate"]
    assert Propagated((1,)).how == "carry"


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "cone.nii.gz"
    write_image(path, cone()[0])
    return path


def _text(box: limner.Box, frame: int | None = None) -> str:
    low, high = ([int(x) for x in side] for side in (box.low, box.high))
    if frame is not None:
        low, high = [frame, *low], [frame + 1, *high]
    return ",".join(map(str, [*low, *high]))


def test_the_command_carries_a_box_both_ways(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth = cone()
    out = tmp_path / "seg.nii.gz"
    said = ["propagate", str(volume), "--slice", "5", "--box", _text(box_of(truth[5]))]
    assert run([*said, "-o", str(out), "--model", "toy", "--name", "cone"]) == 0
    told = capsys.readouterr().err
    assert "carried to 11 slices; least sure:" in told
    labels = limner.read_labels(out, like=volume)
    assert limner.metrics.dice(labels.mask(1), truth) > 0.75  # the toy's mask never grows
    facts = json.loads((tmp_path / "seg.nii.gz.limner.json").read_text())
    assert facts["objects"]["1"]["name"] == "cone"
    assert len(facts["objects"]["1"]["propagated_frames"]) == 11


def test_the_command_takes_a_range_and_json(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth = cone()
    out = tmp_path / "seg.nrrd"
    said = ["propagate", str(volume), "--click", "5,25,20", "-o", str(out), "--model", "toy"]
    assert run([*said, "--start", "3", "--stop", "7", "--direction", "forward", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["objects"][0]["pixels"] > 0
    labels = np.asarray(limner.read_labels(out, like=volume).to_array())
    assert [k for k in range(12) if labels[k].any()] == [5, 6]
    assert truth[5, 25, 20]


def test_boxes_on_several_slices_are_one_object_and_can_be_interpolated(
    volume: Path, tmp_path: Path
) -> None:
    _, truth = cone()
    out = tmp_path / "seg.nii.gz"
    said = ["propagate", str(volume), "-o", str(out), "--model", "toy", "--how", "interpolate"]
    for k in (1, 10):
        said += ["--box", _text(box_of(truth[k]), k)]
    assert run(said) == 0
    labels = limner.read_labels(out, like=volume)
    assert labels.ids == (1,)
    assert limner.metrics.dice(labels.mask(1)[1:11], truth[1:11]) > 0.95
    assert not labels.mask(1)[[0, 11]].any()


def test_masks_on_slices_and_prompt_files_start_it_too(volume: Path, tmp_path: Path) -> None:
    _, truth = cone()
    drawn = np.zeros(truth.shape, np.uint8)
    drawn[4][truth[4]] = 3
    drawn[8][truth[8]] = 3
    limner.write(tmp_path / "drawn.nii.gz", drawn, like=volume)
    out = tmp_path / "seg.nii.gz"
    said = ["propagate", str(volume), "-o", str(out), "--model", "toy"]
    assert run([*said, "--mask", str(tmp_path / "drawn.nii.gz")]) == 0
    labels = limner.read_labels(out, like=volume)
    assert labels.ids == (3,)
    assert np.array_equal(labels.mask(3)[8], truth[8])
    assert limner.metrics.dice(labels.mask(3), truth) > 0.85
    file = tmp_path / "prompts.json"
    file.write_text(
        json.dumps(
            [
                {"kind": "box", "low": [12, 10], "high": [28, 30], "frame": 2},
                {"kind": "box", "low": [17, 15], "high": [38, 35], "frame": 7, "object": 2},
            ]
        )
    )
    assert run([*said, "--prompts", str(file)]) == 0
    assert limner.read_labels(out, like=volume).ids == (1, 2)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["--box", "2,10,10,9,30,30"], "lies on one slice"),
        (["--box", "10,10,30,30"], "which with --slice"),
        (["--slice", "4", "--box", "10,10,30,30", "--how", "guess"], "carry or interpolate"),
        (["--slice", "4", "--box", "10,10,30,30", "--how", "interpolate"], "one slice only"),
        (["--slice", "4", "--box", "10,10,30,30", "--start", "9", "--stop", "3"], "no range"),
        (["--slice", "40", "--box", "10,10,30,30"], "no slice 40"),
        ([], "Nothing says what"),
        (
            ["--slice", "4", "--box", "1,1,9,9", "--box", "9,9,30,30", "--click", "4,4"],
            "several objects",
        ),
    ],
)
def test_what_cannot_be_propagated_is_one_line(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str], reason: str
) -> None:
    out = tmp_path / "seg.nii.gz"
    assert run(["propagate", str(volume), "-o", str(out), "--model", "toy", *said]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1
    assert not out.exists()


def test_a_picture_has_nowhere_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photo.png"
    write_image(path, phantoms.image(1, (40, 40)).image)
    said = ["propagate", str(path), "--box", "4,4,20,20", "-o", str(tmp_path / "seg.png")]
    assert run(said) == 2
    assert "limner segment" in capsys.readouterr().err


@pytest.mark.parametrize("partial", [False, True])
def test_an_interrupted_propagation_writes_what_was_asked(
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    partial: bool,
) -> None:
    from limner.models.toy import Toy

    _, truth = cone()
    whole = Toy.segment
    count = 0

    def tired(self: Toy, *arguments: object, **more: object) -> Segmentation:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return whole(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Toy, "segment", tired)
    out, journal = tmp_path / "seg.nii.gz", tmp_path / "case.limner"
    said = ["propagate", str(volume), "--slice", "2", "--box", _text(box_of(truth[2]))]
    said += ["-o", str(out), "--model", "toy", "--journal", str(journal), "--no-zoom"]
    count = 15
    assert run([*said, "--partial"] if partial else said) == 130
    told = capsys.readouterr().err
    assert out.exists() == partial
    assert ("limner resume" in told) == (not partial)
    if not partial:
        assert run(["resume", str(journal), "-o", str(out)]) == 0
    labels = np.asarray(limner.read_labels(out, like=volume).to_array())
    assert [k for k in range(12) if labels[k].any()] == [2, 3, 4, 5]


def test_a_video_is_carried_too(tmp_path: Path) -> None:
    phantom = phantoms.sequence(4, (8, 48, 48))
    path, out = tmp_path / "clip.tif", tmp_path / "seg.tif"
    clip = limner.Image(phantom.image.array, phantom.image.geometry, kind="video")
    write_image(path, clip)
    target = phantom.truth == 1
    said = ["propagate", str(path), "--slice", "3", "--box", _text(box_of(target[3]))]
    assert run([*said, "-o", str(out), "--model", "toy"]) == 0
    labels = np.asarray(limner.read_labels(out).to_array())
    assert all(labels[k].any() for k in range(8))
