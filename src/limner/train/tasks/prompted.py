"""What a run does with pictures and what with volumes: the network, its samples and its user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from limner.checkpoints.load import fill, read_weights
from limner.networks.unet2d import PromptableUNet2d
from limner.train import checkpoint
from limner.train.config import TrainConfig
from limner.train.data.augment import augment_images
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.synthetic import draw_shapes, paint
from limner.train.data.targets import TargetTable
from limner.train.data.views import DeviceImages, SampleBatch, draw_views
from limner.train.losses import answer_loss, dice, quality_loss
from limner.train.simulate import interactions, interactions3d
from limner.train.simulate.interactions import SimulatedPrompts
from limner.train.tasks.validate import predict, validate

_INVENTED_SHAPES = 0.5  # of the painted pictures
_MOST_MORE_ROUNDS = 6


class Work(Protocol):
    """A run's task.

    Attributes:
        digest: of what is trained on.
        facts: that the result tells besides those of the run, JSON values.
    """

    digest: str
    facts: dict[str, Any]

    def network(self) -> torch.nn.Module:
        """A new network, with random weights."""

    def start(self, path: Path, network: torch.nn.Module) -> None:
        """Fill a network with the result of an earlier run."""

    def learn(
        self,
        network: torch.nn.Module,
        rng: np.random.Generator,
        generator: torch.Generator,
        done: float,
    ) -> tuple[int, dict[str, Tensor]]:
        """Gradients of one batch; how many samples it had, and what was measured. `done` is the
        share of the run's steps that were taken.
        """

    def validate(self, network: torch.nn.Module) -> dict[str, dict[str, float]] | None:
        """Dice per set and kind of question; None without held-out data."""


class Conversations(ABC):
    """Learning from rounds of prompts, answers and corrections.

    Args:
        config: of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def samples(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[SampleBatch, BatchRandom]:
        """A batch, and chance for whatever is done with it."""

    @abstractmethod
    def begin(self, samples: SampleBatch, batch_rng: BatchRandom) -> SimulatedPrompts:
        """First prompts."""

    @abstractmethod
    def correct(
        self,
        prompts: SimulatedPrompts,
        logits: Tensor,
        samples: SampleBatch,
        batch_rng: BatchRandom,
    ) -> SimulatedPrompts:
        """The next round."""

    def learn(
        self,
        network: torch.nn.Module,
        rng: np.random.Generator,
        generator: torch.Generator,
        done: float,
    ) -> tuple[int, dict[str, Tensor]]:
        """Gradients of one batch over all rounds, and how many samples it had; each round is a
        graph of its own, so that memory does not grow with their number.
        """
        config = self._config
        samples, batch_rng = self.samples(rng, generator)
        image, target, inside = samples.image, samples.target, samples.inside
        prompts = self.begin(samples, batch_rng)
        network.train()
        if rng.random() < config.more_rounds:
            for _ in range(int(rng.integers(1, _MOST_MORE_ROUNDS + 1))):
                with torch.no_grad():
                    logits, _ = predict(network, image, prompts, config.precision)
                prompts = self.correct(prompts, logits, samples, batch_rng)
        losses: dict[str, Tensor] = {}
        for number in range(config.rounds):
            logits, quality = predict(network, image, prompts, config.precision)
            answer = answer_loss(logits, target, inside, _true_marks(prompts, target))
            judged = quality_loss(quality, logits, target, inside)
            loss = (answer + config.quality_weight * judged) / config.rounds
            loss.backward()  # type: ignore[no-untyped-call]
            losses[f"loss{number}"] = answer.detach()
            losses[f"dice{number}"] = dice((logits.detach() > 0).float() * inside, target).mean()
            if number + 1 < config.rounds:
                prompts = self.correct(prompts, logits, samples, batch_rng)
        losses["quality"] = judged.detach()
        return len(image), losses


class Pictures(Conversations):
    """Learning on planes.

    Args:
        config: of the run.
        pack: what to train on.
        device: that trains.
    """

    def __init__(self, config: TrainConfig, pack: PackedImages, device: torch.device) -> None:
        super().__init__(config)
        self.digest = pack.digest
        self._device = device
        self._device_data = DeviceImages(pack, device)
        self._table = TargetTable(pack, split=0, invented=config.invented)
        self._held_out: TargetTable | None = None
        if pack.images[:, 1].any():
            self._held_out = TargetTable(pack, split=1, invented=0.0)

    def network(self) -> torch.nn.Module:
        """A new network, channels last."""
        network = PromptableUNet2d(self._config.widths, self._config.depths).to(self._device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def start(self, path: Path, network: torch.nn.Module) -> None:
        """From a run of the same network."""
        checkpoint.load_weights(path, network)

    @torch.no_grad()
    def samples(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[SampleBatch, BatchRandom]:
        """A batch of disturbed pictures with targets that can be seen."""
        batch_rng = BatchRandom(self._config.batch_size, generator)
        size = int(rng.choice(np.asarray(self._config.sizes)))
        targets = self._table.draw(self._config.batch_size, rng)
        views = draw_views(self._device_data.pack, targets, size, rng)
        samples = self._device_data.cut_view(targets, views, size, generator)
        index = (batch_rng.bernoulli(self._config.synthetic).flatten() | samples.painted).nonzero()[
            :, 0
        ]
        if len(index):
            _repaint(samples, index, generator)
        image = augment_images(samples.image, batch_rng) * samples.inside
        return replace(samples, image=image, target=samples.target * samples.inside), batch_rng

    def begin(self, samples: SampleBatch, batch_rng: BatchRandom) -> SimulatedPrompts:
        """First prompts."""
        return interactions.simulate_first_prompts(
            samples.target, samples.inside, batch_rng, self._config.wrong
        )

    def correct(
        self,
        prompts: SimulatedPrompts,
        logits: Tensor,
        samples: SampleBatch,
        batch_rng: BatchRandom,
    ) -> SimulatedPrompts:
        """The next round."""
        wrong = self._config.wrong
        return interactions.simulate_correction(
            prompts, logits, samples.target, samples.inside, batch_rng, wrong
        )

    def validate(self, network: torch.nn.Module) -> dict[str, dict[str, float]] | None:
        """On the held-out planes."""
        if self._held_out is None:
            return None
        return validate(
            network,
            self._device_data,
            self._held_out,
            size=max(self._config.sizes),
            most=self._config.validate_targets,
            precision=self._config.precision,
        )


class Volumes(Conversations):
    """Learning on volumes.

    Args:
        config: of the run.
        volumes: what to train on.
        pack: pictures of the plane, which are piled up.
        device: that trains.
    """

    def __init__(
        self, config: TrainConfig, volumes: PackedVolumes, pack: PackedImages, device: torch.device
    ) -> None:
        from limner.train.data.samples3d import VolumeSampler
        from limner.train.data.targets3d import TargetTable3d

        super().__init__(config)
        self.digest = f"{volumes.digest}+{pack.digest}"
        self._device = device
        self._shapes = [shape_of(s) for s in config.shapes]
        self._maker = VolumeSampler(
            volumes,
            pack,
            device,
            synthetic=config.synthetic,
            pseudo_volume_fraction=config.piles,
            invented=config.invented,
        )
        self._held_out: TargetTable3d | None = None
        if any(s.split for s in volumes.volumes):
            self._held_out = TargetTable3d(volumes, split=1, invented=0.0)

    def network(self) -> torch.nn.Module:
        """A new network, channels last.

        Raises:
            ValueError: a shape of the recipe is no multiple of the network's stride.
        """
        from limner.networks.unet3d import PromptableUNet3d

        network = PromptableUNet3d(self._config.widths, self._config.depths).to(self._device)
        for shape in self._shapes:
            if any(n % s for n, s in zip(shape, network.stride, strict=True)):
                raise ValueError(
                    f"shapes has {'x'.join(map(str, shape))}; with these widths they are multiples "
                    f"of {'x'.join(map(str, network.stride))}."
                )
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network

    def start(self, path: Path, network: torch.nn.Module) -> None:
        """From a run of the same network, or of that of the plane with the same widths."""
        from limner.networks.unet3d import inflate

        weights, _ = read_weights(path)
        if not any(v.ndim == 5 for v in weights.values()):
            weights = {**network.state_dict(), **inflate(weights)}
        fill(network, weights, path)

    def samples(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[SampleBatch, BatchRandom]:
        """A batch of disturbed volumes with targets that can be seen; of small views more, so that
        each batch has about as many voxels.
        """
        shape = self._shapes[int(rng.integers(len(self._shapes)))]
        most = max(prod(s) for s in self._shapes)
        number = max(1, round(self._config.batch_size * most / prod(shape)))
        batch_rng = BatchRandom(number, generator, axes=3)
        return self._maker.draw(number, shape, rng, batch_rng), batch_rng

    def begin(self, samples: SampleBatch, batch_rng: BatchRandom) -> SimulatedPrompts:
        """First prompts."""
        return interactions3d.simulate_first_prompts(
            samples.target, samples.inside, batch_rng, self._config.wrong
        )

    def correct(
        self,
        prompts: SimulatedPrompts,
        logits: Tensor,
        samples: SampleBatch,
        batch_rng: BatchRandom,
    ) -> SimulatedPrompts:
        """The next round."""
        wrong = self._config.wrong
        return interactions3d.simulate_correction(
            prompts, logits, samples.target, samples.inside, batch_rng, wrong
        )

    def validate(self, network: torch.nn.Module) -> dict[str, dict[str, float]] | None:
        """On the held-out volumes."""
        from limner.train.tasks.validate3d import validate as validate3d

        if self._held_out is None:
            return None
        return validate3d(
            network,
            self._maker.device_data,
            self._held_out,
            shape=self._shapes[0],
            most=self._config.validate_targets,
            precision=self._config.precision,
        )


def _true_marks(prompts: SimulatedPrompts, target: Tensor) -> Tensor:
    """Marks that are true: clumsy ones need not be obeyed."""
    return prompts.positive * target + prompts.negative * (1 - target)


def shape_of(text: str) -> tuple[int, int, int]:
    """``"32x96x96"`` as slices, rows, columns."""
    depth, rows, columns = (int(n) for n in text.split("x"))
    return depth, rows, columns


def _repaint(samples: SampleBatch, index: Tensor, generator: torch.Generator) -> None:
    """Paint the pictures of some samples, in place; of some, new shapes instead of the regions."""
    batch_rng = BatchRandom(len(index), generator)
    size = samples.image.shape[-1]
    regions, target, inside = (t[index] for t in (samples.regions, samples.target, samples.inside))
    made_up = batch_rng.bernoulli(_INVENTED_SHAPES).flatten().nonzero()[:, 0]
    if len(made_up):
        shapes, shape = draw_shapes(size, BatchRandom(len(made_up), generator))
        regions[made_up] = shapes.repeat_interleave(2, 1).repeat_interleave(2, 2)
        target[made_up], inside[made_up] = shape.float(), 1.0
    picture = torch.nn.functional.avg_pool2d(paint(regions, batch_rng), 2)
    samples.image[index], samples.target[index], samples.inside[index] = picture, target, inside
