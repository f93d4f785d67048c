"""Training: recipes, resuming, learning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limner.checkpoints.load import read_weights
from limner.cli.__main__ import run
from limner.datasets import find_training_sets
from limner.errors import CheckpointError, FormatError
from limner.train import checkpoint
from limner.train.data import pack
from limner.train.data.images import read_images
from limner.train.loop import learning_rate, read_log, train
from limner.train.recipe import make_config, parse_yaml, read_recipe, write_config
from limner.train.tasks.prompted_2d import Config
from train_makers import all_weights, are_equal, make_data, one_thread

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"

SMALL = {
    "widths": (8, 16),
    "depths": (1, 1),
    "sizes": (32,),
    "batch_size": 2,
    "rounds": 2,
    "warmup_steps": 2,
    "log_every": 1,
    "validate_every": 1000,
    "synthetic_fraction": 0.4,
    "precision": "fp32",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small run faster on one thread, above all where others use the machine, too."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack")
    pack.write_pack(
        out, read_images(find_training_sets(make_data(tmp_path_factory.mktemp("data"))))
    )
    return out


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("*.yaml")))
def test_recipes_are_readable_and_survive_saving(name: str, tmp_path: Path) -> None:
    config = read_recipe(RECIPES / name)
    write_config(tmp_path / "saved.yaml", config)
    assert read_recipe(tmp_path / "saved.yaml") == config
    assert make_config(config.to_json(), "saved") == config


def test_recipe_values_are_those_of_yaml_1_2() -> None:
    text = (
        '# recipe\nname: a#b  # comment\nquoted: "a # b"\nsteps: 1_000\nhex: 0x10\nrate: 8e-4\n'
        "list: [1, two, 'x, y']\nno: []\nnone: null\nyes: no\non: true\nshape: 32x96x96\n"
    )
    assert parse_yaml(text, "recipe") == {
        "name": "a#b",
        "quoted": "a # b",
        "steps": 1000,
        "hex": 16,
        "rate": 8e-4,
        "list": [1, "two", "x, y"],
        "no": [],
        "none": None,
        "yes": "no",
        "on": True,
        "shape": "32x96x96",
    }


FORMER = "more_rounds: 0.5\nsynthetic: 0.25\ninvented: 0.125\nwrong: 0.0625\n"
NOW = {
    "extra_rounds_fraction": 0.5,
    "synthetic_fraction": 0.25,
    "unlabelled_target_fraction": 0.125,
    "prompt_noise": 0.0625,
}


@pytest.mark.parametrize(
    ("former", "method", "now"),
    [
        (FORMER, "prompted-2d", NOW),
        (
            FORMER + "dimensions: 3\nshapes: [8x32x32]\npiles: 0.75",
            "prompted-3d",
            NOW | {"shapes": ["8x32x32"], "pseudo_volume_fraction": 0.75},
        ),
        (
            "frames: 4\npiles: 0.75\nsynthetic: 0.25",
            "tracking",
            {"frames": 4, "moved_image_fraction": 0.75, "synthetic_fraction": 0.25},
        ),
        (
            "frames: 4\nadapters: 8\nreferences: 2\ninvented: 0.125",
            "xmem-adapters",
            {"frames": 4, "adapter_width": 8, "references": 2, "unlabelled_target_fraction": 0.125},
        ),
    ],
)
def test_recipes_of_former_versions_are_read_with_a_warning(
    former: str,
    method: str,
    now: dict[str, object],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(former)
    config = read_recipe(path)
    assert config == make_config({"method": method, **now}, "now")
    assert f"read as 'method: {method}'" in caplog.text
    assert "'invented' is now called 'unlabelled_target_fraction'" in caplog.text or (
        "invented" not in former
    )
    # A saved run of such a version has all keys that there were, also those of other methods.
    everything = {"widths": [32, 64, 128, 192, 256], "dimensions": 2, "shapes": [], "frames": 1}
    everything |= {"adapters": 0, "references": 3, "piles": 0.25, "rounds": 3}
    assert make_config(everything, "saved") == Config()


def test_a_key_is_not_given_by_both_names(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'wrong' is the former name of 'prompt_noise'"):
        make_config({"wrong": 0.1, "prompt_noise": 0.1}, "recipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz'; known are method, name, steps"),
        ("method: prompted", "method='prompted'; use one of prompted-2d"),
        ("method: prompted-2d\nframes: 4", "unknown key 'frames'"),
        ("just words", "line 1: 'just words' is not 'key: value'"),
        ("sizes: [32, 64", "line 1: "),
        ("steps: many", "of type int"),
        ("steps: 1.5", "of type int"),
        ("steps: true", "of type int"),
        ("widths: 32", r"a \[list\]"),
        ("widths: [32, a]", "of type int"),
        ("steps: 3\nsteps: 4", "given twice"),
        ("nested:\n  a: 1", "recipes are flat"),
        ("steps: \0", "is no YAML"),
        ("precision: fp16", "use one of bf16, fp32"),
        ("prompt_noise: 2", "it is a share"),
        ("steps: 0", "at least 1"),
        ("sizes: [100]", "multiples of 32"),
    ],
)
def test_malformed_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_recipe(path)


def test_learning_rate_rises_and_falls() -> None:
    config = Config(steps=1000, warmup_steps=100, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == 0.01
    assert rates[99] == 1.0
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0.01 <= rates[-1] < 0.011


def test_the_same_seed_gives_the_same_weights_and_another_others(
    folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(Config(steps=3, seed=seed, **SMALL), folder, tmp_path / name, device="cpu")
    assert are_equal(tmp_path / "a", tmp_path / "b")
    assert not are_equal(tmp_path / "a", tmp_path / "c")


def test_a_killed_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    steps = 24
    recipe = tmp_path / "recipe.yaml"
    config = Config(steps=steps, checkpoint_every=3, extra_rounds_fraction=0.5, **SMALL)
    write_config(recipe, config)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, folder, whole, device="cpu")
    command = [sys.executable, "-m", "limner", "train", str(recipe), "--data", str(folder)]
    command += ["--out", str(killed), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = killed / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(read_log(log)) >= 8) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = checkpoint.load(killed / "checkpoint.pt").step
    assert 0 < step < steps
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"going on at step {step} of {steps}" in done.stderr
    assert are_equal(whole, killed)
    told = [line["step"] for line in read_log(log) if "loss0" in line]
    assert told == list(range(1, steps + 1))


def test_a_run_stops_in_time_and_is_not_mixed_with_another(folder: Path, tmp_path: Path) -> None:
    config = Config(steps=10_000, **SMALL)
    outcome = train(config, folder, tmp_path, device="cpu", minutes=0.005)
    assert not outcome.finished
    assert 0 < outcome.step < 10_000
    assert checkpoint.load(tmp_path / "checkpoint.pt").step == outcome.step
    with pytest.raises(FormatError, match="with another seed"):
        train(Config(steps=10_000, seed=3, **SMALL), folder, tmp_path, device="cpu")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        train(config, folder, tmp_path, device="cpu")


def test_it_learns_and_validates(folder: Path, tmp_path: Path) -> None:
    values = SMALL | {
        "batch_size": 8,
        "synthetic_fraction": 0.0,
        "validate_every": 40,
        "log_every": 5,
    }
    config = Config(
        steps=40,
        learning_rate=5e-3,
        ema_decay=0.8,
        unlabelled_target_fraction=0.0,
        prompt_noise=0.0,
        **values,
    )
    train(config, folder, tmp_path, device="cpu")
    lines = read_log(tmp_path / "log.jsonl")
    losses = [line["loss0"] for line in lines if "loss0" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert all(line["samples_per_s"] > 0 for line in lines if "loss0" in line)
    found = lines[-1]["validation"]
    assert set(found["2d/discs"]) == {"box", "click", "clicks5"}
    assert all(0 <= v <= 1 for v in found["mean"].values())


def test_the_saved_weights_are_the_averaged_ones(folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    train(Config(steps=2, **SMALL), folder, tmp_path, device="cpu")
    averaged = checkpoint.load(tmp_path / "checkpoint.pt").averaged["network"]
    with safe_open(tmp_path / "limner-2d.safetensors", "pt") as file:
        assert set(file.keys()) == set(averaged)
        assert all(torch.equal(file.get_tensor(k), averaged[k].half()) for k in averaged)
        assert json.loads(file.metadata()["limner"])["step"] == 2


def test_a_run_begins_with_the_weights_of_another(folder: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    train(Config(steps=3, **SMALL), folder, first, device="cpu")
    weights = first / "limner-2d.safetensors"
    slow = SMALL | {"learning_rate": 1e-9}
    train(Config(steps=1, **slow), folder, second, device="cpu", start=weights)
    before, after = (all_weights(out) for out in (first, second))
    for key in before:
        if key.startswith("averaged."):
            expected = before[key].half().float()
            torch.testing.assert_close(after[key], expected, rtol=0, atol=1e-6)
    wide = SMALL | {"widths": (8, 24)}
    with pytest.raises(CheckpointError, match="of another network"):
        train(Config(steps=1, **wide), folder, other, device="cpu", start=weights)


def test_an_encoder_begins_with_published_weights_and_learns_slower(
    folder: Path, tmp_path: Path
) -> None:
    """The pretrained kind: its encoder from a file with the published names, a run from a run."""
    from limner.networks.lite_unet2d import PromptableLiteUNet2d

    torch.manual_seed(5)
    encoder = PromptableLiteUNet2d().encoder.state_dict()
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts["project"] = ("_project_conv", "_bn2")
    published = {"_fc.weight": torch.zeros(3, 3), "_bn0.num_batches_tracked": torch.tensor(1)}
    for name, value in encoder.items():
        head, *rest = name.split(".")
        if head == "stem":
            published[f"{('_conv_stem', '_bn0')[rest[0] == 'bn']}.{rest[1]}"] = value
        else:
            number, part, kind, last = rest
            published[f"_blocks.{number}.{parts[part][kind == 'bn']}.{last}"] = value
    torch.save(published, tmp_path / "published.pth")
    lite = {"encoder": "efficientnet-lite0", "steps": 1, "ema_decay": 0.0, "batch_size": 1}
    still = Config(**SMALL | lite | {"encoder_rate": 0.0})
    train(still, folder, tmp_path / "a", device="cpu", start=tmp_path / "published.pth")
    found, _ = read_weights(tmp_path / "a" / "limner-2d.safetensors")
    assert all(torch.equal(found[f"encoder.{n}"], v.half()) for n, v in encoder.items())
    start = tmp_path / "a" / "limner-2d.safetensors"
    train(Config(**SMALL | lite), folder, tmp_path / "b", device="cpu", start=start)
    after, _ = read_weights(tmp_path / "b" / "limner-2d.safetensors")
    assert any(not torch.equal(after[f"encoder.{n}"], v.half()) for n, v in encoder.items())
    torch.save({"_conv_stem.weight": published["_conv_stem.weight"]}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="weights are missing"):
        train(Config(**SMALL | lite), folder, tmp_path / "c", start=tmp_path / "half.pth")


def test_command_line_packs_and_reports_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data")
    assert run(["train", "pack", str(data), "-o", str(tmp_path / "pack")]) == 0
    assert "4 sets" in capsys.readouterr().out
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stepz: 1\n")
    assert run(["train", str(recipe), "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "unknown key 'stepz'" in capsys.readouterr().err
    assert run(["train", "pack", str(tmp_path), "-o", str(tmp_path / "p2")]) == 2
    assert "holds nothing to train on" in capsys.readouterr().err
