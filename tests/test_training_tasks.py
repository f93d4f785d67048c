"""All training tasks through the one loop: resuming, learning; and the promises of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limner
from limner.errors import FormatError
from limner.networks.fusion2d import LOGIT_SCALE, NEGATIVE, POSITIVE, PREVIOUS
from limner.train import checkpoint
from limner.train.config import TrainConfig
from limner.train.loop import choose_device, fit, read_log
from limner.train.recipe import make_config, read_recipe
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    StepContext,
    TaskInputs,
    TrainingTask,
    list_methods,
    load_method,
    split_batch,
)
from train_makers import (
    are_equal,
    labelled_scan,
    labelled_volumes,
    one_thread,
    small_xmem,
    volume_packs,
)

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
CPU = torch.device("cpu")
STEPS = 12

# Values that make any recipe small; of these a method gets the ones that it knows.
SMALL: dict[str, Any] = {
    "batch_size": 2,
    "micro_batch": 0,
    "warmup_steps": 1,
    "precision": "fp32",
    "log_every": 1,
    "validate_every": 1000,
    "validate_targets": 1,
    "checkpoint_every": 1,
    "widths": [8, 16],
    "depths": [1, 1],
    "blocks": [1, 1],
    "sizes": [32],
    "shapes": ["8x32x32"],
    "rounds": 2,
    "frames": 3,
    "references": 2,
    "adapter_width": 8,
    "size": [8, 32, 32],
    "patch": [4, 16, 16],
    "mask_patch": [4, 16, 16],
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 64,
    "text_dim": 16,
    "text_depth": 1,
    "text_heads": 2,
    "text_hidden": 16,
    "pseudo_min_size": 60,
    "pseudo_rounds": 2,
    "combinations": ["box+text", "point"],
}
OWN: dict[str, dict[str, Any]] = {
    "tracking": {"widths": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "xmem-adapters": {"sizes": [64], "batch_size": 1},
}
ON_PACKS = {"prompted-2d", "prompted-3d", "tracking", "xmem-adapters"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_packs(tmp_path_factory)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans with labels, and one without for methods that use such."""
    folder = labelled_volumes(tmp_path_factory.mktemp("volumes"))
    image, _ = labelled_scan(2)
    limner.io.write_image(folder / "images" / "c2.nii.gz", image)
    return folder


@pytest.fixture(scope="module")
def xmem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_xmem(tmp_path_factory.mktemp("xmem") / "XMem.pth")


@dataclass(frozen=True)
class Run:
    """A small run of a method."""

    config: TrainConfig
    data: Path
    start: Path | None

    def open_task(self, out: Path, config: TrainConfig | None = None) -> TrainingTask:
        inputs = TaskInputs(self.data, out, CPU, self.start)
        task: TrainingTask = load_method(self.config.method).open_task(
            config or self.config, inputs
        )
        return task


@pytest.fixture(params=sorted({read_recipe(p).method for p in RECIPES}))
def small(request: pytest.FixtureRequest, packs: Path, cases: Path, xmem: Path) -> Run:
    method: str = request.param
    recipe = next(p for p in RECIPES if read_recipe(p).method == method)
    known = load_method(method).Config.model_fields
    values = {**SMALL, **OWN.get(method, {})}
    changes = {key: value for key, value in values.items() if key in known}
    config = make_config(read_recipe(recipe).to_json() | changes, method)
    data = packs if method in ON_PACKS else cases
    return Run(config, data, xmem if method == "xmem-adapters" else None)


class Wrapped(TrainingTask):
    """A task with something else about it."""

    def __init__(self, task: TrainingTask) -> None:
        self.task, self.digest, self.facts = task, task.digest, task.facts
        self.steps: list[int] = []

    def networks(self) -> Networks:
        return self.task.networks()

    def rate_of(self, name: str) -> float:
        return self.task.rate_of(name)

    def draw(self, context: StepContext) -> Iterable[MicroBatch]:
        return self.task.draw(context)

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        self.steps.append(context.step)
        return self.task.step(batch, context)

    def start(self, path: Path, networks: Networks) -> None:
        self.task.start(path, networks)

    def write(self, folder: Path, name: str, networks: Networks, facts: dict[str, Any]) -> Path:
        return self.task.write(folder, name, networks, facts)


class Killed(Wrapped):
    """Is killed in the third step, after a checkpoint of the second and a line of the log."""

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        if context.step == 2:
            raise KeyboardInterrupt
        return super().step(batch, context)


class Repeated(Wrapped):
    """Learns from one batch only, in the same way each time."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__(task)
        self.batches: list[MicroBatch] = []

    def draw(self, context: StepContext) -> Iterable[MicroBatch]:
        self.batches = self.batches or list(self.task.draw(self._same(context)))
        return self.batches

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        return self.task.step(batch, self._same(context))

    def _same(self, context: StepContext) -> StepContext:
        generator = getattr(self, "generator", context.generator)
        self.generator = generator.manual_seed(1)
        rng = np.random.default_rng(1)
        return replace(context, step=0, rng=rng, generator=generator)


def test_every_method_has_a_recipe() -> None:
    assert {read_recipe(p).method for p in RECIPES} == set(list_methods())


@pytest.mark.slow
def test_resumed_equals_uninterrupted(small: Run, tmp_path: Path) -> None:
    config = small.config.changed(steps=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(small.open_task(tmp_path), config, whole, device=CPU, start=small.start)
    killed = Killed(small.open_task(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fit(killed, config, parts, device=CPU, start=small.start)
    assert set(killed.steps) == {0, 1}
    resumed = Wrapped(small.open_task(tmp_path))
    fit(resumed, config, parts, device=CPU, start=small.start)
    assert set(resumed.steps) == {2}
    assert are_equal(whole, parts)
    steps = [line["step"] for line in read_log(parts / "log.jsonl") if "rate" in line]
    assert steps == [1, 2, 3]
    with pytest.raises(FormatError, match="with another seed"):
        fit(resumed, config.changed(seed=9), parts, device=CPU)


@pytest.mark.slow
def test_loss_falls_on_one_batch(small: Run, tmp_path: Path) -> None:
    changes = {"steps": STEPS, "learning_rate": 1e-2, "checkpoint_every": 1000}
    config = small.config.changed(**changes)
    task = Repeated(small.open_task(tmp_path, config))
    fit(task, config, tmp_path / "run", device=CPU, start=small.start)
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(losses) == STEPS
    assert min(losses[-3:]) < 0.93 * losses[0], losses


# The loop, with a task of one layer and one norm.


class Layer(TrainingTask):
    """Learns to answer one with a linear layer and a norm; `scale` is of the loss."""

    digest = "none"

    def __init__(self, scale: float = 1.0, batch_size: int = 4, micro_batch: int = 0) -> None:
        self.facts: dict[str, Any] = {}
        self.scale, self.batch_size, self.micro_batch = scale, batch_size, micro_batch
        self.seen: list[tuple[bool, float]] = []

    def networks(self) -> Networks:
        return {MAIN: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))}

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        values = torch.randn(self.batch_size, 3, generator=context.generator)
        first = 0
        for part in split_batch(self.batch_size, self.micro_batch):
            yield replace(part, data=values[first : first + part.samples])
            first += part.samples

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        ema = context.ema[MAIN]
        self.seen.append((ema.training, float(ema[0].weight.detach().sum())))  # type: ignore[index]
        return {"loss": self.scale * (context.networks[MAIN](batch.data) - 1).square().mean()}


def _fit(task: TrainingTask, out: Path, **values: Any) -> checkpoint.State:
    defaults = {"steps": 1, "warmup_steps": 0, "learning_rate": 0.1, "weight_decay": 0.0}
    config = TrainConfig(method="none", name="layer", **{**defaults, **values})
    fit(task, config, out, device=CPU)
    return checkpoint.load(out / "checkpoint.pt")


def _first_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Layer().networks()[MAIN].state_dict()


def test_weights_decay_and_biases_and_norms_do_not(tmp_path: Path) -> None:
    before = _first_weights()
    after = _fit(Layer(scale=0.0), tmp_path / "a", weight_decay=0.5).networks[MAIN]
    for name, value in before.items():
        factor = 1 - 0.1 * 0.5 if value.ndim > 1 else 1.0
        torch.testing.assert_close(after[name], value * factor)
    everything = _fit(Layer(scale=0.0), tmp_path / "b", weight_decay=0.5, decay_all=True)
    for name, value in before.items():
        torch.testing.assert_close(everything.networks[MAIN][name], value * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.5, True), (0.0, False)])
def test_long_gradients_are_shortened(clip_norm: float, clipped: bool, tmp_path: Path) -> None:
    state = _fit(Layer(scale=100.0), tmp_path, clip_norm=clip_norm)
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line["norm"] > 10
    moments = [m["exp_avg"].norm() for m in state.optimiser["state"].values()]
    used = float(torch.stack(moments).norm()) / (1 - 0.9)  # the first step's gradient
    assert used == pytest.approx(0.5 if clipped else line["norm"], rel=1e-3)


def test_averages_follow_the_weights(tmp_path: Path) -> None:
    before, task = _first_weights(), Layer()
    state = _fit(task, tmp_path / "a", ema_decay=0.05)
    for name, value in state.averaged[MAIN].items():
        wanted = 0.05 * before[name] + 0.95 * state.networks[MAIN][name]
        torch.testing.assert_close(value, wanted)
    assert not torch.equal(state.averaged[MAIN]["0.weight"], before["0.weight"])
    (line,) = read_log(tmp_path / "a" / "log.jsonl")
    assert line["updates"] == 1
    task = Layer()
    _fit(task, tmp_path / "b", steps=3, ema_decay=0.9)
    sums = [total for _, total in task.seen]
    assert not any(training for training, _ in task.seen)
    assert len(set(sums)) == 3  # a task sees the averages, and they move
    assert not _fit(Layer(), tmp_path / "c", ema_decay=0.0).averaged


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_gradients_of_micro_batches_add_up(micro_batch: int, tmp_path: Path) -> None:
    whole = _fit(Layer(), tmp_path / "whole", steps=3)
    parts = _fit(Layer(micro_batch=micro_batch), tmp_path / "parts", steps=3)
    torch.testing.assert_close(parts.networks, whole.networks, rtol=1e-4, atol=1e-5)
    first, second = (read_log(tmp_path / n / "log.jsonl") for n in ("whole", "parts"))
    assert [line["loss"] for line in second] == pytest.approx(
        [line["loss"] for line in first], 1e-3
    )


def test_a_batch_without_finite_gradients_is_passed_over(tmp_path: Path) -> None:
    state = _fit(Layer(scale=float("inf")), tmp_path)
    torch.testing.assert_close(state.networks[MAIN], _first_weights(), rtol=0, atol=0)
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line["updates"] == 0


def test_another_device_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        choose_device("gpu")


# Rounds of prompts.


def _count_marks(fused: Tensor) -> float:
    return float(fused[:, [POSITIVE, NEGATIVE]].sum())


@pytest.mark.parametrize("method", ["prompted-2d", "prompted-3d"])
def test_rounds_build_on_one_another(method: str, packs: Path, tmp_path: Path) -> None:
    recipe = next(p for p in RECIPES if read_recipe(p).method == method)
    known = load_method(method).Config.model_fields
    values = {k: v for k, v in SMALL.items() if k in known} | {"rounds": 3, "batch_size": 4}
    values |= {"extra_rounds_fraction": 0.0, "prompt_noise": 0.0}
    config = make_config(read_recipe(recipe).to_json() | values, method)
    task = Run(config, packs, None).open_task(tmp_path)
    torch.manual_seed(0)
    networks = task.networks()
    asked: list[Tensor] = []
    answered: list[Tensor] = []
    networks[MAIN].register_forward_pre_hook(lambda _, args: asked.append(args[0].detach()))
    networks[MAIN].register_forward_hook(lambda *a: answered.append(a[-1][0].detach()))
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(3)
    context = StepContext(0, 10, networks, networks, rng, generator)
    (batch,) = task.draw(context)
    task.step(batch, context)
    assert len(asked) == 3
    for k in (1, 2):  # each round is shown the answer before and more marks
        shown = torch.tanh(answered[k - 1][:, 0] / LOGIT_SCALE)
        torch.testing.assert_close(asked[k][:, PREVIOUS], shown)
        assert _count_marks(asked[k]) > _count_marks(asked[k - 1])
    with_more = config.changed(extra_rounds_fraction=1.0)
    asked.clear()
    Run(with_more, packs, None).open_task(tmp_path).step(batch, context)
    assert len(asked) > 3  # rounds that are not learnt from come first, and build on one another
    assert _count_marks(asked[-3]) > _count_marks(asked[0])
