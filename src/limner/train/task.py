"""Training task: what one method learns, and from what; the interface between methods and the loop.

A method is one file in `limner.train.tasks`, whose name is what recipes call ``method:``. It has

- ``Config``, a `limner.train.config.TrainConfig` with the method's own keys;
- ``open_task(config, inputs)``, which opens the data and returns a `TrainingTask`.

The loop (`limner.train.loop`) owns everything else: optimiser, schedule, clipping, averages of
the weights, logs, checkpoints.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from limner.train import checkpoint

Networks = dict[str, nn.Module]
Scores = dict[str, dict[str, float]]  # by set, or "mean", and by kind of question

MAIN = "network"  # the name of a task's only network


@dataclass(frozen=True)
class TaskInputs:
    """What a run is given besides its configuration.

    Attributes:
        data: folder to train on.
        out: folder of the run; prepared data may be kept in it.
        device: that trains.
        start: weights to begin with; None for random ones.
    """

    data: Path
    out: Path
    device: torch.device
    start: Path | None = None


@dataclass(eq=False)
class StepContext:
    """What a task may use in one step.

    Random numbers follow from the seed and the step's number alone, so that a run that goes on
    repeats what it would have done; a task keeps no random state of its own.

    Attributes:
        step: optimiser steps taken before this one.
        steps: of the whole run.
        networks: that learn, in training mode.
        ema: their exponential moving averages, in evaluation mode; the same as `networks` where
            the configuration keeps none.
        rng: for choices on the CPU.
        generator: for what is drawn on the device.
        weight: of the micro-batch at hand among those before the next update; gradients that a task
            computes itself are scaled by it (`backward` does so).
    """

    step: int
    steps: int
    networks: Mapping[str, nn.Module]
    ema: Mapping[str, nn.Module]
    rng: np.random.Generator
    generator: torch.Generator
    weight: float = 1.0

    @property
    def progress(self) -> float:
        """Share of the run's steps that were taken before this one."""
        return self.step / self.steps

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the loss now, and free its graph."""
        (loss * self.weight).backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples that go through the network at once.

    Attributes:
        data: the task's own.
        samples: how many there are.
        weight: of their gradients and measures among the micro-batches before the next update.
        last: the weights are updated after it. The last micro-batch of a step has this set.
    """

    data: Any
    samples: int
    weight: float = 1.0
    last: bool = True


class TrainingTask(Protocol):
    """What a method learns. Subclass it for the defaults of `start`, `rate_of`, `validate` and
    `write`.

    Attributes:
        digest: of what is trained on; a run is not continued with anything else.
        facts: that the result tells besides those of the run, JSON values.
    """

    digest: str
    facts: dict[str, Any]

    def networks(self) -> Networks:
        """New networks with random weights (PyTorch's global generator), on the device.

        Parameters without gradients stay as they are. State that a method keeps from step to step,
        such as a queue, is a buffer of a network; so it is in checkpoints.
        """

    def draw(self, context: StepContext) -> Iterable[MicroBatch]:
        """The samples of one step, all drawn before the first is learnt from or one by one."""

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn from samples.

        Returns:
            Scalars to log, means over the samples. ``loss`` is one of them: with a graph, the loop
            computes its gradients; without, the task has done so, by `StepContext.backward`.
        """

    def start(self, path: Path, networks: Networks) -> None:
        """Fill the networks from the result of an earlier run.

        Raises:
            CheckpointError: unreadable, or of another network.
        """
        checkpoint.load_weights(path, networks[MAIN])

    def rate_of(self, name: str) -> float:
        """Share of the learning rate of a parameter, by its name in its network."""
        return 1.0

    def validate(self, networks: Networks) -> Scores | None:
        """Scores of the averaged networks on held-out data; None without such data."""
        return None

    def write(self, folder: Path, name: str, networks: Networks, facts: dict[str, Any]) -> Path:
        """Write the result so far: averaged weights in half precision as safetensors.

        Args:
            folder: of the run.
            name: of the model.
            networks: averaged, if the configuration keeps averages.
            facts: about the run, JSON values, to be kept inside.

        Returns:
            The file.
        """
        weights = networks[MAIN].state_dict()
        return checkpoint.write_weights(folder / f"{name}.safetensors", weights, facts)


def split_batch(number: int, most: int = 0) -> list[MicroBatch]:
    """Cut a batch; the parts have no data yet.

    Args:
        number: samples of the batch.
        most: samples at once; 0 is all of them.
    """
    most = most or number
    sizes = [min(most, number - first) for first in range(0, number, most)]
    last = len(sizes) - 1
    return [MicroBatch(None, n, n / number, k == last) for k, n in enumerate(sizes)]


def list_methods() -> list[str]:
    """Names of the methods that recipes may choose, as they are written there."""
    from limner.train import tasks

    names = [m.name for m in pkgutil.iter_modules(tasks.__path__)]
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load_method(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ValueError: there is none of this name.
    """
    known = list_methods()
    if name not in known:
        raise ValueError(f"method={name!r}; use one of {', '.join(known)}.")
    return importlib.import_module(f"limner.train.tasks.{name.replace('-', '_')}")
