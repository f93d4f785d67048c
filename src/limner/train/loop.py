"""The training loop: one for all methods; resumable after any kill with the same result.

There is no random state to save: whatever is random in a step follows from the seed and the step's
number alone.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limner.errors import FormatError
from limner.train import checkpoint
from limner.train.config import TrainConfig
from limner.train.log import RunLog
from limner.train.recipe import make_config, write_config
from limner.train.task import MicroBatch, StepContext, TaskInputs, TrainingTask, load_method

_LAST_RATE = 0.01  # of the peak

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: steps taken so far, by all calls.
        finished: whether the run is complete.
        seconds: that this call took.
        result: file of the weights.
    """

    step: int
    finished: bool
    seconds: float
    result: Path


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
    start: Path | None = None,
) -> Outcome:
    """Begin a run, or go on with the one in `out`.

    Args:
        config: of the run; its ``method`` says what is learnt.
        data: folder to train on; its layout depends on the method.
        out: folder of the run, see `fit`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        minutes: stop after so long, with a checkpoint; None until the last step.
        start: weights to begin with instead of random ones. Not asked for when a run goes on. For
            adapters the file that they are for, always.

    Raises:
        FormatError: `data` is not laid out as it should be, or `out` holds another run.
        CheckpointError: the checkpoint is damaged, or `start` does not fit the network.
    """
    began = time.monotonic()
    inputs = TaskInputs(data, out, choose_device(device), start)
    task: TrainingTask = load_method(config.method).open_task(config, inputs)
    deadline = math.inf if minutes is None else began + 60 * minutes
    return fit(task, config, out, device=inputs.device, deadline=deadline, start=start)


def fit(
    task: TrainingTask,
    config: TrainConfig,
    out: Path,
    *,
    device: torch.device,
    deadline: float = math.inf,
    start: Path | None = None,
) -> Outcome:
    """Train the networks of a task.

    Args:
        task: what is learnt.
        config: of the run.
        out: folder of the run: ``config.yaml``, ``checkpoint.pt``, ``log.jsonl``, ``tensorboard``
            and the weights; made, or continued.
        device: of the networks.
        deadline: of `time.monotonic`; the run is stopped then, with a checkpoint.
        start: weights to begin with, if there is no run in `out` yet.

    Raises:
        FormatError: `out` holds a run with another configuration or other data.
        CheckpointError: its checkpoint is damaged, or `start` does not fit.
    """
    began = time.monotonic()
    run = _Run(config, task, out, device, start)
    try:
        while run.step < config.steps and time.monotonic() < deadline:
            run.advance()
        result = run.save()
    finally:
        run.run_log.close()
    return Outcome(run.step, run.step >= config.steps, time.monotonic() - began, result)


class _Run:
    """A run in memory."""

    def __init__(
        self,
        config: TrainConfig,
        task: TrainingTask,
        out: Path,
        device: torch.device,
        start: Path | None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.task, self.out, self.device = config, task, out, device
        torch.manual_seed(config.seed)
        self.networks = task.networks()
        path = out / "checkpoint.pt"
        if start is not None and not path.exists():
            task.start(start, self.networks)
        self.averaged = self.networks
        if config.ema_decay:
            self.averaged = {name: _frozen_copy(n) for name, n in self.networks.items()}
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.networks, config, task),
            lr=config.learning_rate,
            betas=config.betas,
        )
        self.step = self._resume(path) if path.exists() else 0
        self.run_log = RunLog(out / "log.jsonl", self.step)
        write_config(out / "config.yaml", config)

    def advance(self) -> None:
        """One step, and whatever is due after it."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        samples, measured = self._learn(self._context())
        self.step += 1
        self.run_log.count(samples, measured)
        last = self.step == config.steps
        if self.step % config.log_every == 0 or self.step == 1 or last:
            self.run_log.write(self.step, {"rate": rate})
        began = time.perf_counter()
        if self.step % config.validate_every == 0 or last:
            for network in self.averaged.values():
                network.eval()
            with torch.no_grad():
                scores = self.task.validate(self.averaged)
            if scores is not None:
                self.run_log.write_validation(self.step, scores)
        if self.step % config.checkpoint_every == 0 and not last:
            self.save()
        self.run_log.pass_over(time.perf_counter() - began)

    def save(self) -> Path:
        """Write the checkpoint and the weights; returns the file of the weights."""
        averages = {} if self.averaged is self.networks else self.averaged
        state = checkpoint.State(
            self.step,
            {name: n.state_dict() for name, n in self.networks.items()},
            {name: n.state_dict() for name, n in averages.items()},
            self.optimiser.state_dict(),
            self.config.to_json(),
            self.task.digest,
        )
        checkpoint.save(self.out / "checkpoint.pt", state)
        facts = {"step": self.step, "data": self.task.digest, "config": self.config.to_json()}
        facts |= self.task.facts
        return self.task.write(self.out, self.config.name, self.averaged, facts)

    def _context(self) -> StepContext:
        rng = np.random.default_rng([self.config.seed, self.step])
        generator = torch.Generator(device=self.device)
        generator.manual_seed(int(rng.integers(2**62)))
        for network in self.networks.values():
            network.train()
        return StepContext(
            self.step, self.config.steps, self.networks, self.averaged, rng, generator
        )

    def _learn(self, context: StepContext) -> tuple[int, dict[str, Tensor]]:
        """Learn from one batch: how many samples it had, and means of what was measured."""
        sums: dict[str, Tensor] = {}
        samples = updates = 0
        for batch in self.task.draw(context):
            measured = self._accumulate(batch, context)
            samples += batch.samples
            if batch.last:
                measured |= self._update()
                updates += 1
            for key, value in measured.items():
                sums[key] = sums[key] + value if key in sums else value
        means = {key: value / max(1, updates) for key, value in sums.items()}
        if "updates" in sums:
            means["updates"] = sums["updates"]
        return samples, means

    def _accumulate(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Add the gradients of some samples; what was measured, by their weight."""
        context.weight = batch.weight
        measured = self.task.step(batch, context)
        if measured["loss"].requires_grad:
            context.backward(measured["loss"])
        return {key: value.detach() * batch.weight for key, value in measured.items()}

    def _update(self) -> dict[str, Tensor]:
        """Use up the gradients; returns their length and the number of updates, 1 or 0.

        Gradients that are not finite are passed over: else a single bad batch would end the run.
        """
        learning = [p for group in self.optimiser.param_groups for p in group["params"]]
        most = self.config.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(learning, most)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimiser.step()
            self._average()
        self.optimiser.zero_grad(set_to_none=True)
        return {"norm": norm.detach(), "updates": torch.tensor(float(finite))}

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is self.networks:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, network in self.networks.items():
            average = self.averaged[name]
            old: list[Tensor] = list(average.parameters())
            new: list[Tensor] = list(network.parameters())
            torch._foreach_lerp_(old, new, 1 - decay)
            for buffer, current in zip(average.buffers(), network.buffers(), strict=True):
                buffer.copy_(current)

    def _resume(self, path: Path) -> int:
        """Continue where the checkpoint stands; returns its step."""
        state = checkpoint.load(path)
        known = make_config(state.config, str(path))  # keys that are newer than it: their defaults
        if known != self.config:
            before, now = known.to_json(), self.config.to_json()
            changed = {key for key in now if now[key] != before.get(key)}
            raise FormatError(
                f"{self.out} holds a run with another {', '.join(sorted(changed))}; "
                "go on with its own config.yaml, or choose another --out."
            )
        if state.digest != self.task.digest:
            raise FormatError(
                f"{self.out} holds a run on other data, or of adapters for other weights; choose "
                "another --out."
            )
        for name, network in self.networks.items():
            network.load_state_dict(state.networks[name])
            if self.averaged is not self.networks:
                self.averaged[name].load_state_dict(state.averaged[name])
        shares = [group["share"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state.optimiser)
        for group, share in zip(self.optimiser.param_groups, shares, strict=True):
            group["share"] = share  # runs of former versions have none
        _log.info("going on at step %d of %d", state.step, self.config.steps)
        return state.step


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * falling)


def choose_device(name: str) -> torch.device:
    """The device of a name; ``"auto"`` is a GPU where there is one.

    Raises:
        ValueError: PyTorch does not know or see it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {name!r} asked for, but PyTorch sees no GPU here; use cpu.")
    return device


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line cut by a kill is passed over."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _parameter_groups(
    networks: dict[str, nn.Module], config: TrainConfig, task: TrainingTask
) -> list[dict[str, Any]]:
    """What learns, by its share of the learning rate: kernels with weight decay, biases and norms
    without, unless all decay.
    """
    shares: dict[float, list[nn.Parameter]] = {}
    for network in networks.values():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                shares.setdefault(task.rate_of(name), []).append(parameter)
    groups = []
    for share, learning in sorted(shares.items()):
        kernels = [p for p in learning if p.ndim > 1 or config.decay_all]
        rest = [p for p in learning if p.ndim <= 1 and not config.decay_all]
        for params, decay in ((kernels, config.weight_decay), (rest, 0.0)):
            if params or not config.decay_all:
                groups.append({"params": params, "weight_decay": decay, "share": share})
    return groups


def _frozen_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()
