"""The benchmark's propagation protocol: sequences, what is given, what is scored, the report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from bench_makers import write_png
from limner.bench import propagation_tables as tables
from limner.bench import report as reports
from limner.bench.config import BenchConfig, config_from_json
from limner.bench.propagation import ModelPair, check_propagates, run_propagation
from limner.bench.rows import Row, decode_answer, read_left_out, read_rows
from limner.bench.run import run
from limner.cli.__main__ import run as command
from limner.datasets.sequences import Track, find_sequences, find_tracks, open_sequence
from limner.errors import FormatError
from limner.models import create_model
from limner.prompts.types import Box, Click, from_json
from volume_makers import SHAPE, make_set, volume

FRAMES = 10


def make_clip(folder: Path, annotated: tuple[int, ...] = (2, 5, 8)) -> Path:
    """A clip of a block that goes down a pixel a frame; masks on some frames."""
    for k in range(FRAMES):
        labels = np.zeros((40, 48), dtype=np.uint8)
        labels[8 + k : 20 + k, 12:26] = 1
        labels[30:36, 30:40] = 2
        write_png(folder / "frames" / f"{k:03d}.png", np.uint8(30) + 90 * labels)
        if k in annotated:
            write_png(folder / "masks" / f"{k:03d}.png", labels)
    return folder


def make_root(folder: Path) -> Path:
    """A data root with volumes and a video of which the second label is annotated once."""
    make_set(folder / "3d" / "scans", targets={"1": "ball"})
    make_clip(folder / "video" / "clips" / "one")
    labels = {"002": ["1"], "005": ["1", "2"], "008": ["1"]}
    facts = {"clips": {"one": {"annotated": labels}}, "targets": {"1": "block"}}
    (folder / "video/clips/dataset.json").write_text(json.dumps(facts))
    splits = {
        "sets": {"3d/scans": {"test": ["a"], "val": ["b"]}, "video/clips": {"test": ["one"]}},
        "test_only": ["video/clips"],
        "unit": {"video/clips": "component"},
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def config_of(data: Path, *models: str, **changes: Any) -> BenchConfig:
    given: dict[str, Any] = {"protocol": "propagation", "dimensions": 3} | changes
    return BenchConfig(str(data), models or ("classical/copy",), **given)


def held(data: Path, out: Path, *models: str, **changes: Any) -> list[Row]:
    run(config_of(data, *models, **changes), out)
    return read_rows(out)


def track(present: range, *, length: int = 30, preferred: tuple[int, ...] = ()) -> Track:
    target = np.zeros((length, 4, 4), dtype=bool)
    target[present.start : present.stop] = True
    return Track("1", "", tuple(range(length)), target, frozenset(preferred))


# -- what there is to follow ------------------------------------------------------------------


def test_volumes_and_videos_are_found(tmp_path: Path) -> None:
    scans, clips = find_sequences(make_root(tmp_path), "test")
    assert (scans.name, scans.kind, list(scans.cases)) == ("3d/scans", "volume", ["a"])
    assert (clips.name, clips.kind, list(clips.cases)) == ("video/clips", "video", ["one"])
    assert (clips.standing, clips.unit) == ("unseen", "label")
    (only,) = find_sequences(tmp_path, "val")
    assert list(only.cases) == ["b"]
    (only,) = find_sequences(tmp_path, "test", ["clips"])
    assert only.kind == "video"
    (only,) = find_sequences(tmp_path / "video" / "clips", "test")  # one set alone
    assert list(only.cases) == ["one"]
    with pytest.raises(FormatError, match="nothing to score: no folder with images/ and labels/"):
        find_sequences(tmp_path / "video" / "clips" / "one" / "frames", "test")
    with pytest.raises(FormatError, match=r"is called nothing; there are 3d/scans, video/clips"):
        find_sequences(tmp_path, "test", ["nothing"])


def test_frames_that_are_not_annotated_are_not_known(tmp_path: Path) -> None:
    _, clips = find_sequences(make_root(tmp_path), "test")
    image = open_sequence(clips, "one")
    assert image.kind == "video"
    (found,) = find_tracks(clips, "one", image, given=1)  # label 2 is known on one frame only
    assert (found.object_id, found.target_name) == ("1", "block")
    assert found.frames == (2, 5, 8)
    assert found.present == (2, 5, 8)
    assert found.on(5).sum() == 12 * 14
    assert found.given(1) == (5,)
    assert found.given(2) == (2, 8)  # only one frame has all labels
    assert found.scored((5,), margin=3) == (2, 8)
    assert not list(find_tracks(clips, "one", image, given=3))


def test_a_mask_of_no_frame_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "set" / "one")
    (clip / "masks" / "002.png").rename(clip / "masks" / "200.png")
    (found,) = find_sequences(tmp_path / "set", "test")
    with pytest.raises(FormatError, match="a mask 200, but there is no such frame"):
        list(find_tracks(found, "one", open_sequence(found, "one"), given=1))


def test_given_frames_are_in_the_middle_of_equal_parts() -> None:
    found = track(range(4, 16))
    assert found.given(1) == (10,)
    assert found.given(2) == (7, 13)
    assert found.given(3) == (6, 10, 14)
    assert track(range(4, 16), preferred=(5, 6)).given(1) == (6,)
    assert track(range(4, 16), preferred=(5,)).given(2) == (7, 13)


def test_scored_frames_end_a_margin_beyond_the_object() -> None:
    found = track(range(4, 16))
    assert found.scored((10,), 3) == tuple(k for k in range(1, 19) if k != 10)
    assert found.scored((10,), 0) == tuple(k for k in range(4, 16) if k != 10)
    assert found.scored((10,), 99) == tuple(k for k in range(30) if k != 10)


# -- scores -----------------------------------------------------------------------------------


def test_the_scores_of_a_copied_mask(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    one, two = held(data, tmp_path / "out", margin=2)
    assert [one.object_id, two.object_id] == ["1", "2"]
    assert one.task == "propagation, 1 mask"
    _, labels = volume(0)
    for row, label in ((one, 1), (two, 2)):
        truth = labels == label
        followed = row.followed
        assert followed is not None
        (given,) = followed["given"]
        present = np.flatnonzero(truth.any(axis=(1, 2)))
        assert given == present[len(present) // 2]
        low, high = max(0, present[0] - 2), min(SHAPE[0], present[-1] + 3)
        assert followed["frame"] == [k for k in range(low, high) if k != given]
        assert followed["distance"] == [abs(k - given) for k in followed["frame"]]
        answers = [truth[given]] * len(followed["frame"])
        wanted = [truth[k] for k in followed["frame"]]
        assert row.dice == [pytest.approx(limner.metrics.dice(answers, wanted), abs=1e-6)]
        dice = [limner.metrics.dice(a, b) for a, b in zip(answers, wanted, strict=True)]
        assert tables.frame_dice(row) == pytest.approx(np.mean(dice))
        pairs = list(zip(answers, wanted, strict=True))
        jaccard = [limner.metrics.jaccard(a, b) for a, b in pairs]
        f = [limner.metrics.boundary_f(a, b) for a, b in pairs]
        assert tables.jaccard(row) == pytest.approx(np.mean(jaccard))
        assert tables.boundary_f(row) == pytest.approx(np.mean(f), abs=1e-6)
        assert tables.j_and_f(row) == pytest.approx((np.mean(jaccard) + np.mean(f)) / 2, abs=1e-6)
        assert followed["given_dice"] == 1
        assert followed["num_written"] == len(followed["frame"])
        assert tables.frames_per_second(row) > 0
        assert len(row.seconds) == 1
        assert row.answer is not None
        assert row.answer["first"] == low
        decoded = decode_answer(row.answer)
        assert decoded.shape == (high - low, *SHAPE[1:])
        np.testing.assert_array_equal(decoded, np.stack([truth[given]] * (high - low)))
        assert one.error is None


def test_a_video_is_scored_where_it_is_annotated(tmp_path: Path) -> None:
    (row,) = held(make_root(tmp_path / "data"), tmp_path / "out", sets=("clips",))
    assert row.followed is not None
    assert row.followed["given"] == [5]
    assert row.followed["frame"] == [2, 8]
    assert row.followed["num_written"] == 6  # from 2 to 8 without 5
    assert row.dice == [pytest.approx(9 / 12)]


@pytest.mark.parametrize("count", [2, 3])
def test_with_more_given_the_copy_is_nearer(tmp_path: Path, count: int) -> None:
    data = make_set(tmp_path / "data", ("a",))
    few = held(data, tmp_path / "1", margin=0)
    many = held(data, tmp_path / "n", margin=0, annotated=count)
    assert {row.task for row in many} == {f"propagation, {count} masks"}
    for one, more in zip(few, many, strict=True):
        assert one.followed is not None
        assert more.followed is not None
        assert len(more.followed["given"]) == count
        assert max(more.followed["distance"]) < max(one.followed["distance"])
        assert more.dice[0] > one.dice[0]  # type: ignore[operator]


@pytest.mark.parametrize("start", ["box", "click"])
def test_a_second_model_carries_what_the_first_one_answers(tmp_path: Path, start: str) -> None:
    data = make_set(tmp_path / "data", ("a",))
    rows = held(data, tmp_path / "out", "toy+classical/copy", start=start)
    assert {row.model for row in rows} == {"toy+classical/copy"}
    assert {row.task for row in rows} == {f"propagation, 1 {start}"}
    for row in rows:
        assert row.error is None
        assert row.followed is not None
        ((said,),) = row.prompts
        prompt = from_json(said)
        assert isinstance(prompt, Box if start == "box" else Click)
        assert 0 < row.followed["given_dice"] < 1
        assert row.answer is not None
        answers = decode_answer(row.answer)
        (given,) = row.followed["given"]
        assert (answers == answers[given - row.answer["first"]]).all()


@pytest.mark.slow
def test_together_a_copy_is_what_it_is_alone(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b"))
    alone = held(data, tmp_path / "alone")
    together = held(data, tmp_path / "together", together=True)
    assert {row.task for row in together} == {"propagation, 1 mask, together"}
    assert [(r.key, r.dice, r.answer) for r in alone] == [
        (r.key, r.dice, r.answer) for r in together
    ]


class Tired:
    """Carries by masks, and raises when it is asked too often."""

    def __init__(self, most: int) -> None:
        self._inner: Any = create_model("toy")
        self.card = replace(self._inner.card, name="tired", zoom=False)
        self._left = most

    def embed(self, view: Any) -> Any:
        return self._inner.embed(view)

    def segment(self, embedding: Any, prompts: Any, previous: Any = None) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("enough")
        return self._inner.segment(embedding, prompts, previous)


def test_a_model_that_fails_is_scored_for_what_it_did(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    (found,) = find_sequences(data, "test")
    image = open_sequence(found, "a")
    (first, _) = find_tracks(found, "a", image, given=1)
    config = config_of(data, "tired")
    (fields,) = run_propagation(ModelPair(Tired(3)), image, [first], config, seeds=[0])
    assert fields["error"] == "RuntimeError: enough"
    assert 0 < fields["scores"]["dice"][0] < 1
    answered = [
        k for k, n in zip(*(fields["followed"][x] for x in ("frame", "answer")), strict=True) if n
    ]
    (given,) = fields["followed"]["given"]
    assert answered == [given + 1, given + 2]  # forward first
    (fields,) = run_propagation(ModelPair(Tired(0)), image, [first], config, seeds=[0])
    assert fields["scores"]["dice"] == [0]
    assert fields["seconds"] == []


def test_a_run_goes_on(tmp_path: Path) -> None:
    data, out = make_root(tmp_path / "data"), tmp_path / "out"
    whole = held(data, out)
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:1]))
    again = held(data, out)
    assert [r.key for r in again] == [r.key for r in whole]
    with pytest.raises(FormatError, match="another margin"):
        held(data, out, margin=1)
    assert not read_left_out(out)
    few = tmp_path / "few"
    rows = held(data, few, annotated=3)
    assert {row.set_name for row in rows} == {"3d/scans"}
    (fact,) = read_left_out(few)
    assert fact["reason"] == "no object is on 4 annotated frames, so that one could be scored."


# -- who can be asked -------------------------------------------------------------------------


def test_who_cannot_be_asked(tmp_path: Path) -> None:
    copy, toy, solid = (create_model(n) for n in ("classical/copy", "toy", "limner-3d"))
    config = config_of(tmp_path)
    check_propagates(ModelPair(copy), config)
    boxes = config.changed(start="box")
    check_propagates(ModelPair(toy, copy), boxes)
    with pytest.raises(ValueError, match="name a model that understands it and who carries on"):
        check_propagates(ModelPair(copy), boxes)
    with pytest.raises(ValueError, match="limner-3d works in 3D only"):
        check_propagates(ModelPair(solid), boxes)


def test_the_card_of_two_models() -> None:
    class Weighty:
        card = replace(create_model("toy").card, name="w", weights_sha256="ab")

    pair = ModelPair(Weighty(), create_model("classical/copy"))  # type: ignore[arg-type]
    assert (pair.card.name, pair.card.weights_sha256) == ("w+classical/copy", "ab+none")
    toys = ModelPair(create_model("toy"), create_model("classical/copy"))
    assert toys.card.weights_sha256 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 2}, "protocol=propagation is not for pictures"),
        ({"start": "word"}, "start='word' is unknown; use mask, box, click"),
        ({"annotated": 0}, "annotated=0; it is at least 1"),
        ({"margin": -1}, "margin=-1; it is at least 0"),
        ({"disturb": "click_off_5"}, "disturb=click_off_5 means nothing"),
        ({"by_slices": True}, "by_slices means nothing"),
        ({"slices": 5}, "slices=5 means nothing to the protocol propagation"),
        ({"protocol": "box", "annotated": 2}, "annotated=2 means nothing to the protocol box"),
        ({"protocol": "box", "start": "box"}, "start=box means nothing to the protocol box"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(Path("data"), **changes)


def test_a_run_is_read_back() -> None:
    config = config_of(Path("data"), "toy+classical/copy", annotated=2, weights=(("toy", "f"),))
    assert config_from_json(config.to_json(), Path("x")) == config
    assert config.names == ("toy", "classical/copy")
    with pytest.raises(ValueError, match="weights are given for other"):
        config_of(Path("data"), weights=(("other", "f"),))


# -- reports ----------------------------------------------------------------------------------


def row_of(
    truth: list[int], answer: list[int], both: list[int], *, model: str = "toy", **changes: Any
) -> Row:
    number = len(truth)
    followed = {
        "given": [0],
        "given_dice": 1.0,
        "frame": list(range(1, number + 1)),
        "distance": list(range(1, number + 1)),
        "truth": truth,
        "answer": answer,
        "both": both,
        "f": [0.5] * number,
        "num_written": number,
        "carry_seconds": 0.5,
        "grown_mb": None,
    }
    total = sum(truth) + sum(answer)
    dice: list[float | None] = [2 * sum(both) / total if total else 1.0]
    blank = Row(
        *(model, None, "0", "s1", "seen", "CT", "test", "a", "a", "1", "", None, 100),
        *("propagation", "none", 0, {"dice": dice, "nsd": [None]}, [0.2], [], None, "", ""),
        dimensions=3,
        marks="1 mask",
        followed=followed,
    )
    return replace(blank, **changes)


def test_empty_frames_count_only_where_something_was_answered() -> None:
    row = row_of([10, 0, 0, 4], [10, 0, 5, 0], [5, 0, 0, 0])
    assert tables.dice(row) == pytest.approx(10 / 29)
    assert tables.frame_dice(row) == pytest.approx(0.5 / 3)
    assert tables.jaccard(row) == pytest.approx((5 / 15) / 3)
    assert tables.boundary_f(row) == 0.5
    assert tables.frames_per_second(row) == 8
    nothing = row_of([0, 0], [0, 0], [0, 0])
    assert tables.frame_dice(nothing) == tables.jaccard(nothing) == tables.dice(nothing) == 1
    assert tables.worst_frame(row) == 4
    assert tables.worst_frame(row_of([0, 0, 0], [1, 9, 3], [0, 0, 0])) == 2
    assert tables.worst_frame(row_of([3, 3, 3], [3, 0, 0], [3, 0, 0])) == 2
    assert tables.worst_frame(row_of([9, 9, 1], [9, 9, 0], [9, 8, 0])) == 2


def test_the_curve_counts_sets_the_same() -> None:
    rows = [
        row_of([2] * 3, [2] * 3, [2, 1, 1]),
        row_of([2] * 1, [2] * 1, [1]),
        row_of([2] * 2, [2] * 2, [0, 1], set_name="s2"),
    ]
    found = tables.curve(rows)
    assert found[:3] == pytest.approx([(0.75 + 0.0) / 2, 0.5, 0.5])
    assert all(math.isnan(x) for x in found[3:])
    assert len(found) == len(tables.bin_names()) == len(tables.BINS)
    assert tables.bin_names()[3:6] == ["4-5", "6-8", "9-12"]
    far = tables.curve([row_of([1] * 40, [1] * 40, [1] * 30 + [0] * 10)])
    assert far[-1] == pytest.approx(3 / 13)  # of 28 to 40, three are right
    empty = tables.curve([row_of([0, 2], [3, 2], [0, 2])])
    assert math.isnan(empty[0])  # the object is not there
    assert empty[1] == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models on volumes and a video, and one of another protocol beside it."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_root(folder / "data")
    models = ("classical/copy", "toy+classical/copy")
    run(config_of(data, *models), folder / "moving")
    boxes = BenchConfig(str(data), ("toy",), rounds=2, dimensions=3, sets=("scans",))
    run(boxes, folder / "still")
    return folder


def test_a_report_has_tables_curves_and_pictures(runs: Path, tmp_path: Path) -> None:
    report = reports.build_report([runs / "moving", runs / "still"])
    titles = [table.title for table in report.tables]
    assert titles[0] == "Dice, mean over sets"  # of the other protocol
    assert "Propagation, mean over sets" in titles
    assert "Every set: propagation, 1 mask" in titles
    table = report.tables[titles.index("Every set: propagation, 1 mask")]
    assert [(r[0], r[1]) for r in table.rows] == [
        (name, model)
        for name in ("3d/scans", "video/clips")
        for model in ("classical/copy", "toy+classical/copy")
    ]
    (mean,) = [t for t in report.tables if t.title == "Propagation, mean over sets"]
    assert {row[1] for row in mean.rows} == {"all", "unseen", "other"}
    assert [c.title for c in report.charts if c.axis == tables.AXIS] == [
        "1 mask: all sets",
        "1 mask: 3d/scans",
        "1 mask: video/clips",
    ]
    captions = [picture.caption for picture in report.worst_cases]
    assert any("frame" in c and "given frame 5" in c for c in captions)
    assert any("slice" in c and "3d/scans" in c for c in captions)
    assert all(picture.png.startswith(b"\x89PNG") for picture in report.worst_cases)
    reports.write_html(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"Dice by {tables.AXIS}" in page
    assert "Dice by number of prompts" in page
    assert "nan" not in page
    text = reports.to_markdown(report)
    assert "| propagation, 1 mask | all | classical/copy | 3 |" in text


def test_the_table_has_a_line_per_frame(runs: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    report = reports.build_report([runs / "moving", runs / "still"], num_cases=0)
    reports.write_table(report, tmp_path / "frames.parquet")
    found = parquet.read_table(tmp_path / "frames.parquet").to_pylist()
    moving = [line for line in found if line["protocol"] == "propagation"]
    rows = [row for row in report.rows if row.followed is not None]
    assert len(moving) == sum(len(row.followed["frame"]) for row in rows if row.followed)
    assert {line["frame"] for line in found if line["protocol"] == "box"} == {None}
    assert all(0 <= line["boundary_f"] <= 1 for line in moving)


def test_from_the_command_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "run", "--data", str(runs / "data"), "--protocol", "propagation"]
    words += ["--model", "toy+classical/copy", "--start", "box", "--annotated", "2"]
    assert command([*words, "--margin", "1", "--sets", "3d/*", "-o", str(tmp_path / "out")]) == 0
    assert "2 conversations (2 new" in capsys.readouterr().out
    assert command(["bench", "report", str(tmp_path / "out")]) == 0
    assert "propagation, 2 boxes" in capsys.readouterr().out
    assert command([*words[:-2], "--model", "classical/copy", "-o", str(tmp_path / "no")]) == 2
    assert "classical/copy understands lasso, mask, scribble" in capsys.readouterr().err


# -- real data --------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_annotated_of_the_real_clips(shared_data: Path) -> None:
    cine, instruments = find_sequences(shared_data, "test", ["video/*"])
    assert (cine.name, instruments.name) == ("video/cardiac_cine_mr", "video/cholec_instruments")
    for stem in cine.cases:
        image = open_sequence(cine, stem)
        (cavity,) = find_tracks(cine, stem, image, given=1)
        assert cavity.object_id == "1"
        assert cavity.frames == (6, 19)
        assert cavity.given(1) == (19,)  # end of diastole, where the wall is annotated, too
        assert cavity.scored((19,), 3) == (6,)
    (stem,) = instruments.cases
    image = open_sequence(instruments, stem)
    (all_of_them,) = find_tracks(instruments, stem, image, given=1)
    assert len(all_of_them.frames) == 20


def test_a_copy_of_a_real_organ_falls_with_distance(shared_data: Path, tmp_path: Path) -> None:
    rows = held(shared_data, tmp_path / "out", split="val", sets=("3d/hippocampus_mr",))
    assert len(rows) == 2
    values: NDArray[np.float64] = np.array(tables.curve(rows))
    assert values[0] > 0.8
    assert values[0] > values[2] > values[4]
