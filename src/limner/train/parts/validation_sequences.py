"""Validation Dice on held-out volumes that are followed slice by slice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from limner.train.config import SequenceConfig
from limner.train.data.device_volumes import DeviceVolumes
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import ImageSequences, plain_slices
from limner.train.data.targets3d import Target3d, TargetTable3d
from limner.train.losses import dice
from limner.train.task import Scores

_FRAMES = 8
_KINDS = ("followed", "copied")


class HeldOutSequences:
    """Sequences from held-out volumes, always the same.

    Args:
        config: of the run.
        volumes: of the run.
        device_data: of these volumes on the device.
    """

    def __init__(
        self, config: SequenceConfig, volumes: PackedVolumes, device_data: DeviceVolumes
    ) -> None:
        self._config, self._device_data = config, device_data
        self._table: TargetTable3d | None = None
        if any(s.split for s in volumes.volumes):
            self._table = TargetTable3d(volumes, split=1, unlabelled_fraction=0.0)

    @torch.no_grad()
    def validate(self, track: Callable[[ImageSequences], Tensor]) -> Scores | None:
        """Mean Dice per set: ``followed`` from the middle slice on, and of the first mask
        ``copied``; None without held-out volumes.

        Args:
            track: masks (1, T - 1, 1, S, S), 0 or 1, of the frames after the first.
        """
        if self._table is None:
            return None
        result: Scores = {}
        for index in self._table.sets:
            sums, number = dict.fromkeys(_KINDS, 0.0), 0
            most, rng = self._config.validate_targets, np.random.default_rng(index)
            for target in self._table.named(index, most, rng):
                clips = self._show(target, number)
                if not clips.target[:, 0].any():
                    continue
                number += 1
                wanted = clips.target[:, 1:]
                copied = clips.target[:, :1] * clips.inside[:, 1:]
                sums["followed"] += float(dice(track(clips), wanted).mean())
                sums["copied"] += float(dice(copied, wanted).mean())
            if number:
                result[self._device_data.pack.names[index]] = {
                    k: v / number for k, v in sums.items()
                }
        if result:
            means = {k: float(np.mean([r[k] for r in result.values()])) for k in _KINDS}
            result["mean"] = means
        return result

    def _show(self, target: Target3d, seed: int) -> ImageSequences:
        side = max(self._config.sizes)
        solid = self._device_data.pack.volumes[target.volume]
        size = np.array(solid.shape, dtype=np.float64)
        view = plain_slices(target.box, size, solid.spacing, (_FRAMES, side, side))
        generator = torch.Generator(device=self._device_data.device).manual_seed(seed)
        sample = self._device_data.cut_view(target, view, BatchRandom(1, generator, axes=3))
        return ImageSequences(
            sample.image.expand(3, -1, -1, -1).transpose(0, 1)[None],
            sample.target.transpose(0, 1)[None],
            sample.inside.transpose(0, 1)[None],
        )
