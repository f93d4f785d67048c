"""``limner segment FOLDER``: the same prompts over a folder, resumed, with bad files among them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import limner
from dicom_makers import save_series
from limner import phantoms
from limner.cli.__main__ import run

BOX = {"kind": "box", "low": [30, 20], "high": [60, 60]}
OTHER = {"kind": "box", "low": [10, 10], "high": [50, 40]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(4):
        phantom = phantoms.image(k, (96, 80))
        limner.io.write_image(folder / f"{'abcd'[k]}.png", phantom.image)
    return folder


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def start(folder: Path, out: Path, *more: str) -> int:
    return run(["segment", str(folder), "-o", str(out), "--model", "toy", *more])


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_prompts_per_file_with_a_default(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    said = {
        "default": [BOX],
        "files": {"b.png": {"prompts": [OTHER], "names": {"1": "lesion"}}, "c.png": None},
    }
    assert start(folder, out, "--prompts", write(tmp_path / "p.json", said)) == 0
    rows = rows_of(out)
    assert {n: r["status"] for n, r in rows.items()} == {
        "a.png": "done",
        "b.png": "done",
        "c.png": "left out",
        "d.png": "done",
    }
    assert rows["b.png"]["name"] == "lesion"
    for name, box in (("a.png", BOX), ("b.png", OTHER), ("d.png", BOX)):
        with limner.open_session(folder / name, "toy") as session:
            session.add(limner.Box(box["low"], box["high"]))
            expected = session.predict().mask
        found = limner.read_labels(out / name).mask(1)
        assert np.array_equal(found, expected)
        assert int(rows[name]["pixels"]) == expected.sum()
        assert (out / f"{name}.limner.json").exists()


def test_a_bad_file_stops_nobody_and_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "notes.txt").write_text("left foot")
    out = tmp_path / "masks"
    assert start(folder, out, "--box", "30,20,60,60") == 2
    rows = rows_of(out)
    assert [n for n, r in rows.items() if r["status"] == "done"] == ["a.png", "c.png", "d.png"]
    assert {"b.png", "empty.nii.gz"} == {n for n, r in rows.items() if r["status"] == "failed"}
    said = capsys.readouterr().err
    assert "failed: b.png: " in said
    assert "failed: empty.nii.gz: " in said
    assert "notes.txt" in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if "b.png" in line]) == 1
    limner.io.write_image(folder / "b.png", phantoms.image(1, (96, 80)).image)
    (folder / "empty.nii.gz").unlink()
    before = (out / "a.png").stat().st_mtime_ns
    assert start(folder, out, "--box", "30,20,60,60") == 0
    assert "(3 of them before)" in capsys.readouterr().err
    assert (out / "a.png").stat().st_mtime_ns == before
    assert rows_of(out)["b.png"]["status"] == "done"


def test_other_prompts_or_another_image_are_done_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    prompts = tmp_path / "p.json"
    write(prompts, {"default": [BOX], "files": {"b.png": [BOX]}})
    assert start(folder, out, "--prompts", str(prompts)) == 0
    stamps = {n: (out / f"{n}.png").stat().st_mtime_ns for n in "abcd"}
    write(prompts, {"default": [BOX], "files": {"b.png": [OTHER]}})
    limner.io.write_image(folder / "c.png", phantoms.image(9, (96, 80)).image)
    (out / "d.png").unlink()
    assert start(folder, out, "--prompts", str(prompts)) == 0
    changed = {n for n in "abcd" if (out / f"{n}.png").stat().st_mtime_ns != stamps[n]}
    assert changed == {"b", "c", "d"}


def test_a_run_that_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    for k in range(15):
        limner.io.write_image(folder / f"n{k:02}.png", phantoms.image(k, (96, 80)).image)
    out, expected = tmp_path / "masks", tmp_path / "expected"
    command = [sys.executable, "-m", "limner", "segment", str(folder), "-o", str(out)]
    arguments = ["--model", "toy", "--box", "30,20,60,60"]
    process = subprocess.Popen([*command, *arguments])
    deadline = time.monotonic() + 120
    while not (out / "n01.png").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = out / "limner.jsonl"
    done = len(state.read_bytes().splitlines())
    assert done > 0
    with state.open("ab") as file:
        file.write(b'{"file": "n1')  # as a crash in the middle of a line leaves it
    assert start(folder, out, *arguments[2:]) == 0
    lines = [line for line in state.read_bytes().splitlines() if line.endswith(b"}")]
    assert len(lines) == 19  # none was done twice
    assert start(folder, expected, *arguments[2:]) == 0
    for mask in expected.glob("*.png"):
        assert mask.read_bytes() == (out / mask.name).read_bytes()
    assert not list(out.glob("*.tmp"))


def test_masks_get_the_format_of_the_image_or_the_one_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    volume = phantoms.volume(3, (12, 32, 30)).image
    for name in ("a.nii.gz", "b.nrrd", "b.mha"):
        limner.io.write_image(folder / name, volume)
    limner.io.write_image(folder / "c.tif", phantoms.image(3, (32, 30)).image)
    box = {"kind": "box", "low": [5, 5, 5], "high": [9, 20, 20]}
    said = write(tmp_path / "p.json", [box])
    out = tmp_path / "masks"
    assert start(folder, out, "--prompts", said) == 2  # the box is no box in c.tif
    masks = {path.name for path in out.iterdir() if path.suffix not in (".json", ".jsonl", ".csv")}
    assert masks == {"a.nii.gz", "b.nrrd.nrrd", "b.mha.mha"}
    assert start(folder, out, "--prompts", said, "--suffix", "npz") == 2
    assert (out / "a.npz").exists()
    assert limner.read_labels(out / "a.nii.gz").geometry.is_close(volume.geometry)


def test_a_folder_of_dicom_series(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        save_series(tmp_path / "images" / patient, np.arange(6 * 20 * 18).reshape(6, 20, 18))
    out = tmp_path / "masks"
    click = {"kind": "click", "at": [2, 4, 4]}
    said = write(tmp_path / "p.json", [click])
    assert start(tmp_path / "images", out, "--prompts", said, "--suffix", ".nii.gz") == 0
    assert (out / "p1.nii.gz").exists()
    assert (out / "p2.nii.gz").exists()
    assert start(tmp_path / "images" / "p1", tmp_path / "x", "--prompts", said) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "said",
    [
        {"default": [{"kind": "star"}]},
        {"files": {"none.png": [BOX]}},
        {"files": [BOX]},
        {"default": [BOX], "fils": {}},
        "text",
    ],
)
def test_prompts_that_make_no_sense_are_refused_before_work(
    folder: Path, tmp_path: Path, said: object
) -> None:
    out = tmp_path / "masks"
    assert start(folder, out, "--prompts", write(tmp_path / "p.json", said)) == 2
    assert not out.exists()


def test_what_belongs_to_one_image_is_refused_for_a_folder(folder: Path, tmp_path: Path) -> None:
    box = ("--box", "30,20,60,60")
    out = tmp_path / "masks"
    assert start(folder, folder, *box) == 2
    assert start(folder, out) == 2
    assert start(folder, out, *box, "--journal", str(tmp_path / "j")) == 2
    assert start(folder, out, *box, "--preview", str(tmp_path / "p.png")) == 2
    assert start(folder / "a.png", tmp_path / "a.png", *box, "--suffix", ".png") == 2
    assert not out.exists()
