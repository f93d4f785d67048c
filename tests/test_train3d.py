"""Training on volumes: recipes, learning, resuming, beginning with the network of the plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.train import checkpoint
from limner.train.data import pack3d
from limner.train.loop import read_log, train
from limner.train.recipe import read_recipe, write_config
from limner.train.tasks import prompted_2d
from limner.train.tasks.prompted_3d import Config, parse_shape
from train_makers import add_volumes, are_equal, make_data, one_thread, volume_packs

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"

SMALL = {
    "name": "limner-3d",
    "widths": (8, 16),
    "depths": (1, 1),
    "shapes": ("8x32x32", "16x32x32"),
    "batch_size": 2,
    "rounds": 2,
    "warmup_steps": 2,
    "log_every": 1,
    "validate_every": 1000,
    "precision": "fp32",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_packs(tmp_path_factory)


def _train(folder: Path, out: Path, start: Path | None = None, **values: object) -> None:
    config = Config(**(SMALL | values))  # type: ignore[arg-type]
    train(config, folder, out, device="cpu", start=start)


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("limner-3d*.yaml")))
def test_recipes_fit_the_network(name: str) -> None:
    from limner.networks.unet3d import PromptableUNet3d

    config = read_recipe(RECIPES / name)
    assert isinstance(config, Config)
    stride = PromptableUNet3d(config.widths, config.depths).stride
    for shape in config.shapes:
        assert not any(n % s for n, s in zip(parse_shape(shape), stride, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("steps: 1", "give SLICESxROWSxCOLUMNS"),
        ("shapes: [32]", "of type str"),
        ("shapes: [32x96]", "give SLICESxROWSxCOLUMNS"),
        ("shapes: [32x96x0]", "give SLICESxROWSxCOLUMNS"),
        ("pseudo_volume_fraction: 1.5", "it is a share"),
        (
            "shapes: [8x32x32]\npseudo_volume_fraction: 0.7\nsynthetic_fraction: 0.6",
            "at most 1 together",
        ),
    ],
)
def test_malformed_recipes_are_refused(values: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: prompted-3d\n{values}")
    with pytest.raises(FormatError, match=message):
        read_recipe(path)


def test_another_seed_gives_other_weights(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        _train(folder, tmp_path / name, steps=2, seed=seed)
    assert not are_equal(tmp_path / "a", tmp_path / "b")


def test_it_learns_and_validates(folder: Path, tmp_path: Path) -> None:
    values = {
        "steps": 50,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "ema_decay": 0.8,
        "pseudo_volume_fraction": 0.0,
    }
    values |= {
        "validate_every": 50,
        "log_every": 10,
        "validate_targets": 2,
        "synthetic_fraction": 0.0,
    }
    _train(
        folder,
        tmp_path,
        rounds=1,
        prompt_noise=0.0,
        unlabelled_target_fraction=0.0,
        shapes=("8x32x32",),
        **values,
    )
    lines = read_log(tmp_path / "log.jsonl")
    losses = [line["loss0"] for line in lines if "loss0" in line]
    assert losses[-1] < 0.85 * losses[0]
    found = lines[-1]["validation"]
    assert set(found) == {"3d/balls", "mean"}
    assert set(found["mean"]) == {"box", "box5", "click", "clicks5"}
    assert all(0 <= v <= 1 for v in found["mean"].values())


def test_a_run_begins_with_the_2d_network(folder: Path, tmp_path: Path) -> None:
    plane, space, more = (tmp_path / name for name in ("plane", "space", "more"))
    flat = prompted_2d.Config(
        steps=2, widths=(8, 16), depths=(1, 1), sizes=(32,), batch_size=2, precision="fp32"
    )
    train(flat, folder, plane, device="cpu")
    start = plane / "limner-2d.safetensors"
    _train(folder, space, start, steps=1, learning_rate=1e-9)
    before = checkpoint.load(plane / "checkpoint.pt").averaged["network"]
    after = checkpoint.load(space / "checkpoint.pt").averaged["network"]
    for key, value in before.items():
        wanted = value.half().float()
        found = after[key].squeeze(2) if after[key].ndim == 5 else after[key]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert set(after) > set(before)
    _train(folder, more, space / "limner-3d.safetensors", steps=1, learning_rate=1e-9)
    with pytest.raises(CheckpointError, match="of another network"):
        _train(folder, tmp_path / "wide", start, steps=1, widths=(8, 24))


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        _train(folder, tmp_path / "a", steps=1, shapes=("8x30x32",))


def test_command_line_packs_volumes_and_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = add_volumes(make_data(tmp_path / "data"))
    packed, out = tmp_path / "pack", tmp_path / "run"
    assert run(["train", "pack", str(data), "-o", str(packed), "--dimensions", "3"]) == 0
    assert "5 sets" in capsys.readouterr().out
    recipe = tmp_path / "r.yaml"
    write_config(recipe, Config(**(SMALL | {"steps": 1})))  # type: ignore[arg-type]
    command = ["train", str(recipe), "--data", str(packed), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    assert "step 1 of 1, finished" in capsys.readouterr().out
    (packed / pack3d.SUMMARY).unlink()
    command[command.index(str(out))] = str(tmp_path / "run2")
    assert run(command) == 2
    assert "is no pack with volumes" in capsys.readouterr().err
