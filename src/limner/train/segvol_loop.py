"""The loop of both stages: resumable after any kill with the same result, since views, masks and
prompts of a step follow from the seed and the step's number alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from limner.datasets import volume_folders
from limner.errors import FormatError
from limner.train import checkpoint
from limner.train.data.segvol_cases import PseudoLabelOptions, prepare_cases
from limner.train.log import RunLog
from limner.train.loop import Outcome, _device
from limner.train.segvol_config import Config, FinetuneConfig, make_config, write_config
from limner.train.tasks.segvol_finetune import Finetuning
from limner.train.tasks.segvol_pretrain import Pretraining

_LAST_RATE = 0.01  # of the peak

_log = logging.getLogger(__name__)


class Task(Protocol):
    """What a stage learns, and how.

    Attributes:
        digest: of the data.
        network: whose weights with gradients are learnt.
    """

    digest: str

    @property
    def network(self) -> torch.nn.Module:
        """What learns."""

    def start(self, path: Path) -> None:
        """Fill the network from a file."""

    def learn(self, step: int, update: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Gradients of one batch; `update` uses them up and returns their length, and may be called
        several times.
        """

    def write(self, path: Path, step: int) -> None:
        """The result so far."""


def train(
    config: Config,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
    start: Path | None = None,
) -> Outcome:
    """Begin a run, or go on with the one in `out`.

    Args:
        config: of the run.
        data: folder of volumes, for stage 2 with labels; see `limner.datasets.volume_folders`.
        out: folder of the run: ``config.yaml``, ``checkpoint.pt``, ``log.jsonl``, the prepared
            volumes in ``volumes``, and the weights in the authors' container, ``NAME.ckpt`` of
            stage 1 and ``NAME.pth`` of stage 2.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        minutes: stop after so long, with a checkpoint; None until the last step.
        start: weights to begin with instead of random ones. Not asked for when a run goes on.

    Raises:
        FormatError: `data` is not laid out as it should be, or `out` holds another run.
        CheckpointError: the checkpoint is damaged, or `start` does not fit the network.
        PromptError: a label's name cannot be read.
    """
    began = time.monotonic()
    target = _device(device)
    torch.manual_seed(config.seed)
    task = _task(config, data, out / "volumes", target, start)
    run = _Run(config, task, out, start)
    deadline = math.inf if minutes is None else began + 60 * minutes
    try:
        while run.step < config.steps and time.monotonic() < deadline:
            run.advance()
        run.save()
    finally:
        run.run_log.close()
    return Outcome(run.step, run.step >= config.steps, time.monotonic() - began)


def _task(
    config: Config, data: Path, folder: Path, device: torch.device, start: Path | None
) -> Task:
    if isinstance(config, FinetuneConfig):
        found = volume_folders.labelled(data, named=config.speaks)
        cases, digest = prepare_cases(found, folder, PseudoLabelOptions.of(config))
        return Finetuning(config, cases, digest, device, start)
    cases, digest = prepare_cases(volume_folders.unlabelled(data), folder)
    return Pretraining(config, cases, digest, device)


class _Run:
    """A run in memory."""

    def __init__(self, config: Config, task: Task, out: Path, start: Path | None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.task, self.out, self.step = config, task, out, 0
        if start is not None and not (out / "checkpoint.pt").exists():
            task.start(start)
        self._learning = [p for p in task.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self._learning, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._resume()
        if self.step == 0 and isinstance(task, Finetuning):
            task.warn()
        self.run_log = RunLog(out / "log.jsonl", self.step)
        write_config(out / "config.yaml", config)

    def advance(self) -> None:
        """One batch, and whatever is due after it."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.task.network.train()
        measured = self.task.learn(self.step, self._update)
        self.step += 1
        self.run_log.count(config.batch_size, measured)
        if self.step % config.log_every == 0 or self.step == config.steps:
            self.run_log.write(self.step, {"rate": rate})
        began = time.perf_counter()
        if self.step % config.checkpoint_every == 0 and self.step < config.steps:
            self.save()
        self.run_log.pass_over(time.perf_counter() - began)

    def save(self) -> None:
        """Checkpoint and weights."""
        state = checkpoint.State(
            self.step,
            self.task.network.state_dict(),
            {},
            self.optimiser.state_dict(),
            self.config.to_json(),
            self.task.digest,
        )
        checkpoint.save(self.out / "checkpoint.pt", state)
        self.task.write(self.out / self.config.result, self.step)

    def _update(self) -> Tensor:
        """An optimiser step; a batch without finite gradients is passed over."""
        most = self.config.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._learning, most)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm.detach()

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = checkpoint.load(path)
        known = make_config(state.config, str(path))
        if known != self.config:
            before, now = known.to_json(), self.config.to_json()
            changed = {k for k in now if now[k] != before.get(k)}
            raise FormatError(
                f"{self.out} holds a run with another {', '.join(sorted(changed))}; "
                "go on with its own config.yaml, or choose another --out."
            )
        if state.pack != self.task.digest:
            raise FormatError(f"{self.out} holds a run on other data; choose another --out.")
        self.task.network.load_state_dict(state.network)
        self.optimiser.load_state_dict(state.optimiser)
        self.step = state.step
        _log.info("going on at step %d of %d", self.step, self.config.steps)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * falling)
