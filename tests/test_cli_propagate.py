"""``limner propagate`` as a user meets it: films, scores, axes, damaged frames, two models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import limner
from limner.adapters.protocols import Segmentation
from limner.cli import _progress
from limner.cli.__main__ import run
from limner.errors import GeometryError, SessionError
from limner.io import write_image
from limner.models.toy import Toy
from video_makers import damage, moving_square, write_video

BOX = "20,16,44,40"  # of the square on frame 4
COUNT = 24


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="video files need the extra 'video'")
    return write_video(tmp_path / "clip.mkv", moving_square(COUNT)[0], "ffv1", pixel_format="gray")


def folder_of(path: Path, pixels: np.ndarray) -> Path:
    path.mkdir()
    for k, plane in enumerate(pixels):
        Picture.fromarray(plane).save(path / f"{k:02}.png")
    return path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# -- prompts, scores, films ------------------------------------------------------------------------


def test_a_mask_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    pixels, truth = moving_square(8)
    folder = folder_of(tmp_path / "frames", pixels)
    mask, out = tmp_path / "mask.png", tmp_path / "seg.tif"
    Picture.fromarray(truth[3].astype(np.uint8) * 2).save(mask)
    said = ["propagate", str(folder), "--frame", "3", "--mask", str(mask), "-o", str(out)]
    assert run([*said, "--model", "classical/region"]) == 0
    labels = limner.read_labels(out)
    assert labels.ids == (2,)
    assert limner.metrics.dice(labels.mask(2)[3], truth[3]) > 0.85
    assert limner.metrics.dice(labels.mask(2), truth) > 0.8


def test_scores_of_every_frame(clip: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "seg.tif", tmp_path / "scores.json"
    said = ["propagate", str(clip), "--frame", "4", "--box", BOX, "-o", str(out)]
    assert run([*said, "--model", "toy", "--scores", str(scores), "--name", "square"]) == 0
    facts = json.loads(scores.read_text())
    assert (facts["kind"], facts["model"], facts["propagator"]) == ("video", "toy", None)
    assert facts["names"] == {"1": "square"}
    assert [row["frame"] for row in facts["frames"]] == list(range(COUNT))
    assert [row["frame"] for row in facts["frames"] if row["annotated"]] == [4]
    labels = limner.read_labels(out)
    for row in facts["frames"]:
        mask = labels.mask(1)[row["frame"]]
        assert row["pixels"] == mask.sum()
        assert 0 <= row["score"] <= 1
        if mask.any():
            assert row["centre"] == pytest.approx([x.mean() for x in np.nonzero(mask)], abs=0.01)
    assert facts["look_at"]
    assert {place["frame"] for place in facts["look_at"]} <= set(range(COUNT)) - {4}


def test_areas_are_in_square_millimetres_where_they_are_known(tmp_path: Path) -> None:
    pixels, truth = moving_square(6)
    volume = tmp_path / "volume.nii.gz"
    geometry = limner.Geometry.from_spacing(pixels.shape, (3.0, 0.5, 2.0))
    write_image(volume, limner.Image(pixels, geometry))
    scores = tmp_path / "scores.json"
    said = ["propagate", str(volume), "--slice", "0", "--box", "20,8,44,32", "--model", "toy"]
    assert run([*said, "-o", str(tmp_path / "seg.nii.gz"), "--scores", str(scores)]) == 0
    rows = json.loads(scores.read_text())["frames"]
    assert rows[0]["annotated"]
    assert rows[0]["area_mm2"] == pytest.approx(rows[0]["pixels"] * 1.0)
    assert truth[0].sum() * 0.5 < rows[0]["pixels"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_a_preview_shows_every_frame(clip: Path, tmp_path: Path, suffix: str) -> None:
    preview = tmp_path / f"preview.{suffix}"
    said = ["propagate", str(clip), "--frame", "4", "--box", BOX, "-o", str(tmp_path / "seg.tif")]
    assert run([*said, "--model", "toy", "--preview", str(preview)]) == 0
    if suffix == "png":
        assert limner.read(preview).shape[1] > 400
        return
    shown = limner.read(preview)
    assert shown.shape[0] == COUNT
    marked = np.asarray(shown.slice_at(4)).astype(int)
    green = (marked[..., 1] > 150) & (marked[..., 0] < 130) & (marked[..., 2] < 160)
    assert green[:24, -110:].any(), "the annotated frame says so in its corner"
    if suffix == "mp4":
        facts = shown.metadata
        assert (facts["codec"], facts["pixel_format"]) == ("h264", "yuv420p")
        assert facts["frames_per_second"] == pytest.approx(25)
        assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0


def test_places_that_cannot_be_written_are_refused_first(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seg.tif"
    said = ["propagate", str(clip), "--frame", "4", "--box", BOX, "-o", str(out), "--model", "toy"]
    for more, reason in (
        (["--preview", str(tmp_path / "a.avi")], ".gif or .mp4"),
        (["--scores", str(tmp_path / "no" / "a.json")], "does not exist"),
        (["--scores", str(out)], "written twice"),
        (["--finish", "limner-3d"], "is a video"),
        (["--axis", "1"], "--axis"),
    ):
        assert run([*said, *more]) == 2
        error = told(capsys)
        assert reason in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_progress_is_lines_where_there_is_no_terminal(
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = ["propagate", str(clip), "--frame", "4", "--box", BOX, "-o", str(tmp_path / "a.tif")]
    assert run([*said, "--model", "toy"]) == 0
    assert "propagating" not in told(capsys), "quick work says nothing"
    monkeypatch.setattr(_progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(_progress, "LINE_S", 0.0)
    assert run([*said[:-1], str(tmp_path / "b.tif"), "--model", "toy"]) == 0
    lines = [line for line in told(capsys).splitlines() if line.startswith("propagating: ")]
    assert len(lines) == COUNT - 1
    assert lines[-1].startswith(f"propagating: {COUNT - 1} of {COUNT - 1} frames, ")
    assert lines[-1].endswith("0:00 left")


def test_what_takes_a_while_is_said_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _progress.waiting("reading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take it for a terminal
    with _progress.waiting("reading"):
        pass
    assert "reading" in capsys.readouterr().err


def test_another_model_carries(clip: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "seg.tif", tmp_path / "scores.json"
    said = ["propagate", str(clip), "--frame", "4", "--box", BOX, "-o", str(out)]
    more = ["--model", "toy", "--propagator", "classical/copy", "--scores", str(scores)]
    assert run([*said, *more]) == 0
    assert json.loads(scores.read_text())["propagator"] == "classical/copy"
    manifest = json.loads((tmp_path / "seg.tif.limner.json").read_text())
    assert manifest["propagator"]["name"] == "classical/copy"
    labels = limner.read_labels(out)
    assert all(labels.mask(1)[k].any() for k in range(COUNT))


# -- across another axis ---------------------------------------------------------------------------


def across_two() -> tuple[limner.Image, np.ndarray]:
    """A volume in which the square moves along the third axis."""
    pixels, truth = moving_square(12, (60, 70))
    pixels, truth = (np.ascontiguousarray(np.moveaxis(a, 0, 2)) for a in (pixels, truth))
    geometry = limner.Geometry.from_spacing(pixels.shape, (1.0, 2.0, 3.0), origin=(5, 6, 7))
    return limner.Image(pixels.astype(np.int16), geometry), truth


@pytest.mark.slow
def test_slices_may_lie_across_another_axis(tmp_path: Path) -> None:
    image, truth = across_two()
    path, out, scores = tmp_path / "v.nii.gz", tmp_path / "seg.nii.gz", tmp_path / "s.json"
    write_image(path, image)
    said = ["propagate", str(path), "--model", "toy", "-o", str(out), "--scores", str(scores)]
    journal, film = tmp_path / "j.limner", tmp_path / "film.gif"
    flat = ["--axis", "sagittal", "--slice", "3", "--box", "20,14,44,38"]
    assert run([*said, *flat, "--journal", str(journal), "--preview", str(film)]) == 0
    first = limner.read_labels(out, like=path)
    assert first.geometry == limner.read(path).geometry
    assert all(first.mask(1)[..., k].any() for k in range(12))
    assert limner.metrics.dice(first.mask(1)[..., 3], truth[..., 3]) > 0.9
    assert [row["frame"] for row in json.loads(scores.read_text())["frames"]] == list(range(12))
    assert limner.read(film).shape[0] == 12
    again = tmp_path / "again.nii.gz"
    assert run(["resume", str(journal), "-o", str(again)]) == 0
    assert np.array_equal(limner.read_labels(again).to_array(), first.to_array())
    solid = ["--axis", "2", "--box", "20,14,3,44,38,4"]
    assert run([*said, *solid]) == 0
    assert np.array_equal(limner.read_labels(out).to_array(), first.to_array())
    mask = np.zeros(truth.shape, np.uint8)
    mask[..., 5] = truth[..., 5]
    limner.write(tmp_path / "drawn.nii.gz", mask, like=path)
    assert run([*said, "--axis", "2", "--mask", str(tmp_path / "drawn.nii.gz")]) == 0
    labels = limner.read_labels(out, like=path)
    assert np.array_equal(labels.mask(1)[..., 5], truth[..., 5])


def test_a_volume_seen_across_another_axis(tmp_path: Path) -> None:
    image, truth = across_two()
    path = tmp_path / "v.nii.gz"
    write_image(path, image)
    seen = limner.read(path, axis=2)
    assert seen.shape == (12, 60, 70)
    assert np.array_equal(seen.slice_at(4), image.array[..., 4])
    assert seen.spacing == pytest.approx((3.0, 1.0, 2.0))
    corner = seen.geometry.index_to_world((1, 2, 3))
    assert corner == pytest.approx(image.geometry.index_to_world((2, 3, 1)))
    labels = {1: np.moveaxis(truth, 2, 0), 2: np.moveaxis(truth, 2, 0)}
    for name, given in (("a.nii.gz", labels[1].astype(np.uint8)), ("b.seg.nrrd", labels)):
        limner.write(tmp_path / name, given, like=seen)
        back = limner.read_labels(tmp_path / name, like=path)
        assert all(np.array_equal(back.mask(i), truth) for i in back.ids)
        turned = limner.read_labels(tmp_path / name, like=seen)
        assert np.array_equal(turned.mask(1), labels[1])
    with pytest.raises(GeometryError, match="0, 1 or 2"):
        limner.read(path, axis=3)
    picture = tmp_path / "p.png"
    Picture.fromarray(np.zeros((20, 30), np.uint8)).save(picture)
    with pytest.raises(GeometryError, match="Only a volume"):
        limner.read(picture, axis=1)


# -- cine series and time series -------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["single frames", "ultrasound", "angiography"])
def test_a_dicom_cine_is_carried_frame_by_frame(tmp_path: Path, layout: str) -> None:
    from dicom_makers import MR, US_MULTIFRAME, image_dataset, save, save_series

    pixels, truth = moving_square(8)
    path, out, film = tmp_path / "cine", tmp_path / "seg.nii.gz", tmp_path / "film.gif"
    path.mkdir()
    if layout == "single frames":  # one slice of a beating heart, a file per time
        times = {k: {"TriggerTime": 40.0 * k, "ImagePositionPatient": [0, 0, 5]} for k in range(8)}
        rng = np.random.default_rng(3)
        kind = {"sop_class": MR, "modality": "MR"}
        save_series(path, pixels.astype(np.int16), rng=rng, per_slice=times, **kind)
    else:
        modality = "US" if layout == "ultrasound" else "XA"
        ds = image_dataset(pixels, sop_class=US_MULTIFRAME, modality=modality)
        save(ds, path / "a.dcm", FrameTime=40)
    image = limner.read(path)
    assert (image.kind, image.shape) == ("video", pixels.shape)
    assert image.metadata["frame_time_ms"] == 40
    assert not image.is_loaded
    said = ["propagate", str(path), "--frame", "4", "--box", BOX, "-o", str(out)]
    assert run([*said, "--model", "toy", "--preview", str(film)]) == 0
    labels = np.asarray(limner.read_labels(out, like=image).to_array())
    assert all(labels[k].any() for k in range(8))
    assert limner.metrics.dice(labels[4] == 1, truth[4]) > 0.9
    with Picture.open(film) as shown:
        assert shown.info["duration"] == 40


def test_time_points_are_not_taken_for_colours_unnoticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, _ = moving_square(6)
    times = np.stack([pixels] * 5, axis=-1).astype(np.int16)
    path = tmp_path / "cine.nii.gz"
    write_image(path, limner.Image(times, limner.Geometry.from_spacing(pixels.shape, (1, 1, 1))))
    said = ["propagate", str(path), "--slice", "4", "--box", BOX, "--model", "toy"]
    assert run([*said, "-o", str(tmp_path / "a.nii.gz")]) == 0
    assert "5 time points" in told(capsys)
    assert run([*said, "-o", str(tmp_path / "b.nii.gz"), "--channel", "2"]) == 0
    assert "time points" not in told(capsys)
    one = limner.Image(times[4:5], limner.Geometry.from_spacing((1, *pixels.shape[1:]), (1, 1, 1)))
    write_image(path, one)
    assert run([*said[:3], "0", *said[4:], "-o", str(tmp_path / "c.nii.gz")]) == 2
    assert "is one slice at 5 times; only a video is carried over time" in told(capsys)


# -- damaged frames --------------------------------------------------------------------------------


def damaged_clip(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="video files need the extra 'video'")
    pixels, _ = moving_square(COUNT)
    return damage(write_video(tmp_path / "bad.avi", pixels, "mjpeg", pixel_format="yuvj420p"), 9)


@pytest.mark.slow
def test_what_was_done_before_a_damaged_frame_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, journal = damaged_clip(tmp_path), tmp_path / "seg.tif", tmp_path / "j.limner"
    said = ["propagate", str(path), "--frame", "4", "--box", BOX, "--model", "toy"]
    assert run([*said, "-o", str(out)]) == 2
    error = told(capsys)
    assert "frame 9 (counted from 0) cannot be decoded" in error
    assert "The 4 frames done before were not written: --partial does" in error
    assert "--lenient" in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert run([*said, "-o", str(out), "--journal", str(journal)]) == 2
    assert f"limner resume {journal} -o FILE" in told(capsys)
    assert run(["resume", str(journal), "-o", str(out)]) == 0
    kept = np.asarray(limner.read_labels(out).to_array())
    assert [k for k in range(COUNT) if kept[k].any()] == [4, 5, 6, 7, 8]
    out.unlink()
    film = tmp_path / "film.gif"
    assert run([*said, "-o", str(out), "--partial", "--preview", str(film)]) == 2
    assert f"{out} holds what was done before it" in told(capsys)
    assert np.array_equal(limner.read_labels(out).to_array(), kept)
    assert limner.read(film).shape[0] == COUNT


@pytest.mark.parametrize("propagator", [None, "classical/copy"])
def test_damaged_frames_are_passed_over_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], propagator: str | None
) -> None:
    path, out, scores = damaged_clip(tmp_path), tmp_path / "seg.tif", tmp_path / "s.json"
    said = ["propagate", str(path), "--frame", "4", "--box", BOX, "--lenient", "-o", str(out)]
    said += ["--model", "toy", "--journal", str(tmp_path / "j.limner")]
    said += [] if propagator is None else ["--propagator", propagator]
    assert run([*said, "--scores", str(scores)]) == 0
    assert "could not be read, so left empty: 9\n" in told(capsys)
    labels = np.asarray(limner.read_labels(out).to_array())
    assert not labels[9].any()
    assert all(labels[k].any() for k in (7, 8, 10, 11)), "the object is carried over it"
    facts = json.loads(scores.read_text())
    assert list(facts["damaged"]) == ["9"]
    assert facts["frames"][9]["pixels"] == 0
    again = tmp_path / "again.tif"
    assert run(["resume", str(tmp_path / "j.limner"), "-o", str(again)]) == 0
    assert np.array_equal(limner.read_labels(again).to_array(), labels)


def test_nothing_is_annotated_on_a_damaged_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, journal = damaged_clip(tmp_path), tmp_path / "j.limner"
    said = ["propagate", str(path), "--frame", "9", "--box", BOX, "--model", "toy"]
    for more in ([], ["--lenient"]):
        said_all = [*said, *more, "-o", str(tmp_path / "seg.tif"), "--journal", str(journal)]
        assert run(said_all) == 2
        error = told(capsys)
        assert "frame 9" in error
        assert error.count("\n") == 1
        assert not journal.exists()


def test_a_folder_with_a_cut_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels, _ = moving_square(10)
    folder, out = folder_of(tmp_path / "frames", pixels), tmp_path / "seg.tif"
    cut = folder / "06.png"
    cut.write_bytes(cut.read_bytes()[:-300])
    said = ["propagate", str(folder), "--frame", "4", "--box", BOX, "--model", "toy"]
    assert run([*said, "-o", str(out), "--partial", "--direction", "forward"]) == 2
    assert "06.png" in told(capsys)
    labels = np.asarray(limner.read_labels(out).to_array())
    assert [k for k in range(10) if labels[k].any()] == [4, 5]
    assert run([*said, "-o", str(out), "--lenient"]) == 0
    labels = np.asarray(limner.read_labels(out).to_array())
    assert [k for k in range(10) if not labels[k].any()] == [6]


# -- a look in 3D at the end -----------------------------------------------------------------------


class Grows(Toy):
    """A 3D model: every mask gets a rim of one voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.card = replace(self.card, name="grows", ndim=(3,), zoom=False)

    def segment(self, embedding: object, prompts: object, previous: object = None) -> Segmentation:
        from scipy import ndimage

        (prompt,) = prompts  # type: ignore[misc]
        grown = ndimage.binary_dilation(prompt.mask)
        return Segmentation(np.where(grown, np.float32(5), np.float32(-5)), 0.9)


def test_a_3d_model_goes_over_the_masks() -> None:
    pixels, truth = moving_square(8)
    image = limner.Image(pixels, limner.Geometry.from_spacing(pixels.shape))
    with limner.open_session(image, "toy") as session:
        session.add(limner.MaskPrompt(truth[3]), frame=3)
        session.add(limner.MaskPrompt(truth[5, :, ::-1]), frame=5, object_id=2)
        session.name(2, "other")
        list(session.propagate(object_id=1))
        before = session.export()
        after = limner.refine_3d(session, Grows())
        assert np.array_equal(session.export().mask(1), before.mask(1))
    assert np.array_equal(after.mask(1)[3], before.mask(1)[3]), "as it was drawn"
    assert (after.mask(1) & ~before.mask(1)).any()
    assert after.names == {2: "other"}
    finished = after.manifest["finished"]
    assert finished["model"]["name"] == "grows"
    gained = int((after.mask(1) & ~before.mask(1)).sum())
    assert finished["changed_voxels"]["1"] == {"added": gained, "removed": 0}
    with limner.open_session(image, "toy") as session:
        session.add(limner.MaskPrompt(truth[3]), frame=3)
        with pytest.raises(SessionError, match="does not work in 3D"):
            limner.refine_3d(session, "limner-2d")
    video = limner.Image(pixels, image.geometry, kind="video")
    with limner.open_session(video, "toy") as session, pytest.raises(SessionError, match="video"):
        limner.refine_3d(session)


def test_the_command_finishes_with_a_3d_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, _ = moving_square(8)
    path, out = tmp_path / "v.nii.gz", tmp_path / "seg.nii.gz"
    write_image(path, limner.Image(pixels, limner.Geometry.from_spacing(pixels.shape)))
    said = ["propagate", str(path), "--slice", "3", "--box", "20,14,44,38", "--model", "toy"]
    assert run([*said, "-o", str(out), "--finish", "limner-3d"]) == 0
    assert "limner-3d added " in told(capsys)
    manifest = json.loads((tmp_path / "seg.nii.gz.limner.json").read_text())
    assert manifest["finished"]["model"]["name"] == "limner-3d"
