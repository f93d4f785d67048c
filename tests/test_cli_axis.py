"""Prompts on slices of any axis, at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

import limner
from limner import phantoms
from limner.cli.__main__ import run
from limner.io import manifest_path

SHAPE = (16, 40, 36)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A CT as NIfTI: slices up, somewhat oblique."""
    phantom = phantoms.volume(3, SHAPE)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ phantom.image.affine @ np.eye(4)[[2, 1, 0, 3]].T
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(phantom.image.array).T, affine), path)
    return path


def segment(image: Path, out: Path, *said: object) -> int:
    words = ["segment", str(image), "--model", "toy", "-o", str(out), *map(str, said)]
    return run(words)


def said_of(out: Path) -> list[dict[str, object]]:
    manifest = json.loads(manifest_path(out).read_text())
    prompts: list[dict[str, object]] = manifest["objects"]["1"]["prompts"]
    return prompts


@pytest.mark.parametrize("name", ["2", "sagittal", "Sagittal"])
def test_a_box_and_clicks_on_a_sagittal_slice(volume: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "seg.nii.gz"
    said = ["--slice", 18, "--axis", name, "--box", "4,10,12,30", "--not", "2,3"]
    assert segment(volume, out, *said) == 0
    box, click = said_of(out)
    assert (box["low"], box["high"]) == ([4, 10, 18], [12, 30, 19])
    assert click["at"] == [2, 3, 18]
    assert box["frame"] is None
    again = tmp_path / "again.nii.gz"
    assert segment(volume, again, "--prompts", manifest_path(out)) == 0
    first, second = (np.asarray(limner.read_labels(p).to_array()) for p in (out, again))
    assert first.any()
    assert np.array_equal(first, second)


def test_coordinates_on_a_slice_may_be_given_as_x_and_y(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    said = ["--slice", 20, "--axis", "coronal", "--order", "xyz", "--click", "18,6"]
    assert segment(volume, out, *said) == 0
    assert said_of(out)[0]["at"] == [6, 20, 18]  # x is the column, z the slice


def test_strokes_drawn_on_a_coronal_slice(volume: Path, tmp_path: Path) -> None:
    drawn = np.zeros((SHAPE[0], SHAPE[2]), np.uint8)
    drawn[5:9, 14:20] = 1
    drawn[1, 2:9] = 2
    Picture.fromarray(drawn).save(tmp_path / "flat.png")
    solid = np.zeros(SHAPE, np.uint8)
    solid[:, 20] = drawn
    image = nibabel.load(volume)
    nibabel.save(nibabel.Nifti1Image(solid.T, image.affine), tmp_path / "solid.nii.gz")
    found = []
    for name in ("flat.png", "solid.nii.gz"):
        out = tmp_path / f"{name}.seg.nii.gz"
        said = ["--slice", 20, "--axis", 1, "--scribble", tmp_path / name]
        assert segment(volume, out, *said) == 0
        found.append(np.asarray(limner.read_labels(out).to_array()) > 0)
    assert np.array_equal(*found)
    assert found[0][:, 20][drawn == 1].all()
    assert not found[0][:, 20][drawn == 2].any()
    assert found[0][:, 21].any()  # 3D


def test_a_file_of_prompts_names_the_axis_of_each(volume: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "said.json", tmp_path / "seg.nii.gz"
    said = [
        {"kind": "click", "at": [6, 18], "frame": 20, "axis": 1},
        {"kind": "click", "at": [1, 2], "positive": False},
        {"kind": "click", "at": [3, 4, 5], "positive": False},
    ]
    path.write_text(json.dumps(said))
    assert segment(volume, out, "--prompts", path, "--slice", 30, "--axis", 2) == 0
    assert [p["at"] for p in said_of(out)] == [[6, 20, 18], [1, 2, 30], [3, 4, 5]]


def test_resume_corrects_on_a_sagittal_slice(volume: Path, tmp_path: Path) -> None:
    journal, out = tmp_path / "case.limner", tmp_path / "seg.nii.gz"
    assert segment(volume, out, "--box", "4,10,8,12,30,28", "--journal", journal) == 0
    more = ["--slice", "18", "--axis", "sagittal", "--not", "8,20"]
    assert run(["resume", str(journal), *more, "-o", str(out)]) == 0
    assert said_of(out)[1]["at"] == [8, 20, 18]
    assert np.asarray(limner.read_labels(out).to_array())[8, 20, 18] == 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["--axis", "2", "--click", "5,5,5"], "give both"),
        (["--slice", 99, "--axis", "2", "--click", "5,5"], "no column 99"),
        (["--slice", 9, "--axis", "3", "--click", "5,5"], "axial"),
        (["--slice", 9, "--axis", "2", "--click", "5,39.9"], "outside"),
    ],
)
def test_wrong_axes_say_what_to_do(
    volume: Path,
    tmp_path: Path,
    said: list[object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert segment(volume, tmp_path / "seg.nii.gz", *said) != 0
    assert message in capsys.readouterr().err


def test_tilted_slices_have_no_name(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nibabel.load(volume)
    angle = np.deg2rad(44)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    path = tmp_path / "tilted.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), path)
    out = tmp_path / "seg.nii.gz"
    assert segment(path, out, "--slice", 9, "--axis", "axial", "--click", "9,9") != 0
    assert "are tilted" in capsys.readouterr().err
    assert segment(path, out, "--slice", 9, "--axis", "sagittal", "--click", "9,9") == 0
