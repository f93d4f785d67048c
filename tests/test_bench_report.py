"""Reports: means and intervals, tables, the page, and what is said about unequal runs."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench_makers import Fussy, make_root, make_set
from limner import metrics
from limner.bench import statistics as stats
from limner.bench.config import BenchConfig
from limner.bench.measures import MEASURES, Measure
from limner.bench.report import build_report, flatten_rows, to_markdown, write_html, write_table
from limner.bench.rows import Row, read_rows
from limner.bench.run import run
from limner.bench.tables import Table, effort, milestones, overall, steadiness
from limner.cli.__main__ import run as command
from limner.errors import FormatError

BLANK = Row(
    *("toy", None, "0", "s1", "seen", "CT", "test", "a", "a", "1", "", None, 100),
    *("box", "none", 0, {"dice": [0.5, 0.7], "nsd": [0.1, 0.2]}, [0.2, 0.1], [], None, "", ""),
)


def row(set_name: str, stem: str, *dice: float, object_id: str = "1", model: str = "toy") -> Row:
    values: list[float | None] = list(dice)
    return replace(
        BLANK,
        set_name=set_name,
        stem=stem,
        group=stem,
        scores={"dice": values, "nsd": values},
        object_id=object_id,
        model=model,
    )


def cell(table: Table, column: str, *words: str) -> str:
    (found,) = [r for r in table.rows if list(r[: len(words)]) == list(words)]
    return found[table.header.index(column)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small runs: two protocols, a disturbance, and a model that fails."""
    folder = tmp_path_factory.mktemp("bench")
    data = make_root(folder / "data")
    found = {}
    for name, changes in {
        "box": {"protocol": "box"},
        "clicks": {"protocol": "clicks"},
        "large": {"protocol": "box", "disturb": "box_large_20"},
        "shuffled": {"protocol": "box", "disturb": "shuffled"},
    }.items():
        found[name] = folder / name
        models = ("baseline/box", "toy")
        run(BenchConfig(str(data), models, rounds=3, **changes), found[name])  # type: ignore[arg-type]
    found["fussy"] = folder / "fussy"
    run(BenchConfig(str(data), ("fussy",), rounds=3), found["fussy"], models=[Fussy()])
    return found


def test_both_means_and_their_intervals() -> None:
    rows = [row("s1", str(k), 0.5 + 0.01 * k) for k in range(9)] + [row("s2", "a", 0.9)]
    found = stats.summarize(rows, lambda r: stats.score(r, "dice", 0))
    assert found is not None
    assert found.over_sets.value == pytest.approx((0.54 + 0.9) / 2)
    assert found.over_objects.value == pytest.approx((9 * 0.54 + 0.9) / 10)
    assert (found.num_sets, found.num_rows) == (2, 10)
    # The set of one picture adds no spread; of the other the standard error of its mean is known.
    error = np.std([0.5 + 0.01 * k for k in range(9)]) / 3
    width = found.over_sets.high - found.over_sets.low
    assert width == pytest.approx(2 * 1.96 * error / 2, rel=0.1)
    assert stats.summarize([], lambda r: 0.0) is None


def test_objects_of_a_picture_are_drawn_together() -> None:
    spread = [row("s", str(k), 0.3 + 0.1 * (k % 5)) for k in range(10)]
    twice = [replace(r, object_id=str(i)) for r in spread for i in range(20)]
    one, many = (stats.summarize(r, lambda x: stats.score(x, "dice", 0)) for r in (spread, twice))
    assert one is not None
    assert many is not None
    assert many.over_objects.high - many.over_objects.low == pytest.approx(
        one.over_objects.high - one.over_objects.low, rel=0.1
    )


def test_curves_count_sets_the_same_and_falls_are_found() -> None:
    rows = [row("s1", "a", 0.5, 0.7, 0.6), row("s1", "b", 0.5, 0.7, 0.6), row("s2", "a", 0.1)]
    np.testing.assert_allclose(stats.curve(rows, "dice"), [0.3, 0.4, 0.35])
    (fall,) = stats.find_declines(rows)
    assert (fall.set_name, fall.after_round) == ("s1", 2)
    assert fall.drop == pytest.approx(0.1)
    table = steadiness("box", {"toy": rows})
    assert cell(table, "toy", "s1") == "-0.1000 (2 to 3)"
    assert cell(table, "toy", "s2") == "no"
    assert cell(table, "toy", "mean over sets") == "-0.0500 (2 to 3); 1 of 2 sets fall"


def test_drops_pair_the_same_objects() -> None:
    plain = [row("s", "a", 0.5, 0.9), row("s", "b", 0.5, 0.8)]
    disturbed = [row("s", "a", 0.5, 0.6), row("s", "c", 0.1, 0.1), row("s", "b", 0.7)]
    pairs, lost = stats.paired_drops(plain, disturbed)
    assert [r.stem for r in pairs] == ["a"]  # of b there is no run of as many rounds
    assert list(lost.values()) == [pytest.approx(0.3)]


def test_worst_cases_tell_different_stories() -> None:
    rows = [row("s", stem, 0.1, object_id=i) for stem in "abc" for i in "12"]
    rows += [row("t", "a", 0.5), row("u", "a", 0.4)]
    chosen = [(r.set_name, r.stem) for r in stats.worst_rows(rows, 4)]
    assert chosen == [("s", "a"), ("u", "a"), ("t", "a")]
    assert stats.worst_rows(rows, 1)[0].object_id == "1"


def test_prompts_to_a_dice() -> None:
    table = effort({"clicks": {"toy": [row("s", "a", 0.5, 0.86), row("s", "b", 0.1, 0.2)]}})
    assert cell(table, "0.85", "clicks", "toy") == "2.00 (50% never)"
    assert cell(table, "0.90", "clicks", "toy") == "2.00 (100% never)"


def test_milestones() -> None:
    assert milestones("box", 6) == {"box": 0, "box + 1": 1, "box + 3": 3, "box + 5": 5}
    assert milestones("clicks", 6) == {"1 click": 0, "3 clicks": 2, "5 clicks": 4, "6 clicks": 5}
    assert milestones("scribbles", 1) == {"strokes": 0}


@pytest.mark.slow
def test_the_overall_table_has_every_standing(runs: dict[str, Path]) -> None:
    rows = read_rows(runs["box"])
    by_model = {m: [r for r in rows if r.model == m] for m in ("baseline/box", "toy")}
    table = overall({"box": by_model}, "dice", over="sets")
    assert [tuple(r[:2]) for r in table.rows] == [
        (group, model) for group in ("all", "seen", "unseen", "other") for model in by_model
    ]
    seen = [r.dice[0] for r in by_model["toy"] if r.standing == "seen"]
    assert cell(table, "box", "seen", "toy") == f"{np.mean(seen):.3f}"  # type: ignore[arg-type]
    assert "seen 1 set, 2 objects" in table.note


def test_a_report_of_several_runs(runs: dict[str, Path]) -> None:
    report = build_report([runs["box"], runs["clicks"], runs["large"], runs["shuffled"]])
    assert report.models == ["baseline/box", "toy"]
    titles = {table.title: table for table in report.tables}
    robust = titles["Robustness"]
    assert {tuple(r[:3]) for r in robust.rows} == {
        (name, "box", model) for name in ("box_large_20", "shuffled") for model in report.models
    }
    assert all(r[3] == "6" for r in robust.rows)
    filled = cell(robust, "drop", "box_large_20", "box", "baseline/box")
    assert float(filled.split()[0]) > 0.02
    assert not titles["Failures"].rows
    assert [chart.protocol for chart in report.charts] == ["box"] * 4 + ["clicks"] * 4
    assert report.worst_cases
    assert all("baseline" not in picture.caption for picture in report.worst_cases)
    text = to_markdown(report)
    widths = [line.count(" | ") for line in text.splitlines() if line.startswith("| set |")]
    assert widths
    assert "| sets | model | box | box + 1 | box + 2 | 1 click | 3 clicks |" in text


def test_failures_are_counted_and_shown(runs: dict[str, Path]) -> None:
    report = build_report([runs["fussy"]], num_cases=0)
    (failures,) = [table for table in report.tables if table.title == "Failures"]
    (line,) = failures.rows
    assert line[:4] == ["fussy", "box", "none", "RuntimeError: no more prompts, please"]
    assert line[4].endswith(" of 6")
    assert not report.worst_cases


def test_only_what_all_models_were_asked_is_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    data = runs["box"].parent / "data"
    run(BenchConfig(str(data), ("baseline/ellipse",), rounds=3, sets=("known",)), tmp_path / "few")
    report = build_report([runs["box"], tmp_path / "few"], num_cases=0)
    assert any("only the 2 cases that all models were asked about" in f for f in report.facts)
    assert "all 1 set, 2 objects" in report.tables[0].note
    other = make_set(tmp_path / "other")
    run(BenchConfig(str(other), ("baseline/ellipse",), rounds=3), tmp_path / "apart")
    facts = build_report([runs["box"], tmp_path / "apart"], num_cases=0).facts
    assert "box: the models share no object; do not compare them." in facts


def test_weights_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    data = str(runs["box"].parent / "data")
    for k, sha in enumerate(("1" * 64, "2" * 64)):
        model = Fussy("net", refused=99)
        model.card = replace(model.card, weights_sha256=sha)
        run(BenchConfig(data, ("net",), rounds=2), tmp_path / str(k), models=[model])
    report = build_report([tmp_path / "0", tmp_path / "1"], num_cases=0)
    assert report.models == ["net (11111111)", "net (22222222)"]
    assert f"Weights of net: {'1' * 64}." in report.facts


class _Checker(HTMLParser):
    """Remembers open tags and everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Elements of SVG that close themselves."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(runs: dict[str, Path], tmp_path: Path) -> None:
    report = build_report([runs["box"], runs["fussy"]], num_cases=2)
    write_html(report, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    checker = _Checker()
    checker.feed(text)
    assert not checker.open
    assert len(checker.fetched) == len(report.worst_cases) > 0
    assert all(place.startswith("data:image/png;base64,") for place in checker.fetched)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    picture = Image.open(io.BytesIO(base64.b64decode(checker.fetched[0].partition(",")[2])))
    assert max(picture.size) == 360
    assert len(re.findall(r"<polyline", text)) == sum(len(c.lines) for c in report.charts)


def test_names_from_files_cannot_break_the_page(tmp_path: Path) -> None:
    make_set(tmp_path / "data", ("<b>&|a",), targets={"1": "<script>x</script>"})
    run(BenchConfig(str(tmp_path / "data"), ("toy",), rounds=2), tmp_path / "out")
    report = build_report([tmp_path / "out"])
    write_html(report, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text
    assert "&lt;b&gt;&amp;|a" in text


def test_pictures_are_left_out_where_the_data_are_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_set(tmp_path / "data", ("a",))
    run(BenchConfig(str(data), ("toy",), rounds=2), tmp_path / "out")
    assert build_report([tmp_path / "out"]).worst_cases
    picture = np.asarray(Image.open(data / "images/a.png")).copy()
    picture[0, 0] ^= 1
    Image.fromarray(picture).save(data / "images/a.png")
    assert not build_report([tmp_path / "out"]).worst_cases
    assert "has changed since" in caplog.text
    data.rename(tmp_path / "moved")
    assert not build_report([tmp_path / "out"]).worst_cases
    assert "No pictures of the cases" in caplog.text


def test_flat_records_are_one_per_round(runs: dict[str, Path]) -> None:
    rows = read_rows(runs["shuffled"])
    records = list(flatten_rows(rows))
    assert len(records) == 3 * len(rows)
    assert [r["round"] for r in records[:3]] == [1, 2, 3]
    assert records[0]["dice"] is None
    assert isinstance(records[2]["dice"], float)
    assert not {"prompts", "answer"} & set(records[0])


def test_parquet(runs: dict[str, Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: limner[bench]")
    report = build_report([runs["box"]], num_cases=0)
    write_table(report, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").num_rows == 3 * len(report.rows)


def test_without_pyarrow_the_page_is_still_written(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["-o", str(tmp_path / "r.html"), "--table", str(tmp_path / "t.parquet")]
    assert command(["bench", "report", str(runs["box"]), *words]) == 2
    assert "limner[bench]" in capsys.readouterr().err
    assert (tmp_path / "r.html").exists()
    assert not (tmp_path / "t.parquet").exists()


def test_the_command_writes_what_is_asked(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["bench", "report", str(runs["box"])]) == 0
    assert capsys.readouterr().out.startswith("# limner bench\n")
    words = ["-o", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "r.md"), "--no-pictures"]
    assert command(["bench", "report", str(runs["box"]), str(runs["clicks"]), *words]) == 0
    assert capsys.readouterr().out == ""
    assert "data:image" not in (tmp_path / "r.html").read_text()
    assert "| box | toy |" in (tmp_path / "r.md").read_text()


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["bench", "report", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    data = make_set(tmp_path / "data")
    run(BenchConfig(str(data), ("toy",), rounds=1), tmp_path / "out")
    (tmp_path / "out/rows.jsonl").unlink()
    with pytest.raises(FormatError, match="no rows yet"):
        build_report([tmp_path / "out"])


def test_a_measure_is_one_entry_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iou = Measure("IoU", lambda pair: metrics.iou(pair.mask, pair.target), means=("objects",))
    monkeypatch.setitem(MEASURES, "iou", iou)
    data = make_set(tmp_path / "data", ("a",))
    config = BenchConfig(str(data), ("toy",), rounds=2)
    run(config, tmp_path / "out")
    (first, *_) = read_rows(tmp_path / "out")
    dice = np.array(first.dice, dtype=float)
    np.testing.assert_allclose(first.scores["iou"], dice / (2 - dice), atol=1e-5)
    report = build_report([tmp_path / "out"], num_cases=0)
    assert any(table.title == "IoU, mean over objects" for table in report.tables)
    assert "iou" in next(iter(flatten_rows(report.rows)))
    monkeypatch.delitem(MEASURES, "iou")
    with pytest.raises(FormatError, match="is not a row of limner bench"):
        read_rows(tmp_path / "out")
