"""Images painted from label maps (after SynthSeg, https://arxiv.org/abs/2107.09559) and from
shapes that are made up (after SynthMorph, https://arxiv.org/abs/2004.10282): targets of kinds that
no data set has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.train.data.rng import BatchRandom, box_mean

_COLOURS = 4096  # entries of a sample's table of brightness; ids beyond it wrap around


def paint(regions: Tensor, batch_rng: BatchRandom) -> Tensor:
    """An image in which each region has a brightness and a texture of its own.

    Args:
        regions: int64 (B, S, S), ids.
        batch_rng: of the same batch.

    Returns:
        (B, 3, S, S) float32, 0…1; one in three coloured.
    """
    number, size = regions.shape[0], regions.shape[-1]
    index = (regions % _COLOURS).flatten(1)[:, None].expand(-1, 3, -1)
    mean = batch_rng.uniform(0.0, 1.0, 1, _COLOURS).expand(-1, 3, -1)
    coloured = batch_rng.bernoulli(0.33)[..., 0]
    own = batch_rng.uniform(0.0, 1.0, 3, _COLOURS)
    mean = torch.where(coloured, torch.lerp(mean, own, batch_rng.uniform(0.1, 0.7, 1, 1)), mean)
    spread = batch_rng.uniform(0.0, 0.12, 1, _COLOURS).expand(-1, 3, -1)
    shape = (number, 3, size, size)
    image = mean.gather(2, index).view(shape)
    grain = batch_rng.normal(1, size, size)
    clumped = 4.0 * box_mean(grain, 2)
    texture = torch.where(batch_rng.bernoulli(0.5), grain, clumped)
    image = image + spread.gather(2, index).view(shape) * texture
    soft = box_mean(image, 1)
    return torch.where(batch_rng.bernoulli(0.6), soft, image).clamp(0.0, 1.0)


def draw_shapes(size: int, batch_rng: BatchRandom) -> tuple[Tensor, Tensor]:
    """Shapes that are made up: blobs, vessel-like nets, or ellipses on a ground of blobs.

    Returns:
        regions: int64 (B, size, size).
        target: bool (B, 1, size, size), one of the shapes.
    """
    cells = 4 if bool(batch_rng.uniform(0.0, 1.0, 1)[0] < 0.5) else 9
    noise = batch_rng.smooth(size, cells, 6)
    blobs = noise.argmax(dim=1, keepdim=True)
    blob = blobs == 0
    fine = batch_rng.smooth(size, 2 * cells, 1)
    width = batch_rng.uniform(0.02, 0.12) * (0.5 + noise[:, 1:2].sigmoid())
    net = (fine.abs() < width) & (noise[:, 2:3] > -0.3)
    along = (torch.arange(size, device=batch_rng.device) + 0.5) / size - 0.5
    down, right = along.view(1, 1, -1, 1), along.view(1, 1, 1, -1)
    angle = batch_rng.uniform(0.0, 3.15)
    down, right = down - batch_rng.uniform(-0.3, 0.3), right - batch_rng.uniform(-0.3, 0.3)
    turned = angle.cos() * down + angle.sin() * right, angle.cos() * right - angle.sin() * down
    long, thin = batch_rng.log_uniform(0.07, 0.42), batch_rng.log_uniform(0.35, 1.0)
    radius = ((turned[0] / long) ** 2 + (turned[1] / (long * thin)) ** 2).sqrt()
    ellipse = radius + 0.15 * noise[:, 3:4] < 1
    kind = batch_rng.uniform()
    target = torch.where(kind < 0.35, blob, torch.where(kind < 0.5, net, ellipse))
    regions = torch.where(target, 7, blobs + 11)
    return regions[:, 0], target
