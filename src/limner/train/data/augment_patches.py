"""Changes of normalised patches and their labels: rotation, zoom, mirroring, noise, contrast.

A lean version of nnU-Net's augmentation: shapes change where a batch is turned and zoomed as a
whole sample, intensities by gain, shift, gamma-like bending and noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.segmentation_losses import IGNORED

_TURNED = 0.3  # share of samples that are turned and zoomed
_LARGEST_ANGLE = math.radians(30)
_ZOOM = (0.8, 1.25)
_THICK = 3.0  # steps across slices this many times coarser: turned within slices only
_CHANGED = 0.2  # share of samples for each change of intensity


def augment_patches(
    image: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    spacing: Sequence[float],
    mirror: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """All changes.

    Args:
        image: float32 (B, C, *axes), normalised.
        labels: (B, *axes) integers.
        generator: the only source of randomness, on the device of the tensors.
        spacing: millimetres per step of the axes, or what is in proportion to it.
        mirror: axes along which samples may be mirrored.

    Returns:
        Changed image and labels; where a turned sample shows nothing the image is 0 and the labels
        are ignored.
    """
    turned = _draw(len(image), generator) < _TURNED
    if bool(turned.any()):
        matrices = _draw_matrices(int(turned.sum()), spacing, image.shape[2:], generator)
        image, labels = image.clone(), labels.clone()
        image[turned], labels[turned] = _transform(image[turned], labels[turned], matrices)
    for axis in mirror:
        flipped = _draw(len(image), generator) < 0.5
        image = _where(flipped, image.flip(axis + 2), image)
        labels = _where(flipped, labels.flip(axis + 1), labels)
    return _change_intensity(image, generator), labels


def _draw(number: int, generator: torch.Generator) -> Tensor:
    return torch.rand(number, generator=generator, device=generator.device)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *(1,) * (yes.ndim - 1)), yes, no)


def _draw_matrices(
    number: int, spacing: Sequence[float], shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Random rotations and zooms in the coordinates of `torch.nn.functional.affine_grid`."""
    ndim = len(spacing)
    pairs = [(0, 1)]  # pairs of coordinates (x, y[, z]) that are turned
    if ndim == 3 and spacing[0] < _THICK * min(spacing[1:]):
        pairs += [(0, 2), (1, 2)]
    matrices = torch.eye(ndim, device=generator.device).repeat(number, 1, 1)
    for a, b in pairs:
        angle = (2 * _draw(number, generator) - 1) * _LARGEST_ANGLE
        turn = torch.eye(ndim, device=generator.device).repeat(number, 1, 1)
        turn[:, a, a] = turn[:, b, b] = torch.cos(angle)
        turn[:, a, b], turn[:, b, a] = -torch.sin(angle), torch.sin(angle)
        matrices = matrices @ turn
    low, high = (math.log(z) for z in _ZOOM)
    zoom = torch.exp(low + (high - low) * _draw(number, generator))
    extent = [s * n for s, n in zip(spacing, shape, strict=True)][::-1]
    millimetres = torch.tensor(extent, device=generator.device, dtype=torch.float32)
    matrices = matrices * millimetres[None, None, :] / millimetres[None, :, None]
    return matrices / zoom.view(-1, 1, 1)


def _transform(image: Tensor, labels: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    shift = matrices.new_zeros((*matrices.shape[:2], 1))
    theta = torch.cat([matrices, shift], dim=2)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    found = functional.grid_sample(image, grid, mode="bilinear", align_corners=False)
    shown = (labels[:, None] - IGNORED).float()  # what lies outside is sampled as 0: ignored
    near = functional.grid_sample(shown, grid, mode="nearest", align_corners=False)
    return found, (near[:, 0].round().to(labels.dtype)) + IGNORED


def _change_intensity(image: Tensor, generator: torch.Generator) -> Tensor:
    number, axes = len(image), (1,) * (image.ndim - 1)

    def some(low: float, high: float, neutral: float) -> Tensor:
        """A value per sample, neutral for most of them."""
        value = low + (high - low) * _draw(number, generator)
        chosen = _draw(number, generator) < _CHANGED
        return torch.where(chosen, value, torch.full_like(value, neutral)).view(-1, *axes)

    image = image * some(0.7, 1.4, 1.0) + some(-0.3, 0.3, 0.0)
    bend = some(-0.15, 0.15, 0.0)
    image = image + bend * (image.square().clamp_max(9.0) - 1.0)
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return image + noise * some(0.0, 0.2, 0.0)
