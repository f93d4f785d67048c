"""Add a training task: one file in ``train/tasks/``; its name is the ``method:`` of recipes."""

from __future__ import annotations

from package_copy import PackageCopy

TASK = '''
"""Line fitting: a task of one layer without data, the smallest that trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limner.train.config import NotNegative, TrainConfig
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    StepContext,
    TaskInputs,
    TrainingTask,
    split_batch,
)


class Config(TrainConfig):
    """Line fitting.

    Attributes:
        noise: standard deviation of what is added to the line.
    """

    method: Literal["line"] = "line"
    name: str = "line"
    noise: NotNegative = 0.1


def open_task(config: Config, inputs: TaskInputs) -> LineTask:
    """Open what is trained on; here there is nothing in ``inputs.data``."""
    return LineTask(config)


class LineTask(TrainingTask):
    """Learning y = 2 x + 1."""

    def __init__(self, config: Config) -> None:
        self.digest = "none"  # of the data: a run does not go on with others
        self.facts: dict[str, Any] = {}
        self._config = config

    def networks(self) -> Networks:
        """New networks; the loop averages, saves and writes them."""
        return {MAIN: nn.Linear(1, 1)}

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """All that is random comes from the context, so that a run can go on to the same bits."""
        for part in split_batch(self._config.batch_size, self._config.micro_batch):
            x = torch.randn(part.samples, 1, generator=context.generator)
            noise = torch.randn(x.shape, generator=context.generator)
            yield replace(part, data=(x, 2 * x + 1 + self._config.noise * noise))

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Measure; the loop computes the gradients of ``loss``. The averages: ``context.ema``."""
        x, y = batch.data
        return {"loss": (context.networks[MAIN](x) - y).square().mean()}
'''

RECIPE = """
method: line
steps: 300
learning_rate: 0.05
warmup_steps: 10
ema_decay: 0.9
log_every: 100
"""

USE = """
from pathlib import Path
from limner.checkpoints.load import read_weights
from limner.train.loop import train
from limner.train.recipe import read_recipe
config = read_recipe(Path("line.yaml"))
out = Path("run")
train(config.changed(steps=config.steps), Path("."), out, device="cpu")
weights, facts = read_weights(out / "line.safetensors")
assert abs(float(weights["weight"]) - 2) < 0.1 and abs(float(weights["bias"]) - 1) < 0.1
assert facts["config"]["method"] == "line"
"""

with PackageCopy() as copy:
    copy.write("train/tasks/line.py", TASK)
    copy.run(code=f"from pathlib import Path\nPath('line.yaml').write_text({RECIPE!r})\n{USE}")
print("a training task: train/tasks/line.py and a recipe with 'method: line'")
