"""Learning to follow: a sequence is answered frame by frame, each answer shown with the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.checkpoints.load import fill, read_weights
from limner.networks import motion
from limner.networks.fusion2d import IMAGE_CENTRE, IMAGE_SCALE
from limner.networks.tracker2d import TrackerNetwork, places, read
from limner.networks.tracker_facts import TRUST
from limner.train.config import TrainConfig
from limner.train.data.device_volumes import DeviceVolumes
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import ImageSequences, SequenceSampler, join_samples, plain_slices
from limner.train.data.targets3d import TargetTable3d
from limner.train.losses import answer_loss, dice, quality_loss

_REMEMBERED = 0.7  # share of answered frames that are remembered
_UNTOLD = 0.1  # share of frames that are shown without the mask of the frame before
_HELD_OUT_FRAMES = 8


class Sequences:
    """Learning on sequences.

    Args:
        config: of the run.
        volumes: what to train on.
        pack: pictures of the plane, which are moved.
        device: that trains.
    """

    def __init__(
        self, config: TrainConfig, volumes: PackedVolumes, pack: PackedImages, device: torch.device
    ) -> None:
        self.digest = f"{volumes.digest}+{pack.digest}"
        self._config, self._device = config, device
        self.facts: dict[str, Any] = {}
        self._maker = SequenceSampler(config, volumes, pack, device)
        self._held_out: TargetTable3d | None = None
        if any(s.split for s in volumes.volumes):
            self._held_out = TargetTable3d(volumes, split=1, invented=0.0)

    def network(self) -> TrackerNetwork:
        """A new network, channels last."""
        network = TrackerNetwork(self._config.widths, self._config.depths).to(self._device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def start(self, path: Path, network: torch.nn.Module) -> None:
        """From a run of the same network, or of that for pictures with the same widths."""
        assert isinstance(network, TrackerNetwork)
        weights, _ = read_weights(path)
        if "frame.stem.weight" in weights:
            fill(network, weights, path)
        else:
            network.start_from({name: value.float() for name, value in weights.items()})

    def learn(
        self,
        network: torch.nn.Module,
        rng: np.random.Generator,
        generator: torch.Generator,
        done: float,
    ) -> tuple[int, dict[str, Tensor]]:
        """Gradients of one batch; frames after the first are learnt from."""
        assert isinstance(network, TrackerNetwork)
        config = self._config
        size = int(rng.choice(np.asarray(config.sizes)))
        batch_rng = BatchRandom(config.batch_size, generator)
        sequences = self._maker.draw(config.batch_size, size, rng, batch_rng)
        network.train()
        walk = TrackerRollout(network, sequences, config.precision)
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=sequences.image.device)
        for t in range(1, config.frames):
            told = batch_rng.bernoulli(1 - _UNTOLD).float()
            logits, quality = walk.step(t, told)
            target, inside = sequences.target[:, t], sequences.inside[:, t]
            loss = answer_loss(logits, target, inside, torch.zeros_like(target))
            judged = quality_loss(quality, logits, target, inside)
            total = total + (loss + config.quality_weight * judged) / (config.frames - 1)
            found = (logits.detach() > 0).float() * inside
            losses[f"loss{t}"], losses[f"dice{t}"] = loss.detach(), dice(found, target).mean()
            walk.remember(t, keep=rng.random() < _REMEMBERED)
        copied = dice(
            sequences.target[:, 0] * sequences.inside[:, -1], sequences.target[:, -1]
        ).mean()
        losses["copied"] = copied  # how well the first mask fits the last frame
        total.backward()  # type: ignore[no-untyped-call]
        return len(sequences.image), losses

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, dict[str, float]] | None:
        """Mean Dice per set, of held-out volumes followed from their middle slice on, and of the
        first mask copied.
        """
        assert isinstance(network, TrackerNetwork)
        if self._held_out is None:
            return None
        network.eval()
        return measure_held_out_dice(
            self._maker.device_data,
            self._held_out,
            self._config,
            lambda sequences: track_clips(network, sequences, self._config.precision),
        )


def measure_held_out_dice(
    device_data: DeviceVolumes,
    held_out: TargetTable3d,
    config: TrainConfig,
    answer: Callable[[ImageSequences], Tensor],
) -> dict[str, dict[str, float]]:
    """Mean Dice per set over held-out volumes: ``followed`` from their middle slice on, and of the
    first mask ``copied``.

    Args:
        device_data: of the volumes.
        held_out: their targets.
        config: of the run.
        answer: masks (1, T - 1, 1, S, S), 0 or 1, of the frames after the first.
    """
    result: dict[str, dict[str, float]] = {}
    shape = (_HELD_OUT_FRAMES, max(config.sizes), max(config.sizes))
    for index in held_out.sets:
        sums = {"followed": 0.0, "copied": 0.0}
        number = 0
        for target in held_out.named(index, config.validate_targets, np.random.default_rng(index)):
            volume = device_data.pack.volumes[target.volume]
            size = np.array(volume.shape, dtype=np.float64)
            view = plain_slices(target.box, size, volume.spacing, shape)
            generator = torch.Generator(device=device_data.device).manual_seed(number)
            sample = device_data.cut_view(target, view, BatchRandom(1, generator, axes=3))
            sequences = ImageSequences(
                sample.image.expand(3, -1, -1, -1).transpose(0, 1)[None],
                sample.target.transpose(0, 1)[None],
                sample.inside.transpose(0, 1)[None],
            )
            if not sequences.target[:, 0].any():
                continue
            number += 1
            wanted = sequences.target[:, 1:]
            copied = sequences.target[:, :1] * sequences.inside[:, 1:]
            sums["followed"] += float(dice(answer(sequences), wanted).mean())
            sums["copied"] += float(dice(copied, wanted).mean())
        if number:
            result[device_data.pack.names[index]] = {k: v / number for k, v in sums.items()}
    if result:
        kinds = ("followed", "copied")
        result["mean"] = {k: float(np.mean([r[k] for r in result.values()])) for k in kinds}
    return result


def track_clips(network: TrackerNetwork, sequences: ImageSequences, precision: str) -> Tensor:
    """Masks (B, T - 1, 1, S, S), 0 or 1, of the frames after the first."""
    walk = TrackerRollout(network, sequences, precision)
    answers = []
    for t in range(1, sequences.image.shape[1]):
        logits, _ = walk.step(t, torch.ones_like(sequences.target[:, 0, :, :1, :1]))
        answers.append((logits > 0).float() * sequences.inside[:, t])
        walk.remember(t, keep=True)
    return torch.stack(answers, dim=1)


class TrackerRollout:
    """A batch of sequences on its way: what is remembered, and the last answer.

    Args:
        network: that follows.
        sequences: the frames; of the first, the mask is given.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
    """

    def __init__(self, network: TrackerNetwork, sequences: ImageSequences, precision: str) -> None:
        self._network, self._clips, self._bf16 = network, sequences, precision == "bf16"
        number, frames = sequences.image.shape[:2]
        shown = (sequences.image - IMAGE_CENTRE) * IMAGE_SCALE
        image = shown.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        self._image = shown
        with self._cast():
            seen = network.frame(image)
        key, shrinkage, selection, features = (p.view(number, frames, *p.shape[1:]) for p in seen)
        where = places((key.shape[-2], key.shape[-1]), image.device).expand(
            number, frames, -1, -1, -1
        )
        self._key = torch.cat([key.float(), where], dim=2)
        self._shrinkage, self._selection, self._features = shrinkage, selection, features
        self._kept: list[int] = []
        self._values: list[Tensor] = []
        self._mask = sequences.target[:, 0]
        self._given = True
        self.remember(0, keep=True)

    def step(self, t: int, told: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and quality on frame `t`; `told` (B, 1, 1, 1) is 1 where the mask of the frame
        before is shown.
        """
        kept = self._kept
        readout = read(
            join_samples([self._key[:, k] for k in kept]),
            join_samples([self._shrinkage[:, k] for k in kept])[:, 0],
            join_samples(self._values),
            self._key[:, t].flatten(2),
            self._selection[:, t].flatten(2),
        )
        grid = self._key.shape[-2:]
        readout = readout.view(*readout.shape[:2], *grid)
        past, mask = self._moved(t)
        before = told * (2 * mask - 1)
        with self._cast():
            logits, quality = self._network.decoder(self._image[:, t], before, told * past, readout)
        logits = logits.float() + TRUST * before
        self._mask = torch.sigmoid(logits.detach().float()) * self._clips.inside[:, t]
        self._given = False
        return logits, quality

    def _moved(self, t: int) -> tuple[Tensor, Tensor]:
        """The frame before and its mask, moved to where things are on frame `t`."""
        grey = self._clips.image[:, t - 1 : t + 1].mean(dim=2).cpu().numpy()
        images = torch.cat([self._image[:, t - 1], self._mask], dim=1).cpu().numpy()
        parts = [
            motion.moved(own, motion.motion(before, after))
            for own, (before, after) in zip(images, grey, strict=True)
        ]
        found = torch.from_numpy(np.stack(parts)).to(self._mask.device)
        return found[:, :3], found[:, 3:]

    def remember(self, t: int, *, keep: bool) -> None:
        """Frame `t` with the last answer, if it is to be kept."""
        if not keep:
            return
        flag = torch.full((len(self._mask), 1, 1, 1), float(self._given), device=self._mask.device)
        with self._cast():
            value = self._network.memory(self._features[:, t], self._mask, flag)
        self._kept.append(t)
        self._values.append(value)

    def _cast(self) -> torch.autocast:
        device = self._clips.image.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._bf16)
