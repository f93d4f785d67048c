"""The training loop: one run, resumable after any kill with the same result.

There is no state of chance to save: pictures, targets, views, prompts and noise of a step follow
from the seed and the step's number alone.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.errors import CheckpointError, FormatError
from limner.train import checkpoint
from limner.train.config import TrainConfig, make_config, write_config
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.log import RunLog
from limner.train.tasks.prompted import Pictures, Volumes, Work
from limner.train.tasks.tracking import Sequences
from limner.train.tasks.xmem_adapters import Adapting

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: steps taken so far, by all calls.
        finished: whether the run is complete.
        seconds: that this call took.
    """

    step: int
    finished: bool
    seconds: float


def train(
    config: TrainConfig,
    pack: PackedImages,
    out: Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
    start: Path | None = None,
    volumes: PackedVolumes | None = None,
) -> Outcome:
    """Begin a run, or go on with the one in `out`.

    Args:
        config: of the run.
        pack: what to train on.
        out: folder of the run: ``config.yaml``, ``checkpoint.pt``, ``log.jsonl`` and the averaged
            weights, ``NAME.safetensors``; of adapters ``NAME-adapters.safetensors``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        minutes: stop after so long, with a checkpoint; None until the last step.
        start: weights of an earlier run of the same network, to begin with instead of random ones;
            for volumes and sequences also those of the network of the plane. Not asked for when a
            run goes on. For adapters the file of XMem that they are for, always.
        volumes: what to train on besides, where the recipe is for volumes or sequences.

    Raises:
        FormatError: `out` holds a run with another configuration or pack.
        CheckpointError: its checkpoint is damaged, `start` does not fit the network, or is missing
            for adapters.
    """
    began = time.monotonic()
    target = _device(device)
    work: Work
    if not config.of_volumes:
        work = Pictures(config, pack, target)
    elif volumes is None:
        raise ValueError("This recipe needs volumes; open them with open_volumes.")
    elif config.adapters:
        if start is None:
            raise CheckpointError(
                "Adapters are trained for weights that stay as they are; name their file, also "
                "when a run goes on: --start XMem.pth"
            )
        work = Adapting(config, volumes, pack, target, start)
    elif config.frames > 1:
        work = Sequences(config, volumes, pack, target)
    else:
        work = Volumes(config, volumes, pack, target)
    run = _Run(config, work, out, target, start)
    deadline = math.inf if minutes is None else began + 60 * minutes
    while run.step < config.steps and time.monotonic() < deadline:
        run.advance()
    run.save()
    run.run_log.close()
    return Outcome(run.step, run.step >= config.steps, time.monotonic() - began)


class _Run:
    """A run in memory."""

    def __init__(
        self,
        config: TrainConfig,
        work: Work,
        out: Path,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.out, self.device = config, out, device
        self.work = work
        torch.manual_seed(config.seed)
        self.network, self.averaged = (work.network() for _ in range(2))
        self.averaged.requires_grad_(False)
        if start is not None:
            work.start(start, self.network)
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(
            _groups(self.network, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
        )
        self.step = 0
        self._resume()
        self.run_log = RunLog(out / "log.jsonl", self.step)
        write_config(out / "config.yaml", config)

    def advance(self) -> None:
        """One step, and whatever is due after it."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([config.seed, self.step])
        generator = torch.Generator(device=self.device)
        generator.manual_seed(int(rng.integers(2**62)))
        done = self.step / config.steps
        samples, losses = self.work.learn(self.network, rng, generator, done)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        if bool(torch.isfinite(norm)):  # else a single bad batch would end the run
            self.optimiser.step()
            self._average()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.run_log.count(samples, {**losses, "norm": norm})
        last = self.step == config.steps
        if self.step % config.log_every == 0 or last:
            self.run_log.write(self.step, {"rate": rate})
        began = time.perf_counter()
        if self.step % config.validate_every == 0 or last:
            found = self.work.validate(self.averaged)
            if found is not None:
                self.run_log.write_validation(self.step, found)
        if self.step % config.checkpoint_every == 0:
            self.save()
        self.run_log.pass_over(time.perf_counter() - began)

    def save(self) -> None:
        """Checkpoint and averaged weights."""
        state = checkpoint.State(
            self.step,
            self.network.state_dict(),
            self.averaged.state_dict(),
            self.optimiser.state_dict(),
            self.config.to_json(),
            self.work.digest,
        )
        checkpoint.save(self.out / "checkpoint.pt", state)
        facts = {"step": self.step, "pack": self.work.digest, "config": self.config.to_json()}
        path = self.out / f"{self.config.result}.safetensors"
        # Adapters begin as 0 and may stay below what half precision can tell.
        kind = torch.float32 if self.config.adapters else torch.float16
        weights = self.averaged.state_dict()
        checkpoint.write_weights(path, weights, {**facts, **self.work.facts}, kind)

    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        own: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(own, [p.detach() for p in self.network.parameters()], 1 - decay)

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = checkpoint.load(path)
        known = make_config(state.config, str(path))  # keys that are newer than it: their defaults
        if known != self.config:
            before, now = known.to_json(), self.config.to_json()
            changed = {k for k in now if now[k] != before[k]}
            raise FormatError(
                f"{self.out} holds a run with another {', '.join(sorted(changed))}; "
                "go on with its own config.yaml, or choose another --out."
            )
        if state.pack != self.work.digest:
            raise FormatError(
                f"{self.out} holds a run on another pack, or of adapters for other weights; choose "
                "another --out."
            )
        self.network.load_state_dict(state.network)
        self.averaged.load_state_dict(state.averaged)
        self.optimiser.load_state_dict(state.optimiser)
        self.step = state.step
        _log.info("going on at step %d of %d", self.step, self.config.steps)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _groups(network: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels, none for biases and norms."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _device(name: str) -> torch.device:
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
