"""Volumes on the device, cut out view by view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from limner.train.data.pack3d import COARSE, FINE, PackedVolume, PackedVolumes
from limner.train.data.rng import BatchRandom, smooth3d
from limner.train.data.targets3d import Target3d
from limner.train.data.views3d import View3d

Array = NDArray[Any]

_COLOURS = 4096


@dataclass(frozen=True, eq=False)
class Sample3d:
    """One sample as seen, on the device.

    Attributes:
        image: float32 (C, D, H, W), 0…1; C is 1 or 3.
        target: float32 (1, D, H, W), 0 or 1.
        inside: float32 (1, D, H, W), 1 in the volume.
    """

    image: Tensor
    target: Tensor
    inside: Tensor


class DeviceVolumes:
    """Packs on a device.

    Args:
        volumes: in memory.
        device: that trains.
    """

    def __init__(self, volumes: PackedVolumes, device: torch.device) -> None:
        self.pack = volumes
        self.device = device
        self._volumes = [_tensors(volume, device) for volume in volumes.volumes]

    def cut_view(
        self, target: Target3d, view: View3d, batch_rng: BatchRandom, window: int = 0
    ) -> Sample3d:
        """Cut out a view; a volume without an image is painted.

        Args:
            target: what is meant.
            view: where to look.
            batch_rng: of one sample; bends and paints.
            window: of the intensities.
        """
        volume, tensors = self.pack.volumes[target.volume], self._volumes[target.volume]
        size = np.array(volume.shape)
        low, high = crop_bounds(view, size)
        crop = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        factors = volume.factors if target.map in (FINE, COARSE) else (1, 1, 1)
        mask = _mask(tensors.maps[target.map], target.ids, low, high, factors)
        if len(volume.images):
            image = tensors.images[window][crop].float()[None] / 255.0
        else:
            image = paint_regions(tensors.regions[crop].long(), batch_rng)
        at = view_positions(view, batch_rng)
        bounds = torch.from_numpy(size.astype(np.float32)).to(self.device).view(3, 1, 1, 1)
        inside = ((at >= 0) & (at <= bounds)).all(dim=0, keepdim=True).float()
        kernel = _kernel(view)
        image = resample(image, at, low, kernel)
        found = resample(mask, at, low * 1.0, kernel, factors)
        return Sample3d(image * inside, binarize(found) * inside, inside)


@dataclass(frozen=True, eq=False)
class _Tensors:
    images: Tensor
    regions: Tensor
    maps: tuple[Tensor, ...]


def _tensors(volume: PackedVolume, device: torch.device) -> _Tensors:
    return _Tensors(
        torch.from_numpy(volume.images).to(device),
        _integers(volume.regions, device),
        tuple(_integers(m, device) for m in volume.maps),
    )


def _integers(array: Array, device: torch.device) -> Tensor:
    """uint8 as it is, uint16 by bits as int16: few operations know uint16."""
    array = np.array(array)  # those of a file are read-only
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array).to(device)


def _mask(
    ids: Tensor, wanted: NDArray[np.int64], low: Array, high: Array, factors: tuple[int, ...]
) -> Tensor:
    """(1, d, h, w) float32: a target in a window of its volume, on the grid of its map."""
    part = ids[
        tuple(
            slice(int(a) // f, -(-int(b) // f)) for a, b, f in zip(low, high, factors, strict=True)
        )
    ]
    mask = torch.zeros(part.shape, dtype=torch.bool, device=ids.device)
    for number in np.unique(wanted):
        mask |= part == (
            int(number) if ids.dtype == torch.uint8 else int(np.uint16(number).view(np.int16))
        )
    return mask.float()[None]


def crop_bounds(view: View3d, size: Array) -> tuple[Array, Array]:
    """The part of the volume that a view may need: first voxel and last + 1."""
    half = np.abs(view.steps) @ (np.array(view.shape) / 2 + 3 * view.bend + 1)
    low = np.clip(np.floor(view.centre - half - 1), 0, size - 1).astype(int)
    high = np.clip(np.ceil(view.centre + half + 1), low + 1, size).astype(int)
    return low, high


def view_positions(view: View3d, batch_rng: BatchRandom) -> Tensor:
    """(3, D, H, W): where in the volume each voxel of a view lies."""
    device = batch_rng.device
    axes = [torch.arange(n, device=device, dtype=torch.float32) + 0.5 - n / 2 for n in view.shape]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    if view.bend:
        ratio = np.linalg.norm(view.steps, axis=0)
        soft = smooth3d(batch_rng, view.shape, 5, 3)[0]
        soft = soft * torch.tensor([ratio[1] / ratio[0], 1.0, 1.0], device=device).float().view(
            3, 1, 1, 1
        )
        offsets = offsets + soft * view.bend
    steps = torch.from_numpy(view.steps.astype(np.float32)).to(device)
    centre = torch.from_numpy(view.centre.astype(np.float32)).to(device)
    return torch.einsum("ij,jdhw->idhw", steps, offsets) + centre.view(3, 1, 1, 1)


def resample(
    values: Tensor,
    at: Tensor,
    low: Array,
    kernel: tuple[int, ...],
    factors: tuple[int, ...] = (1, 1, 1),
) -> Tensor:
    """Interpolate linearly, after averaging over what one voxel of the view covers.

    Args:
        values: (C, d, h, w), a window of a volume.
        at: (3, D, H, W), voxels of the volume.
        low: the window's first voxel.
        kernel: voxels of the volume to average over.
        factors: voxels of the volume per step of `values`.

    Returns:
        (C, D, H, W).
    """
    size = [max(1, round(k / f)) for k, f in zip(kernel, factors, strict=True)]
    if max(size) > 1:
        values = functional.avg_pool3d(values[None], size, ceil_mode=True, count_include_pad=False)[
            0
        ]
    pace = [float(k * f) for k, f in zip(size, factors, strict=True)]
    start = [float(a // f * f) for a, f in zip(low, factors, strict=True)]
    grid = [
        (at[axis] - start[axis]) * (2.0 / (pace[axis] * values.shape[1 + axis])) - 1.0
        for axis in (2, 1, 0)
    ]
    found = functional.grid_sample(
        values[None], torch.stack(grid, dim=-1)[None], padding_mode="border", align_corners=False
    )
    return found[0]


def paint_regions(regions: Tensor, batch_rng: BatchRandom) -> Tensor:
    """(1, d, h, w): each region in a brightness of its own, uneven in itself."""
    mean = batch_rng.uniform(0.0, 1.0, _COLOURS)[0]
    index = regions % _COLOURS
    image = mean[index]
    spread = batch_rng.uniform(0.0, 0.1, _COLOURS)[0] * (batch_rng.uniform(0.0, 1.0, 1)[0] < 0.7)
    grain = torch.randn(regions.shape, generator=batch_rng.generator, device=batch_rng.device)
    return (image + spread[index] * grain)[None]


def _kernel(view: View3d) -> tuple[int, ...]:
    """Voxels of the volume along each axis that one voxel of the view covers."""
    steps = view.steps if view.averaged else view.steps[:, 1:]
    covered = np.sqrt((steps**2).sum(axis=1))
    return tuple(max(1, int(c + 0.35)) for c in covered)


def binarize(share: Tensor) -> Tensor:
    """At least half inside; of a target too thin for that, its best part."""
    most = share.max()
    return (share >= torch.where(most >= 0.5, 0.5, 0.7 * most + 1e-3)).float()
