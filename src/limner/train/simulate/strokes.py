"""Where a simulated user puts the mouse: points, strokes and outlines on a batch of masks.

All masks are float32 (B, 1, H, W), 0 or 1, on one device, and so is what is returned. These are
fast approximations of `limner.prompts.simulate`, which the benchmark uses: no component is
labelled and no distance transform is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data.rng import BatchRandom, box_mean

_LEVELS = 5  # halvings of the image over which depth is gathered


def compute_depth(mask: Tensor) -> Tensor:
    """How deep each pixel lies in the mask, 0…1; largest in the middle of the largest part.

    The mean of the mask over neighbourhoods of many sizes: a pixel is deep where much of the mask
    is around. As a pyramid, so that it costs little more than one enlargement.

    Args:
        mask: float32 (B, C, S, S); each channel is a mask of its own.
    """
    levels = [mask]
    while len(levels) <= _LEVELS and levels[-1].shape[-1] % 2 == 0:
        levels.append(functional.avg_pool2d(levels[-1], 2))
    total = torch.zeros_like(levels[-1])
    for level in levels[:0:-1]:
        total = total + functional.avg_pool2d(level, 3, 1, 1)
        total = functional.interpolate(
            total, scale_factor=2.0, mode="bilinear", align_corners=False
        )
    return total * mask / max(1, len(levels) - 1)


def draw_pixel(
    mask: Tensor,
    batch_rng: BatchRandom,
    *,
    deep: Tensor | None = None,
    central: Tensor | None = None,
) -> Tensor:
    """One pixel per sample, (B, 2) row and column, int64; -1 where the mask is empty.

    Args:
        mask: where to choose.
        batch_rng: chooses.
        deep: `compute_depth` of the mask; None chooses from anywhere.
        central: (B, 1, 1, 1) bool: the deepest pixel, or any; None is the deepest.
    """
    size = mask.shape[-1]
    values = mask * batch_rng.uniform(0.05, 1.0, 1, size, size)
    if deep is not None:
        middle = deep + 1e-3 * values
        values = middle if central is None else torch.where(central, middle, values)
    most, index = values.flatten(1).max(dim=1)
    place = torch.stack([index // size, index % size], dim=1)
    return torch.where((most > 0)[:, None], place, -1)


def paint_disks(at: Tensor, size: int, radius: Tensor | float) -> Tensor:
    """Disks (B, 1, size, size) around pixels (B, 2); nothing where the pixel is -1."""
    along = torch.arange(size, device=at.device)
    down = (along.view(1, 1, -1, 1) - at[:, 0].view(-1, 1, 1, 1)).float()
    right = (along.view(1, 1, 1, -1) - at[:, 1].view(-1, 1, 1, 1)).float()
    near = down**2 + right**2 <= torch.as_tensor(radius, device=at.device) ** 2
    return (near & (at[:, :1, None, None] >= 0)).float()


def draw_scribble(mask: Tensor, deep: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A stroke within each mask: a straight line, the ridge, or a line along the outline; broken by
    noise, of random thickness. Where nothing is left of it, its middle pixel is painted.

    Args:
        mask: where to draw.
        deep: its `compute_depth`.
        batch_rng: of the same batch.
    """
    size = mask.shape[-1]
    kind = batch_rng.uniform()
    thin = torch.where(kind < 0.4, _draw_line(mask, batch_rng), _find_ridge(deep))
    thin = torch.where(kind > 0.7, _draw_contour(mask, deep, batch_rng), thin)
    kept = (batch_rng.smooth(size, 5) > batch_rng.uniform(-1.0, 0.3)).float()
    broken = thin * kept
    empty = broken.amax(dim=(2, 3), keepdim=True) == 0
    thin = torch.where(empty, thin, broken)
    middle = draw_pixel(mask, batch_rng, deep=deep)
    nothing = thin.amax(dim=(2, 3), keepdim=True) == 0
    thin = torch.where(nothing, paint_disks(middle, size, 0.5), thin)
    thick = functional.max_pool2d(thin, 3, 1, 1)
    wide = functional.max_pool2d(thin, 5, 1, 2)
    width = batch_rng.uniform()
    stroke = torch.where(width < 0.35, thin, torch.where(width < 0.7, thick, wide))
    return stroke * torch.where(batch_rng.bernoulli(0.8), mask, torch.ones_like(mask))


def draw_outline(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """What a rough lasso around each mask encloses: the mask, grown unevenly."""
    size = mask.shape[-1]
    share = mask.mean(dim=(2, 3), keepdim=True).sqrt()
    grown = torch.zeros_like(mask)
    for radius, least in ((2, 0.0), (5, 0.08), (9, 0.25)):
        soft = box_mean(mask, radius)
        level = (0.22 * (1 + 0.8 * batch_rng.smooth(size, 6))).clamp(0.05, 0.6)
        part = ((soft > level) | (mask > 0)).float()
        grown = torch.where(share >= least, part, grown)
    return grown


def draw_rough_mask(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A rough mask: shifted, grown or shrunk, with an uneven edge, perhaps with a part missing."""
    size = mask.shape[-1]
    share = mask.mean(dim=(2, 3), keepdim=True).sqrt()
    soft = torch.where(share > 0.15, box_mean(mask, 7), box_mean(mask, 2))
    level = (batch_rng.uniform(0.2, 0.8) + 0.25 * batch_rng.smooth(size, 7)).clamp(0.08, 0.95)
    found = (soft > level).float()
    cut = (batch_rng.smooth(size, 3) > -0.6).float()
    found = torch.where(batch_rng.bernoulli(0.25), found * cut, found)
    empty = found.amax(dim=(2, 3), keepdim=True) == 0
    return torch.where(empty, mask, found)


def draw_box(mask: Tensor, batch_rng: BatchRandom, *, loose: Tensor) -> Tensor:
    """A filled box around each mask, each side off by a few pixels or by as many per cent.

    Args:
        mask: an empty one gets no box.
        batch_rng: of the same batch.
        loose: (B, 1, 1, 1) bool: off by up to a quarter of the size, mostly outwards.
    """
    low_row, high_row = _find_span(mask.amax(dim=3)[:, 0])
    low_column, high_column = _find_span(mask.amax(dim=2)[:, 0])
    corners = torch.stack([low_row, high_row, low_column, high_column], dim=1).float()
    sizes = torch.stack([high_row - low_row, high_column - low_column], dim=1).float()
    sizes = sizes.repeat_interleave(2, dim=1)
    outwards = torch.tensor([-1.0, 1.0, -1.0, 1.0], device=mask.device)
    small = batch_rng.normal(4) * (0.7 + 0.03 * sizes)
    large = batch_rng.uniform(-0.05, 0.25, 4) * sizes
    tight = batch_rng.uniform(0.0, 1.0, 1) < 0.3
    error = torch.where(loose.view(-1, 1), large, torch.where(tight, 0.0, small))
    corners = (corners + outwards * error).round()
    along = torch.arange(mask.shape[-1], device=mask.device)
    top, bottom, left, right = (corners[:, k].view(-1, 1, 1, 1) for k in range(4))
    rows = (along.view(1, 1, -1, 1) >= top) & (along.view(1, 1, -1, 1) < bottom)
    columns = (along.view(1, 1, 1, -1) >= left) & (along.view(1, 1, 1, -1) < right)
    filled = (rows & columns).float()
    return filled * mask.amax(dim=(2, 3), keepdim=True)


def paint_ellipse(boxes: Tensor) -> Tensor:
    """The ellipse inscribed in each filled box; nothing where there is no box."""
    squares = torch.zeros_like(boxes)
    for axis in (2, 3):
        low, high = _find_span(boxes.amax(dim=5 - axis)[:, 0])
        along = torch.arange(boxes.shape[axis], device=boxes.device, dtype=torch.float32)
        middle, half = (low + high - 1) / 2, (high - low) / 2
        place = (along - middle[:, None]) / half[:, None]
        squares = squares + (place**2)[:, None].unsqueeze(5 - axis)
    return (squares < 1).float() * boxes


def _find_span(present: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 index of the ones in (B, n)."""
    n = present.shape[1]
    return present.argmax(dim=1), n - present.flip(1).argmax(dim=1)


def _draw_line(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A bent line from one pixel of the mask to another, where it stays in the mask."""
    size = mask.shape[-1]
    ends = [draw_pixel(mask, batch_rng).float() for _ in range(3)]
    share = torch.linspace(0.0, 1.0, 3 * size // 2, device=mask.device).view(1, -1, 1)
    curve = (
        (1 - share) ** 2 * ends[0][:, None]
        + 2 * share * (1 - share) * ends[1][:, None]
        + share**2 * ends[2][:, None]
    )
    place = curve.round().long().clamp(0, size - 1)
    line = torch.zeros_like(mask).flatten(1)
    line.scatter_(1, place[..., 0] * size + place[..., 1], 1.0)
    return line.view_as(mask) * mask


def _find_ridge(deep: Tensor) -> Tensor:
    """The pixels deeper than both their neighbours on some axis: about the centre line."""
    up, down = functional.pad(deep, (0, 0, 1, 0))[..., :-1, :], functional.pad(deep, (0, 0, 0, 1))
    left, right = functional.pad(deep, (1, 0))[..., :-1], functional.pad(deep, (0, 1))
    across = (deep > up) & (deep >= down[..., 1:, :])
    along = (deep > left) & (deep >= right[..., 1:])
    return ((across | along) & (deep > 0.3 * deep.amax(dim=(2, 3), keepdim=True))).float()


def _draw_contour(mask: Tensor, deep: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A level line of depth between the edge and the middle."""
    most = deep.amax(dim=(2, 3), keepdim=True)
    inner = (deep > most * batch_rng.uniform(0.3, 0.8)).float()
    edge = functional.max_pool2d(inner, 3, 1, 1) - inner
    return edge * mask
