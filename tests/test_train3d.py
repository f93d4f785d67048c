"""Training on volumes: recipes, learning, resuming, beginning with the network of the plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.train import checkpoint
from limner.train.config import TrainConfig, read_config, write_config
from limner.train.data import pack, pack3d
from limner.train.loop import read_log, train
from train_makers import add_volumes, make_data, one_thread, volume_packs

RECIPES = Path(__file__).parents[1] / "recipes"

SMALL = {
    "name": "limner-3d",
    "dimensions": 3,
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
    config = TrainConfig(**(SMALL | values))  # type: ignore[arg-type]
    volumes = pack3d.open_volumes(folder)
    pictures = pack.open_pack(folder, slices=False)
    train(config, pictures, out, device="cpu", start=start, volumes=volumes)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(out / "checkpoint.pt")
    named = {f"network.{k}": v for k, v in state.network.items()}
    return named | {f"averaged.{k}": v for k, v in state.averaged.items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("limner-3d*.yaml")))
def test_recipes_are_readable_and_fit_the_network(name: str, tmp_path: Path) -> None:
    from limner.networks.unet3d import PromptableUNet3d
    from limner.train.tasks.prompted import shape_of

    config = read_config(RECIPES / name)
    assert (config.name, config.dimensions) == ("limner-3d", 3)
    write_config(tmp_path / "saved.yaml", config)
    assert read_config(tmp_path / "saved.yaml") == config
    stride = PromptableUNet3d(config.widths, config.depths).stride
    for shape in config.shapes:
        assert not any(n % s for n, s in zip(shape_of(shape), stride, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("dimensions: 4", "use one of 2, 3"),
        ("dimensions: 3", "give SLICESxROWSxCOLUMNS"),
        ("dimensions: 3\nshapes: [32]", "of type str"),
        ("dimensions: 3\nshapes: [32x96]", "give SLICESxROWSxCOLUMNS"),
        ("dimensions: 3\nshapes: [32x96x0]", "give SLICESxROWSxCOLUMNS"),
        ("piles: 1.5", "it is a share"),
        ("dimensions: 3\nshapes: [8x32x32]\npiles: 0.7\nsynthetic: 0.6", "at most 1 together"),
    ],
)
def test_malformed_recipes_are_refused(values: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(values)
    with pytest.raises(FormatError, match=message):
        read_config(path)


def test_a_stopped_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    values = {"steps": 8, "checkpoint_every": 3, "more_rounds": 0.5}
    config = TrainConfig(**(SMALL | values))  # type: ignore[arg-type]
    volumes, pictures = pack3d.open_volumes(folder), pack.open_pack(folder, slices=False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, pictures, whole, device="cpu", volumes=volumes)
    calls = 0
    while calls < 50:
        calls += 1
        outcome = train(config, pictures, parts, device="cpu", volumes=volumes, minutes=0.002)
        if outcome.finished:
            break
    assert calls > 1
    assert _same(_weights(whole), _weights(parts))
    _train(folder, tmp_path / "other", steps=8, seed=1)
    assert not _same(_weights(whole), _weights(tmp_path / "other"))


def test_it_learns_and_validates(folder: Path, tmp_path: Path) -> None:
    values = {"steps": 50, "batch_size": 4, "learning_rate": 5e-3, "ema_decay": 0.8, "piles": 0.0}
    values |= {"validate_every": 50, "log_every": 10, "validate_targets": 2, "synthetic": 0.0}
    _train(folder, tmp_path, rounds=1, wrong=0.0, invented=0.0, shapes=("8x32x32",), **values)
    lines = read_log(tmp_path / "log.jsonl")
    losses = [line["loss0"] for line in lines if "loss0" in line]
    assert losses[-1] < 0.85 * losses[0]
    found = lines[-1]["validation"]
    assert set(found) == {"3d/balls", "mean"}
    assert set(found["mean"]) == {"box", "box5", "click", "clicks5"}
    assert all(0 <= v <= 1 for v in found["mean"].values())


def test_a_run_begins_with_the_network_of_the_plane(folder: Path, tmp_path: Path) -> None:
    image, space, more = (tmp_path / name for name in ("plane", "space", "more"))
    flat = TrainConfig(
        steps=2, widths=(8, 16), depths=(1, 1), sizes=(32,), batch_size=2, precision="fp32"
    )
    train(flat, pack.open_pack(folder), image, device="cpu")
    start = image / "limner-2d.safetensors"
    _train(folder, space, start, steps=1, learning_rate=1e-9)
    before = checkpoint.load(image / "checkpoint.pt").averaged
    after = checkpoint.load(space / "checkpoint.pt").averaged
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
    config = TrainConfig(**(SMALL | {"steps": 1}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs volumes"):
        train(config, pack.open_pack(folder), tmp_path / "b", device="cpu")


def test_command_line_packs_volumes_and_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = add_volumes(make_data(tmp_path / "data"))
    packed, out = tmp_path / "pack", tmp_path / "run"
    assert run(["train", "pack", str(data), "-o", str(packed), "--dimensions", "3"]) == 0
    assert "5 sets" in capsys.readouterr().out
    recipe = tmp_path / "r.yaml"
    write_config(recipe, TrainConfig(**(SMALL | {"steps": 1})))  # type: ignore[arg-type]
    command = ["train", str(recipe), "--data", str(packed), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    assert "step 1 of 1, finished" in capsys.readouterr().out
    (packed / pack3d.SUMMARY).unlink()
    command[command.index(str(out))] = str(tmp_path / "run2")
    assert run(command) == 2
    assert "is no pack with volumes" in capsys.readouterr().err
