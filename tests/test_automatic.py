"""Automatic segmentation: image in, labels out, statistics, samples, and corrections by clicks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import limner
from limner.adapters.axes import Axes
from limner.cli.__main__ import run
from limner.errors import PromptError, SessionError
from limner.geometry import Geometry
from limner.io import Image, write_image
from limner.models import View
from limner.models.toy import Toy
from limner.models.toy_automatic import CARD, Bands
from limner.pipeline.automatic import compute_uncertainty
from limner.pipeline.correct import open_correction

SPACING = (3.0, 1.0, 0.5)


def pixels_of(shape: tuple[int, ...] = (6, 20, 30)) -> np.ndarray:
    """Dark, with a grey box (label 1) and a bright one (label 2)."""
    pixels = np.zeros(shape, np.int16)
    pixels[..., 4:10, 5:15] = 500
    pixels[..., 12:18, 16:26] = 1000
    if len(shape) == 3:
        pixels[0] = pixels[-1] = 0
    return pixels


def volume() -> Image:
    return Image(pixels_of(), Geometry.from_spacing((6, 20, 30), SPACING), modality="MR")


class Coarse(Bands):
    """The same model at a spacing of its own; knows what it was shown."""

    def __init__(self, spacing: tuple[float, ...], ndim: tuple[int, ...] = (2, 3)) -> None:
        self.card = replace(CARD, spacing=spacing, ndim=ndim)
        self.views: list[View] = []

    def predict(self, view: View) -> np.ndarray:
        self.views.append(view)
        return super().predict(view)


def test_labels_lie_on_the_grid_of_the_image_and_are_measured() -> None:
    image = volume()
    found = limner.segment_automatically(image, "toy-automatic/bands")
    pixels = pixels_of()
    np.testing.assert_array_equal(found.labels.to_array(), (pixels > 0) * 1 + (pixels > 900))
    assert found.labels.geometry == image.geometry
    assert found.names == {1: "grey", 2: "bright"}
    grey = found.statistics[0].to_json()
    assert grey == {
        "id": 1,
        "name": "grey",
        "voxels": 4 * 6 * 10,
        "volume_mm3": 240 * 1.5,
        "volume_ml": 0.36,
        "mean": (500.0,),
        "std": (0.0,),
        "low": (1, 4, 5),
        "high": (5, 10, 15),
    }
    assert found.labels.manifest["method"] == "automatic"
    assert found.logits is None


def test_spread_and_channels_are_measured() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(1e6, 3.0, (4, 9, 9, 2))
    image = Image(pixels, Geometry.from_spacing((4, 9, 9), (1, 1, 1)))
    labels = limner.io.Labels(image.geometry, array=np.ones((4, 9, 9), np.uint8))
    from limner.pipeline.statistics import measure_labels

    (facts,) = measure_labels(labels, image, {1: "all"})
    np.testing.assert_allclose(facts.std, pixels.std(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(facts.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-5)
    (empty,) = measure_labels(labels, image, {7: "none"})
    assert empty.to_json() == {
        "id": 7,
        "name": "none",
        "voxels": 0,
        "volume_mm3": 0.0,
        "volume_ml": 0.0,
    }


def test_only_what_was_asked_for_is_a_label() -> None:
    found = limner.segment_automatically(volume(), Bands(), labels=["Bright"])
    assert found.labels.ids == (2,)
    assert [facts.id for facts in found.statistics] == [2]
    same = limner.segment_automatically(volume(), Bands(), labels=[2])
    np.testing.assert_array_equal(same.labels.to_array(), found.labels.to_array())
    with pytest.raises(ValueError, match=r"liver.*grey \(1\), bright \(2\)"):
        limner.segment_automatically(volume(), Bands(), labels=["liver"])


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 1.0), (1.0, 0.5, 0.25), (2.0, 1.3, 0.7)])
def test_a_model_sees_its_own_spacing_and_the_answer_comes_back(
    spacing: tuple[float, ...],
) -> None:
    model = Coarse(spacing)
    found = limner.segment_automatically(volume(), model, keep_logits=True)
    (view,) = model.views
    np.testing.assert_allclose(view.spacing, spacing, rtol=0.1)
    truth = (pixels_of() > 0) * 1 + (pixels_of() > 900)
    labels = found.labels.to_array()
    assert found.logits.shape == (3, *truth.shape)
    np.testing.assert_array_equal(found.logits.argmax(axis=0), labels)
    for label in (1, 2):
        assert limner.metrics.dice(labels == label, truth == label) > 0.7


def test_the_way_a_volume_is_stored_makes_no_difference() -> None:
    plain = limner.segment_automatically(volume(), Bands()).labels.to_array()
    axes = Axes((2, 0, 1), (True, False, True))
    affine = np.eye(4)
    affine[:3, :3] = axes.directions(volume().affine[:3, :3])
    stored = Image(
        np.ascontiguousarray(axes.apply(pixels_of())), Geometry(axes.sizes((6, 20, 30)), affine)
    )
    turned = limner.segment_automatically(stored, Bands())
    np.testing.assert_array_equal(axes.undo(turned.labels.to_array()), plain)
    assert turned.statistics[0].low == axes.bounds(((1, 4, 5), (5, 10, 15)), (6, 20, 30))[0]


def test_a_model_of_slices_labels_a_volume_slice_by_slice() -> None:
    model, seen = Coarse((2.0, 1.0), ndim=(2,)), []
    found = limner.segment_automatically(
        volume(), model, keep_logits=True, progress=lambda *at: seen.append(at)
    )
    assert [view.shape for view in model.views] == [(10, 15)] * 6
    assert seen[-1] == (6, 6)
    assert found.logits.shape == (3, 6, 20, 30)
    assert found.labels.ids == (1, 2)


def test_labels_that_overlap_are_kept_apart() -> None:
    class Nested(Bands):
        card = replace(CARD, overlapping=True)

        def predict(self, view: View) -> np.ndarray:
            grey = view.normalized()
            return np.stack([grey - 0.3, grey - 0.6]).astype(np.float32)

    found = limner.segment_automatically(volume(), Nested())
    np.testing.assert_array_equal(found.labels.mask(1), pixels_of() > 0)
    np.testing.assert_array_equal(found.labels.mask(2), pixels_of() > 900)
    assert found.to_json()["overlapping_pixels"] == found.statistics[1].voxels


def test_samples_give_a_mean_and_say_where_the_model_is_unsure() -> None:
    pixels = pixels_of()
    pixels[..., 6, 7] = 340  # near the lower cut
    image = Image(pixels, volume().geometry)
    found = limner.segment_automatically(image, "toy-automatic/samples", samples=40, seed=3)
    again = limner.segment_automatically(image, "toy-automatic/samples", samples=40, seed=3)
    assert found.uncertainty.shape == pixels.shape
    np.testing.assert_array_equal(found.uncertainty, again.uncertainty)
    assert found.uncertainty[2, 6, 7] > 0.4 > found.uncertainty[2, 14, 20]
    assert found.labels.ids == (1, 2)
    assert found.labels.manifest["samples"] == 40
    with pytest.raises(ValueError, match="draws no samples"):
        limner.segment_automatically(image, Bands(), samples=3)
    with pytest.raises(ValueError, match="from 1 to 1000"):
        limner.segment_automatically(image, "toy-automatic/samples", samples=0)


def test_uncertainty_is_the_share_of_the_largest_entropy() -> None:
    sure, even = np.array([1.0, 0.0, 0.0]), np.full(3, 1 / 3)
    found = compute_uncertainty(
        np.stack([sure, even], axis=1).astype(np.float32), overlapping=False
    )
    np.testing.assert_allclose(found, [0.0, 1.0], atol=1e-4)
    one_open = compute_uncertainty(np.array([[1.0], [0.5]], np.float32), overlapping=True)
    np.testing.assert_allclose(one_open, [1.0], atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SessionError, match="limner segment"):
        limner.segment_automatically(volume(), "toy")
    with pytest.raises(SessionError, match="works on volumes"):
        limner.segment_automatically(np.zeros((8, 8)), Coarse((1.0, 1.0, 1.0), ndim=(3,)))
    with pytest.raises(ValueError, match="limner auto"):
        limner.open_session(volume(), model="toy-automatic/bands")
    with pytest.raises(TypeError, match="weights="):
        limner.segment_automatically(volume(), Bands(), weights="file")


@pytest.fixture
def nifti(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "case.nii.gz"
    write_image(path, volume())
    return path


def test_the_command_writes_labels_statistics_and_preview(
    nifti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, stats, preview = (tmp_path / n for n in ("seg.nii.gz", "stats.json", "look.png"))
    command = ["auto", str(nifti), "--model", "toy-automatic/bands", "-o", str(out)]
    assert run([*command, "--stats", str(stats), "--preview", str(preview), "--json"]) == 0
    labels = limner.read_labels(out, like=nifti)
    assert labels.ids == (1, 2)
    facts = json.loads(stats.read_text())
    assert [label["name"] for label in facts["labels"]] == ["grey", "bright"]
    assert facts["labels"][0]["volume_ml"] == pytest.approx(0.36)
    assert json.loads(capsys.readouterr().out)["labels"] == facts["labels"]
    assert limner.read(preview).geometry.ndim == 2
    assert (tmp_path / "seg.nii.gz.limner.json").exists()


def test_the_command_writes_uncertainty_on_the_grid_of_the_image(
    nifti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, unsure = tmp_path / "seg.nii.gz", tmp_path / "unsure.nii.gz"
    command = ["auto", str(nifti), "-o", str(out), "--labels", "bright", "--model"]
    sampling = [*command, "toy-automatic/samples", "--samples", "4", "--uncertainty", str(unsure)]
    assert run(sampling) == 0
    written = limner.read(unsure)
    assert written.geometry.is_close(limner.read(nifti).geometry)
    assert 0 <= written.array.min() < written.array.max() <= 1
    assert run([*command, "toy-automatic/bands", "--uncertainty", str(unsure)]) == 2
    assert "draws no samples" in capsys.readouterr().err
    assert run([*command, "toy-automatic/bands", "--stats", str(out)]) == 2
    assert "written twice" in capsys.readouterr().err


def test_auto_first_then_corrected_by_a_click(nifti: Path, tmp_path: Path) -> None:
    out, journal, fixed = (tmp_path / n for n in ("seg.nii.gz", "case.limner", "fixed.nii.gz"))
    command = ["auto", str(nifti), "--model", "toy-automatic/bands", "-o", str(out)]
    assert run([*command, "--journal", str(journal), "--correct-with", "toy"]) == 0
    with limner.resume(journal) as session:
        assert session.names == {1: "grey", 2: "bright"}
        assert [prompt.kind for prompt in session.prompts] == ["mask", "mask"]
    click = ["--object", "1", "--click", "2,2,2"]
    assert run(["resume", str(journal), *click, "-o", str(fixed)]) == 0
    labels = limner.read_labels(fixed, like=nifti)
    assert labels.mask(1)[2, 2, 2]
    np.testing.assert_array_equal(labels.mask(2), pixels_of() > 900)


def test_a_label_that_skips_slices_is_measured() -> None:
    pixels = pixels_of()
    pixels[2] = 0
    image = Image(pixels, Geometry.from_spacing(pixels.shape, SPACING))
    grey, _ = limner.segment_automatically(image, Bands()).statistics
    assert (grey.voxels, grey.mean, grey.low) == (180, (500.0,), (1, 4, 5))


def test_info_describes_what_the_command_wrote(
    nifti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seg.nii.gz"
    assert run(["auto", str(nifti), "--model", "toy-automatic/bands", "-o", str(out)]) == 0
    assert run(["info", f"{out}.limner.json", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["image"]) == ("toy-automatic/bands", str(nifti))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--uncertainty", "{}/u.png"], "a PNG holds whole numbers"),
        (["--stats", "{}"], "is a folder"),
        (["--journal", "{}/none/case.limner"], "does not exist; make it first"),
        (["--journal", "{}/old.limner"], "exists. Continue it"),
        (["--journal", "{}/case.limner", "--correct-with", "nonesuch"], "Unknown model"),
        (["--correct-with", "toy"], "goes with --journal"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    nifti: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "old.limner").write_text("old")
    before = set(tmp_path.iterdir())
    command = ["auto", str(nifti), "--model", "toy-automatic/samples", "--samples", "2"]
    given = [option.format(tmp_path) for option in options]
    assert run([*command, "-o", str(tmp_path / "seg.nii.gz"), *given]) == 2
    assert message in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_a_session_begins_with_the_labels_as_objects() -> None:
    found = limner.segment_automatically(volume(), Bands())
    with open_correction(found, "toy") as session:
        assert session.object_ids == (1, 2)
        session.add(limner.Click((2, 15, 20), positive=False), object_id=2)
        assert not session.predict(object_id=2).mask[2, 15, 20]


def test_a_model_that_takes_no_masks_leaves_no_journal(tmp_path: Path) -> None:
    class Clicked(Toy):
        card = replace(Toy.card, prompts=frozenset({"click"}))

    found = limner.segment_automatically(volume(), Bands())
    with pytest.raises(PromptError, match="understands click"):
        open_correction(found, Clicked(), journal=tmp_path / "case.limner")
    assert not (tmp_path / "case.limner").exists()
