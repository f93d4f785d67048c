"""Pseudo-volumes: 2D images with their masks, piled up, so that a 3D network learns the kinds of
image of which there are no volumes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from limner.train.data.device_volumes import Sample3d, binarize
from limner.train.data.pack import PackedImages
from limner.train.data.rng import BatchRandom, smooth3d
from limner.train.data.targets import Targets
from limner.train.data.views import Views
from limner.train.data.views3d import Shape

Array = NDArray[Any]

_PINCHES = 5  # places of a pile that change from slice to slice, besides the target
_CYLINDERS = 0.2  # share of piles in which the target is as large on every slice
_LARGE = 0.3  # of the view: what is larger leaves too little around it that could take its place


class PseudoVolumes:
    """2D images with their masks, piled up into volumes.

    At the middle slice the image is as it is. Further away the target, and some places besides
    it, are drawn together until they vanish, which gives bodies like ellipsoids whose outline is
    the target's; all else drifts and bends a little.

    Args:
        pack: 2D images.
        device: that trains.
    """

    def __init__(self, pack: PackedImages, device: torch.device) -> None:
        self.pack = pack
        self.device = device
        self._pixels = torch.from_numpy(pack.pixels).to(device)
        self._layers = [torch.from_numpy(m.view(np.int16)).to(device) for m in pack.layers]

    def cut_view(
        self,
        targets: Targets,
        views: Views,
        shape: Shape,
        rng: np.random.Generator,
        batch_rng: BatchRandom,
    ) -> Sample3d:
        """The first target of a batch of one."""
        image = self.pack.images[targets.images[0]]
        rows, columns, channels, first, place = (int(v) for v in image[3:8])
        channels = max(1, channels)
        pixels = self._pixels[first : first + channels * rows * columns].view(
            channels, rows, columns
        )
        layer = self._layers[targets.layers[0]][place : place + rows * columns].view(rows, columns)
        mask = torch.zeros((rows, columns), dtype=torch.bool, device=self.device)
        for number in np.unique(targets.ids[0]):
            mask |= layer == int(np.uint16(number).view(np.int16))
        at = self._places(targets, views, shape, rng, batch_rng)
        inside = ((at[0] >= 0) & (at[0] <= rows) & (at[1] >= 0) & (at[1] <= columns)).float()[None]
        step = np.sqrt((views.steps[0] ** 2).sum(axis=1))
        kernel = [max(1, int(s + 0.35)) for s in step]
        values = torch.cat([pixels.float() / 255.0, mask.float()[None]])
        found = _sampled(values, at, kernel)
        return Sample3d(found[:-1] * inside, binarize(found[-1:]) * inside, inside)

    def _places(
        self,
        targets: Targets,
        views: Views,
        shape: Shape,
        rng: np.random.Generator,
        batch_rng: BatchRandom,
    ) -> Tensor:
        """(2, D, H, W): where on the image each voxel lies."""
        depth, rows, columns = shape
        device = self.device
        axes = [torch.arange(n, device=device, dtype=torch.float32) + 0.5 - n / 2 for n in shape]
        image = torch.stack(torch.meshgrid(*axes[1:], indexing="ij"))
        offsets = image[:, None].expand(-1, depth, -1, -1)
        drift = float(rng.uniform(0, 0.04)) * max(rows, columns)
        offsets = offsets + drift * smooth3d(batch_rng, shape, 3, 2)[0]
        steps = views.steps[0]
        inverse = np.linalg.inv(steps)
        box = targets.boxes[0].reshape(2, 2)
        middle = inverse @ (box.mean(axis=0) - views.centres[0])  # in voxels of the view
        half = np.maximum(np.abs(inverse) @ (box[1] - box[0]) / 2, 1.0)
        for k in range(_PINCHES + 1):
            at, size, length = middle, half, rng.uniform(0.15, 0.7) * depth
            slice_ = rng.uniform(-0.3, 0.3) * depth
            large = bool((half > _LARGE * np.array(shape[1:])).any())
            if k:
                at = rng.uniform(-0.5, 0.5, 2) * np.array(shape[1:])
                size = np.minimum(half, 0.2 * shape[2]) * np.exp(rng.uniform(-1.2, 0.4, 2))
                slice_ = rng.uniform(-0.6, 0.6) * depth
            elif rng.random() < (0.7 if large else _CYLINDERS):
                continue
            offsets = _pinched(offsets, axes[0], at, size, float(slice_), float(length))
        matrix = torch.from_numpy(steps.astype(np.float32)).to(device)
        centre = torch.from_numpy(views.centres[0].astype(np.float32)).to(device)
        return torch.einsum("ij,jdhw->idhw", matrix, offsets) + centre.view(2, 1, 1, 1)


def _sampled(values: Tensor, at: Tensor, kernel: list[int]) -> Tensor:
    """(C, D, H, W): an image (C, rows, columns) at places (2, D, H, W), interpolated after means
    over `kernel` pixels; only the part that is needed.
    """
    window, low = [], []
    for k, pace in enumerate(kernel):
        last = values.shape[1 + k] - 1
        first = min(max(0, int(at[k].min()) - pace), last) // pace * pace
        window.append(slice(first, max(first, min(last, int(at[k].max()) + pace)) + 1))
        low.append(first)
    part = values[:, window[0], window[1]]
    if max(kernel) > 1:
        part = functional.avg_pool2d(part[None], kernel, ceil_mode=True, count_include_pad=False)[0]
    grid = [(at[k] - low[k]) * (2.0 / (kernel[k] * part.shape[1 + k])) - 1.0 for k in (1, 0)]
    flat = torch.stack(grid, dim=-1).flatten(0, 1)[None]
    found = functional.grid_sample(part[None], flat, padding_mode="border", align_corners=False)
    return found[0].view(len(values), *at.shape[1:])


def _pinched(
    offsets: Tensor, along: Tensor, at: Array, half: Array, middle: float, length: float
) -> Tensor:
    """Places moved away from `at`, the more the further a slice is from `middle`, so that what is
    around it seems to shrink: a disc becomes an ellipsoid of `length` to both sides.
    """
    centre = torch.tensor(at, device=offsets.device, dtype=torch.float32).view(2, 1, 1, 1)
    size = torch.tensor(half, device=offsets.device, dtype=torch.float32).view(2, 1, 1, 1)
    away = (offsets - centre) / size
    gone = ((along - middle) / length).square().clamp(max=2.5).view(-1, 1, 1)
    radius = away.square().sum(dim=0).clamp_min(1e-4)
    # Places far away stay where they are, also as seen from elsewhere.
    factor = (1 + gone / radius).sqrt()
    return centre + size * away * factor
