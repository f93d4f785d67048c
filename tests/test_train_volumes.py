"""Volumes to train on: what may be, their pack, targets, views, and pictures piled up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.datasets import Case, find_training_sets
from limner.errors import FormatError
from limner.train.data import pack, pack3d, pseudo_volumes, volumes
from limner.train.data.augment3d import augment_volumes
from limner.train.data.device_volumes import DeviceVolumes, crop_bounds
from limner.train.data.pack3d import COARSE, FINE, FIRST_BAND, LABELS, PackedVolumes
from limner.train.data.prepare import write_packs
from limner.train.data.pseudo_volumes import PseudoVolumes
from limner.train.data.rng import BatchRandom, block_mean
from limner.train.data.samples3d import VolumeSampler
from limner.train.data.shapes3d import add_lesion, draw_shapes
from limner.train.data.targets import TargetTable
from limner.train.data.targets3d import TargetTable3d
from limner.train.data.views import draw_views
from limner.train.data.views3d import View3d, draw_view, plain_view
from train_makers import add_volumes, make_data

SHAPE = (16, 64, 64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _all_targets() -> Iterator[None]:
    """Small volumes get all kinds of targets here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volumes, "LEAST_VOXELS", 1000)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_volumes(make_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack")
    write_packs(data, out, with_volumes=True)
    return out


@pytest.fixture(scope="module")
def packed(folder: Path) -> PackedVolumes:
    return pack3d.open_volumes(folder)


def _batch_rng(number: int = 1, seed: int = 0) -> BatchRandom:
    return BatchRandom(number, torch.Generator().manual_seed(seed), axes=3)


def _volume(packed: PackedVolumes, name: str) -> int:
    index = packed.names.index(name)
    return next(k for k, s in enumerate(packed.volumes) if s.set_index == index)


@pytest.mark.slow
def test_test_stems_are_neither_read_nor_packed(data: Path, folder: Path) -> None:
    found = [(v.set_name, v.stem) for v in volumes.read_volumes(find_training_sets(data))]
    assert found == [
        ("pool/3d/scans_ct", "s"),
        ("pool/3d/labelmaps", "m"),
        ("3d/balls", "a"),
        ("3d/balls", "b"),
        ("3d/balls", "v"),
    ]
    facts = json.loads((folder / pack3d.SUMMARY).read_text())["sets"]["3d/balls"]
    assert facts["stems"] == {"a": "train", "b": "train", "v": "val"}
    pictures = json.loads((folder / "pack.json").read_text())["sets"]
    assert set(pictures) == {"2d/discs", "pool/2d/cells"}


@pytest.mark.shared
def test_no_volume_for_tests_is_opened(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def note(name: str, case: Case) -> tuple[str, str]:
        asked.append((name, case.name))
        return name, case.name

    monkeypatch.setattr(volumes, "_volume", note)
    assert list(volumes.read_volumes(find_training_sets(shared_data))) == asked
    splits = json.loads((shared_data / "splits.json").read_text())
    forbidden = set(splits["test_only"]) | set(splits["near_test_only"])
    forbidden |= set(splits["non_commercial"]) | set(splits["never_scored"])
    assert not {name for name, _ in asked} & forbidden
    assert {name for name, _ in asked} <= set(splits["train_commercial_ok"])
    for name, stem in asked:
        if not name.startswith("pool/"):
            assert stem not in splits["sets"][name]["test"]


def test_volumes_come_back_as_they_were(data: Path, packed: PackedVolumes) -> None:
    found = list(volumes.read_volumes(find_training_sets(data)))
    assert len(found) == len(packed.volumes)
    for volume, one in zip(found, packed.volumes, strict=True):
        assert packed.names[one.set_index] == volume.set_name
        assert one.split == (volume.split == "val")
        assert tuple(one.spacing) == tuple(volume.spacing)
        assert np.array_equal(one.maps[LABELS], volume.labels)
        assert one.shape == volume.labels.shape
        assert len(one.images) == (0 if "labelmaps" in volume.set_name else len(volume.images))
        if len(one.images):
            assert np.abs(one.images.astype(int) - volume.images).max() <= 1
    scan = packed.volumes[_volume(packed, "pool/3d/scans_ct")]
    assert len(scan.images) == 2
    assert not np.array_equal(scan.images[0], scan.images[1])


def test_entries_say_where_their_regions_are(packed: PackedVolumes) -> None:
    kinds = set()
    for volume in packed.volumes:
        assert (np.diff(volume.entries[:, 0]) >= 0).all()
        for which, region, size, *box in volume.entries:
            kinds.add(int(which))
            ids = volume.maps[which]
            mask = ids == region
            scale = np.array(volume.factors) if which in (FINE, COARSE) else np.ones(3, dtype=int)
            assert mask.sum() * scale.prod() == size
            where = np.argwhere(mask)
            assert (where.min(0) * scale == box[:3]).all()
            assert (np.minimum((where.max(0) + 1) * scale, volume.shape) == box[3:]).all()
    assert {LABELS, FINE, COARSE} <= kinds
    assert max(kinds) >= FIRST_BAND


def test_background_of_label_maps_is_no_target(packed: PackedVolumes) -> None:
    volume = packed.volumes[_volume(packed, "pool/3d/labelmaps")]
    assert set(volume.entries[:, 1].tolist()) == {1}
    assert set(np.unique(volume.regions)) == {0, 1, 2}


def test_parts_of_like_brightness_are_connected_and_numbered_by_size() -> None:
    array = np.zeros((24, 40, 40), dtype=np.float32)
    array[4:20, 4:20, 4:20] = 300
    array[6:14, 24:34, 24:34] = 320
    array[10, 19:25, 24] = 300  # a bridge, one voxel thick
    array[2, 2, 2] = 300
    found = volumes.find_parts(array, 200, 400, (1.0, 1.0, 1.0))
    assert found.max() == 2
    assert found[10, 10, 10] == 1
    assert found[10, 30, 30] == 2
    assert found[2, 2, 2] == 0
    edges = volumes.intensity_classes((array / 2).astype(np.uint8))
    assert all(low < high for low, high in edges)


def test_supervoxels_divide_the_volume_along_its_edges() -> None:
    image = np.full((16, 32, 32), 40, dtype=np.uint8)
    image[:, 16:] = 200
    rng = np.random.default_rng(0)
    fine, coarse, small, factors = volumes.compute_supervoxels(image, (1.0, 1.0, 1.0), rng)
    assert factors == (1, 1, 1)
    for found in (fine, coarse):
        assert small.shape == found.shape == image.shape
        assert not set(np.unique(found[:, :14])) & set(np.unique(found[:, 18:]))
    assert fine.max() >= coarse.max() == 2
    large = np.zeros((40, 150, 150), dtype=np.uint8)
    _, _, small, factors = volumes.compute_supervoxels(large, (3.0, 1.0, 1.0), rng)
    assert factors == (1, 2, 2)
    assert small.shape == (40, 75, 75)


def test_clear_borders_are_told_from_arbitrary_ones() -> None:
    rng = np.random.default_rng(0)
    image = (100 + rng.normal(0, 5, (8, 24, 24))).astype(np.uint8)
    image[:, 12:] += 60
    ids = np.ones(image.shape, dtype=np.uint16)
    ids[:, 12:, :12], ids[:, 12:, 12:] = 2, 3
    clear = volumes.edge_clarity(ids, image)
    assert len(clear) == 4
    assert clear[1] > 40
    arbitrary = volumes.edge_clarity(np.where(ids == 1, 2, ids), np.full_like(image, 100))
    assert (arbitrary <= 0).all()


def test_the_same_data_make_the_same_pack(data: Path, folder: Path, tmp_path: Path) -> None:
    pack3d.write_volumes(tmp_path, volumes.read_volumes(find_training_sets(data)))
    first, second = (json.loads((f / pack3d.SUMMARY).read_text()) for f in (folder, tmp_path))
    assert first["sha256"] == second["sha256"]


@pytest.mark.parametrize("change", ["cut", "swap", "version", "none"])
def test_damaged_packs_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    facts, first = tmp_path / pack3d.SUMMARY, tmp_path / "v00.xz"
    match change:
        case "cut":
            first.write_bytes(first.read_bytes()[:100])
        case "swap":
            first.write_bytes((tmp_path / "v01.xz").read_bytes())
        case "version":
            facts.write_text(facts.read_text().replace('"version": 1', '"version": 99'))
        case "none":
            facts.unlink()
    with pytest.raises(FormatError, match=r"damaged|version 99|is no pack"):
        pack3d.open_volumes(tmp_path)


def test_targets_are_drawn_from_the_split_and_lie_in_their_boxes(packed: PackedVolumes) -> None:
    rng = np.random.default_rng(0)
    for split in (0, 1):
        table = TargetTable3d(packed, split=split, unlabelled_fraction=0.5)
        for _ in range(40):
            target = table.draw(rng, pictured=True)
            assert target is not None
            volume = packed.volumes[target.volume]
            assert volume.split == split
            assert len(volume.images)
            if target.map == LABELS:
                where = np.argwhere(np.isin(volume.maps[LABELS], target.ids))
                assert (where.min(0) == target.box[0]).all()
                assert (where.max(0) + 1 == target.box[1]).all()
    assert TargetTable3d(packed, split=1, unlabelled_fraction=0.0).draw(rng, pictured=False) is None
    painted = TargetTable3d(packed, split=0, unlabelled_fraction=1.0).draw(rng, pictured=False)
    assert painted is not None
    assert painted.map == LABELS


@pytest.mark.slow
def test_views_show_their_target_and_stay_within_reach(packed: PackedVolumes) -> None:
    rng = np.random.default_rng(1)
    device_data = DeviceVolumes(packed, torch.device("cpu"))
    table = TargetTable3d(packed, split=0, unlabelled_fraction=0.3)
    shown = []
    for seed in range(40):
        target = table.draw(rng, pictured=seed % 4 > 0)
        assert target is not None
        volume = packed.volumes[target.volume]
        size = np.array(volume.shape, dtype=np.float64)
        view = draw_view(target.box, size, volume.spacing, SHAPE, rng)
        low, high = crop_bounds(view, size)
        assert (low >= 0).all()
        assert (low < high).all()
        assert (high <= size).all()
        steps = np.linalg.norm(view.steps * volume.spacing[:, None], axis=0)
        assert steps[0] >= 0.7 * steps[1:].mean()  # slices are no thinner than pixels are wide
        assert np.linalg.norm(view.steps, axis=0).min() > 0.15
        sample = device_data.cut_view(target, view, _batch_rng(seed=seed))
        assert sample.image.shape == sample.target.shape == (1, *SHAPE)
        assert (sample.target <= sample.inside).all()
        assert (sample.image * (1 - sample.inside) == 0).all()
        assert torch.isfinite(sample.image).all()
        shown.append(bool(sample.target.any()))
    assert np.mean(shown) > 0.95


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_view_at_native_voxels_is_the_volume(
    packed: PackedVolumes, order: tuple[int, int, int]
) -> None:
    index = _volume(packed, "3d/balls")
    volume = packed.volumes[index]
    device_data = DeviceVolumes(packed, torch.device("cpu"))
    target = TargetTable3d(packed, split=0, unlabelled_fraction=0.0).named(
        volume.set_index, 1, np.random.default_rng(0)
    )[0]
    shape = tuple(volume.shape[k] for k in order)
    view = View3d(shape, np.array(volume.shape) / 2, np.eye(3)[:, order])
    sample = device_data.cut_view(target, view, _batch_rng())
    own = packed.volumes[target.volume]
    expected = torch.from_numpy(own.images[0] / 255.0).float().permute(order)
    torch.testing.assert_close(sample.image[0], expected, rtol=0, atol=2e-3)
    mask = np.isin(own.maps[LABELS], target.ids).transpose(order)
    assert np.array_equal(sample.target[0].numpy() > 0, mask)
    assert sample.inside.all()


def test_shrinking_is_averaging_except_for_gaps(packed: PackedVolumes) -> None:
    volume = packed.volumes[_volume(packed, "3d/balls")]
    device_data = DeviceVolumes(packed, torch.device("cpu"))
    target = TargetTable3d(packed, split=0, unlabelled_fraction=0.0).named(
        volume.set_index, 1, np.random.default_rng(0)
    )[0]
    middle = np.array(volume.shape) / 2
    noise = []
    for averaged in (True, False):
        view = View3d((4, 40, 40), middle, np.diag([5.0, 1.0, 1.0]), averaged=averaged)
        corner = device_data.cut_view(target, view, _batch_rng()).image[0, :, :6, :6]
        noise.append(float(corner.std()))
    assert noise[0] < 0.7 * noise[1]


def test_plain_views_are_those_of_a_session() -> None:
    box = np.array([[10.0, 40, 40], [20, 60, 70]])
    size, spacing = np.array([40.0, 100, 100]), np.array([3.0, 1.0, 1.0])
    view = plain_view(box, size, spacing, (32, 96, 96))
    assert np.array_equal(view.steps, np.eye(3))
    half = np.array([16, 48, 48])
    low, high = view.centre - half, view.centre + half
    assert (low <= box[0]).all()
    assert (high >= box[1]).all()
    assert (low >= -1e-9).all()
    thick = plain_view(box[:, [1, 2, 0]], size[[1, 2, 0]], spacing[[1, 2, 0]], (16, 96, 96))
    assert np.argmax(np.abs(thick.steps[:, 0])) == 2
    wide = plain_view(np.array([[0.0, 0, 0], [40, 100, 100]]), size, spacing, (16, 32, 32))
    steps = np.linalg.norm(wide.steps * spacing[:, None], axis=0)
    assert steps[1] == steps[2] > 3


@pytest.mark.slow
def test_piled_pictures_shrink_to_nothing_at_both_ends(folder: Path) -> None:
    pictures = pack.open_pack(folder)
    maker = PseudoVolumes(pictures, torch.device("cpu"))
    rng = np.random.default_rng(0)
    table = TargetTable(pictures, split=0, unlabelled_fraction=0.0)
    vanish = []
    for seed in range(24):
        targets = table.draw(1, rng)
        views = draw_views(pictures, targets, 64, rng)
        sample = maker.cut_view(targets, views, (24, 64, 64), rng, _batch_rng(seed=seed))
        assert sample.image.shape[1:] == (24, 64, 64)
        assert (sample.target <= sample.inside).all()
        sizes = sample.target.sum(dim=(0, 2, 3))
        if sample.target.any():
            vanish.append(bool((sizes[0] == 0) | (sizes[-1] == 0)))
            assert sizes.max() > 0
    assert np.mean(vanish) > 0.4


@pytest.mark.parametrize(("corner", "pace"), [((0.0, 0.0), 1), ((7.0, 12.0), 1), ((4.0, 8.0), 2)])
def test_pictures_are_sampled_where_they_are(corner: tuple[float, float], pace: int) -> None:
    picture = torch.rand((2, 30, 40), generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    at = torch.stack([(rows + 0.5) * pace + corner[0], (columns + 0.5) * pace + corner[1]])
    found = pseudo_volumes._sampled(picture, at[:, None], [pace, pace])
    window = picture[:, int(corner[0]) :, int(corner[1]) :][:, : 8 * pace, : 9 * pace]
    expected = torch.nn.functional.avg_pool2d(window[None], pace)[0]
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_made_up_shapes_are_there_and_cells_look_alike() -> None:
    found = [draw_shapes(SHAPE, _batch_rng(seed=k), thickness=1.0 + k % 3) for k in range(30)]
    share = [float(target.mean()) for _, target in found]
    assert np.mean([s > 0 for s in share]) > 0.85
    assert np.median(share) < 0.5
    for image, target in found:
        assert image.shape == target.shape == (1, *SHAPE)
        assert image.min() >= 0
        assert image.max() <= 1


def test_a_lump_changes_only_its_place() -> None:
    image = torch.full((1, *SHAPE), 0.5)
    for seed in range(6):
        changed, target = add_lesion(image, _batch_rng(seed=seed))
        around = block_mean(target[None], (2, 2, 2))[0] == 0
        assert (changed[around] == 0.5).all()
        if target.any():
            inner = target * (block_mean(1 - target[None], (1, 1, 1))[0] == 0)
            if inner.any():
                assert ((changed - 0.5).abs()[inner > 0] > 0.05).all()


def test_disturbed_volumes_stay_volumes_and_differ() -> None:
    image = torch.rand((12, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0))
    found = augment_volumes(image, _batch_rng(12))
    assert found.shape == image.shape
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found - image).abs().amax(dim=(1, 2, 3, 4)) > 0.01).sum() >= 6
    assert torch.equal(found, augment_volumes(image, _batch_rng(12)))


def test_batches_are_made_of_everything_and_repeat(folder: Path, packed: PackedVolumes) -> None:
    maker = VolumeSampler(
        packed,
        pack.open_pack(folder),
        torch.device("cpu"),
        synthetic=0.3,
        pseudo_volume_fraction=0.3,
        unlabelled_fraction=0.3,
    )
    first, second = (
        maker.draw(10, SHAPE, np.random.default_rng(3), _batch_rng(10, seed=4)) for _ in range(2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target, second.target)
    assert first.image.shape == (10, 3, *SHAPE)
    assert first.target.shape == first.inside.shape == (10, 1, *SHAPE)
    assert (first.target.sum(dim=(1, 2, 3, 4)) > 0).float().mean() >= 0.9
    assert (first.target <= first.inside).all()
