"""Rollout of XMem over the frames of short sequences, with gradients.

What `limner.sessions.propagation.memory_propagator` does, for batches and with a softmax over all
of the memory (https://arxiv.org/abs/2207.07115).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.models.xmem import MEAN, STD
from limner.models.xmem.network import (
    STRIDE,
    FrameEncoder,
    MaskDecoder,
    MemoryEncoder,
    XMemNetwork,
)
from limner.networks.tracker2d import read
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import ImageSequences
from limner.train.losses import aggregated

_LEAST = 12  # pixels that an object has to show on the first frame


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """A batch of sequences of one object or two, on the device.

    Attributes:
        image: float32 (B, T, 3, S, S), 0…1.
        target: float32 (B, T, K, S, S), 0 or 1; objects do not overlap.
        inside: float32 (B, T, 1, S, S), 1 on the image.
        there: float32 (B, K), 1 for objects that the sequence has; the first one always.
    """

    image: Tensor
    target: Tensor
    inside: Tensor
    there: Tensor


def with_one_object(clips: ImageSequences) -> SequenceBatch:
    """Sequences with the one object that they have."""
    there = torch.ones(clips.target.shape[0], 1, device=clips.target.device)
    return SequenceBatch(clips.image, clips.target, clips.inside, there)


def add_second_object(clips: ImageSequences, batch_rng: BatchRandom) -> SequenceBatch:
    """Sequences in which the object of another sequence moves about, too, in front of the first.

    It stays away where it would hide the first object's first frame, or is hardly to be seen
    itself, and in about half of the sequences.
    """
    other = clips.target.roll(1, 0) * clips.inside
    first, second = clips.target[:, 0], other[:, 0]
    enough = ((first * (1 - second)).sum(dim=(1, 2, 3)) >= _LEAST) & (
        second.sum(dim=(1, 2, 3)) >= _LEAST
    )
    comes = (enough & (batch_rng.uniform(0, 1, 1)[:, 0] < 0.5)).float()
    other = other * comes.view(-1, 1, 1, 1, 1)
    image = torch.lerp(clips.image, clips.image.roll(1, 0), other)
    target = torch.cat([clips.target * (1 - other), other], dim=2)
    return SequenceBatch(
        image, target, clips.inside, torch.stack([torch.ones_like(comes), comes], dim=1)
    )


class XMemRollout:
    """A batch of sequences on its way: what is remembered, and the sensory memory.

    Args:
        network: of XMem.
        shown: the frames; of the first, masks are given.
        precision: ``"bf16"`` (autocast) or ``"fp32"``; memory is read in float32.
    """

    def __init__(self, network: XMemNetwork, shown: SequenceBatch, precision: str) -> None:
        self._shown, self._bf16 = shown, precision == "bf16"
        self._remember, self._decode = MemoryEncoder(network), MaskDecoder(network)
        number, frames, objects = shown.target.shape[:3]
        self._objects = objects
        device = shown.image.device
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
        self._image = (shown.image - mean) / std
        with self._cast():
            seen = FrameEncoder(network)(self._image.flatten(0, 1))
        parts = [part.view(number, frames, *part.shape[1:]) for part in seen]
        self._key, self._shrinkage, self._selection, self._deep = parts[:4]
        self._adds = parts[4:]
        grid = [size // STRIDE for size in shown.image.shape[-2:]]
        self._sensory = torch.zeros(number * objects, max(1, network.hidden), *grid, device=device)
        self._values: list[Tensor] = []  # of each frame so far, (B, K * V, h * w)
        self.remember(0, shown.target[:, 0], deep=True)

    def step(self, t: int, frames: Sequence[int]) -> Tensor:
        """Logits (B, 1 + K, S, S) of frame `t`, background first, as memory of `frames` tells."""

        def joined(part: Tensor) -> Tensor:
            return torch.cat([part[:, k].flatten(2) for k in frames], dim=2)

        readout = read(
            joined(self._key),
            joined(self._shrinkage)[:, 0],
            torch.cat([self._values[k] for k in frames], dim=2),
            self._key[:, t].flatten(2),
            self._selection[:, t].flatten(2),
        )
        readout = readout.view(len(self._sensory), -1, *self._sensory.shape[2:])
        adds = [self._each(part[:, t]) for part in self._adds]
        with self._cast():
            logits, self._sensory = self._decode(*adds, readout, self._sensory)
        own = torch.sigmoid(logits.float()).view(-1, self._objects, *logits.shape[2:])
        return aggregated(own * self._shown.there[..., None, None])

    def remember(self, t: int, masks: Tensor, *, deep: bool) -> None:
        """Frame `t` with its masks.

        Args:
            t: follows the last one.
            masks: (B, K, S, S), 0…1.
            deep: the sensory memory takes in what is remembered, too.
        """
        others = masks.sum(dim=1, keepdim=True) - masks
        pairs = torch.stack([masks, others], dim=2).flatten(0, 1)
        image, features = self._each(self._image[:, t]), self._each(self._deep[:, t])
        with self._cast():
            value, after = self._remember(image, features, pairs, self._sensory)
        if deep:
            self._sensory = after
        self._values.append(value.reshape(len(masks), -1, value.shape[2] * value.shape[3]))

    def _each(self, part: Tensor) -> Tensor:
        """What is the same for all objects, once for each: the batch becomes B * K."""
        return part.repeat_interleave(self._objects, dim=0)

    def _cast(self) -> torch.autocast:
        device = self._shown.image.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._bf16)


def track_sequences(
    network: XMemNetwork, shown: SequenceBatch, references: int, precision: str
) -> Tensor:
    """Masks (B, T - 1, 1, S, S) of the frames after the first, from memory of the first and of the
    last ones.

    Args:
        network: of XMem.
        shown: the frames; of the first, masks are given.
        references: remembered frames that are read at a time.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
    """
    rollout = XMemRollout(network, shown, precision)
    answers = []
    for t in range(1, shown.image.shape[1]):
        last = range(max(1, t - references + 1), t)
        found = mask_probabilities(rollout.step(t, [0, *last]), shown, t)
        answers.append((found > 0.5).float())
        rollout.remember(t, found, deep=False)
    return torch.stack(answers, dim=1)


def mask_probabilities(logits: Tensor, shown: SequenceBatch, t: int) -> Tensor:
    """Probabilities (B, K, S, S) of the objects on frame `t`; 0 beside the image."""
    found: Tensor = logits.softmax(dim=1)[:, 1:] * shown.inside[:, t]
    return found * shown.there[..., None, None]
