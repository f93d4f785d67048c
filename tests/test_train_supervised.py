"""Supervised training end to end: a folder in, weights out that limner auto takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import limner  # noqa: E402
from bench_makers import write_png  # noqa: E402
from limner.checkpoints.load import read_weights  # noqa: E402
from limner.cli.__main__ import run  # noqa: E402
from limner.datasets import Case  # noqa: E402
from limner.errors import FormatError  # noqa: E402
from limner.geometry import Geometry  # noqa: E402
from limner.io import Image, Labels, write_image  # noqa: E402
from limner.train.data.labelled_cases import (  # noqa: E402
    Layout,
    find_cases,
    make_plan,
    prepare_cases,
    read_turned,
)
from limner.train.recipe import read_recipe  # noqa: E402
from limner.train.segmentation_losses import IGNORED  # noqa: E402
from limner.train.tasks.supervised import Config, count_overlaps  # noqa: E402
from train_makers import one_thread  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


RECIPES = Path(__file__).parents[1] / "recipes"
SHAPE, SPACING = (6, 16, 16), (3.0, 1.0, 1.0)
SMALL = """
method: supervised
patch: [4, 16, 16]
widths: [8, 16]
blocks: [1, 1]
steps: {steps}
batch_size: 2
learning_rate: 1e-2
warmup_steps: 2
ema_decay: 0.8
precision: fp32
foreground_fraction: 0.5
augment: false
log_every: 5
validate_every: 1000
checkpoint_every: 1000
"""


def make_volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey and a bright box on noise, and what they are."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    row, column = rng.integers(0, 4, 2)
    labels[1:5, row : row + 6, column : column + 5] = 1
    labels[2:6, row + 7 : row + 12, column + 4 : column + 11] = 2
    pixels = rng.normal(0, 6, SHAPE) + np.array([0, 60, 140])[labels]
    return pixels.astype(np.float32), labels


def write_case(image: Path, labels: Path, seed: int, *, channels: int = 1) -> None:
    """A case in one file per channel, the second one inverted."""
    pixels, truth = make_volume(seed)
    geometry = Geometry.from_spacing(SHAPE, SPACING)
    for k in range(channels):
        path = image if channels == 1 else image.with_name(f"{image.name[:-12]}_{k:04}.nii.gz")
        write_image(path, Image(pixels if k == 0 else 200 - pixels, geometry))
    limner.write(labels, Labels(geometry, array=truth), like=geometry)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """images/ and masks/ without any description."""
    folder = tmp_path / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed in range(5):
        name = f"case{seed}.nii.gz"
        write_case(folder / "images" / name, folder / "masks" / name, seed)
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """nnU-Net raw with two channels."""
    folder = tmp_path / "Dataset001_Boxes"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for seed in range(4):
        image = folder / "imagesTr" / f"b_{seed}_0000.nii.gz"
        write_case(image, folder / "labelsTr" / f"b_{seed}.nii.gz", seed, channels=2)
    facts = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "grey box": 1, "bright box": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def recipe_of(folder: Path, steps: int = 25, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    lines = SMALL.format(steps=steps).splitlines()
    kept = [line for line in lines if line.split(":")[0] not in changes]
    path.write_text("\n".join([*kept, *(f"{k}: {json.dumps(v)}" for k, v in changes.items())]))
    return path


def test_recipes_of_the_method_are_read() -> None:
    found = [read_recipe(path) for path in sorted(RECIPES.glob("resenc-unet*.yaml"))]
    assert found
    assert all(isinstance(config, Config) for config in found)


def test_a_folder_of_images_and_masks_becomes_a_model_that_labels_a_new_image(
    plain: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "run", recipe_of(tmp_path)
    command = ["train", str(recipe), "--data", str(plain), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    weights = out / "resenc-unet.safetensors"
    pixels, truth = make_volume(99)
    image = tmp_path / "new.nii.gz"
    write_image(image, Image(pixels, Geometry.from_spacing(SHAPE, SPACING)))
    found = tmp_path / "found.nii.gz"
    given = ["--model", "resenc-unet", "--weights", str(weights), "--exact", "-o", str(found)]
    assert run(["auto", str(image), *given]) == 0
    labels = limner.read_labels(found, like=image).to_array()
    for label in (1, 2):
        assert limner.metrics.dice(labels == label, truth == label) > 0.8


def test_names_channels_and_spacing_of_nnunet_raw_are_in_the_weights(
    raw: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "run", recipe_of(tmp_path, 2, name="boxes")
    command = ["train", str(recipe), "--data", str(raw), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    _, facts = read_weights(out / "boxes.safetensors")
    plan = facts["plan"]
    assert plan["labels"] == {"1": "grey box", "2": "bright box"}
    assert len(plan["normalization"]) == 2
    assert plan["spacing"] == list(SPACING)
    assert plan["kernels"] == [[1, 3, 3], [3, 3, 3]]
    model = limner.create_model("resenc-unet", weights=out / "boxes.safetensors", exact=True)
    assert model.card.channels == 2


def test_colour_images_are_learnt_in_2d_and_volumes_slice_by_slice(
    plain: Path, tmp_path: Path
) -> None:
    colours = tmp_path / "colours"
    for seed in range(3):
        pixels, truth = (part[3] for part in make_volume(seed))
        rgb = np.stack([pixels, 200 - pixels, pixels], axis=-1).clip(0, 255).astype(np.uint8)
        write_png(colours / "images" / f"p{seed}.png", rgb)
        write_png(colours / "masks" / f"p{seed}.png", truth)
    for data, channels in ((colours, 3), (plain, 1)):
        out = tmp_path / f"run{channels}"
        recipe = recipe_of(tmp_path, 2, patch=[16, 16])
        command = ["train", str(recipe), "--data", str(data), "--out", str(out), "--device", "cpu"]
        assert run(command) == 0
        weights = out / "resenc-unet.safetensors"
        image = next((data / "images").iterdir())
        found = limner.segment_automatically(image, "resenc-unet", weights=weights, exact=True)
        assert found.card.channels == channels
        assert found.labels.geometry.shape == limner.read(image).geometry.shape


def test_the_result_needs_no_export(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "run", recipe_of(tmp_path, 1)
    command = ["train", str(recipe), "--data", str(plain), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    assert run(["train", "export", str(out), "-o", str(tmp_path / "exported")]) == 2
    assert "limner auto --weights takes it" in capsys.readouterr().err


def test_a_folder_of_several_sets_is_refused(plain: Path) -> None:
    for name in ("a", "b"):
        (plain.parent / "both" / name).mkdir(parents=True)
        for part in ("images", "masks"):
            (plain.parent / "both" / name / part).symlink_to(plain / part)
    with pytest.raises(FormatError, match="holds a, b; name the folder of one"):
        find_cases(plain.parent / "both")


def labelled(folder: Path, number: int = 3, modality: str = "unknown") -> list[Case]:
    found, names = find_cases(folder)
    assert not names
    splits = ["train"] * (number - 1) + ["val"]
    return [
        replace(case, modality=modality, split=split)
        for case, split in zip(found[:number], splits, strict=True)
    ]


def test_cases_are_prepared_once_at_the_spacing_of_the_plan(plain: Path, tmp_path: Path) -> None:
    layout = Layout((4, 16, 16), spacing=(1.5, 2.0, 2.0), widths=(4, 8, 8), blocks=(1, 1, 1))
    images = labelled(plain)
    plan, cases, digest = prepare_cases(images, {1: "a", 2: "b"}, layout, tmp_path / "kept")
    assert [case.labels.shape for case in cases] == [(12, 8, 8)] * 3
    assert [case.validates for case in cases] == [False, False, True]
    assert abs(float(cases[0].image.mean())) < 0.01
    for path in (plain / "images").iterdir():  # sizes stay, contents are not read again
        path.write_bytes(bytes(path.stat().st_size))
    again = prepare_cases(images, {1: "a", 2: "b"}, layout, tmp_path / "kept")
    assert again[0] == plan
    assert again[2] == digest
    np.testing.assert_array_equal(again[1][1].image, cases[1].image)


def test_cases_that_cannot_be_used_are_named_and_left_out(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout((4, 16, 16), widths=(4, 8), blocks=(1, 1))
    images = labelled(plain)
    images[0].images[0].write_bytes(b"no image at all")
    assert images[0].labels is not None
    _, kept, _ = prepare_cases(images, {1: "a", 2: "b"}, layout, tmp_path / "kept")
    assert len(kept) == 2
    assert f"{images[0].name} is left out: " in caplog.text
    _, again, _ = prepare_cases(images, {1: "a", 2: "b"}, layout, tmp_path / "kept")
    assert len(again) == 2
    for case in images[1:]:
        case.images[0].write_bytes(b"no image at all")
    with pytest.raises(FormatError, match="No case can be trained on"):
        prepare_cases(images, {1: "a", 2: "b"}, layout, tmp_path / "run" / "prepared")
    assert not (tmp_path / "run" / "prepared").exists()


def test_a_label_called_ignore_does_not_count_and_one_without_a_name_is_an_error(
    plain: Path, tmp_path: Path
) -> None:
    layout = Layout((4, 16, 16), widths=(4, 8), blocks=(1, 1))
    names = {1: "a", 2: "ignore"}
    plan, cases, _ = prepare_cases(labelled(plain), names, layout, tmp_path / "kept")
    assert plan.labels == {1: "a"}
    assert set(np.unique(cases[0].labels)) == {IGNORED, 0, 1}
    with pytest.raises(FormatError, match=r"labels 2, which have no name.*1 \(a\)"):
        prepare_cases(labelled(plain), {1: "a"}, layout, tmp_path / "other")


def test_what_was_not_annotated_in_a_case_may_be_there(plain: Path, tmp_path: Path) -> None:
    layout = Layout((4, 16, 16), widths=(4, 8), blocks=(1, 1))
    cases = labelled(plain)
    cases[0] = replace(cases[0], annotated=frozenset({"1"}))
    _, found, _ = prepare_cases(cases, {1: "a", 2: "b"}, layout, tmp_path / "kept")
    assert 0 not in found[0].labels
    assert 0 in found[1].labels


def test_the_ignored_label_of_nnunet_raw_does_not_count(raw: Path, tmp_path: Path) -> None:
    path = raw / "dataset.json"
    facts = json.loads(path.read_text())
    facts["labels"] = {"background": 0, "grey box": 1, "ignore": 2}
    path.write_text(json.dumps(facts))
    cases, names = find_cases(raw)
    assert names == {1: "grey box", 2: "ignore"}
    plan, found, _ = prepare_cases(
        cases, names, Layout((4, 16, 16), widths=(4, 8), blocks=(1, 1)), tmp_path / "kept"
    )
    assert plan.labels == {1: "grey box"}
    assert IGNORED in found[0].labels


def test_ct_is_normalised_by_facts_of_all_cases_and_others_by_their_own(plain: Path) -> None:
    layout = Layout((4, 16, 16), widths=(4, 8), blocks=(1, 1))
    (fixed,) = make_plan(labelled(plain, modality="CT"), {1: "a", 2: "b"}, layout).normalization
    assert fixed.kind == "fixed"
    pixels = np.concatenate([p[t > 0] for p, t in map(make_volume, range(2))])
    assert fixed.mean == pytest.approx(pixels.mean(), rel=1e-3)
    assert fixed.low < 60 < 140 < fixed.high
    (own,) = make_plan(labelled(plain, modality="MR"), {1: "a", 2: "b"}, layout).normalization
    assert own.kind == "zscore"


def test_volumes_are_turned_as_sessions_turn_them(plain: Path) -> None:
    image = labelled(plain)[0]
    pixels, labels, spacing, measured = read_turned(image)
    truth = make_volume(0)[1]
    np.testing.assert_array_equal(labels, truth)
    assert (pixels.shape, spacing, measured) == ((*SHAPE, 1), SPACING, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": [16]}, "2 or 3 axes"),
        ({"patch": [4, -16, 16]}, "numbers from 1"),
        ({"blocks": [1]}, "a stage has one of each"),
        ({"mirror": [3]}, "axes 0 to 2"),
        ({"spacing": [1.0]}, "one value per axis"),
        ({"foreground_fraction": 2.0}, "0 to 1"),
    ],
)
def test_impossible_recipes_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=message):
        read_recipe(recipe_of(tmp_path, **change))


def test_overlaps_leave_out_what_nobody_knows() -> None:
    labels = np.array([[1, 1, 0, IGNORED], [2, 2, 0, IGNORED]])
    answer = np.array([[1, 0, 1, 1], [2, 1, 0, 2]])
    np.testing.assert_array_equal(count_overlaps(answer, labels, 2), [[1, 1], [3, 1], [2, 2]])


def test_label_maps_without_a_label_are_refused(plain: Path, tmp_path: Path) -> None:
    cases = labelled(plain)
    geometry = Geometry.from_spacing(SHAPE, SPACING)
    for case in cases:
        assert case.labels is not None
        limner.write(case.labels, Labels(geometry, array=np.zeros(SHAPE, np.uint8)), like=geometry)
    layout = Layout((4, 16, 16), widths=(8, 16), blocks=(1, 1))
    with pytest.raises(FormatError, match="No label map holds a label above 0"):
        prepare_cases(cases, {}, layout, tmp_path / "prepared")


def test_pictures_are_refused_by_a_network_of_volumes(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "a.png", np.eye(8, dtype=np.uint8))
    cases, names = find_cases(tmp_path)
    with pytest.raises(FormatError, match=r"a\.png is a 2D image, and the recipe's patch has 3"):
        prepare_cases(cases, names, Layout((4, 16, 16)), tmp_path / "prepared")


def test_a_case_without_one_of_its_channels_is_named(raw: Path, tmp_path: Path) -> None:
    cases, names = find_cases(raw)
    cases[1] = replace(cases[1], images=cases[1].images[:1])
    layout = Layout((4, 16, 16), widths=(8, 16), blocks=(1, 1))
    with pytest.raises(FormatError, match=rf"{cases[1].images[0].name}: 1 channel\(s\), and other"):
        prepare_cases(cases, names, layout, tmp_path / "prepared")


def test_an_empty_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(FormatError, match=r"empty\.yaml is empty"):
        read_recipe(tmp_path / "empty.yaml")
