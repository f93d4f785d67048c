"""Rollout of the tracker over the frames of clips, with gradients.

Each answer is remembered and shown with the next frame, as
`limner.sessions.propagation.object_tracker` does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limner.networks import motion
from limner.networks.fusion2d import IMAGE_CENTRE, IMAGE_SCALE
from limner.networks.tracker2d import TrackerNetwork, places, read
from limner.networks.tracker_facts import TRUST
from limner.train.data.sequences import ImageSequences, join_samples


def track_clips(network: TrackerNetwork, clips: ImageSequences, precision: str) -> Tensor:
    """Masks (B, T - 1, 1, S, S), 0 or 1, of the frames after the first."""
    walk = TrackerRollout(network, clips, precision)
    answers = []
    for t in range(1, clips.image.shape[1]):
        logits, _ = walk.step(t, torch.ones_like(clips.target[:, 0, :, :1, :1]))
        answers.append((logits > 0).float() * clips.inside[:, t])
        walk.remember(t, keep=True)
    return torch.stack(answers, dim=1)


class TrackerRollout:
    """A batch of sequences on its way: what is remembered, and the last answer.

    Args:
        network: that follows.
        clips: the frames; of the first, the mask is given.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
    """

    def __init__(self, network: TrackerNetwork, clips: ImageSequences, precision: str) -> None:
        self._network, self._clips, self._bf16 = network, clips, precision == "bf16"
        number, frames = clips.image.shape[:2]
        shown = (clips.image - IMAGE_CENTRE) * IMAGE_SCALE
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
        self._mask = clips.target[:, 0]
        self._given = True
        self.remember(0, keep=True)

    def step(self, t: int, mask_shown: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and quality on frame `t`; `mask_shown` (B, 1, 1, 1) is 1 where the mask of the
        frame before is shown.
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
        before = mask_shown * (2 * mask - 1)
        with self._cast():
            logits, quality = self._network.decoder(
                self._image[:, t], before, mask_shown * past, readout
            )
        logits = logits.float() + TRUST * before
        self._mask = torch.sigmoid(logits.detach().float()) * self._clips.inside[:, t]
        self._given = False
        return logits, quality

    def _moved(self, t: int) -> tuple[Tensor, Tensor]:
        """The frame before and its mask, moved to where things are on frame `t`."""
        grey = self._clips.image[:, t - 1 : t + 1].mean(dim=2).cpu().numpy()
        frames = torch.cat([self._image[:, t - 1], self._mask], dim=1).cpu().numpy()
        parts = [
            motion.moved(own, motion.motion(before, after))
            for own, (before, after) in zip(frames, grey, strict=True)
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
