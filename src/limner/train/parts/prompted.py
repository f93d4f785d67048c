"""Training with simulated prompts: rounds of prompts, answers and corrections, in 2D and 3D."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.train.config import Count, Fraction, Integers, PackConfig
from limner.train.data.rng import BatchRandom
from limner.train.data.views import SampleBatch
from limner.train.losses import answer_loss, dice, quality_loss
from limner.train.parts.validation2d import predict
from limner.train.simulate.interactions import SimulatedPrompts
from limner.train.task import MAIN, MicroBatch, StepContext, TrainingTask

_MOST_EXTRA_ROUNDS = 6


class PromptedConfig(PackConfig):
    """What prompted training has in 2D and 3D.

    Attributes:
        widths: channels per level of the network.
        depths: residual blocks per level.
        rounds: prompts and answers that are learnt from, per sample and step.
        extra_rounds_fraction: share of steps that begin with one to six rounds that are not learnt
            from, so that late corrections are seen, too.
        prompt_noise: share of prompts that are clumsy: clicks beside the target, boxes far off.
    """

    renamed: ClassVar[dict[str, str]] = {
        **PackConfig.renamed,
        "more_rounds": "extra_rounds_fraction",
        "wrong": "prompt_noise",
    }

    widths: Integers = (32, 64, 128, 192, 256)
    depths: Integers = (1, 2, 2, 2, 2)
    rounds: Count = 3
    extra_rounds_fraction: Fraction = 0.25
    prompt_noise: Fraction = 0.1


class PromptedTask(TrainingTask):
    """Learning from rounds of prompts, answers and corrections.

    Args:
        config: of the run.
        digest: of what is trained on.
        device: that trains.
    """

    def __init__(self, config: PromptedConfig, digest: str, device: torch.device) -> None:
        self.digest = digest
        self.facts: dict[str, Any] = {}
        self._config, self._device = config, device

    @abstractmethod
    def draw(self, context: StepContext) -> Iterable[MicroBatch]:
        """Scenes, each with the random numbers for whatever is done with it."""

    @abstractmethod
    def simulate_first_prompts(
        self, samples: SampleBatch, batch_rng: BatchRandom
    ) -> SimulatedPrompts:
        """The first round."""

    @abstractmethod
    def simulate_correction(
        self,
        prompts: SimulatedPrompts,
        logits: Tensor,
        samples: SampleBatch,
        batch_rng: BatchRandom,
    ) -> SimulatedPrompts:
        """The next round."""

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn from all rounds; each is a graph of its own, so that memory does not grow with
        their number.
        """
        config, network = self._config, context.networks[MAIN]
        samples, batch_rng = batch.data
        prompts = self.simulate_first_prompts(samples, batch_rng)
        if context.rng.random() < config.extra_rounds_fraction:
            for _ in range(int(context.rng.integers(1, _MOST_EXTRA_ROUNDS + 1))):
                with torch.no_grad():
                    logits, _ = predict(network, samples.image, prompts, config.precision)
                prompts = self.simulate_correction(prompts, logits, samples, batch_rng)
        measured = {"loss": torch.zeros((), device=self._device)}
        for number in range(config.rounds):
            logits, quality = predict(network, samples.image, prompts, config.precision)
            found = self._measure_round(prompts, logits, quality, samples)
            loss = (found["loss"] + config.quality_weight * found["quality"]) / config.rounds
            context.backward(loss)
            measured["loss"] = measured["loss"] + loss.detach()
            measured[f"loss{number}"] = found["loss"].detach()
            measured[f"dice{number}"] = found["dice"]
            if number + 1 < config.rounds:
                prompts = self.simulate_correction(prompts, logits, samples, batch_rng)
        measured["quality"] = found["quality"].detach()
        return measured

    def _measure_round(
        self, prompts: SimulatedPrompts, logits: Tensor, quality: Tensor, samples: SampleBatch
    ) -> dict[str, Tensor]:
        target, inside = samples.target, samples.inside
        # Marks that are true: clumsy ones need not be obeyed.
        marked = prompts.positive * target + prompts.negative * (1 - target)
        mask = (logits.detach() > 0).float() * inside
        return {
            "loss": answer_loss(logits, target, inside, marked),
            "quality": quality_loss(quality, logits, target, inside),
            "dice": dice(mask, target).mean(),
        }
