"""Data sets of every layout become the same record, and no pixel is opened on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.datasets import (
    LAYOUTS,
    Layout,
    files,
    find_training_sets,
    open_dataset,
    open_datasets,
)
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io.image import Image

VOLUME = Geometry.from_spacing((6, 20, 24), (3.0, 1.0, 1.0))


def write_image(path: Path, array: NDArray[Any], geometry: Geometry | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    like = geometry or Geometry.from_spacing(array.shape[:2])
    limner.io.write_image(path, Image(array, like))


def write_labels(path: Path, array: NDArray[Any], geometry: Geometry | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    limner.write(path, array, like=geometry or Geometry.from_spacing(array.shape))


def make_labels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[..., 4:12, 4:12] = 1
    labels[..., 12:18, 12:20] = 2
    return labels


def make_image(seed: int, shape: tuple[int, ...] = (20, 24)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 40, shape)
    return (noise + 80 * make_labels(shape)).astype(np.uint8)


def make_plain(folder: Path, count: int = 3, *, masks: str = "masks", **facts: Any) -> Path:
    """2D images and masks; `facts` become ``dataset.json``."""
    for k in range(count):
        write_image(folder / f"images/c{k}.png", make_image(k))
        write_labels(folder / masks / f"c{k}.png", make_labels((20, 24)))
    if facts:
        (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def make_nnunet(folder: Path, count: int = 2, *, channels: int = 2) -> Path:
    """Volumes with a file per channel."""
    for k in range(count):
        for channel in range(channels):
            array = make_image(10 * k + channel, VOLUME.shape).astype(np.int16)
            write_image(folder / f"imagesTr/v{k}_{channel:04d}.nii.gz", array, VOLUME)
        write_labels(folder / f"labelsTr/v{k}.nii.gz", make_labels(VOLUME.shape), VOLUME)
    facts = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole tumour": [1, 2], "core": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def test_every_layout_keeps_the_protocol() -> None:
    assert all(isinstance(layout, Layout) for layout in LAYOUTS)


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_plain_folders_with_and_without_a_description(tmp_path: Path, masks: str) -> None:
    (bare,) = open_datasets(make_plain(tmp_path / "bare", masks=masks))
    assert (bare.name, bare.kind, bare.unit, list(bare.cases)) == (
        *("bare", "image", "label"),
        ["c0", "c1", "c2"],
    )
    assert bare.cases["c1"].group == "c1"
    facts: dict[str, Any] = {
        "targets": {"1": "disc", "2": "cup"},
        "modality": "fundus photography",
        "licence": "CC0",
        "group": {"c0": "p", "c1": "p"},
        "cases": {"c2": {"targets": ["1"]}},
    }
    (full,) = open_datasets(make_plain(tmp_path / "full", masks=masks, **facts))
    case = full.cases["c0"]
    assert case.label_names == {"disc": (1,), "cup": (2,)}
    assert (case.modality, case.licence, case.group) == ("fundus photography", "CC0", "p")
    assert full.cases["c2"].annotated == {"1"}
    image = case.read_image()
    assert image.geometry.shape == (20, 24)
    assert list(case.read_labels(like=image).ids) == [1, 2]


def test_no_pixels_are_opened_to_list_cases(tmp_path: Path) -> None:
    make_plain(tmp_path / "plain")
    make_nnunet(tmp_path / "raw")
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".png", ".gz"):
            path.write_bytes(b"no pixels")
    assert [s.name for s in open_datasets(tmp_path)] == ["plain", "raw"]


def test_nnunet_raw_has_channels_and_regions_of_several_values(tmp_path: Path) -> None:
    make_nnunet(tmp_path)
    write_image(tmp_path / "imagesTs/t_0000.nii.gz", make_image(3, VOLUME.shape), VOLUME)
    write_image(tmp_path / "imagesTs/t_0001.nii.gz", make_image(4, VOLUME.shape), VOLUME)
    (found,) = open_datasets(tmp_path)
    assert {n: c.split for n, c in found.cases.items()} == {"v0": None, "v1": None, "t": "test"}
    case = found.cases["v0"]
    assert [path.name for path in case.images] == ["v0_0000.nii.gz", "v0_0001.nii.gz"]
    assert case.channels == ("T1", "FLAIR")
    assert case.label_names == {"whole tumour": (1, 2), "core": (2,)}
    image = case.read_image()
    assert image.shape == (*VOLUME.shape, 2)
    assert not image.is_loaded
    second = np.asarray(case.read_image(channel=1).array)
    assert np.array_equal(image.array[..., 1], second)
    assert not found.cases["t"].is_labelled
    with pytest.raises(FormatError, match="no mask of t"):
        found.cases["t"].read_labels()
    with pytest.raises(FormatError, match="no channel 2"):
        case.read_image(channel=2)
    write_image(
        tmp_path / "imagesTr/v0_0001.nii.gz",
        make_image(3, (6, 20, 20)),
        Geometry.from_spacing((6, 20, 20)),
    )
    with pytest.raises(GeometryError, match="must be of one grid"):
        case.read_image()


def test_the_decathlon_lists_its_pairs(tmp_path: Path) -> None:
    pixels = np.stack([make_image(k, VOLUME.shape).astype(np.int16) for k in range(2)], axis=-1)
    write_image(tmp_path / "imagesTr/a.nii.gz", pixels, VOLUME)
    write_labels(tmp_path / "labelsTr/a.nii.gz", make_labels(VOLUME.shape), VOLUME)
    write_image(tmp_path / "imagesTs/b.nii.gz", pixels, VOLUME)
    facts = {
        "modality": {"0": "FLAIR", "1": "T2"},
        "labels": {"0": "background", "1": "oedema", "2": "tumour"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
        "licence": "CC-BY-SA 4.0",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    (found,) = open_datasets(tmp_path)
    case = found.cases["a"]
    assert case.label_names == {"oedema": (1,), "tumour": (2,)}
    assert (case.channels, case.licence, case.split) == (("FLAIR", "T2"), "CC-BY-SA 4.0", None)
    assert case.read_image().shape == (*VOLUME.shape, 2)
    assert (found.cases["b"].split, found.cases["b"].is_labelled) == ("test", False)
    (tmp_path / "dataset.json").write_text(json.dumps(facts | {"training": [{"image": "a"}]}))
    with pytest.raises(FormatError, match="is no pair of files"):
        open_datasets(tmp_path)


def test_odd_folders_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FormatError, match=r"There is no folder .* images/ and masks/"):
        open_datasets(tmp_path / "nowhere")
    assert open_datasets(tmp_path) == []
    assert open_dataset(tmp_path) is None
    with pytest.raises(FormatError, match=r"holds nothing to train on; name a folder with"):
        find_training_sets(tmp_path)
    folder = make_plain(tmp_path / "set", 2)
    (folder / "masks/c0.png").unlink()
    write_labels(folder / "masks/stray.png", make_labels((20, 24)))
    (found,) = open_datasets(folder)
    assert {n: c.is_labelled for n, c in found.cases.items()} == {"c0": False, "c1": True}
    assert "1 label maps have no image: ['stray']" in caplog.text
    (folder / "dataset.json").write_text('{"labels": {"liver": {"x": 1}}}')
    with pytest.raises(FormatError, match="does not name labels"):
        open_datasets(folder)
    (folder / "dataset.json").write_text("[")
    with pytest.raises(FormatError, match=r"dataset\.json cannot be read as JSON"):
        open_datasets(folder)


def test_where_nobody_divided_the_cases_groups_stay_together(tmp_path: Path) -> None:
    group = {f"c{k}": f"patient{k // 2}" for k in range(44)}
    make_plain(tmp_path, 1, group=group)
    for k in range(1, 44):
        for part in ("images", "masks"):
            (tmp_path / part / f"c{k}.png").symlink_to(tmp_path / part / "c0.png")
    (found,) = find_training_sets(tmp_path)
    by_split: dict[str | None, set[str]] = {}
    for case in found.cases.values():
        by_split.setdefault(case.split, set()).add(case.group)
    assert len(by_split["val"]) == 1
    assert len(by_split["train"]) == 21
    assert not by_split["train"] & by_split["val"]
    assert find_training_sets(tmp_path) == [found]


def test_npz_files_of_the_challenge_are_volumes_with_labels(tmp_path: Path) -> None:
    labels = make_labels(VOLUME.shape)
    image = make_image(1, VOLUME.shape)
    np.savez(tmp_path / "CT_a.npz", imgs=image, gts=labels, spacing=np.array([3.0, 1.0, 1.0]))
    (found,) = open_datasets(tmp_path)
    case = found.cases["CT_a"]
    assert found.kind == "volume"
    assert np.array_equal(case.read_image().array, image)
    assert list(case.read_labels(like=case.read_image()).ids) == [1, 2]


def test_sets_that_are_listed_and_not_there_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_plain(tmp_path / "2d/there")
    lists = {"train": ["c0"], "val": [], "test": ["c1"]}
    names = ["2d/there", "2d/a", "3d/b", "video/c", "pool/d"]
    splits = {"sets": dict.fromkeys(names, lists), "train_commercial_ok": ["2d/there", "pool/d"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    (found,) = open_datasets(tmp_path)
    assert {name: case.split for name, case in found.cases.items()} == {"c0": "train", "c1": "test"}
    (record,) = caplog.records
    assert "lists pool/d, 2d/a, 3d/b and 1 more, not there" in record.getMessage()


def test_fields_of_a_description_that_hold_something_odd_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = '{"group": ["a"], "licence": 4, "labels": {"1": "liver"}, "instances": 1}'
    (tmp_path / "dataset.json").write_text(text)
    assert files.read_description(tmp_path)["labels"] == {"1": "liver"}
    assert "'group' is ['a'], not an object of texts; it is passed over" in caplog.text
    assert "'licence' is 4, not a text" in caplog.text
    assert "'instances' is 1, not true or false" in caplog.text
    assert "'labels'" not in caplog.text
