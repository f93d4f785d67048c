"""Benchmark runs: rows, protocols, failures, and going on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import limner
from bench_makers import SIDE, Fussy, make_root, make_set, write_png
from limner import rle
from limner.bench.config import IMAGE_PROTOCOLS, BenchConfig
from limner.bench.protocol import check_dimensions, check_speakable
from limner.bench.rows import Row, read_left_out, read_rows
from limner.bench.run import Outcome, run
from limner.cli.__main__ import run as command
from limner.errors import FormatError
from limner.models import create_model
from limner.prompts.types import Box, Click, Scribble, from_json


def config_of(data: Path, models: tuple[str, ...] = ("toy",), **changes: object) -> BenchConfig:
    return BenchConfig(str(data), models, **({"rounds": 3} | changes))  # type: ignore[arg-type]


def held(data: Path, out: Path, **changes: object) -> list[Row]:
    run(config_of(data, **changes), out)  # type: ignore[arg-type]
    return read_rows(out)


def without_times(rows: list[Row]) -> list[dict[str, object]]:
    return [{k: v for k, v in vars(row).items() if k != "seconds"} for row in rows]


def test_every_model_is_asked_about_every_object(tmp_path: Path) -> None:
    data = make_root(tmp_path / "data")
    config = config_of(data, ("toy", "baseline/box"), sets=("known", "strange"))
    outcome = run(config, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert len(rows) == outcome.num_new == outcome.num_rows == 2 * 2 * 2
    assert {(r.model, r.set_name, r.stem, r.object_id) for r in rows} == {
        (model, name, "c", object_id)
        for model in ("toy", "baseline/box")
        for name in ("2d/known", "2d/strange")
        for object_id in "12"
    }
    row = next(r for r in rows if r.model == "baseline/box" and r.object_id == "1")
    assert row.scores == {"dice": [1.0] * 3, "nsd": [1.0] * 3}  # right at once: the user stopped
    assert len(row.seconds) == len(row.prompts) == 1
    assert (row.target_name, row.num_pixels, row.standing) == ("left", 400, "seen")
    assert row.answer is not None
    mask = rle.coco_decode(row.answer)
    assert mask.shape == (SIDE, SIDE)
    assert int(mask.sum()) == 400
    toy = next(r for r in rows if r.model == "toy" and r.object_id == "2")
    assert toy.answer is not None
    target = np.asarray(limner.read(data / f"{toy.set_name}/masks/c.png").array) == 2
    answer = rle.coco_decode(toy.answer)
    assert toy.dice[-1] == pytest.approx(limner.metrics.dice(answer, target), abs=1e-6)
    nsd = limner.metrics.nsd(answer, target, tolerance=2)
    assert toy.scores["nsd"][-1] == pytest.approx(nsd, abs=1e-6)
    image = limner.read(data / "2d/known/images/c.png")
    assert row.image_sha256 == image.pixel_hash()
    assert len({r.target_sha256 for r in rows if r.object_id == "1"}) == 1


@pytest.mark.slow
def test_the_same_run_gives_the_same_rows(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    for protocol in ("clicks", "mixed"):
        one, two = (held(data, tmp_path / f"{protocol}{k}", protocol=protocol) for k in (1, 2))
        other = held(data, tmp_path / f"{protocol}3", protocol=protocol, seed=1)
        assert without_times(one) == without_times(two)
        assert [r.prompts for r in one] != [r.prompts for r in other]


@pytest.mark.slow
def test_rows_do_not_depend_on_the_company(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b", "c"))
    alone = held(data, tmp_path / "alone", protocol="mixed", limit=1, objects=1)
    models = ("classical/region", "toy")
    together = held(data, tmp_path / "together", models=models, protocol="mixed")
    assert alone == [
        row.__class__(**{**vars(row), "seconds": alone[0].seconds})
        for row in together
        if row.key == alone[0].key
    ]


def test_what_each_protocol_says(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    drawn = np.zeros((SIDE, SIDE), dtype=np.uint8)
    drawn[15, 12:28], drawn[60, 2:9] = 1, 2
    for person in ("annotator0", "annotator1"):
        write_png(data / f"scribbles/a__{person}.png", drawn)
    said = {}
    for protocol in set(IMAGE_PROTOCOLS) - {"examples", "automatic"}:
        rows = held(data, tmp_path / protocol, protocol=protocol, rounds=4)
        said[protocol] = [[[from_json(p) for p in r] for r in row.prompts] for row in rows]
        assert all(len(row.dice) == 4 for row in rows)
    assert all(isinstance(rounds[0][0], Box) for rounds in said["box"])
    assert all(rounds[0] == [Click(rounds[0][0].at)] for rounds in said["clicks"])
    assert {type(p) for c in said["mixed"] for r in c[1:] for p in r} <= {Click, Scribble}
    rows = read_rows(tmp_path / "scribbles")
    assert [(r.stem, r.object_id, r.annotator) for r in rows] == [
        ("a", "1", "annotator0"),
        ("a", "1", "annotator1"),
    ]
    assert [[p.positive for p in rounds[0]] for rounds in said["scribbles"]] == [[True, False]] * 2
    assert read_left_out(tmp_path / "scribbles") == [
        {"set": "data", "stem": "b", "reason": "nobody drew on an object."}
    ]


def test_disturbed_prompts_start_from_the_same_wish(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    plain = held(data, tmp_path / "plain")
    large = held(data, tmp_path / "large", disturb="box_large_20")
    for a, b in zip(plain, large, strict=True):
        small, big = from_json(a.prompts[0][0]), from_json(b.prompts[0][0])
        assert isinstance(small, Box)
        assert isinstance(big, Box)
        assert np.allclose(np.subtract(small.low, big.low), 2)
    first = held(data, tmp_path / "clicks", protocol="clicks")
    off = held(data, tmp_path / "off", protocol="clicks", disturb="click_off_5")
    for a, b in zip(first, off, strict=True):
        gap = np.subtract(a.prompts[0][0]["at"], b.prompts[0][0]["at"])
        assert 4.2 <= np.hypot(*gap) <= 5.8
    negative = held(data, tmp_path / "negative", disturb="negative_first")
    assert [r.prompts[0] for r in negative] == [r.prompts[0] for r in plain]


def test_shuffled_defines_the_last_value_only(tmp_path: Path) -> None:
    rows = held(make_set(tmp_path / "data"), tmp_path / "out", disturb="shuffled")
    assert all(row.dice[:-1] == [None, None] and row.dice[-1] is not None for row in rows)
    assert all(row.scores["nsd"][:-1] == [None, None] for row in rows)


def test_a_disturbance_that_never_applies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="None of the 2 pictures can be asked about with grey"):
        held(make_set(tmp_path / "data"), tmp_path / "out", disturb="grey")


def test_a_model_that_fails_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    config = config_of(data, ("fussy", "toy"), protocol="clicks")
    outcome = run(config, tmp_path / "out", models=[Fussy(), create_model("toy")])
    rows = read_rows(tmp_path / "out")
    assert outcome.num_failed == 2
    failed = [row for row in rows if row.model == "fussy"]
    assert [row.error for row in failed] == ["RuntimeError: no more prompts, please"] * 2
    for row in failed:
        assert row.dice[0] is not None
        assert row.dice[0] > 0
        assert row.dice[1:] == [0.0, 0.0]
    assert all(row.error is None for row in rows if row.model == "toy")


def test_pictures_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    (data / "images/a.png").write_bytes(b"no picture")
    limner.write(data / "masks/b2.png", np.zeros((SIDE, SIDE), dtype=np.uint8))
    write_png(data / "images/b2.png", np.zeros((SIDE, SIDE), dtype=np.uint8))
    outcome = run(config_of(data), tmp_path / "out")
    assert (outcome.num_rows, outcome.num_left_out) == (2, 2)
    left = read_left_out(tmp_path / "out")
    assert [fact["stem"] for fact in left] == ["a", "b2"]
    assert left[1]["reason"] == "no object is large enough."
    (data / "images/b.png").unlink()
    (data / "images/b2.png").unlink()
    with pytest.raises(FormatError, match="None of the 1 pictures can be asked about: "):
        run(config_of(data), tmp_path / "none")


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a", "b", "c"))
    whole = held(data, tmp_path / "whole")
    lines = (tmp_path / "whole/rows.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (b"", lines[0], b"".join(lines[:3]) + lines[3][:40], b"".join(lines)):
        out = tmp_path / f"cut{len(kept)}"
        out.mkdir()
        (out / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
        (out / "rows.jsonl").write_bytes(kept)
        outcome: Outcome = run(config_of(data), out)
        assert outcome.num_new == len(lines) - kept.count(b"\n")
        assert without_times(read_rows(out)) == without_times(whole)


@pytest.mark.slow
def test_a_killed_run_loses_nothing_that_was_held(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", tuple("abcdef"))
    out = tmp_path / "out"
    words = ["bench", "run", "--data", str(data), "--model", "classical/graphcut"]
    words += ["--rounds", "4", "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "limner", *words], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (
        (out / "rows.jsonl").exists() and (out / "rows.jsonl").read_bytes().count(b"\n") >= 2
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_rows(out)
    assert len(before) >= 2
    assert command(words) == 0
    after = read_rows(out)
    assert after[: len(before)] == before
    assert len({row.key for row in after}) == len(after) == 12


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limner.bench.run.run", interrupted)
    data = make_set(tmp_path / "data")
    out = tmp_path / "out"
    assert command(["bench", "run", "--data", str(data), "--model", "toy", "-o", str(out)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_another_configuration_in_the_folder_is_one_line(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    out = tmp_path / "out"
    held(data, out)
    with pytest.raises(FormatError, match=r"another rounds \(rounds: 3 there, 4 now\)"):
        run(config_of(data, rounds=4), out)
    heavy = Fussy("toy", 99)
    heavy.card = type(heavy.card)(**{**vars(heavy.card), "weights_sha256": "ab"})
    with pytest.raises(FormatError, match="other weights of toy"):
        run(config_of(data), out, models=[heavy])
    (out / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no config\.json"):
        run(config_of(data), out)


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    held(make_set(tmp_path / "data", ("a",)), tmp_path / "out")
    path = tmp_path / "out/rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{lines[1][:50]}\n")
    with pytest.raises(FormatError, match="line 2 is damaged"):
        read_rows(tmp_path / "out")
    path.write_text(json.dumps({"model": "toy"}) + "\n")
    with pytest.raises(FormatError, match="line 1 is not a row"):
        read_rows(tmp_path / "out")


def test_a_model_without_the_words_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    card = create_model("toy").card
    boxes = type(card)(**{**vars(card), "name": "boxer", "prompts": frozenset({"box"})})
    check_speakable(boxes, "box", "none")
    check_speakable(boxes, "mixed", "none")
    for protocol, disturbance in (("clicks", "none"), ("box", "negative_first")):
        with pytest.raises(ValueError, match=r"boxer understands box; .* needs click"):
            check_speakable(boxes, protocol, disturbance)  # type: ignore[arg-type]
    solid = type(card)(**{**vars(card), "ndim": (3,)})
    with pytest.raises(ValueError, match="works on volumes"):
        check_dimensions(solid, 2)


def test_a_model_that_cannot_be_corrected_keeps_its_answer(tmp_path: Path) -> None:
    model = Fussy("boxer", refused=2)
    model.card = type(model.card)(**{**vars(model.card), "prompts": frozenset({"box"})})
    data = make_set(tmp_path / "data", ("a",))
    run(config_of(data, ("boxer",), protocol="mixed"), tmp_path / "out", models=[model])
    for row in read_rows(tmp_path / "out"):
        assert row.error is None
        assert len(row.prompts) == 1
        assert row.prompts[0][0]["kind"] == "box"
        assert len(set(row.dice)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nobody"], "Unknown model 'nobody'"),
        (["--model", "toy", "--protocol", "x"], "protocol='x' is unknown"),
        (["--model", "toy", "--protocol", "scribbles"], "scribbles/"),
        (["--model", "toy", "--sets", "x*"], "is called x*; there are"),
        (["--model", "toy", "--weights", "nowhere.onnx"], "no weights file"),
    ],
)
def test_misuse_of_the_command_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    data = make_set(tmp_path / "data", ("a",))
    out = tmp_path / "out"
    assert command(["bench", "run", "--data", str(data), "-o", str(out), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.slow
def test_real_strokes_on_a_real_set(shared_data: Path, tmp_path: Path) -> None:
    rows = held(
        shared_data,
        tmp_path / "out",
        models=("baseline/box",),
        protocol="scribbles",
        sets=("scribble_acdc",),
        limit=1,
    )
    assert [row.annotator for row in rows] == ["annotator0", "annotator1", "annotator2"]
    for row in rows:
        kinds = {prompt["kind"] for prompt in row.prompts[0]}
        assert kinds == {"scribble"}
        assert row.dice[0] is not None
        assert row.dice[0] > 0.1  # the strokes themselves are the answer
        assert row.error is None
