"""Train the second generation of limner-2d on a CPU, resumable: the same command goes on.

    python train.py RUN --pack PACK --start WEIGHTS [--minutes N] [--cool STEPS] [key=value …]

RUN is the run's folder: ``checkpoint.pt``, ``log.jsonl`` and the averaged weights in half
precision, ``limner-2d.safetensors``. The learning rate is constant after the warm-up, so that a run
can go on for as long as there is time; ``--cool STEPS`` runs it down to zero over so many steps, in
a copy of the run, RUN-cooled, whose averaged weights are what to keep.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from network import CandidateUNet2d, load_weights
from packed import open_unpacked
from task import CandidatePictures, Settings

from limner.checkpoints.load import read_weights
from limner.train import checkpoint
from limner.train.config import parse

_CLIP_NORM = 1.0
_log = logging.getLogger(__name__)


class Run:
    """A run in memory.

    Args:
        settings: of the run.
        task: what is learnt.
        folder: of the run.
        start: weights to begin with, unless the folder holds a checkpoint.
        cool: steps over which the learning rate goes down to zero; 0 for a constant one.
    """

    def __init__(
        self, settings: Settings, task: CandidatePictures, folder: Path, start: Path, cool: int
    ) -> None:
        self.settings, self.task, self.folder, self.cool = settings, task, folder, cool
        self.network, self.averaged = (
            CandidateUNet2d().to(memory_format=torch.channels_last) for _ in range(2)
        )
        self.averaged.requires_grad_(False).eval()
        self.network.encoder.frozen = settings.frozen_blocks
        self.optimiser = torch.optim.AdamW(_groups(self.network, settings), betas=(0.9, 0.98))
        self.step, self.samples, self.cooled, self.hours = 0, 0, 0, 0.0
        path = folder / "checkpoint.pt"
        if path.exists():
            self._resume(path)
        else:
            load_weights(self.network, read_weights(start)[0])
            self.averaged.load_state_dict(self.network.state_dict())

    def advance(self) -> dict[str, float]:
        """One step."""
        began = time.process_time()
        rate = self.settings.learning_rate * min(1.0, (self.step + 1) / self.settings.warmup_steps)
        if self.cool:
            rate *= max(0.0, 1 - self.cooled / self.cool)
            self.cooled += 1
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        rng = np.random.default_rng([self.settings.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.network.train()
        number, measured = self.task.learn(self.network, rng, generator)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP_NORM)
        if bool(torch.isfinite(norm)):  # else a single bad batch would end the run
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        own = list(self.averaged.parameters())
        torch._foreach_lerp_(own, [p.detach() for p in self.network.parameters()], 1 - decay)
        self.step += 1
        self.samples += number
        self.hours += (time.process_time() - began) / 3600
        return measured | {"norm": float(norm)}

    def save(self) -> None:
        """Checkpoint and averaged weights."""
        facts = {
            "step": self.step,
            "samples": self.samples,
            "cpu_hours": round(self.hours, 3),
            "cooled": self.cooled,
            "settings": dataclasses.asdict(self.settings),
        }
        state = checkpoint.State(
            self.step,
            self.network.state_dict(),
            self.averaged.state_dict(),
            self.optimiser.state_dict(),
            facts,
            self.task.digest,
        )
        checkpoint.save(self.folder / "checkpoint.pt", state)
        path = self.folder / "limner-2d.safetensors"
        checkpoint.write_weights(path, self.averaged.state_dict(), facts)

    def _resume(self, path: Path) -> None:
        state = checkpoint.load(path)
        if state.pack != self.task.digest:
            raise SystemExit(f"{self.folder} holds a run on another pack.")
        self.network.load_state_dict(state.network)
        self.averaged.load_state_dict(state.averaged)
        self.optimiser.load_state_dict(state.optimiser)
        self.step, self.samples = state.step, int(state.config["samples"])
        self.hours, self.cooled = state.config["cpu_hours"], state.config["cooled"]
        _log.info("going on at step %d, %d samples", self.step, self.samples)


def _groups(network: CandidateUNet2d, settings: Settings) -> list[dict[str, Any]]:
    """Encoder and the rest, each with and without weight decay."""
    found = []
    for share, inside in ((settings.encoder_share, True), (1.0, False)):
        chosen = [p for n, p in network.named_parameters() if n.startswith("encoder.") == inside]
        kernels = [p for p in chosen if p.ndim > 1]
        rest = [p for p in chosen if p.ndim <= 1]
        found.append({"params": kernels, "weight_decay": settings.weight_decay, "share": share})
        found.append({"params": rest, "weight_decay": 0.0, "share": share})
    return found


def _settings(changes: list[str]) -> Settings:
    values = parse("\n".join(c.replace("=", ": ", 1) for c in changes), "the command line")
    return Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def main() -> None:
    """Train until the time is over or the run has cooled down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pack", type=Path, default=Path("build/pack"))
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--cool", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2**62, help="stop at this step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--validate-every", type=int, default=0)
    parser.add_argument("changes", nargs="*")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    settings = _settings(args.changes)
    folder = args.run
    if args.cool:
        folder = args.run.with_name(args.run.name + "-cooled")
        if not folder.exists():
            folder.mkdir(parents=True)
            shutil.copy(args.run / "checkpoint.pt", folder)
    folder.mkdir(parents=True, exist_ok=True)
    task = CandidatePictures(settings, open_unpacked(args.pack))
    run = Run(settings, task, folder, args.start, args.cool)
    deadline = time.monotonic() + 60 * args.minutes
    sums: dict[str, list[float]] = {}
    began, before = time.monotonic(), run.samples
    while time.monotonic() < deadline and run.step < args.steps:
        if args.cool and run.cooled >= args.cool:
            break
        for key, value in run.advance().items():
            sums.setdefault(key, []).append(value)
        if run.step % 10 == 0:
            line: dict[str, Any] = {k: round(float(np.mean(v)), 4) for k, v in sorted(sums.items())}
            speed = (run.samples - before) / (time.monotonic() - began)
            line = {"step": run.step, "samples": run.samples, "per_s": round(speed, 2), **line}
            _log.info("%s", " ".join(f"{k}={v}" for k, v in line.items()))
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            sums, began, before = {}, time.monotonic(), run.samples
        if run.step % args.checkpoint_every == 0:
            run.save()
        if args.validate_every and run.step % args.validate_every == 0:
            found = task.validate(run.averaged, size=min(settings.sizes), most=4)
            _log.info("validation %s", json.dumps(found["mean"]))
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": run.step, "validation": found}) + "\n")
            began, before = time.monotonic(), run.samples
    run.save()
    _log.info("step %d, %d samples, %.2f hours of CPU", run.step, run.samples, run.hours)


if __name__ == "__main__":
    main()
