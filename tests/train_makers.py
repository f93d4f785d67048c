"""A tiny data folder in the layout of the real one, made from shapes, to train on in tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.geometry import Geometry
from limner.io.image import Image

if TYPE_CHECKING:
    import torch


def discs(rng: np.random.Generator, side: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey picture of two bright discs on noise, and their label map (1 and 2)."""
    rows, columns = np.ogrid[:side, :side]
    labels = np.zeros((side, side), dtype=np.uint8)
    for label in (1, 2):
        radius = rng.integers(side // 10, side // 6)
        low = side // 2 * (label - 1) + radius
        at = rng.integers(low, low + side // 2 - 2 * radius), rng.integers(radius, side - radius)
        labels[(rows - at[0]) ** 2 + (columns - at[1]) ** 2 <= radius**2] = label
    image = 60 + 60 * labels.astype(float) + rng.normal(0, 8, labels.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def make_data(folder: Path) -> Path:
    """Sets of every kind that the packer knows, and a test part whose files are no pictures."""
    rng = np.random.default_rng(4)
    stems = {"2d/discs": ["a", "b", "v", "t"], "pool/2d/cells": [f"c{k}" for k in range(4)]}
    for name, names in stems.items():
        for part in ("images", "masks", "instances"):
            (folder / name / part).mkdir(parents=True)
        for stem in names:
            if stem == "t":  # reading it would fail
                (folder / name / "images" / "t.png").write_bytes(b"never read")
                (folder / name / "masks" / "t.png").write_bytes(b"never read")
                continue
            image, labels = discs(rng)
            if stem in ("b", "c1"):
                image = np.stack([image, image // 2, 255 - image], axis=-1)
            _write(folder / name / "images" / f"{stem}.png", image)
            _write(folder / name / "masks" / f"{stem}.png", labels)
            _write(folder / name / "instances" / f"{stem}.png", labels)
    _make_volumes(folder, rng)
    for name in ("2d/discs", "pool/2d/cells", "pool/3d/scans_ct", "pool/3d/labelmaps"):
        facts = {"pool/3d/scans_ct": {"modality": "CT (HU)"}}.get(
            name, {"targets": {"1": "a", "2": "b"}}
        )
        (folder / name / "dataset.json").write_text(json.dumps(facts))
    splits = {
        "test_only": ["2d/forbidden"],
        "never_scored": [],
        "near_test_only": {"2d/near": ["forbidden"]},
        "train_commercial_ok": [
            "2d/discs",
            "2d/near",
            "pool/2d/cells",
            "pool/3d/scans_ct",
            "pool/3d/labelmaps",
            "video/clip",
        ],
        "unit": {"pool/2d/cells": "instance"},
        "sets": {"2d/discs": {"train": ["a", "b"], "val": ["v"], "test": ["t"]}},
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def _make_volumes(folder: Path, rng: np.random.Generator) -> None:
    geometry = Geometry.from_spacing((12, 32, 32), (3.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, dtype=np.uint16)
    labels[3:9, 8:24, 10:22] = 1
    scan = (1100.0 * labels - 1000 + rng.normal(0, 20, labels.shape)).astype(np.int16)
    for name in ("scans_ct", "labelmaps"):
        (folder / "pool/3d" / name / "labels").mkdir(parents=True)
    (folder / "pool/3d/scans_ct/images").mkdir()
    limner.io.write_image(folder / "pool/3d/scans_ct/images/s.nii.gz", Image(scan, geometry))
    limner.write(folder / "pool/3d/scans_ct/labels/s.nii.gz", labels, like=geometry)
    labels[9:, 4:30, 4:30] = 512
    limner.write(folder / "pool/3d/labelmaps/labels/m.nii.gz", labels, like=geometry)


def _write(path: Path, array: NDArray[np.uint8]) -> None:
    geometry = Geometry.from_spacing(array.shape[:2])
    limner.io.write_image(path, Image(array, geometry))


def add_volumes(folder: Path) -> Path:
    """Add a set of volumes with a bright and a dark ball each, of which one is for validation and
    one, which is no volume, for tests.
    """
    rng = np.random.default_rng(5)
    name = "3d/balls"
    for part in ("images", "labels"):
        (folder / name / part).mkdir(parents=True)
    geometry = Geometry.from_spacing((20, 40, 40), (2.0, 1.0, 1.0))
    places = np.moveaxis(np.indices(geometry.shape), 0, -1) * (2.0, 1.0, 1.0)
    for stem in ("a", "b", "v"):
        labels = np.zeros(geometry.shape, dtype=np.uint16)
        for label, column in ((1, 10), (2, 29)):
            middle = (20 + rng.uniform(-3, 3), 20 + rng.uniform(-5, 5), column)
            labels[np.linalg.norm(places - middle, axis=-1) < rng.uniform(6, 8)] = label
        scan = np.array([500, 900, 100])[labels] + rng.normal(0, 25, labels.shape)
        path = folder / name / "images" / f"{stem}.nii.gz"
        limner.io.write_image(path, Image(scan.astype(np.int16), geometry))
        limner.write(folder / name / "labels" / f"{stem}.nii.gz", labels, like=geometry)
    for part in ("images", "labels"):
        (folder / name / part / "t.nii.gz").write_bytes(b"never read")
    (folder / name / "dataset.json").write_text("{}")
    splits = json.loads((folder / "splits.json").read_text())
    splits["train_commercial_ok"].append(name)
    splits["sets"][name] = {"train": ["a", "b"], "val": ["v"], "test": ["t"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    """Nets this small run faster on one thread, above all where others use the machine, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def all_weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and the optimiser's moments in a run's checkpoint, by name."""
    from limner.train import checkpoint

    state = checkpoint.load(out / "checkpoint.pt")
    found = {}
    for kind, networks in (("network", state.networks), ("averaged", state.averaged)):
        for values in networks.values():
            found |= {f"{kind}.{key}": value for key, value in values.items()}
    for number, moments in state.optimiser["state"].items():
        found |= {f"moment.{number}.{key}": value for key, value in moments.items()}
    return found


def are_equal(first: Path, second: Path) -> bool:
    """Whether two runs stand at the same weights and moments, to the bit."""
    import torch

    one, other = all_weights(first), all_weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def volume_packs(factory: pytest.TempPathFactory) -> Path:
    """A folder with the packs of pictures and of volumes."""
    from limner.train.data.prepare import write_packs

    data = add_volumes(make_data(factory.mktemp("data")))
    out = factory.mktemp("pack")
    write_packs(data, out, with_volumes=True)
    return out


SPINE = Geometry.from_spacing((12, 40, 36), (3.0, 1.0, 1.0))


def labelled_scan(seed: int) -> tuple[Image, NDArray[np.uint8]]:
    """A CT scan with two boxes in it, 1 and 2, and its labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SPINE.shape, np.uint8)
    labels[3:9, 6:20, 6:18] = 1
    labels[4:10, 22:34, 16:30] = 2
    scan = np.array([0, 200, 400])[labels] + rng.normal(0, 20, labels.shape)
    scan[:, :5], scan[..., 32:] = -1000, -1000
    return Image(scan.astype(np.int16), SPINE), labels


def labelled_volumes(folder: Path) -> Path:
    """Two CT scans with a liver and a spleen each, in images/ and labels/."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for k in range(2):
        image, labels = labelled_scan(k)
        limner.io.write_image(folder / "images" / f"c{k}.nii.gz", image)
        limner.write(folder / "labels" / f"c{k}.nii.gz", labels, like=image)
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    return folder


def small_xmem(path: Path) -> Path:
    """A file as XMem's authors publish theirs, with random weights that keep signals alive."""
    import torch

    from limner.models.xmem.network import XMemNetwork

    torch.manual_seed(0)
    network = XMemNetwork(key=16, value=64, hidden=16)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1)
            module.weight.data.fill_(0.5)
    for head in (network.key_proj.key_proj, network.decoder.pred):
        head.weight.data.mul_(0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path
