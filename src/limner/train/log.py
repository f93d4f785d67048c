"""Log of a training run: one JSON object a line, and curves for TensorBoard."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.train.tensorboard import TensorBoardWriter

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


class RunLog:
    """The log of a run.

    Lines of steps after the checkpoint that a run is resumed from are dropped, so that each step
    occurs once.

    Args:
        path: ``log.jsonl``; made, or continued. The curves go to ``tensorboard`` beside it.
        step: at which the run stands.
    """

    def __init__(self, path: Path, step: int) -> None:
        _drop_later_lines(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = TensorBoardWriter(path.parent / "tensorboard", step)
        self._reset()

    def count(self, samples: int, measured: dict[str, Tensor]) -> None:
        """Add a step to the means of the next line.

        Args:
            samples: of the step.
            measured: scalars; not read here, so that a GPU is not waited for.
        """
        self._steps += 1
        self._samples += samples
        for key, value in measured.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def write(self, step: int, facts: dict[str, float]) -> None:
        """A line about training: means and samples per second since the last line, and `facts`."""
        means = {k: float(v) / self._steps for k, v in self._sums.items()}
        seconds = time.perf_counter() - self._since
        facts = {**means, **facts, "samples_per_s": self._samples / max(seconds, 1e-9)}
        self._reset()
        self._write_line({"step": step, **{k: float(f"{v:.5g}") for k, v in facts.items()}})
        shown = " ".join(f"{k} {v:.4g}" for k, v in facts.items())
        _log.info("step %d: %s", step, shown)
        self._tensorboard.add(step, {f"train/{key}": float(value) for key, value in facts.items()})

    def write_validation(self, step: int, found: dict[str, dict[str, float]]) -> None:
        """A line about validation: Dice by set and kind of prompt."""
        rounded = {s: {k: round(v, 4) for k, v in kinds.items()} for s, kinds in found.items()}
        self._write_line({"step": step, "validation": rounded})
        if "mean" in rounded:
            _log.info("step %d: validation %s", step, rounded["mean"])
        curves = {
            f"validation_{kind}/{name}": value
            for name, kinds in found.items()
            for kind, value in kinds.items()
        }
        self._tensorboard.add(step, curves)

    def pass_over(self, seconds: float) -> None:
        """Time that is not counted as training: validation, checkpoints."""
        self._since += seconds

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        self._tensorboard.close()

    def _reset(self) -> None:
        self._steps = self._samples = 0
        self._sums: dict[str, Tensor] = {}
        self._since = time.perf_counter()

    def _write_line(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()


def _drop_later_lines(path: Path, step: int) -> None:
    from limner.atomic import atomic_bytes

    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # cut by a kill
    atomic_bytes(path, "".join(line + "\n" for line in kept).encode())
