"""Volumes painted from shapes that are made up, as `synthetic` does in 2D: blobs, vessels, sheets,
ellipsoids, shells, cells that touch, nuclei; and lesions put into real volumes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.train.data.rng import BatchRandom, block_mean, smooth3d

_CELLS = 48
_REGIONS = 256  # colours of a painted volume

Shape = tuple[int, int, int]


def draw_shapes(shape: Shape, batch_rng: BatchRandom, *, thickness: float) -> tuple[Tensor, Tensor]:
    """A painted volume.

    Args:
        shape: slices, rows, columns.
        batch_rng: of one sample.
        thickness: of a slice, in steps within the slice.

    Returns:
        Image (1, D, H, W), 0…1, and target, float32 (1, D, H, W).
    """
    kind = float(batch_rng.uniform(0.0, 1.0, 1))
    if kind < 0.35:
        regions, target = _cells(shape, batch_rng, thickness)
    else:
        regions, target = _bodies(shape, batch_rng, thickness, (kind - 0.35) / 0.65)
    colours = batch_rng.uniform(0.0, 1.0, _REGIONS)[0]
    spread = batch_rng.uniform(0.0, 0.1, _REGIONS)[0]
    grain = torch.randn(shape, generator=batch_rng.generator, device=batch_rng.device)
    image = colours[regions] + spread[regions] * grain
    image = image[None, None]
    if float(batch_rng.uniform(0.0, 1.0, 1)) < 0.7:
        image = block_mean(image, (1 if thickness < 2 else 0, 1, 1))
    return image[0].clamp(0.0, 1.0), target[None].float()


def add_lesion(image: Tensor, batch_rng: BatchRandom) -> tuple[Tensor, Tensor]:
    """A lump in a real volume: brighter or darker than what is there, sometimes with a rim.

    Args:
        image: (C, D, H, W), 0…1.
        batch_rng: of one sample.

    Returns:
        The volume with the lump, and the lump, float32 (1, D, H, W).
    """
    shape = (image.shape[1], image.shape[2], image.shape[3])
    radius = _radius(shape, batch_rng, 1.0, (0.08, 0.3))
    wave = smooth3d(batch_rng, shape, 6)[0, 0] * float(batch_rng.uniform(0.05, 0.3, 1))
    target = (radius + wave < 1).float()[None]
    soft = block_mean(target[None], (1, 1, 1))[0]
    at_it = float((image.mean(0, keepdim=True) * target).sum() / target.sum().clamp_min(1.0))
    shift = float(batch_rng.uniform(0.12, 0.5, 1)) * (
        1 if at_it < float(batch_rng.uniform(0.2, 0.8, 1)) else -1
    )
    kept = float(batch_rng.uniform(0.2, 1.0, 1))  # of what is there
    inner = at_it + (image - at_it) * kept + shift
    return torch.lerp(image, inner.clamp(0.0, 1.0), soft), target


def _grid(shape: Shape, device: torch.device, thickness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Slices, rows and columns in steps within the slice from the middle, to be broadcast."""
    along = [torch.arange(n, device=device, dtype=torch.float32) + 0.5 - n / 2 for n in shape]
    down = along[0] * thickness
    return down.view(-1, 1, 1), along[1].view(1, -1, 1), along[2].view(1, 1, -1)


def _radius(
    shape: Shape, batch_rng: BatchRandom, thickness: float, sizes: tuple[float, float]
) -> Tensor:
    """(D, H, W): 1 on the surface of a random ellipsoid, less inside."""
    parts = _grid(shape, batch_rng.device, thickness)
    reach = [n * t / 2 for n, t in zip(shape, (thickness, 1.0, 1.0), strict=True)]
    middle = batch_rng.uniform(-0.6, 0.6, 3)[0].tolist()
    moved = [p - m * r for p, m, r in zip(parts, middle, reach, strict=True)]
    turn = torch.linalg.qr(batch_rng.normal(3, 3)[0].cpu())[0].tolist()
    long = float(batch_rng.log_uniform(*sizes, 1)) * shape[2]
    thin = batch_rng.log_uniform(0.4, 1.0, 3)[0].tolist()
    total: Tensor = torch.zeros(1, device=batch_rng.device)
    for row, size in zip(turn, thin, strict=True):
        place = sum(c * m for c, m in zip(row, moved, strict=True))
        total = total + (place / (long * size)).square()
    return total.sqrt()


def _bodies(
    shape: Shape, batch_rng: BatchRandom, thickness: float, kind: float
) -> tuple[Tensor, Tensor]:
    """Regions and one of: blob, vessels, sheet, ellipsoid, shell; on a ground of blobs."""
    cells = 3 if float(batch_rng.uniform(0.0, 1.0, 1)) < 0.5 else 6
    noise = smooth3d(batch_rng, shape, cells, 5)[0]
    ground = noise.argmax(dim=0)
    if kind < 0.25:
        target = ground == 0
    elif kind < 0.45:
        fine = smooth3d(batch_rng, shape, cells + 2, 2)[0]
        width = float(batch_rng.uniform(0.08, 0.3, 1))
        target = fine.square().sum(dim=0) < (width * (0.6 + 0.8 * noise[0].sigmoid())).square()
    elif kind < 0.52:
        target = (noise[0].abs() < float(batch_rng.uniform(0.05, 0.15, 1))) & (noise[1] > -0.5)
    else:
        radius = _radius(shape, batch_rng, thickness, (0.07, 0.42)) + 0.15 * noise[0]
        target = radius < 1
        if kind > 0.8:
            target &= radius > float(batch_rng.uniform(0.55, 0.88, 1))
            ground = torch.where(radius < 1, 6, ground)
    return torch.where(target, 7, ground + 11), target


def _cells(shape: Shape, batch_rng: BatchRandom, thickness: float) -> tuple[Tensor, Tensor]:
    """Cells that touch, told apart by their membranes or not, or nuclei in them; the target is one,
    and looks like the others.
    """
    half = (shape[0], shape[1] // 2, shape[2] // 2)
    reach = torch.tensor([shape[0] * thickness, shape[1], shape[2]], device=batch_rng.device)
    number = int(batch_rng.log_uniform(6.0, float(_CELLS), 1))
    seeds = (batch_rng.uniform(0.0, 1.0, number, 3)[0] - 0.5) * reach
    down, right, far = _grid(half, batch_rng.device, thickness)
    bend = smooth3d(batch_rng, half, 5, 3)[0] * 0.05 * shape[2]
    points = torch.stack([down + bend[0], 2 * right + bend[1], 2 * far + bend[2]], dim=-1)
    away = torch.cdist(points.flatten(0, 2)[None], seeds[None])[0]
    near, which = away.topk(2, dim=1, largest=False)
    gap = (near[:, 1] - near[:, 0]).view(1, 1, *half)
    first = near[:, 0].view(1, 1, *half)
    chosen = int(which[(half[0] // 2 * half[1] + half[1] // 2) * half[2] + half[2] // 2, 0])
    owner = which[:, 0].view(1, 1, *half)
    own = (owner == chosen).float()
    wide = torch.cat([own, gap, first], dim=1)
    own, gap, first = torch.nn.functional.interpolate(
        wide, size=shape, mode="trilinear", align_corners=False
    )[0]
    cell = own > 0.5
    style = float(batch_rng.uniform(0.0, 1.0, 1))
    size = (float(reach.prod()) / number) ** (1 / 3)
    if style < 0.45:  # membranes; all insides alike, or nearly so
        wall = gap < float(batch_rng.uniform(0.04, 0.15, 1)) * size + 1.0
        target = cell & ~wall
        return torch.where(wall, 3, 7 + torch.zeros_like(wall, dtype=torch.int64)), target
    if style < 0.8:  # nuclei
        body = (first < float(batch_rng.uniform(0.25, 0.5, 1)) * size) & (gap > 1.0)
        return torch.where(body, 7, 3), body & cell
    ids = torch.nn.functional.interpolate(owner.float(), size=shape, mode="nearest")[0, 0].long()
    return ids + 11, cell
