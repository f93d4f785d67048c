"""Still images as sequences: what is seen moves, turns, grows and bends from frame to frame, the
object sometimes by itself in front of another image; and what cameras change between frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data.rng import BatchRandom

_STILL = 0.2  # share of sequences in which nothing moves
_BENDS = 3  # bumps of a bending along each axis
_BEATING = 0.5  # share of moved images whose object shrinks or swells
_FASTEST = 0.09  # of the image's side, per frame


def animate(
    image: Tensor, target: Tensor, inside: Tensor, frames: int, batch_rng: BatchRandom
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames of images that move; the first is as it was.

    Args:
        image: (B, 3, S, S), 0…1.
        target: (B, 1, S, S), 0 or 1.
        inside: (B, 1, S, S), 1 on the image.
        frames: T.
        batch_rng: of the batch.

    Returns:
        The three as (B, T, C, S, S).
    """
    shown = torch.cat([image, target, inside], dim=1)
    grids = motion_paths(frames, shown.shape[-1], batch_rng)
    parts = warp(shown, grids + scale_object(target, grids, batch_rng))
    return parts[:, :, :3], (parts[:, :, 3:4] >= 0.5).float(), (parts[:, :, 4:] >= 0.5).float()


def animate_object(
    image: Tensor, target: Tensor, frames: int, batch_rng: BatchRandom
) -> tuple[Tensor, Tensor, Tensor]:
    """As `animate`, but each object moves in front of the image of another sample, which has a
    motion of its own.
    """
    size = image.shape[-1]
    ground = warp(image.roll(1, 0), motion_paths(frames, size, batch_rng))
    front = warp(torch.cat([image, target], dim=1), motion_paths(frames, size, batch_rng))
    share = front[:, :, 3:]
    mixed = torch.lerp(ground, front[:, :, :3], share)
    return mixed, (share >= 0.5).float(), torch.ones_like(share)


def warp(values: Tensor, grids: Tensor) -> Tensor:
    """Values (B, C, S, S) at places (B, T, S, S, 2) of -1…1: (B, T, C, S, S); 0 outside."""
    number, frames = grids.shape[:2]
    wide = values[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    found = functional.grid_sample(wide, grids.flatten(0, 1), align_corners=False)
    return found.view(number, frames, *found.shape[1:])


def motion_paths(frames: int, size: int, batch_rng: BatchRandom) -> Tensor:
    """Where each pixel of each frame comes from, (B, T, S, S, 2) of -1…1, column first: a walk with
    an inclination, a turn, a growth and a bending that add up; nothing on the first frame.
    """
    number = batch_rng.number
    quick = batch_rng.log_uniform(0.004, 2 * _FASTEST, 1)[:, 0] * (
        batch_rng.uniform(0, 1, 1)[:, 0] > _STILL
    )
    heading = batch_rng.normal(1, 2)
    steps = (0.7 * heading + 0.5 * batch_rng.normal(frames, 2)) * quick.view(-1, 1, 1)
    turns = (0.6 * batch_rng.normal(1) + 0.4 * batch_rng.normal(frames)) * 1.2 * quick.view(-1, 1)
    growths = (0.6 * batch_rng.normal(1) + 0.4 * batch_rng.normal(frames)) * 0.7 * quick.view(-1, 1)
    for walk in (steps, turns, growths):
        walk[:, 0] = 0
    shift, angle = steps.cumsum(1), turns.cumsum(1)
    scale = growths.cumsum(1).clamp(-0.7, 0.7).exp()
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cosine, -sine, shift[..., 0]], -1),
        torch.stack([sine, cosine, shift[..., 1]], -1),
    ]
    matrices = torch.stack(rows, dim=-2).flatten(0, 1)
    plain = functional.affine_grid(matrices, [number * frames, 1, size, size], align_corners=False)
    grid = plain.view(number, frames, size, size, 2)
    soft = [batch_rng.smooth(size, _BENDS, 2) for _ in range(2)]
    amount = batch_rng.log_uniform(0.005, 0.06, 1, 1, 1, 1) * (
        batch_rng.uniform(0, 1, 1, 1, 1, 1) < 0.5
    )
    along = torch.arange(frames, device=batch_rng.device).view(1, -1, 1, 1, 1) / frames
    bend = soft[0][:, None] * along + soft[1][:, None] * torch.sin(6.3 * along) / 2
    return grid + amount * bend.permute(0, 1, 3, 4, 2)


def scale_object(target: Tensor, grids: Tensor, batch_rng: BatchRandom) -> Tensor:
    """What is added to places so that some objects shrink or swell, as a heart does.

    Args:
        target: (B, 1, S, S), 0 or 1.
        grids: (B, T, S, S, 2) of `motion_paths`.
        batch_rng: of the batch.
    """
    size, frames = target.shape[-1], grids.shape[1]
    along = (torch.arange(size, device=target.device) + 0.5) * (2 / size) - 1
    area = target.sum(dim=(1, 2, 3)).clamp_min(1.0)
    middle = (
        torch.stack(
            [(target * along).sum(dim=(1, 2, 3)), (target * along[:, None]).sum(dim=(1, 2, 3))],
            dim=1,
        )
        / area[:, None]
    )
    away = grids - middle.view(-1, 1, 1, 1, 2)
    wide = (area / math.pi).sqrt() * (2 / size) * batch_rng.uniform(0.8, 1.8, 1)[:, 0]
    spread = 2 * wide.square().view(-1, 1, 1, 1, 1)
    near = (-away.square().sum(dim=-1, keepdim=True) / spread).exp()
    pace = batch_rng.uniform(0.4, 1.4, 1)
    time = torch.arange(frames, device=target.device)
    strength = batch_rng.uniform(-0.4, 0.9, 1) * (batch_rng.uniform(0, 1, 1) < _BEATING)
    amount = strength * torch.sin(pace * time)
    return amount.view(-1, frames, 1, 1, 1) * near * away


def flicker(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Brightness and noise that change from frame to frame, of some samples.

    Args:
        image: (B, T, 3, S, S), 0…1.
        batch_rng: of the batch.
    """
    frames, size = image.shape[1], image.shape[-1]
    changes = (batch_rng.uniform(0, 1, 1, 1, 1, 1) < 0.3).float()
    gain = 1 + 0.08 * changes * batch_rng.normal(frames, 1, 1, 1)
    shift = 0.04 * changes * batch_rng.normal(frames, 1, 1, 1)
    noisy = (batch_rng.uniform(0, 1, 1, 1, 1, 1) < 0.3).float()
    level = noisy * batch_rng.log_uniform(0.01, 0.08, 1, 1, 1, 1)
    return (image * gain + shift + level * batch_rng.normal(frames, 1, size, size)).clamp(0, 1)
