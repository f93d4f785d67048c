"""``limner train`` on folders as people have them: plain folders, and nnU-Net's raw data in 2D and
3D.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.cli.__main__ import run
from limner.geometry import Geometry
from limner.io.image import Image
from train_makers import discs, one_thread

pytest.importorskip("torch")

RECIPE = Path(__file__).parents[1] / "recipes" / "limner-2d-cpu.yaml"
SMALLER = {"widths": [8, 16], "depths": [1, 1], "sizes": [32], "batch_size": 2, "rounds": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe of the package with a smaller network."""
    lines = [s for s in RECIPE.read_text().splitlines() if s.partition(":")[0] not in SMALLER]
    lines += [f"{key}: {json.dumps(value)}" for key, value in SMALLER.items()]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    return path


def write(path: Path, array: NDArray[Any], spacing: tuple[float, ...], *, labels: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.from_spacing(array.shape[: len(spacing)], spacing)
    if labels:
        limner.write(path, array, like=geometry)
    else:
        limner.io.write_image(path, Image(array, geometry))


def make_plain(folder: Path) -> Path:
    """Two grey images and a colour one, one without a mask, a larger mask, and no image at all."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "colour", "bare", "misfit"):
        image, labels = discs(rng)
        if name == "colour":
            image = np.stack([image, image // 2, 255 - image], axis=-1)
        write(folder / "images" / f"{name}.png", image, (1.0, 1.0), labels=False)
        if name == "misfit":
            labels = np.pad(labels, 3)
        if name != "bare":
            write(folder / "masks" / f"{name}.png", labels, (1.0, 1.0), labels=True)
    for part in ("images", "masks"):
        (folder / part / "broken.png").write_bytes(b"no image")
    return folder


def make_nnunet(folder: Path, *, volumes: bool) -> Path:
    """Cases of two channels, PNG or NIfTI."""
    rng = np.random.default_rng(1)
    ending = ".nii.gz" if volumes else ".png"
    for k in range(3):
        image, labels = discs(rng)
        spacing: tuple[float, ...] = (1.0, 1.0)
        if volumes:
            image, labels = (np.repeat(a[None], 12, axis=0) for a in (image, labels))
            spacing = (3.0, 1.0, 1.0)
        for channel in range(2):
            path = folder / "imagesTr" / f"case{k}_{channel:04d}{ending}"
            write(path, image, spacing, labels=False)
        write(folder / "labelsTr" / f"case{k}{ending}", labels, spacing, labels=True)
    facts = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "disc": 1}}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def train(recipe: Path, data: Path, out: Path, steps: int = 2) -> int:
    command = ["train", str(recipe), "--data", str(data), "--out", str(out), "--device", "cpu"]
    return run([*command, "--steps", str(steps)])


def test_a_plain_folder_is_packed_once_and_trained_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_plain(tmp_path / "data"), tmp_path / "run"
    assert train(recipe, data, out) == 0
    told = capsys.readouterr()
    assert "step 2 of 2, finished" in told.out
    assert "1 of 6 cases have no labels and are left out" in told.err
    assert "misfit is left out" in told.err
    assert "is of 70×70, its image of 64×64" in told.err
    assert "broken is left out" in told.err
    facts = json.loads((out / "pack" / "pack.json").read_text())
    assert facts["sets"]["data"]["stems"] == dict.fromkeys(["a", "b", "colour"], "train")
    shutil.rmtree(data)  # nothing is read again
    data.mkdir()
    assert train(recipe, data, out) == 0
    assert "step 2 of 2, finished" in capsys.readouterr().out


@pytest.mark.parametrize("volumes", [False, True], ids=["2D", "3D"])
def test_raw_data_of_nnunet_are_trained_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], volumes: bool
) -> None:
    data, out = make_nnunet(tmp_path / "Dataset001", volumes=volumes), tmp_path / "run"
    assert train(recipe, data, out) == 0
    assert "step 2 of 2, finished" in capsys.readouterr().out
    facts = json.loads((out / "pack" / "pack.json").read_text())["sets"]["Dataset001"]
    assert set(facts["stems"]) == {"case0", "case1", "case2"}
    assert facts["train"] == (3 if not volumes else 3 * 3 * 8)
    assert (out / "limner-2d.safetensors").is_file()


def test_folders_with_nothing_to_train_on_are_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert train(recipe, tmp_path / "empty", tmp_path / "run") == 2
    assert "holds nothing to train on; name a folder with" in capsys.readouterr().err
    (tmp_path / "bad" / "images").mkdir(parents=True)
    (tmp_path / "bad" / "masks").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "bad" / part / "a.png").write_bytes(b"no image")
    assert train(recipe, tmp_path / "bad", tmp_path / "run") == 2
    assert "no annotated case to pack" in capsys.readouterr().err


def test_settings_of_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_nnunet(tmp_path / "heads", volumes=True)
    command = ["train", "pack", str(data), "-o", str(tmp_path / "pack"), "--slices", "2"]
    assert run([*command, "--slices-of", "*he*=1"]) == 0
    facts = json.loads((tmp_path / "pack" / "pack.json").read_text())["sets"]["heads"]
    assert facts["train"] == 3 * 3
    assert run([*command, "--slices-of", "heads"]) == 2
    assert "write PATTERN=N with a number of 1 or more" in capsys.readouterr().err
