"""The command line as a user meets it: files in, masks out, one clear line when it goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import typer
from PIL import Image as Picture

import limner
from limner import phantoms
from limner.cli.__main__ import app, run
from limner.io import manifest_path

CT_SLICE = Path(str(files("pydicom"))) / "data" / "test_files" / "CT_small.dcm"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An oblique, anisotropic NIfTI written by nibabel."""
    phantom = phantoms.volume(3, (16, 40, 36))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ phantom.image.affine @ np.eye(4)[[2, 1, 0, 3]].T
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(phantom.image.array).T, affine), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Picture.fromarray(np.asarray(phantoms.image(3, (90, 70), color=True).image.array)).save(path)
    return path


@pytest.mark.slow
def test_segment_nifti_keeps_shape_affine_and_orientation(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    assert run(["segment", str(volume), "--box", "4,10,8,12,30,28", "-o", str(out)]) == 0
    source, mask = nibabel.load(volume), nibabel.load(out)
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    assert nibabel.aff2axcodes(mask.affine) == nibabel.aff2axcodes(source.affine)
    ours = limner.read_labels(out, like=volume).to_array()
    assert np.array_equal(np.asarray(mask.dataobj).T, ours)
    assert ours.any()
    image, itk = SimpleITK.ReadImage(str(volume)), SimpleITK.ReadImage(str(out))
    assert itk.GetSize() == image.GetSize()
    assert np.allclose(itk.GetDirection(), image.GetDirection())
    assert np.allclose(itk.GetOrigin(), image.GetOrigin())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".json", ".npz"])
def test_every_output_format_holds_the_same_mask(suffix: str, volume: Path, tmp_path: Path) -> None:
    reference, out = tmp_path / "a.nii.gz", tmp_path / f"b{suffix}"
    for path in (reference, out):
        assert run(["segment", str(volume), "--box", "4,10,8,12,30,28", "-o", str(path)]) == 0
    found = limner.read_labels(out, like=volume).to_array()
    assert np.array_equal(found, limner.read_labels(reference).to_array())


def test_segment_jpeg_writes_a_png_of_the_same_size_with_a_manifest(
    picture: Path, tmp_path: Path
) -> None:
    out, preview = tmp_path / "seg.png", tmp_path / "look.png"
    arguments = ["--box", "20,15,60,50", "-o", str(out), "--preview", str(preview)]
    assert run(["segment", str(picture), *arguments, "--name", "lesion"]) == 0
    assert _size(out) == _size(picture)
    with Picture.open(preview) as shown:
        assert shown.mode == "RGB"
    facts = json.loads(manifest_path(out).read_text())
    assert facts["objects"]["1"]["name"] == "lesion"


@pytest.mark.slow
def test_the_manifest_repeats_the_mask(picture: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    said = ["--box", "20,15,60,50", "--click", "40,30", "--not", "22,17"]
    assert run(["segment", str(picture), *said, "-o", str(first)]) == 0
    manifest = manifest_path(first)
    assert run(["segment", str(picture), "--prompts", str(manifest), "-o", str(second)]) == 0
    assert np.array_equal(Picture.open(first), Picture.open(second))


@pytest.mark.slow
def test_segment_tiff_stack(tmp_path: Path) -> None:
    import tifffile

    source, out = tmp_path / "stack.tif", tmp_path / "seg.tif"
    stack = np.asarray(phantoms.volume(3, (9, 40, 36), hounsfield=False).image.array)
    tifffile.imwrite(source, stack)
    assert run(["segment", str(source), "--box", "2,10,8,8,30,28", "-o", str(out)]) == 0
    assert tifffile.imread(out).shape == stack.shape
    assert tifffile.imread(out).any()


@pytest.mark.slow
def test_segment_a_dicom_slice_as_seg_and_rtstruct(tmp_path: Path) -> None:
    masks = {}
    for kind in ("seg", "seg-labelmap", "rtstruct"):
        out = tmp_path / f"{kind}.dcm"
        arguments = ["--box", "5,40,44,80", "--name", "vertebra", "--type", kind, "-o", str(out)]
        assert run(["segment", str(CT_SLICE), *arguments]) == 0
        masks[kind] = limner.read_labels(out, like=CT_SLICE).mask(1)
        assert pydicom.dcmread(out).Modality == ("RTSTRUCT" if kind == "rtstruct" else "SEG")
    assert masks["seg"].any()
    assert np.array_equal(masks["seg"], masks["seg-labelmap"])
    assert np.array_equal(masks["seg"], masks["rtstruct"])


@pytest.mark.slow
def test_json_output_is_only_json_on_stdout(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seg.nii.gz"
    said = ["--box", "4,10,8,12,30,28", "--json"]
    assert run(["segment", str(volume), *said, "-o", str(out)]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["objects"][0]["volume_mm3"] > 0
    assert report["output"] == str(out)
    assert run(["segment", str(volume), *said[:-1], "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ml" in captured.err


@pytest.mark.slow
def test_foreign_orders_mean_the_same_box(volume: Path, tmp_path: Path) -> None:
    masks = []
    image = limner.read(volume)
    low, high = np.array((4, 10, 8)), np.array((12, 30, 28))
    lps = image.geometry.index_to_world(np.stack((low - 0.5, high - 0.5)))
    # The box's corners in an oblique grid are not a box in world space: use clicks there.
    click = image.geometry.index_to_world((8, 20, 18))
    ras = click * (-1, -1, 1)
    said = [
        ["--box", "4,10,8,12,30,28", "--click", "8,20,18"],
        ["--box", "8,10,4,28,30,12", "--click", "18,20,8", "--order", "xyz"],
    ]
    for k, arguments in enumerate(said):
        out = tmp_path / f"{k}.nii.gz"
        assert run(["segment", str(volume), *arguments, "-o", str(out)]) == 0
        masks.append(limner.read_labels(out).to_array())
    assert np.array_equal(masks[0], masks[1])
    assert lps.shape == (2, 3)
    clicked = []
    for k, arguments in enumerate(
        [
            ["--click", "8,20,18"],
            ["--click", ",".join(f"{x:.6f}" for x in click), "--world", "lps"],
            ["--click", ",".join(f"{x:.6f}" for x in ras), "--world", "ras"],
        ]
    ):
        out = tmp_path / f"click{k}.nii.gz"
        assert run(["segment", str(volume), *arguments, "--model", "toy", "-o", str(out)]) == 0
        clicked.append(np.asarray(limner.read_labels(out).to_array()))
    assert clicked[0].any()
    assert np.mean(clicked[0] != clicked[1]) < 0.01  # rounding of six decimals
    assert np.array_equal(clicked[1], clicked[2])


def test_slice_prompts_stay_on_their_slice(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    said = ["--slice", "7", "--box", "10,8,30,28"]
    assert run(["segment", str(volume), *said, "-o", str(out)]) == 0
    labels = limner.read_labels(out).to_array()
    assert [k for k in range(16) if labels[k].any()] == [7]


def test_several_boxes_are_several_objects(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.png"
    said = ["--box", "5,5,40,30", "--box", "45,35,85,65", "--name", "a", "--name", "b"]
    assert run(["segment", str(picture), *said, "-o", str(out)]) == 0
    assert set(np.unique(Picture.open(out))) == {0, 1, 2}


def test_masks_and_drawn_scribbles_work_as_prompts(picture: Path, tmp_path: Path) -> None:
    mask = np.zeros((90, 70), np.uint8)
    mask[30:60, 20:50] = 3
    strokes = np.zeros((90, 70), np.uint8)
    strokes[40:44, 30:45] = 1
    strokes[2:4, 2:60] = 2
    Picture.fromarray(mask).save(tmp_path / "rough.png")
    Picture.fromarray(strokes).save(tmp_path / "strokes.png")
    out = tmp_path / "seg.png"
    assert (
        run(["segment", str(picture), "--mask", str(tmp_path / "rough.png"), "-o", str(out)]) == 0
    )
    assert set(np.unique(Picture.open(out))) == {0, 3}
    arguments = ["--scribble", str(tmp_path / "strokes.png"), "-o", str(out)]
    assert run(["segment", str(picture), *arguments]) == 0
    found = np.asarray(Picture.open(out)) > 0
    assert found[strokes == 1].all()
    assert not found[strokes == 2].any()


@pytest.mark.slow
def test_info_models_doctor_convert_and_resume(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(volume), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [16, 40, 36]
    assert facts["kind"] == "volume"
    assert run(["models", "--prompt", "lasso", "--json"]) == 0
    assert "classical/region" in [m["name"] for m in json.loads(capsys.readouterr().out)]
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limner"] == limner.__version__

    journal, mask, other = (tmp_path / n for n in ("case.limner", "seg.nii.gz", "seg.nrrd"))
    said = ["--box", "4,10,8,12,30,28", "--journal", str(journal)]
    assert run(["segment", str(volume), *said, "-o", str(mask)]) == 0
    assert run(["convert", str(mask), str(other)]) == 0
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(other))), limner.read(mask).array
    )
    capsys.readouterr()
    assert run(["resume", str(journal), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"][0]["kind"] == "box"
    again = tmp_path / "again.nii.gz"
    assert run(["resume", str(journal), "-o", str(again)]) == 0
    assert np.array_equal(limner.read(again).array, limner.read(mask).array)


BAD: dict[str, tuple[list[str], str]] = {
    "nothing said": ([], "Nothing says what to delineate"),
    "not numbers": (["--click", "ten,20"], "numbers separated by commas"),
    "box of zero area": (["--box", "10,10,10,40"], "at least one pixel"),
    "box upside down": (["--box", "40,10,10,40"], "not below"),
    "box with three numbers": (["--box", "1,2,3"], "r0,c0,r1,c1"),
    "outside": (["--click", "500,20"], "outside"),
    "3D click on a picture": (["--click", "1,2,3"], "2D image"),
    "unknown model": (["--click", "5,5", "--model", "sam9"], "Unknown model"),
    "misspelt model": (["--click", "5,5", "--model", "limner_2dd"], "did you mean limner-2d"),
    "misspelt variant": (["--click", "5,5", "--model", "medsam/vitb"], "did you mean medsam/vit_b"),
    "unknown variant": (["--click", "5,5", "--model", "classical/magic"], "classical/region"),
    "text for a weightless model": (["--text", "liver"], "not text"),
    "unknown window": (["--click", "5,5", "--window", "livr"], "Unknown window"),
    "window upside down": (["--click", "5,5", "--window", "9,3"], "low < high"),
    "slice of a picture": (["--click", "5,5", "--slice", "3"], "no frames"),
    "order and world": (["--click", "5,5", "--order", "xyz", "--world", "lps"], "not both"),
    "unknown order": (["--click", "5,5", "--order", "zyx"], "--order xyz"),
    "boxes and a click": (
        ["--box", "1,1,9,9", "--box", "20,20,30,30", "--click", "5,5"],
        "Several",
    ),
    "no such option": (["--klick", "5,5"], "No such option"),
    "unknown device": (["--click", "5,5", "--device", "tpu"], "Unknown device"),
    "missing weights": (["--click", "5,5", "--weights", "nowhere.pt"], "nowhere.pt"),
    "window of three": (["--click", "5,5", "--window", "1,2,3"], "low,high"),
    "too many names": (["--click", "5,5", "--name", "a", "--name", "b"], "too many"),
    "nameless": (["--click", "5,5", "--name", " "], "at least one letter"),
    "missing mask": (["--mask", "nowhere.png"], "nowhere.png"),
    "missing prompts": (["--prompts", "nowhere.json"], "nowhere.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_one_line_and_exit_code_2(
    name: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = BAD[name]
    before = set(tmp_path.iterdir())
    assert run(["segment", str(picture), *arguments, "-o", str(tmp_path / "seg.png")]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert set(tmp_path.iterdir()) == before


OUTPUTS = {
    "nowhere/seg.png": "does not exist",
    "seg.xyz": "xyz",
    "photo.jpg": "photo.jpg",
    "/proc/seg.png": "/proc",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_impossible_output_is_refused(
    name: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = picture.read_bytes()
    assert run(["segment", str(picture), "--click", "40,30", "-o", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert OUTPUTS[name] in message
    assert message.count("\n") == 1
    assert picture.read_bytes() == content


@pytest.mark.slow
def test_outputs_must_differ(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of mask, manifest, preview and journal none may replace another."""
    for mask, option, other in (
        ("a.png", "--preview", "a.png"),
        ("a.json", "--journal", "a.json"),
        ("a.png", "--journal", f"./{manifest_path('a.png').name}"),
    ):
        arguments = ["-o", str(tmp_path / mask), option, str(tmp_path / other)]
        assert run(["segment", str(picture), "--click", "40,30", *arguments]) == 2
        assert "written twice" in capsys.readouterr().err
    journal = tmp_path / "case.json"
    assert run(_said(picture, tmp_path / "b.png", "--click", "40,30", "--journal", journal)) == 0
    before = journal.read_bytes()
    assert run(["resume", str(journal), "-o", str(journal)]) == 2
    assert journal.read_bytes() == before
    assert run(["resume", str(journal), "-o", str(tmp_path / "UPPER.PNG")]) == 0
    assert _size(tmp_path / "UPPER.PNG") == (70, 90)


def _size(path: Path) -> tuple[int, int]:
    with Picture.open(path) as opened:
        return opened.size


def _said(image: Path, out: Path, *arguments: object) -> list[str]:
    return ["segment", str(image), *map(str, arguments), "-o", str(out)]


@pytest.fixture
def drawn(volume: Path, tmp_path: Path) -> dict[str, Path]:
    """A rough mask of the volume and strokes on slice 7, as 3D and as 2D files and as JSON."""
    mask = np.zeros((16, 40, 36), np.uint8)
    mask[4:12, 10:30, 8:28] = 1
    strokes = np.zeros_like(mask)
    strokes[7, 18:20, 12:24], strokes[7, 2, 2:30] = 1, 2
    files = {}
    for name, array in (("mask", mask), ("strokes", strokes)):
        files[name] = tmp_path / f"{name}.nii.gz"
        limner.write(files[name], array, like=volume)
        files[f"flat {name}"] = tmp_path / f"{name}.png"
        Picture.fromarray(array[7]).save(files[f"flat {name}"])
    files["lines"] = tmp_path / "lines.json"
    stroke = {"kind": "scribble", "points": [[18, 12], [18, 23]], "radius": 1}
    files["lines"].write_text(json.dumps([stroke]))
    return files


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--mask", "mask"),
        ("--mask", "flat mask"),
        ("--scribble", "strokes"),
        ("--scribble", "flat strokes"),
        ("--scribble", "lines"),
    ],
)
def test_drawn_prompts_and_a_click_on_a_slice_are_one_object_there(
    option: str, name: str, volume: Path, drawn: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "seg.nii.gz"
    said = _said(volume, out, option, drawn[name], "--slice", 7, "--click", "18,18")
    assert run(said) == 0
    labels = limner.read_labels(out).to_array()
    assert set(np.unique(labels)) == {0, 1}
    assert [k for k in range(16) if labels[k].any()] == [7]
    assert labels[7, 18, 18]


def test_drawn_prompts_on_a_slice_that_is_not_there_or_empty_are_refused(
    volume: Path, drawn: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, option in (("mask", "--mask"), ("strokes", "--scribble")):
        for k, expected in ((99, "no slice 99"), (-1, "no slice -1"), (0, "no label above 0")):
            said = _said(volume, tmp_path / "seg.nii.gz", option, drawn[name], "--slice", k)
            assert run(said) == 2
            assert expected in capsys.readouterr().err
    assert run(_said(volume, tmp_path / "seg.nii.gz", "--mask", drawn["flat mask"])) == 2


def test_a_mask_with_one_label_is_what_clicks_and_boxes_are_about(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((90, 70), np.uint8)
    mask[30:60, 20:50] = 255
    Picture.fromarray(mask).save(tmp_path / "rough.png")
    out = tmp_path / "seg.png"
    said = ["--mask", tmp_path / "rough.png", "--click", "40,30", "--box", "25,15,65,55"]
    assert run(_said(picture, out, *said, "--name", "lesion")) == 0
    assert set(np.unique(Picture.open(out))) == {0, 255}
    facts = json.loads(manifest_path(out).read_text())["objects"]
    assert [p["kind"] for p in facts["255"]["prompts"]] == ["box", "mask", "click"]
    assert facts["255"]["name"] == "lesion"
    mask[0, 0] = 7
    Picture.fromarray(mask).save(tmp_path / "rough.png")
    capsys.readouterr()
    assert run(_said(picture, out, *said)) == 2
    assert "several objects" in capsys.readouterr().err


PROMPT_FILES = {
    "no JSON": ("nonsense", "cannot be read as JSON"),
    "too deep": ("[" * 100_000, "cannot be read as JSON"),
    "a number": ("5", "expected a list"),
    "list of numbers": ("[5]", "expected a list"),
    "manifest without prompts": ('{"objects": {"1": {}}}', "expected a list"),
    "manifest with a word for an id": ('{"objects": {"x": {"prompts": [{}]}}}', "expected a list"),
    "empty": ("[]", "Nothing says"),
    "unknown kind": ('[{"kind": "wish"}]', "prompts.json: Unknown kind"),
    "malformed": ('[{"kind": "click", "at": "abc"}]', "prompts.json: A click is"),
    "object is a word": ('[{"kind": "click", "at": [5, 5], "object": "a"}]', "object id"),
    "unknown field": (
        '[{"kind": "box", "low": [1, 1], "high": [5, 5], "name": "liver"}]',
        "unknown field 'name'; the fields of a box are low, high",
    ),
    "names in a list": ('{"names": ["liver"], "prompts": []}', "names are words by object id"),
    "name without a prompt": (
        '{"names": {"2": "liver"}, "prompts": [{"kind": "click", "at": [5, 5, 5]}]}',
        "Object 2 has a name and no prompt",
    ),
    "a manifest whose model is a number": (
        '{"objects": {"1": {"prompts": []}}, "model": {"name": 5}}',
        "no manifest of limner: model.name is 5",
    ),
    "frame is a word": ('[{"kind": "click", "at": [5, 5], "frame": "7"}]', "whole number"),
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_a_bad_prompt_file_is_one_line_and_exit_code_2(
    name: str, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = PROMPT_FILES[name]
    path = tmp_path / "prompts.json"
    path.write_text(content)
    assert run(_said(volume, tmp_path / "seg.nii.gz", "--prompts", path)) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_prompts_of_a_file_name_their_slices_and_objects(volume: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.json", tmp_path / "seg.nii.gz"
    said = [
        {"kind": "box", "low": [10, 8], "high": [30, 28], "frame": 9, "object": 2},
        {"kind": "box", "low": [10, 8], "high": [30, 28], "object_id": 3},
    ]
    path.write_text(json.dumps({"prompts": said}))
    assert run(_said(volume, out, "--prompts", path, "--slice", 4)) == 0
    labels = limner.read_labels(out).to_array()
    places = {(k, int(i)) for k in range(16) for i in np.unique(labels[k]) if i}
    assert places == {(9, 2), (4, 3)}


def test_convert_knows_what_is_a_segmentation(
    volume: Path, drawn: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("b.SEG.NRRD", "c.JSON", "d.NPZ", "e.nii.gz", "f.mha")
    source = drawn["mask"]
    expected = np.asarray(limner.read_labels(source).to_array())
    for name in names:
        target = tmp_path / name
        assert run(["convert", str(source), str(target), "--labels"]) == 0
        found = limner.read_labels(target, like=volume).to_array()
        assert np.array_equal(found, expected), name
    content = volume.read_bytes()
    assert run(["convert", str(volume), str(volume.parent / "." / volume.name)]) == 2
    assert "source itself" in capsys.readouterr().err
    assert volume.read_bytes() == content
    assert run(["convert", str(volume), str(tmp_path / "ct.json")]) == 2


def _program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limner", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_the_program_runs_as_a_module_from_any_folder(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = _program("segment", picture, "--click", "40,30", "-o", "seg.png", cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert _size(tmp_path / "work" / "seg.png") == _size(picture)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "40"}, {"HOME": "/nowhere"}],
)
def test_odd_environments_are_no_reason_to_fail(
    environment: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    surroundings = {**os.environ, **environment}
    out = tmp_path / "Maske ü.png"
    done = _program("segment", picture, "--click", "40,30", "-o", out, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    done = _program("models", env=surroundings)
    assert done.returncode == 0, done.stderr
    for card in limner.list_models():
        assert card.name in done.stdout


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(volume: Path) -> None:
    command = f"{sys.executable} -m limner info {volume} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")
    command = f"{sys.executable} -m limner info {volume} >&-; echo $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.slow
def test_the_demo_fits_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from limner.cli import demo

    monkeypatch.setattr(demo, "CASES", (demo._phantom_image, demo._phantom_sequence))
    monkeypatch.chdir(tmp_path)
    assert run(["demo"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for name in ("phantom-image", "phantom-sequence", "limner-2d", "1 box, 1 click"):
        assert name in printed
    assert "…" not in printed
    assert (tmp_path / "demo-output" / "phantom-image.png").exists()


@pytest.mark.slow
def test_a_refused_prompt_leaves_no_journal_in_the_way(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    for said, code in ((["--not", "500,9"], 2), (["--name", " "], 2), ([], 0)):
        arguments = ["--click", "40,30", *said, "--journal", journal]
        assert run(_said(picture, tmp_path / "seg.png", *arguments)) == code
        assert journal.exists() == (code == 0)


@pytest.mark.slow
def test_a_video_takes_prompts_on_a_frame(tmp_path: Path) -> None:
    frames = np.asarray(phantoms.sequence(4, (5, 48, 48)).image.array).astype(np.uint8)
    pictures = [Picture.fromarray(frame) for frame in frames]
    clip, out = tmp_path / "clip.gif", tmp_path / "seg.tif"
    pictures[0].save(clip, save_all=True, append_images=pictures[1:])
    masks = []
    for said in (["--slice", 2, "--box", "10,10,36,36"], ["--box", "2,10,10,3,36,36"]):
        assert run(_said(clip, out, *said)) == 0
        masks.append(np.asarray(limner.read_labels(out).to_array()))
    assert [k for k in range(5) if masks[0][k].any()] == [2]
    assert np.array_equal(*masks)
    assert run(_said(clip, out, "--click", "24,24")) == 2


def _broken(tmp_path: Path, volume: Path) -> dict[str, Path]:
    """One file per way of being broken."""
    whole = volume.read_bytes()
    header = bytearray(gzip.decompress(whole)[:348])
    huge = bytearray(header)
    huge[40:56] = np.array([3, 10_000, 10_000, 10_000, 1, 1, 1, 1], "<i2").tobytes()
    flat = bytearray(header)
    flat[80:84] = np.array([0.0], "<f4").tobytes()
    contents = {
        "zero.nii.gz": b"",
        "truncated.nii.gz": whole[: len(whole) // 2],
        "magic.nii.gz": b"this is no image at all" * 9,
        "huge.nii.gz": gzip.compress(bytes(huge) + bytes(99)),
        "zero_spacing.nii.gz": gzip.compress(bytes(flat) + gzip.decompress(whole)[348:]),
        "detached.nrrd": b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 9 9\nencoding: raw\n"
        b"data file: ../../etc/passwd\n\n",
        "truncated.jpg": _jpeg()[:400],
        "cut.dcm": CT_SLICE.read_bytes()[:30_000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def _jpeg() -> bytes:
    import io

    memory = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Picture.fromarray(noise).save(memory, "jpeg")
    return memory.getvalue()


@pytest.mark.slow
def test_broken_files_are_one_line_and_exit_code_2_and_leave_nothing(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = _broken(tmp_path, volume)
    before = set(tmp_path.iterdir())
    messages = []
    for name, path in paths.items():
        out = tmp_path / "seg.nii.gz"
        click = "5,5" if path.suffix in (".jpg", ".dcm", ".nrrd") else "5,5,5"
        assert run(["segment", str(path), "--click", click, "-o", str(out)]) == 2, name
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        assert name in message, message
        messages.append(message.replace(name, ""))
        assert set(tmp_path.iterdir()) == before, name
    assert len(set(messages)) == len(messages)


@pytest.mark.slow
def test_a_header_that_claims_too_much_is_refused_within_little_memory(
    volume: Path, tmp_path: Path
) -> None:
    path = _broken(tmp_path, volume)["huge.nii.gz"]
    command = [sys.executable, "-m", "limner.cli", "segment", str(path), "--click", "5,5,5"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "seg.nii.gz")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    assert done.returncode == 2
    assert "huge.nii.gz" in done.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_mask(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii"
    out.write_bytes(b"the old mask")
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "limner.cli", "segment", str(volume)]
    done = subprocess.run(
        [*command, "--box", "4,10,8,12,30,28", "-o", str(out)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == b"the old mask"
    assert set(tmp_path.iterdir()) == before


def test_our_own_fault_is_exit_code_1(
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("limner.adapters.early_fusion.EarlyFusionModel.segment", broken)
    assert run(["segment", str(picture), "--click", "5,5", "-o", str(tmp_path / "seg.png")]) == 1
    assert "bug of limner" in capsys.readouterr().err


def test_ctrl_c_says_so(
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limner.adapters.early_fusion.EarlyFusionModel.segment", interrupted)
    assert run(["segment", str(picture), "--click", "5,5", "-o", str(tmp_path / "seg.png")]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_nan_intensities_are_refused_or_on_request_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.asarray(phantoms.volume(3, (16, 40, 36)).image.array, dtype=np.float32).T.copy()
    array[0, 0, 0], array[1, 0, 0] = np.nan, np.inf
    source, out = tmp_path / "broken.nii.gz", tmp_path / "seg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), source)
    said = ["segment", str(source), "--box", "4,10,8,12,30,28", "-o", str(out)]
    assert run(said) == 2
    message = capsys.readouterr().err
    assert "2 NaN or infinite intensities" in message
    assert message.count("\n") == 1
    assert not out.exists()
    assert run([*said, "--lenient"]) == 0
    assert limner.read_labels(out).ids == (1,)


def test_a_manifest_of_several_rounds_is_repeated_round_by_round(
    picture: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    with limner.open_session(picture, "classical/region") as session:
        for prompt in (limner.Box((20, 15), (60, 50)), limner.Click((40, 30))):
            session.add(prompt)
            session.predict()
        session.add(limner.Click((22, 17), positive=False))
        session.predict()
        limner.write(first, session.labels, like=session.image)
    manifest = manifest_path(first)
    prompts = json.loads(manifest.read_text())["objects"]["1"]["prompts"]
    assert [p["answered"] for p in prompts] == [True, True, True]
    said = ["--prompts", str(manifest), "--model", "classical/region", "-o", str(second)]
    assert run(["segment", str(picture), *said]) == 0
    assert np.array_equal(Picture.open(first), Picture.open(second))


@pytest.mark.slow
def test_warnings_come_after_success_and_never_before_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "clear.png", tmp_path / "seg.png"
    pixels = np.asarray(phantoms.image(3, (40, 40), color=True).image.array)
    alpha = np.arange(1600, dtype=np.uint8).reshape(40, 40, 1)
    Picture.fromarray(np.concatenate((pixels, alpha), axis=2)).save(source)
    assert run(["segment", str(source), "--click", "900,9", "-o", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["segment", str(source), "--box", "9,9,30,30", "-o", str(out)]) == 0
    assert "transparen" in capsys.readouterr().err


def test_a_manifest_brings_model_window_zoom_and_names(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, changed = (tmp_path / f"{n}.png" for n in "abc")
    said = ["--box", "20,15,60,50", "--model", "classical/randomwalk", "--window", "40,200"]
    assert run(_said(picture, first, *said, "--no-zoom", "--name", "lesion")) == 0
    manifest = ["--prompts", manifest_path(first)]
    assert run(_said(picture, again, *manifest)) == 0
    assert run(_said(picture, changed, *manifest, "--zoom", "--name", "ulcer")) == 0
    assert "another image" not in capsys.readouterr().err
    facts = [json.loads(manifest_path(p).read_text()) for p in (first, again, changed)]
    assert np.array_equal(Picture.open(first), Picture.open(again))
    for key in ("model", "options", "objects"):
        assert facts[0][key] == facts[1][key], key
    assert facts[0]["options"]["window"] == [40, 200]
    assert facts[2]["options"] == {**facts[0]["options"], "zoom": True}
    assert facts[2]["objects"]["1"]["name"] == "ulcer"
    other = tmp_path / "other.png"
    Picture.open(picture).rotate(180).save(other)
    assert run(_said(other, again, *manifest)) == 0
    assert "another image" in capsys.readouterr().err


def test_names_of_a_prompt_file_reach_the_manifest(picture: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.json", tmp_path / "seg.png"
    box = {"kind": "box", "low": [20, 15], "high": [60, 50], "object": 4}
    path.write_text(json.dumps({"names": {"4": "liver"}, "prompts": [box]}))
    assert run(_said(picture, out, "--prompts", path)) == 0
    assert json.loads(manifest_path(out).read_text())["objects"]["4"]["name"] == "liver"


@pytest.mark.parametrize("option", ["--mask", "--scribble", "--prompts", "--weights"])
def test_inputs_are_never_overwritten(
    option: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seg.png"
    for place in (out, manifest_path(out), tmp_path / "look.png"):
        place.write_text("[]")
        arguments = ["--preview", tmp_path / "look.png", "--click", "40,30", option, place]
        assert run(_said(picture, out, *arguments)) == 2
        assert "one of the inputs" in capsys.readouterr().err
        assert place.read_text() == "[]"


@pytest.mark.slow
def test_resume_takes_corrections(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, out = tmp_path / "case.limner", tmp_path / "seg.png"
    assert run(_said(picture, out, "--box", "20,15,60,50", "--journal", journal)) == 0
    before = journal.read_bytes()
    for refused in (
        ["--click", "40,30", "--not", "500,9"],
        ["--click", "4", "-o", str(out)],
        ["--box", "1,1,9,9", "--box", "20,20,30,30"],
        ["--click", "40,30", "--slice", "1"],
    ):
        assert run(["resume", str(journal), *refused]) == 2, refused
        assert journal.read_bytes() == before
    capsys.readouterr()
    assert run(["resume", str(journal), "--not", "40,30", "--json"]) == 0
    assert [p["kind"] for p in json.loads(capsys.readouterr().out)["prompts"]] == ["box", "click"]
    more = ["--click", "75,60", "--object", "2", "-o", str(out)]
    assert run(["resume", str(journal), *more]) == 0
    labels = np.asarray(Picture.open(out))
    assert labels[40, 30] == 0
    assert labels[75, 60] == 2


@pytest.mark.slow
def test_resume_corrects_a_slice(volume: Path, tmp_path: Path) -> None:
    journal, out = tmp_path / "case.limner", tmp_path / "seg.nii.gz"
    said = ["--slice", 7, "--box", "10,8,30,28", "--journal", journal]
    assert run(_said(volume, out, *said)) == 0
    assert run(["resume", str(journal), "--slice", "9", "--box", "12,9,28,26", "-o", str(out)]) == 0
    labels = limner.read_labels(out).to_array()
    assert [k for k in range(16) if labels[k].any()] == [7, 9]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".npz", ".seg.nrrd"])
def test_info_describes_a_segmentation(
    suffix: str, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"seg{suffix}"
    said = ["--box", "4,10,8,12,30,28", "--name", "liver"]
    assert run(_said(volume, out, *said)) == 0
    capsys.readouterr()
    assert run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    count = int(limner.read_labels(out, like=volume).mask(1).sum())
    assert (facts["kind"], facts["shape"]) == ("segmentation", [16, 40, 36])
    assert [(o["id"], o["pixels"]) for o in facts["objects"]] == [(1, count)]
    assert run(["info", str(out)]) == 0
    assert f"{count:,} voxels" in capsys.readouterr().out


@pytest.mark.slow
def test_info_knows_dicom_segmentations_journals_and_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "seg.dcm", tmp_path / "case.limner"
    said = ["--box", "5,40,44,80", "--name", "vertebra", "--journal", journal]
    assert run(_said(CT_SLICE, out, *said)) == 0
    capsys.readouterr()
    for path, expected in (
        (out, "dicom-seg"),
        (out, "vertebra"),
        (journal, "limner resume"),
        (manifest_path(out), "a manifest"),
    ):
        assert run(["info", str(path)]) == 0
        assert expected in capsys.readouterr().out
    structures = tmp_path / "rs.dcm"
    assert run(_said(CT_SLICE, structures, *said[:4], "--type", "rtstruct")) == 0
    assert run(["info", str(structures)]) == 2
    assert run(["info", str(structures), "--like", str(CT_SLICE)]) == 0
    assert "dicom-rtstruct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "what"), [(".dcm", "no DICOM images"), (".npz", "no images as")]
)
def test_convert_says_that_an_image_is_no_segmentation(
    suffix: str, what: str, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(volume), str(tmp_path / f"x{suffix}")]) == 2
    message = capsys.readouterr().err
    assert what in message
    assert f"a {suffix} is a segmentation" in message
    assert message.count("\n") == 1
    assert run(["convert", str(tmp_path / "gone.nii"), str(tmp_path / f"x{suffix}")]) == 2
    assert "no file" in capsys.readouterr().err


@pytest.mark.slow
def test_reports_are_one_line_each_and_show_small_areas(tmp_path: Path) -> None:
    source, out = tmp_path / "cells.nii.gz", tmp_path / f"{'long' * 20}.nii.gz"
    pixels = np.asarray(phantoms.image(3, (60, 60)).image.array).T
    nibabel.save(nibabel.Nifti1Image(pixels, np.diag([1e-3, 1e-3, 1, 1])), source)
    said = _said(source, out, "--box", "20,15,50,40", "--name", "[b]cell[/b]")
    done = _program(*said, env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[b]cell[/b]: ")
    count, area = (words.split() for words in lines[0].split(": ")[1].split(", ")[:2])
    assert area[1] == "µm²"
    assert float(area[0].replace(",", "")) == pytest.approx(int(count[0]), rel=1e-3)


def test_no_command_shows_the_help_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert "Usage" in captured.out + captured.err
    assert "limner:" not in captured.out + captured.err


@pytest.mark.slow
def test_world_positions_are_explained(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = limner.read(volume).geometry.index_to_world((8, 20, 18)) * (-1, -1, 1)
    click = ",".join(f"{x:.6f}" for x in at)
    out = tmp_path / "seg.nii.gz"
    assert run(_said(volume, out, "--click", click, "--world", "RAS")) == 0
    capsys.readouterr()
    assert run(_said(volume, out, "--click", "900,900,900", "--world", "ras")) == 2
    message = capsys.readouterr().err
    assert "mm in RAS" in message
    assert "xyz" not in message


@pytest.mark.slow
def test_models_are_listed_in_any_width_without_broken_words() -> None:
    done = _program("models", env={**os.environ, "COLUMNS": "30"})
    lines = done.stdout.splitlines()
    words = done.stdout.split()
    for card in limner.list_models():
        assert card.name in lines
        assert set(card.prompts) <= set(words)
    assert all(len(line) <= 30 or len(line.split()) == 1 for line in lines)  # such as addresses


def test_the_documented_prompt_file_is_read(tmp_path: Path) -> None:
    from limner.cli._prompt_files import read_prompts

    text = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
    path = tmp_path / "prompts.json"
    path.write_text(text.split("```json")[1].split("```")[0])
    said = read_prompts(path)
    assert said.names == {1: "liver", 2: "tumour"}
    assert [(e.prompt.kind, e.object_id, e.frame) for e in said.entries] == [
        ("box", 1, None),
        ("click", 1, None),
        ("click", 2, 18),
        ("scribble", 2, 18),
    ]


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, part in getattr(command, "commands", {}).items():
        yield from _commands(part, (*path, name))


@pytest.mark.parametrize("path", [*_commands(typer.main.get_command(app))], ids=" ".join)
def test_help_shows_words_as_they_are_written(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No ``:LABEL:`` that becomes an emoji, no markup that vanishes, no type beside a flag."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    command = typer.main.get_command(app)
    for part in path:
        command = command.commands[part]
    assert run([*path, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert not re.search("[\U0001f000-\U0001faff\u2600-\u27bf]", shown)
    assert "<bool>" not in shown
    for parameter in command.params:
        if parameter.help and not parameter.hidden:
            assert " ".join(parameter.help.split()) in shown


def test_names_are_printed_as_they_are(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.png"
    arguments = ["--click", "40,30", "--model", "toy", "--name", ":smile: [red]", "-o", str(out)]
    assert run(["segment", str(picture), *arguments]) == 0
    assert ":smile: [red]" in capsys.readouterr().err


def test_a_prompt_file_with_a_field_that_is_none_is_refused(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"name": {"1": "liver"}, "prompts": [{"kind": "click", "at": [40, 30]}]}')
    out = tmp_path / "m.png"
    arguments = ["--prompts", str(prompts), "--model", "toy", "-o", str(out)]
    assert run(["segment", str(picture), *arguments]) == 2
    assert "unknown field 'name'; a prompt file has " in capsys.readouterr().err
    assert not out.exists()


def test_verbose_says_what_is_done(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.png"
    arguments = ["segment", str(picture), "--click", "40,30", "--model", "toy", "-o", str(out)]
    assert run(["-v", *arguments]) == 0
    said = capsys.readouterr().err
    for part in (
        "photo.jpg is read as",
        "toy answers, on auto",
        "object 1: 1 prompts are answered",
    ):
        assert part in said
    assert run(arguments) == 0
    assert "is read as" not in capsys.readouterr().err


def test_info_says_where_axes_point(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(volume)]) == 0
    letters = limner.read(volume).geometry.orientation
    first, second, third = letters
    expected = f"{letters}: slices to {first}, rows to {second}, columns to {third}"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train recipe.yaml --data . --out", "train pack . -o"])
def test_a_file_is_no_folder_of_a_run(
    command: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    assert run([*command.split(), str(picture)]) == 2
    assert "photo.jpg is a file; --out" in capsys.readouterr().err
