"""Where a simulated user puts the mouse in a volume: on a batch of masks, as `strokes` does in
2D.

All masks are float32 (B, 1, D, H, W), 0 or 1. What a user draws by hand is drawn on one slice
across any axis, with the strokes of 2D.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data.rng import BatchRandom, block_mean, smooth3d
from limner.train.simulate import strokes

_LEVELS = 5  # halvings of the volume over which depth is gathered
_AXES = (0.6, 0.8)  # to draw across the first axis, across the first or the second


def compute_depth(mask: Tensor) -> Tensor:
    """How deep each voxel lies in the mask, 0…1; as `strokes.depth`.

    Args:
        mask: float32 (B, C, D, H, W); each channel is a mask of its own.
    """
    levels = [mask]
    while len(levels) <= _LEVELS and levels[-1].shape[-1] % 2 == levels[-1].shape[-2] % 2 == 0:
        thick = 2 if levels[-1].shape[2] % 2 == 0 else 1
        levels.append(functional.avg_pool3d(levels[-1], (thick, 2, 2)))
    total = torch.zeros_like(levels[-1])
    for level, finer in zip(levels[:0:-1], levels[-2::-1], strict=True):
        total = total + block_mean(level, (1, 1, 1))
        total = functional.interpolate(
            total, size=finer.shape[2:], mode="trilinear", align_corners=False
        )
    return total * mask / max(1, len(levels) - 1)


def draw_voxel(
    mask: Tensor,
    batch_rng: BatchRandom,
    *,
    deep: Tensor | None = None,
    central: Tensor | None = None,
) -> Tensor:
    """One voxel per sample, (B, 3) slice, row, column, int64; -1 where the mask is empty.

    Args:
        mask: where to choose.
        batch_rng: chooses.
        deep: `compute_depth` of the mask; None chooses from anywhere.
        central: (B, 1, 1, 1, 1) bool: the deepest voxel, or any; None is the deepest.
    """
    shape = mask.shape[2:]
    values = mask * batch_rng.uniform(0.05, 1.0, 1, *shape)
    if deep is not None:
        middle = deep + 1e-3 * values
        values = middle if central is None else torch.where(central, middle, values)
    most, index = values.flatten(1).max(dim=1)
    area = shape[1] * shape[2]
    place = torch.stack([index // area, index % area // shape[2], index % shape[2]], dim=1)
    return torch.where((most > 0)[:, None], place, -1)


def paint_balls(at: Tensor, shape: torch.Size, radius: float) -> Tensor:
    """Balls (B, 1, D, H, W) around voxels (B, 3); nothing where the voxel is -1."""
    squares = torch.zeros(1, device=at.device)
    for axis, size in enumerate(shape):
        along = torch.arange(size, device=at.device) - at[:, axis, None]
        pattern = [len(at), 1, 1, 1, 1]
        pattern[2 + axis] = size
        squares = squares + along.float().square().view(pattern)
    return ((squares <= radius**2) & (at[:, 0] >= 0).view(-1, 1, 1, 1, 1)).float()


def draw_on_slice(
    mask: Tensor,
    at: Tensor,
    batch_rng: BatchRandom,
    draw: Callable[[Tensor, BatchRandom], Tensor],
) -> tuple[Tensor, Tensor]:
    """Draw on one slice of each volume, across a random axis.

    Args:
        mask: (B, C, D, H, W).
        at: (B, 3): a voxel of the slice; nothing is drawn where it is -1.
        batch_rng: of the same batch.
        draw: gets the slices, padded with zeros to squares, (n, C, S, S), and their `BatchRandom`;
            returns (n, 1, S, S).

    Returns:
        What was drawn, (B, 1, D, H, W), and the slices drawn on: 1 there, else 0.
    """
    shape = mask.shape[2:]
    side = max(shape)
    side += -side % 32
    chosen = batch_rng.uniform(0.0, 1.0, 1)[:, 0].tolist()
    axes = [0 if c < _AXES[0] else 1 if c < _AXES[1] else 2 for c in chosen]
    spots = at.tolist()
    drawn = torch.zeros_like(mask[:, :1])
    slices = torch.zeros_like(drawn)
    kept = [k for k, spot in enumerate(spots) if spot[0] >= 0]
    if not kept:
        return drawn, slices
    squares = mask.new_zeros((len(kept), mask.shape[1], side, side))
    for row, k in enumerate(kept):
        part = mask[k].select(1 + axes[k], spots[k][axes[k]])
        squares[row, :, : part.shape[1], : part.shape[2]] = part
    lines = draw(squares, BatchRandom(len(kept), batch_rng.generator))
    for row, k in enumerate(kept):
        place = drawn[k].select(1 + axes[k], spots[k][axes[k]])
        place.copy_(lines[row, :, : place.shape[1], : place.shape[2]])
        slices[k].select(1 + axes[k], spots[k][axes[k]]).fill_(1.0)
    return drawn, slices


def draw_stroke(masks: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A scribble on each slice; nothing where there is nothing."""
    drawn = strokes.draw_scribble(masks, strokes.compute_depth(masks), batch_rng)
    return drawn * masks.amax((2, 3), keepdim=True)


def draw_rough_mask(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A rough mask: grown or shrunk with an uneven edge, perhaps with a part missing."""
    shape = (mask.shape[2], mask.shape[3], mask.shape[4])
    share = mask.mean(dim=(2, 3, 4), keepdim=True)
    soft = torch.where(share > 0.01, block_mean(mask, (2, 5, 5)), block_mean(mask, (1, 2, 2)))
    level = (batch_rng.uniform(0.2, 0.8) + 0.25 * smooth3d(batch_rng, shape, 6)).clamp(0.08, 0.95)
    found = (soft > level).float()
    cut = (smooth3d(batch_rng, shape, 3) > -0.6).float()
    found = torch.where(batch_rng.bernoulli(0.25), found * cut, found)
    empty = found.amax(dim=(2, 3, 4), keepdim=True) == 0
    return torch.where(empty, mask, found)


def find_corners(mask: Tensor) -> Tensor:
    """(B, 3, 2) float32: first and last + 1 voxel of each mask along each axis; all of the view
    where it is empty.
    """
    spans = []
    for axis in (2, 3, 4):
        others = tuple(k for k in (1, 2, 3, 4) if k != axis)
        present = mask.amax(dim=others)
        size = present.shape[1]
        low = present.argmax(dim=1)
        spans.append(torch.stack([low, size - present.flip(1).argmax(dim=1)], dim=1))
    return torch.stack(spans, dim=1).float()


def draw_box(mask: Tensor, batch_rng: BatchRandom, *, loose: Tensor) -> Tensor:
    """Corners (B, 3, 2) of a box around each mask, each side off by a few voxels or per cent.

    Args:
        mask: (B, 1, D, H, W).
        batch_rng: of the same batch.
        loose: (B, 1, 1, 1, 1) bool: off by up to a quarter of the size, mostly outwards.
    """
    found = find_corners(mask)
    sizes = (found[..., 1:] - found[..., :1]).expand(-1, -1, 2)
    outwards = torch.tensor([-1.0, 1.0], device=mask.device)
    small = batch_rng.normal(3, 2) * (0.5 + 0.03 * sizes)
    large = batch_rng.uniform(-0.05, 0.25, 3, 2) * sizes
    tight = batch_rng.uniform(0.0, 1.0, 1, 1) < 0.35
    error = torch.where(loose.view(-1, 1, 1), large, torch.where(tight, 0.0, small))
    moved = (found + outwards * error).round()
    thin = moved[..., 1] <= moved[..., 0]
    return torch.where(thin[..., None], found, moved)


def box_of_middle_slice(mask: Tensor) -> Tensor:
    """Corners of a box that reaches over all slices of each mask, as wide as its middle slice."""
    found = find_corners(mask)
    middle = ((found[:, 0, 0] + found[:, 0, 1]) / 2).long().clamp(max=mask.shape[2] - 1)
    rows = torch.arange(len(mask), device=mask.device)
    inner = find_corners(mask[rows, :, middle][:, :, None])
    shown = mask[rows, :, middle].amax(dim=(1, 2, 3)) > 0
    wide = torch.cat([found[:, :1], inner[:, 1:]], dim=1)
    return torch.where(shown.view(-1, 1, 1), wide, found)


def paint_box(boxes: Tensor, shape: torch.Size) -> Tensor:
    """(B, 1, D, H, W): 1 in each box of corners (B, 3, 2)."""
    result = torch.ones((len(boxes), 1, *shape), device=boxes.device)
    for axis, size in enumerate(shape):
        along = torch.arange(size, device=boxes.device) + 0.5
        inside = (along > boxes[:, axis, :1]) & (along < boxes[:, axis, 1:])
        pattern = [len(boxes), 1, 1, 1, 1]
        pattern[2 + axis] = size
        result = result * inside.float().view(pattern)
    return result


def paint_ellipsoid(boxes: Tensor, shape: torch.Size) -> Tensor:
    """(B, 1, D, H, W): 1 in the ellipsoid inscribed in each box of corners (B, 3, 2)."""
    squares = torch.zeros((1,), device=boxes.device)
    for axis, size in enumerate(shape):
        along = torch.arange(size, device=boxes.device) + 0.5
        low, high = boxes[:, axis, :1], boxes[:, axis, 1:]
        place = (along - (low + high) / 2) / ((high - low) / 2)
        pattern = [len(boxes), 1, 1, 1, 1]
        pattern[2 + axis] = size
        squares = squares + place.square().view(pattern)
    return (squares < 1).float()
