"""Validation Dice on fixed crops of volumes with a deterministic simulated user."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limner.train.data.device_volumes import DeviceVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.targets3d import TargetTable3d
from limner.train.data.views3d import Shape, plain_view
from limner.train.losses import dice
from limner.train.parts.validation2d import predict
from limner.train.simulate.interactions3d import (
    prompt_with_box,
    prompt_with_click,
    simulate_correction,
)

_CLICKS = 5
KINDS = ("box", "box5", "click", "clicks5")


@torch.no_grad()
def validate(
    network: torch.nn.Module,
    device_data: DeviceVolumes,
    table: TargetTable3d,
    *,
    shape: Shape,
    most: int,
    precision: str,
) -> dict[str, dict[str, float]]:
    """Mean Dice per set after a box, a box and five clicks, one click, and five clicks.

    Args:
        network: to judge.
        device_data: the volumes; those without an image are painted.
        table: of the held-out volumes.
        shape: of the views.
        most: targets per set.
        precision: ``"bf16"`` or ``"fp32"``.

    Returns:
        By set, and ``"mean"`` over the sets.
    """
    network.eval()
    result: dict[str, dict[str, float]] = {}
    for index in table.sets:
        sums = dict.fromkeys(KINDS, 0.0)
        number = 0
        for target in table.named(index, most, np.random.default_rng(index)):
            volume = device_data.pack.volumes[target.volume]
            size = np.array(volume.shape, dtype=np.float64)
            view = plain_view(target.box, size, volume.spacing, shape)
            generator = torch.Generator(device=device_data.device).manual_seed(number)
            batch_rng = BatchRandom(1, generator, axes=3)
            sample = device_data.cut_view(target, view, batch_rng)
            wanted, inside = sample.target[None], sample.inside[None]
            if not wanted.any():
                continue
            number += 1
            image = sample.image[None].expand(-1, 3, -1, -1, -1)
            scores = _measure(network, image, wanted, inside, batch_rng, precision)
            for kind, score in scores.items():
                sums[kind] += score
        if number:
            result[device_data.pack.names[index]] = {k: v / number for k, v in sums.items()}
    if result:
        result["mean"] = {k: float(np.mean([r[k] for r in result.values()])) for k in KINDS}
    return result


def _measure(
    network: torch.nn.Module,
    image: Tensor,
    wanted: Tensor,
    inside: Tensor,
    batch_rng: BatchRandom,
    precision: str,
) -> dict[str, float]:
    """Dice of one target after each kind of prompts."""
    scores = {}
    for first, last in (("box", "box5"), ("click", "clicks5")):
        boxed = first == "box"
        prompts = prompt_with_box(wanted) if boxed else prompt_with_click(wanted, batch_rng)
        logits = predict(network, image, prompts, precision)[0].float()
        scores[first] = float(dice((logits > 0).float() * inside, wanted))
        for _ in range(_CLICKS - (not boxed)):
            prompts = simulate_correction(
                prompts, logits, wanted, inside, batch_rng, 0.0, strokes_too=False
            )
            logits = predict(network, image, prompts, precision)[0].float()
        scores[last] = float(dice((logits > 0).float() * inside, wanted))
    return scores
