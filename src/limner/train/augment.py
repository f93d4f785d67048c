"""Changes of intensity on a batch, on the device: what scanners, cameras and files do to a picture.

Every function takes and returns (B, 3, H, W) float32, 0…1, and decides for each sample by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.chance import Chance, box_mean


def disturb(image: Tensor, chance: Chance) -> Tensor:
    """All changes, in the order in which they arise: tissue, field, optics, sensor, file."""
    image = _recolour(image, chance)
    image = _remap(image, chance)
    image = _gamma_and_contrast(image, chance)
    image = _bias(image, chance)
    image = _blur(image, chance)
    image = _coarsen(image, chance)
    image = _noise(image, chance)
    image = _blocks(image, chance)
    return _invert(image, chance).clamp(0.0, 1.0)


def _recolour(image: Tensor, chance: Chance) -> Tensor:
    """Colour to grey, channels exchanged, tint changed."""
    weights = chance.uniform(0.0, 1.0, 3, 1, 1)
    grey = (image * weights / weights.sum(dim=1, keepdim=True)).sum(dim=1, keepdim=True)
    grey = grey.expand_as(image)
    image = torch.where(chance.happens(0.15), grey, image)
    order = chance.uniform(0.0, 1.0, 3).argsort(dim=1)[:, :, None, None].expand_as(image)
    image = torch.where(chance.happens(0.1), image.gather(1, order), image)
    tint = chance.uniform(0.75, 1.25, 3, 1, 1)
    coloured = (image.amax(dim=1, keepdim=True) - image.amin(dim=1, keepdim=True)).amax(
        dim=(2, 3), keepdim=True
    ) > 0.02
    image = torch.where(chance.happens(0.3) & coloured, image * tint, image)
    vividness = chance.uniform(0.3, 1.6)
    mean = image.mean(dim=1, keepdim=True)
    return torch.where(chance.happens(0.2), mean + (image - mean) * vividness, image)


def _remap(image: Tensor, chance: Chance) -> Tensor:
    """Another modality: brightness through a random smooth curve, not always rising."""
    knots = chance.uniform(0.0, 1.0, 1, 6).expand(-1, 3, -1)
    place = image.clamp(0.0, 1.0).flatten(2) * 4.999
    first = place.long()
    share = place - first
    curve = torch.lerp(knots.gather(2, first), knots.gather(2, first + 1), share)
    return torch.where(chance.happens(0.1), curve.view_as(image), image)


def _gamma_and_contrast(image: Tensor, chance: Chance) -> Tensor:
    gamma = chance.log_uniform(0.5, 2.0)
    image = torch.where(chance.happens(0.4), image.clamp(1e-4, 1.0).pow(gamma), image)
    factor, shift = chance.log_uniform(0.5, 2.0), chance.uniform(-0.2, 0.2)
    changed = ((image - 0.5) * factor + 0.5 + shift).clamp(0.0, 1.0)
    return torch.where(chance.happens(0.4), changed, image)


def _bias(image: Tensor, chance: Chance) -> Tensor:
    """Uneven light, coils or attenuation."""
    field = (chance.smooth(image.shape[-1], 3) * chance.uniform(0.05, 0.35)).exp()
    return torch.where(chance.happens(0.2), image * field, image)


def _blur(image: Tensor, chance: Chance) -> Tensor:
    once = box_mean(image, 1)
    soft = torch.where(chance.happens(0.5), once, box_mean(once, 1))
    sharp = image + (image - once) * chance.uniform(0.3, 1.5)
    image = torch.where(chance.happens(0.15), soft, image)
    return torch.where(chance.happens(0.1), sharp.clamp(0.0, 1.0), image)


def _coarsen(image: Tensor, chance: Chance) -> Tensor:
    """A coarser grid, enlarged again; on one axis only as often as on both."""
    size = image.shape[-1]
    for share, factor in ((0.07, (2, 2)), (0.05, (4, 4)), (0.04, (1, 3)), (0.04, (3, 1))):
        less = (max(1, size // factor[0]), max(1, size // factor[1]))
        small = functional.interpolate(image, size=less, mode="area")
        wide = functional.interpolate(small, size=(size, size), mode="bilinear")
        image = torch.where(chance.happens(share), wide, image)
    return image


def _noise(image: Tensor, chance: Chance) -> Tensor:
    """Gaussian, Rician (magnitude MR) or speckle (ultrasound, lasers)."""
    size = image.shape[-1]
    one, other = chance.normal(1, size, size), chance.normal(1, size, size)
    level = chance.log_uniform(0.01, 0.15)
    image = torch.where(chance.happens(0.2), image + level * one, image)
    rician = ((image + level * one) ** 2 + (level * other) ** 2).sqrt()
    image = torch.where(chance.happens(0.08), rician, image)
    grain = torch.where(chance.happens(0.5), one, 2.0 * box_mean(one, 1))
    return torch.where(chance.happens(0.1), image * (1 + 2.5 * level * grain), image)


def _blocks(image: Tensor, chance: Chance) -> Tensor:
    """What strong JPEG compression leaves: brightness steps, and blocks that lose their detail."""
    size = image.shape[-1]
    steps = chance.log_uniform(12.0, 64.0)
    stepped = (image * steps).round() / steps
    mean = functional.interpolate(
        functional.avg_pool2d(image, 8, ceil_mode=True), scale_factor=8.0, mode="nearest"
    )[..., :size, :size]
    flat = torch.lerp(stepped, mean, chance.uniform(0.1, 0.5))
    return torch.where(chance.happens(0.05), flat, image)


def _invert(image: Tensor, chance: Chance) -> Tensor:
    return torch.where(chance.happens(0.15), 1.0 - image, image)
