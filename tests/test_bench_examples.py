"""The protocol of examples: which pictures are shown, and what becomes of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import limner
import parity
from bench_makers import SIDE, MeanMask, make_root, make_set, picture, write_png
from limner.bench import references
from limner.bench.config import BenchConfig
from limner.bench.protocol import check_speakable
from limner.bench.references import References
from limner.bench.report import build_report, flatten_rows, to_markdown
from limner.bench.rows import Row, read_left_out, read_rows
from limner.bench.run import Outcome, run
from limner.cli.__main__ import run as command
from limner.datasets.record import Dataset
from limner.datasets.selection import find_sets, merge_by_label
from limner.errors import FormatError
from limner.models import create_model
from limner.models.universeg import CARD

STEMS = ("a", "b", "c", "d", "e", "f")


def ask(
    data: Path, out: Path, *models: MeanMask, examples: int = 3, rounds: int = 1, **more: object
) -> Outcome:
    asked = models or (MeanMask(),)
    config = BenchConfig(
        str(data),
        tuple(model.card.name for model in asked),
        protocol="examples",
        examples=examples,
        rounds=rounds,
        **more,  # type: ignore[arg-type]
    )
    return run(config, out, models=asked)


def pool(folder: Path, split: str = "test") -> References:
    (found,) = find_sets(folder, split)
    return References(merge_by_label(found))


def drawn(source: References, stem: str, count: int, seed: int = 0, label: str = "1") -> list[str]:
    found = source.draw(stem, label, count, np.random.default_rng(seed))
    return [reference.stem for reference in found]


def without_times(rows: list[Row]) -> list[Row]:
    return [replace(row, seconds=[]) for row in rows]


# -- what is shown ----------------------------------------------------------------------------


def test_a_picture_never_shows_itself(tmp_path: Path) -> None:
    source = pool(make_set(tmp_path, STEMS))
    for stem in STEMS:
        found = drawn(source, stem, 64)
        assert sorted(found) == sorted(set(STEMS) - {stem})


def test_the_order_is_the_seeds_and_fewer_are_the_first_of_more(tmp_path: Path) -> None:
    source = pool(make_set(tmp_path, STEMS))
    whole = drawn(source, "a", 5)
    assert whole == drawn(pool(tmp_path), "a", 5)
    assert [drawn(source, "a", n) for n in range(1, 6)] == [whole[:n] for n in range(1, 6)]
    assert len({tuple(drawn(source, "a", 5, seed)) for seed in range(9)}) > 3


def split_root(folder: Path, **parts: list[str]) -> Path:
    make_set(folder / "2d/one", STEMS)
    lists = {"train": [], "val": [], "test": []} | parts
    (folder / "splits.json").write_text(json.dumps({"sets": {"2d/one": lists}}))
    return folder


def test_the_train_part_is_shown_first_then_the_val_part(tmp_path: Path) -> None:
    root = split_root(tmp_path, train=["a", "b"], val=["c"], test=["d", "e", "f"])
    for seed in range(5):
        assert set(drawn(pool(root), "d", 2, seed)) == {"a", "b"}
        assert drawn(pool(root), "d", 64, seed)[2:] == ["c"]  # never one that is scored
    assert sorted(drawn(pool(root, "train"), "a", 64)) == ["b", "c"]
    assert sorted(drawn(pool(root, "all"), "a", 64)) == ["b", "c"]


def test_without_a_train_part_the_val_part_or_the_other_scored_pictures(tmp_path: Path) -> None:
    root = split_root(tmp_path / "val", val=["c"], test=["d", "e"])
    assert drawn(pool(root), "d", 64) == ["c"]
    root = split_root(tmp_path / "test", test=["d", "e", "f"])
    assert sorted(drawn(pool(root), "d", 64)) == ["e", "f"]


def test_no_other_picture_of_the_same_patient_is_shown(tmp_path: Path) -> None:
    group = {"a": "p1", "b": "p1", "c": "p2", "d": "p1"}  # of e and f nothing is known
    source = pool(make_set(tmp_path, STEMS, group=group))
    assert sorted(drawn(source, "a", 64)) == ["c", "e", "f"]
    assert sorted(drawn(source, "c", 64)) == ["a", "b", "d", "e", "f"]
    assert sorted(drawn(source, "e", 64)) == ["a", "b", "c", "d", "f"]


def test_only_pictures_that_hold_enough_of_the_label_are_shown(tmp_path: Path) -> None:
    make_set(tmp_path, STEMS)
    _, labels = picture()
    for stem, pixels in (("b", 0), ("c", 15), ("d", 16)):
        changed = np.where(labels == 2, 0, labels)
        changed[63, :pixels] = 2
        write_png(tmp_path / f"masks/{stem}.png", changed.astype(np.uint8))
    source = pool(tmp_path)
    assert sorted(drawn(source, "a", 64, label="2")) == ["d", "e", "f"]
    assert sorted(drawn(source, "a", 64, label="1")) == ["b", "c", "d", "e", "f"]
    assert drawn(source, "a", 64, label="7") == []


def test_a_picture_that_cannot_be_read_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (make_set(tmp_path, STEMS) / "images/b.png").write_bytes(b"no picture")
    (tmp_path / "masks/c.png").unlink()
    source = pool(tmp_path)
    assert sorted(drawn(source, "a", 64)) == sorted(drawn(source, "a", 64, 1)) == ["d", "e", "f"]
    assert caplog.text.count("b is no example") == caplog.text.count("c is no example") == 1


def test_pictures_are_read_once_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(data_set: Dataset, stem: str) -> limner.Image:
        read.append(stem)
        return data_set.cases[stem].read_image()

    monkeypatch.setattr(references, "open_image", counted)
    source = pool(make_set(tmp_path, STEMS))
    before = source.draw("a", "1", 64, np.random.default_rng(0))
    again = source.draw("a", "1", 64, np.random.default_rng(0))
    assert all(one is two for one, two in zip(before, again, strict=True))
    assert sorted(read) == list("bcdef")
    monkeypatch.setattr(references, "KEPT_BYTES", 2 * 2 * SIDE * SIDE)  # two pairs
    source = pool(tmp_path)
    read.clear()
    for _ in range(2):
        assert len(source.draw("a", "1", 64, np.random.default_rng(0))) == 5
    assert len(read) == 10
    assert len(source._kept) == 2


# -- what an object is ------------------------------------------------------------------------


def test_an_object_is_a_label_whatever_the_unit(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "one", ("a", "b"), unit="component", targets={"1": "left"})
    labels = picture()[1]
    labels[0:8, 56:64] = 1
    write_png(folder / "masks/a.png", labels)
    ask(folder, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert [(r.stem, r.object_id, r.target_name, r.num_pixels) for r in rows] == [
        *(("a", "1", "left", 464), ("a", "2", "", 432)),
        *(("b", "1", "left", 400), ("b", "2", "", 432)),
    ]


@pytest.mark.parametrize("beside", [True, False])
def test_instances_are_shown_by_their_label_or_all_at_once(tmp_path: Path, beside: bool) -> None:
    folder = make_set(tmp_path / "one", ("a", "b"), unit="instance")
    for number, stem in enumerate("ab"):
        instances = np.zeros((SIDE, SIDE), dtype=np.uint16)
        instances[:10, :10], instances[20:30, 20:30] = 500 + number, 70
        write_png(folder / ("instances" if beside else "masks") / f"{stem}.png", instances)
    ask(folder, tmp_path / "out")
    found = [(r.object_id, r.num_pixels) for r in read_rows(tmp_path / "out") if r.stem == "a"]
    assert found == ([("1", 400), ("2", 432)] if beside else [("1", 200)])
    assert build_report([tmp_path / "out"]).worst_cases


# -- whole runs -------------------------------------------------------------------------------


def test_a_run_shows_examples_and_notes_which(tmp_path: Path) -> None:
    data = make_root(tmp_path / "data")
    model = MeanMask()
    outcome = ask(data, tmp_path / "out", model, sets=("known", "strange"))
    rows = read_rows(tmp_path / "out")
    assert (outcome.num_rows, outcome.num_failed, outcome.num_objects_left_out) == (4, 0, 0)
    for row, shown in zip(rows, model.shown, strict=True):
        assert row.scores == {"dice": [1.0], "nsd": [1.0]}  # all pictures have the same masks
        assert (row.task, row.examples_asked) == ("3 examples", 3)
        assert row.examples == ["a", "b"]
        assert row.prompts == [[]]
        assert len(row.seconds) == 1
        for stem, example in zip(row.examples, shown, strict=True):
            folder = data / row.set_name
            image = limner.read(folder / f"images/{stem}.png").array
            mask = limner.read(folder / f"masks/{stem}.png").array == int(row.object_id)
            assert example == limner.Example(image, mask)
    assert len({row.examples_sha256 for row in rows}) == 2  # both sets hold the same pictures


def test_all_models_see_the_same_and_so_does_the_next_run(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", STEMS)
    ask(data, tmp_path / "one", MeanMask("one"), MeanMask("two"))
    ask(data, tmp_path / "two", MeanMask("two"), limit=2, objects=1)
    ask(data, tmp_path / "other", MeanMask("two"), seed=1)
    rows = {(r.model, r.stem, r.object_id): r for r in read_rows(tmp_path / "one")}
    for (_, stem, label), row in rows.items():
        assert row.examples == rows["one", stem, label].examples
        assert stem not in row.examples
        assert len(row.examples) == 3
    for row in read_rows(tmp_path / "two"):
        assert row.examples == rows["two", row.stem, row.object_id].examples
    other = [row.examples for row in read_rows(tmp_path / "other")]
    assert other != [row.examples for row in rows.values() if row.model == "two"]


def test_clicks_follow_where_a_model_takes_them(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b"))
    labels = picture()[1]
    write_png(data / "masks/b.png", np.roll(labels, 3, axis=0))
    both = MeanMask("both", ("example", "click"))
    ask(data, tmp_path / "out", MeanMask(), both, rounds=3)
    for row in read_rows(tmp_path / "out"):
        kinds = [[prompt["kind"] for prompt in said] for said in row.prompts]
        assert len(row.dice) == 3
        if row.model == "both":
            assert kinds == [[], ["click"], ["click"]]
            assert (np.diff([x or 0.0 for x in row.dice]) > 0).all()
        else:
            assert kinds == [[]]
            assert len(set(row.dice)) == 1


def test_examples_are_disturbed_like_the_picture(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b"))
    colour = np.repeat(picture()[0][..., None], 3, axis=-1)
    write_png(data / "images/b.png", colour)
    model = MeanMask()
    ask(data, tmp_path / "out", model, disturb="rgb")
    assert {row.stem for row in read_rows(tmp_path / "out")} == {"a"}  # b has colours already
    assert all((shown[0].image == colour).all() for shown in model.shown)
    model = MeanMask()
    ask(data, tmp_path / "wide", model, disturb="sixteen_bit")
    assert {shown[0].image.dtype for shown in model.shown} == {np.dtype(np.uint16)}
    ask(data, tmp_path / "shuffled", disturb="shuffled", rounds=2)
    assert all(row.dice[0] is None for row in read_rows(tmp_path / "shuffled"))


def test_an_object_that_nothing_else_shows_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_set(tmp_path / "data", ("a", "b", "c"))
    labels = picture()[1]
    labels[60:64, 0:10] = 7
    write_png(data / "masks/b.png", labels)
    reason = "no other picture that may be shown holds label 7."
    for _ in range(2):  # going on changes nothing
        outcome = ask(data, tmp_path / "out")
        assert (outcome.num_rows, outcome.num_left_out, outcome.num_objects_left_out) == (6, 0, 1)
        assert read_left_out(tmp_path / "out") == [
            {"set": "data", "stem": "b", "object": "7", "reason": reason}
        ]
    assert f"data b, object 7 is left out: {reason}" in caplog.text
    assert f"Left out: data b, object 7: {reason}" in build_report([tmp_path / "out"]).facts
    alone = make_set(tmp_path / "alone", ("a",))
    with pytest.raises(FormatError, match=r"None of the 1 pictures .* holds label 1\.$"):
        ask(alone, tmp_path / "none")


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b", "c"))
    ask(data, tmp_path / "whole")
    whole = read_rows(tmp_path / "whole")
    lines = (tmp_path / "whole/rows.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (b"", b"".join(lines[:3]) + lines[3][:40], b"".join(lines)):
        out = tmp_path / f"cut{len(kept)}"
        out.mkdir()
        (out / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
        (out / "rows.jsonl").write_bytes(kept)
        (out / "left_out.jsonl").write_bytes(b'{"set": "da')  # killed while writing
        model = MeanMask()
        outcome = ask(data, out, model)
        assert outcome.num_new == len(model.shown) == len(lines) - kept.count(b"\n")
        assert without_times(read_rows(out)) == without_times(whole)
        assert read_left_out(out) == []
    with pytest.raises(FormatError, match=r"another examples \(examples: 3 there, 2 now\)"):
        ask(data, tmp_path / "whole", examples=2)


def test_rows_from_before_there_were_examples_are_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = make_set(tmp_path / "data", ("a",))
    run(BenchConfig(str(data), ("toy",), rounds=1), out)
    rows = read_rows(out)
    assert all(row.task == "box" for row in rows)
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    older = [{k: v for k, v in line.items() if not k.startswith("examples")} for line in lines]
    (out / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert read_rows(out) == rows


@pytest.mark.slow
def test_a_report_says_how_many_examples(tmp_path: Path) -> None:
    data = make_root(tmp_path / "data")
    both = MeanMask("both", ("example", "click"))
    ask(data, tmp_path / "one", both, examples=1, rounds=2)
    ask(data, tmp_path / "five", both, examples=5, rounds=2)
    run(BenchConfig(str(data), ("toy",), rounds=2), tmp_path / "box")
    folders = [tmp_path / name for name in ("five", "box", "one")]
    report = build_report(folders)
    assert list(report.tables[0].header) == [
        *("sets", "model", "box", "box + 1"),
        *("1 example", "1 example + 1", "5 examples", "5 examples + 1"),
    ]
    titles = [table.title for table in report.tables]
    assert {"Every set: 1 example", "Every set: 5 examples"} <= set(titles)
    assert "1 example: all sets" in {chart.title for chart in report.charts}
    assert report.worst_cases
    assert all(", 2d/" in p.caption or ": 2d/" in p.caption for p in report.worst_cases)
    text = to_markdown(report)
    assert "Protocol examples: other pictures with all pixels of the same label" in text
    assert "5 examples: 6 of 6 conversations had fewer, 2 at least" in text
    assert "1 example: " not in [fact[:11] for fact in report.facts]
    records = [r for r in flatten_rows(report.rows) if r["protocol"] == "examples"]
    assert {(r["examples_asked"], r["num_examples"]) for r in records} == {(1, 1), (5, 2)}


# -- who is asked -----------------------------------------------------------------------------


def test_who_takes_examples_and_who_does_not() -> None:
    check_speakable(CARD, "examples", "none")
    check_speakable(CARD, "examples", "inverted")
    for protocol in ("box", "clicks", "mixed", "scribbles"):
        with pytest.raises(ValueError, match=r"universeg/v1 understands example; .* --protocol ex"):
            check_speakable(CARD, protocol, "none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="protocol examples with negative_first needs click"):
        check_speakable(CARD, "examples", "negative_first")
    with pytest.raises(ValueError, match=r"toy understands .* the protocol examples needs example"):
        check_speakable(create_model("toy").card, "examples", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "examples"], "toy understands box, click"),
        (["--protocol", "examples", "--examples", "0"], "examples=0; it is 1 to 64"),
        (["--examples", "4"], "means nothing to the protocol box"),
    ],
)
def test_misuse_of_the_command_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    data = make_set(tmp_path / "data", ("a",))
    out = tmp_path / "out"
    assert command(["bench", "run", "--data", str(data), "--model", "toy", "-o", str(out), *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.slow
def test_universeg_is_measured_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    weights = parity.system("universeg").checkpoint(".pt")
    data = make_set(tmp_path / "data", ("a", "b"))
    words = ["bench", "run", "--data", str(data), "--model", "universeg/v1", "--device", "cpu"]
    words += ["--weights", str(weights), "--rounds", "1", "--objects", "1"]
    out = tmp_path / "out"
    assert command([*words, "-o", str(out)]) == 2
    assert "--protocol examples" in capsys.readouterr().err
    assert command([*words, "--protocol", "examples", "--examples", "2", "-o", str(out)]) == 0
    assert "2 conversations (2 new" in capsys.readouterr().out
    for row in read_rows(out):
        assert row.error is None
        assert len(row.examples) == 1
