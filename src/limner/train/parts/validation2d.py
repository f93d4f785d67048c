"""Validation Dice on fixed crops of images with a deterministic simulated user."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limner.networks import unet2d, unet3d
from limner.train.data.rng import BatchRandom
from limner.train.data.targets import TargetTable
from limner.train.data.views import DeviceImages, plain_views
from limner.train.losses import dice
from limner.train.simulate.interactions import (
    SimulatedPrompts,
    prompt_with_box,
    prompt_with_click,
    simulate_correction,
)

_BATCH = 16
_CLICKS = 5
KINDS = ("box", "click", "clicks5")


@torch.no_grad()
def validate(
    network: torch.nn.Module,
    device_data: DeviceImages,
    table: TargetTable,
    *,
    size: int,
    most: int,
    precision: str,
) -> dict[str, dict[str, float]]:
    """Mean Dice per set after a box, one click and five clicks.

    Args:
        network: to judge.
        device_data: the images.
        table: of the validation images.
        size: of the views.
        most: targets per set.
        precision: ``"bf16"`` or ``"fp32"``.

    Returns:
        By set, and ``"mean"`` over the sets: ``{"box": …, "click": …, "clicks5": …}``.
    """
    network.eval()
    result: dict[str, dict[str, float]] = {}
    present = np.unique(device_data.pack.images[table.images, 0])
    for index in present:
        targets = table.named(int(index), most, np.random.default_rng(int(index)))
        generator = torch.Generator(device=device_data.device).manual_seed(int(index))
        samples = device_data.cut_view(
            targets, plain_views(device_data.pack, targets, size), size, generator
        )
        fit = ~samples.painted & (samples.target.sum(dim=(1, 2, 3)) > 0)
        if not fit.any():
            continue
        image, target, inside = (t[fit] for t in (samples.image, samples.target, samples.inside))
        batch_rng = BatchRandom(len(target), generator)
        boxed = _predict_in_parts(network, image, prompt_with_box(target), precision)
        prompts = prompt_with_click(target, batch_rng)
        logits = first = _predict_in_parts(network, image, prompts, precision)
        for _ in range(_CLICKS - 1):
            prompts = simulate_correction(
                prompts, logits, target, inside, batch_rng, 0.0, strokes_too=False
            )
            logits = _predict_in_parts(network, image, prompts, precision)
        masks = ((found > 0).float() * inside for found in (boxed, first, logits))
        scores = (float(dice(mask, target).mean()) for mask in masks)
        result[device_data.pack.names[int(index)]] = dict(zip(KINDS, scores, strict=True))
    if result:
        result["mean"] = {k: float(np.mean([r[k] for r in result.values()])) for k in KINDS}
    return result


def predict(
    network: torch.nn.Module, image: Tensor, prompts: SimulatedPrompts, precision: str
) -> tuple[Tensor, Tensor]:
    """The network's logits and quality, float32 or bf16 inside."""
    fuse = unet2d.fuse if image.ndim == 4 else unet3d.fuse
    fused = fuse(image, prompts.previous, prompts.positive, prompts.negative, prompts.region)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        answer: tuple[Tensor, Tensor] = network(fused)
    return answer


def _predict_in_parts(
    network: torch.nn.Module, image: Tensor, prompts: SimulatedPrompts, precision: str
) -> Tensor:
    parts = [
        predict(network, image[k : k + _BATCH], _slice_prompts(prompts, k), precision)[0].float()
        for k in range(0, len(image), _BATCH)
    ]
    return torch.cat(parts)


def _slice_prompts(prompts: SimulatedPrompts, first: int) -> SimulatedPrompts:
    fields = (prompts.positive, prompts.negative, prompts.region, prompts.previous)
    return SimulatedPrompts(*(f[first : first + _BATCH] for f in fields))
