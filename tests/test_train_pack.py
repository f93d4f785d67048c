"""What may be trained on, and the pack that it becomes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from limner.datasets import find_training_sets
from limner.errors import FormatError
from limner.train.data import archive, pack, prepare, regions
from limner.train.data.images import read_images, training_cases
from limner.train.data.pack import COARSE, FINE, LABELS, OBJECTS, PackedImages
from limner.train.data.pack_settings import PackSettings
from train_makers import make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack")
    pack.write_pack(out, read_images(find_training_sets(data)))
    return out


@pytest.fixture(scope="module")
def packed(folder: Path) -> PackedImages:
    return pack.open_pack(folder)


def test_sets_that_resemble_test_sets_and_videos_are_left_out(data: Path) -> None:
    names = [dataset.name for dataset in find_training_sets(data)]
    assert names == ["2d/discs", "pool/2d/cells", "pool/3d/scans_ct", "pool/3d/labelmaps"]
    fewer = [dataset.name for dataset in find_training_sets(data, ["pool/2d/cells"])]
    assert fewer == [names[0], *names[2:]]
    with pytest.raises(FormatError, match="leave_out names"):
        find_training_sets(data, ["2d/unknown"])


def test_test_stems_are_neither_read_nor_packed(data: Path, folder: Path) -> None:
    opened = {
        image.stem
        for image in read_images(find_training_sets(data))
        if image.set_name == "2d/discs"
    }
    assert opened == {"a", "b", "v"}
    facts = json.loads((folder / "pack.json").read_text())["sets"]["2d/discs"]
    assert facts["stems"] == {"a": "train", "b": "train", "v": "val"}


@pytest.mark.shared
def test_no_test_stem_of_the_real_data_is_allowed(shared_data: Path) -> None:
    splits = json.loads((shared_data / "splits.json").read_text())
    datasets = find_training_sets(shared_data)
    assert len(datasets) >= 20
    forbidden = set(splits["test_only"]) | set(splits["near_test_only"])
    forbidden |= set(splits["non_commercial"]) | set(splits["never_scored"])
    assert not {dataset.name for dataset in datasets} & forbidden
    cases = list(training_cases(datasets, ("image", "volume")))
    assert {dataset.name for dataset, _ in cases} == {dataset.name for dataset in datasets}
    for dataset, case in cases:
        if dataset.name in splits["sets"]:
            lists = splits["sets"][dataset.name]
            assert case.name in {*lists["train"], *lists["val"]}
            assert case.name not in lists["test"]


def test_pictures_come_back_as_they_were_but_for_steps_too_small_to_see(
    data: Path, packed: PackedImages
) -> None:
    found = list(read_images(find_training_sets(data)))
    assert len(found) == len(packed.images)
    for image, facts in zip(found, packed.images, strict=True):
        rows, columns, channels, first, place = (int(v) for v in facts[3:8])
        assert (rows, columns) == image.labels.shape
        maps = packed.layers[LABELS][place : place + rows * columns]
        assert (maps.reshape(rows, columns) == image.labels).all()
        if image.image is None:
            assert channels == 0
            continue
        pixels = packed.pixels[first : first + channels * rows * columns]
        pixels = pixels.reshape(channels, rows, columns).astype(int)
        expected = image.image.astype(int)
        if channels == 1:
            assert np.abs(pixels[0] - expected).max() <= (0 if "3d/" in image.set_name else 2)
        else:  # halved colour blurs at edges
            assert np.median(np.abs(pixels - np.moveaxis(expected, -1, 0))) <= 4


def test_ct_is_kept_twice_and_thick_slices_are_stretched(data: Path) -> None:
    scans = [p for p in read_images(find_training_sets(data)) if p.set_name == "pool/3d/scans_ct"]
    axial = [p for p in scans if p.stem.split(":")[1] == "0"]
    assert [p.stem for p in axial[:2]] == ["s:0:3"] * 2
    assert not np.array_equal(axial[0].image, axial[1].image)
    assert {p.labels.shape for p in axial} == {(32, 32)}
    assert {p.labels.shape for p in scans if p.stem.split(":")[1] == "1"} == {(36, 32)}


def test_background_of_label_maps_is_no_target(packed: PackedImages) -> None:
    index = packed.names.index("pool/3d/labelmaps")
    images = np.flatnonzero(packed.images[:, 0] == index)
    rows = packed.entries[np.isin(packed.entries[:, 0], images)]
    assert set(rows[rows[:, 1] == LABELS, 2].tolist()) == {1}
    assert not np.isin(rows[:, 1], (FINE, COARSE)).any()


def test_entries_say_where_their_regions_are(packed: PackedImages) -> None:
    assert {LABELS, OBJECTS, FINE, COARSE} == set(packed.entries[:, 1].tolist())
    for image, layer, region, area, *box in packed.entries[::7]:
        rows, columns = packed.images[image, 3:5]
        place = packed.images[image, 7]
        found = packed.layers[layer][place : place + rows * columns].reshape(rows, columns)
        mask = found == region
        assert mask.sum() == area
        where = np.argwhere(mask)
        assert [*where.min(0), *(where.max(0) + 1)] == box


def test_the_same_data_make_the_same_pack(data: Path, folder: Path, tmp_path: Path) -> None:
    pack.write_pack(tmp_path, read_images(find_training_sets(data)))
    first, second = (json.loads((f / "pack.json").read_text()) for f in (folder, tmp_path))
    assert first["sha256"] == second["sha256"]


def test_packing_goes_on_where_it_was_stopped(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each set is on the disk as soon as it is complete; the pack is the same as in one go."""
    read: list[str] = []

    def stop_at(sets: object, *arguments: object, **options: object) -> Iterator[object]:
        for image in read_images(sets, *arguments, **options):  # type: ignore[arg-type]
            read.append(image.set_name)
            if len(set(read)) > 2 and stopping:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr(prepare, "read_images", stop_at)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        prepare.write_packs(data, tmp_path, with_volumes=False)
    assert not (tmp_path / "pack.json").exists()
    assert len(list(tmp_path.glob("*.xz"))) == 1  # the second was not known to be complete
    stopping, before = False, {read[0]}
    read.clear()
    prepare.write_packs(data, tmp_path, with_volumes=False)
    assert not before & set(read)
    first, second = (json.loads((f / "pack.json").read_text()) for f in (folder, tmp_path))
    assert first == second
    assert not list(tmp_path.glob("*.unfinished"))


def test_packing_begins_anew_where_a_file_has_changed(data: Path, tmp_path: Path) -> None:
    sets = find_training_sets(data)
    one = prepare._hash_source(sets, PackSettings(), True)
    assert one == prepare._hash_source(sets, PackSettings(), True)
    assert one != prepare._hash_source(sets, PackSettings(slices=3), True)
    assert one != prepare._hash_source(sets[1:], PackSettings(), True)
    writer = archive.ArchiveWriter(tmp_path, "pack.json", source=one)
    part = {"shape": np.array([2, 2])}
    writer.add("a", "x", "train", part)
    writer.add("b", "y", "train", part)
    assert archive.finished_sets(tmp_path, "pack.json", seed=0, source=one) == ("a",)
    assert archive.finished_sets(tmp_path, "pack.json", seed=0, source="other") == ()
    (tmp_path / "00.xz").write_bytes(b"")
    assert archive.finished_sets(tmp_path, "pack.json", seed=0, source=one) == ()


@pytest.mark.parametrize("change", ["cut", "swap", "version", "none"])
def test_damaged_packs_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    match change:
        case "cut":
            content = (tmp_path / "00.xz").read_bytes()
            (tmp_path / "00.xz").write_bytes(content[: len(content) // 2])
        case "swap":
            (tmp_path / "00.xz").write_bytes((tmp_path / "01.xz").read_bytes())
        case "version":
            text = (tmp_path / "pack.json").read_text().replace('"version": 1', '"version": 99')
            (tmp_path / "pack.json").write_text(text)
        case "none":
            (tmp_path / "pack.json").unlink()
    with pytest.raises(FormatError, match=r"damaged|version 99|is no pack"):
        pack.open_pack(tmp_path)


def test_components_are_told_apart_by_label_and_size() -> None:
    labels = np.zeros((20, 20), dtype=np.uint16)
    labels[1:6, 1:6] = labels[10:16, 10:16] = 3
    labels[6:9, 1:6] = 5  # touches the first
    labels[19, 19] = 3
    found = regions.label_components(labels, least=10)
    assert sorted(np.bincount(found.ravel())[1:].tolist()) == [15, 25, 36]
    assert found[19, 19] == 0


def test_groups_are_unions_of_superpixels() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (6, 6)), np.ones((12, 12))).astype(np.uint8)
    fine = regions.compute_superpixels(image, rng)
    group = regions.group_superpixels(fine, image, rng)
    assert fine.min() == 1
    assert group[0] == 0
    assert len(group) == fine.max() + 1
    assert 1 <= group[1:].max() < fine.max()
