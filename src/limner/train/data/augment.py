"""Changes of intensity on a batch, on the device: what scanners, cameras and files do to an image.

Every function takes and returns (B, 3, H, W) float32, 0…1, and decides for each sample by itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from limner.train.data.rng import BatchRandom, box_mean


def augment_images(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """All changes, in the order in which they arise: tissue, field, optics, sensor, file."""
    image = change_tissue(image, batch_rng)
    image = _bias(image, batch_rng)
    image = _blur(image, batch_rng)
    image = _coarsen(image, batch_rng)
    image = _noise(image, batch_rng)
    image = _blocks(image, batch_rng)
    return _invert(image, batch_rng).clamp(0.0, 1.0)


def change_tissue(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """What has nothing to do with a pixel's neighbours: colours and contrast."""
    image = _recolour(image, batch_rng)
    image = _remap(image, batch_rng)
    return _gamma_and_contrast(image, batch_rng)


def change_sensor(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Noise, and perhaps a negative."""
    return _invert(_noise(image, batch_rng), batch_rng)


def _recolour(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Colour to grey, channels exchanged, tint changed."""
    image = batch_rng.some(image, batch_rng.bernoulli(0.15), _greyed)
    image = batch_rng.some(image, batch_rng.bernoulli(0.1), _exchanged)
    image = batch_rng.some(image, batch_rng.bernoulli(0.3), _tinted)
    return batch_rng.some(image, batch_rng.bernoulli(0.2), _faded)


def _greyed(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    weights = batch_rng.uniform(0.0, 1.0, 3, 1, 1)
    grey = (image * weights / weights.sum(dim=1, keepdim=True)).sum(dim=1, keepdim=True)
    return grey.expand_as(image)


def _exchanged(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    order = batch_rng.uniform(0.0, 1.0, 3).argsort(dim=1)[:, :, None, None]
    return image.gather(1, order.expand_as(image))


def _tinted(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Grey images stay grey."""
    tint = batch_rng.uniform(0.75, 1.25, 3, 1, 1)
    span = image.amax(dim=1, keepdim=True) - image.amin(dim=1, keepdim=True)
    coloured = span.amax(dim=(2, 3), keepdim=True) > 0.02
    return torch.where(coloured, image * tint, image)


def _faded(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    mean = image.mean(dim=1, keepdim=True)
    return mean + (image - mean) * batch_rng.uniform(0.3, 1.6)


def _remap(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Another modality: brightness through a random smooth curve, not always rising."""
    return batch_rng.some(image, batch_rng.bernoulli(0.1), _curved)


def _curved(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    knots = batch_rng.uniform(0.0, 1.0, 1, 6).expand(-1, 3, -1)
    place = image.clamp(0.0, 1.0).flatten(2) * 4.999
    first = place.long()
    share = place - first
    curve = torch.lerp(knots.gather(2, first), knots.gather(2, first + 1), share)
    return curve.view_as(image)


def _gamma_and_contrast(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    image = batch_rng.some(image, batch_rng.bernoulli(0.4), _gamma)
    return batch_rng.some(image, batch_rng.bernoulli(0.4), _contrast)


def _gamma(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    return image.clamp(1e-4, 1.0).pow(batch_rng.log_uniform(0.5, 2.0))


def _contrast(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    factor, shift = batch_rng.log_uniform(0.5, 2.0), batch_rng.uniform(-0.2, 0.2)
    return ((image - 0.5) * factor + 0.5 + shift).clamp(0.0, 1.0)


def _bias(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Uneven light, coils or attenuation."""
    return batch_rng.some(image, batch_rng.bernoulli(0.2), _uneven)


def _uneven(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    return image * (batch_rng.smooth(image.shape[-1], 3) * batch_rng.uniform(0.05, 0.35)).exp()


def _blur(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    image = batch_rng.some(image, batch_rng.bernoulli(0.15), _soft)
    return batch_rng.some(image, batch_rng.bernoulli(0.1), _sharp)


def _soft(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    once = box_mean(image, 1)
    return batch_rng.some(once, batch_rng.bernoulli(0.5), lambda part, _: box_mean(part, 1))


def _sharp(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    return (image + (image - box_mean(image, 1)) * batch_rng.uniform(0.3, 1.5)).clamp(0.0, 1.0)


def _coarsen(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A coarser grid, enlarged again; on one axis only as often as on both."""
    for share, factor in ((0.07, (2, 2)), (0.05, (4, 4)), (0.04, (1, 3)), (0.04, (3, 1))):
        image = batch_rng.some(image, batch_rng.bernoulli(share), partial(_coarse, factor=factor))
    return image


def _coarse(image: Tensor, batch_rng: BatchRandom, *, factor: tuple[int, int]) -> Tensor:
    size = image.shape[-1]
    less = (max(1, size // factor[0]), max(1, size // factor[1]))
    small = functional.interpolate(image, size=less, mode="area")
    return functional.interpolate(small, size=(size, size), mode="bilinear")


def _noise(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """Gaussian, Rician (magnitude MR) or speckle (ultrasound, lasers)."""
    image = batch_rng.some(image, batch_rng.bernoulli(0.2), _gaussian)
    image = batch_rng.some(image, batch_rng.bernoulli(0.08), _rician)
    return batch_rng.some(image, batch_rng.bernoulli(0.1), _speckled)


def _gaussian(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    return image + _level(batch_rng) * batch_rng.normal(1, *image.shape[2:])


def _rician(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    real, imaginary = batch_rng.normal(1, *image.shape[2:]), batch_rng.normal(1, *image.shape[2:])
    level = _level(batch_rng)
    return ((image + level * real) ** 2 + (level * imaginary) ** 2).sqrt()


def _speckled(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    grain = batch_rng.normal(1, *image.shape[2:])
    grain = batch_rng.some(grain, batch_rng.bernoulli(0.5), lambda part, _: 2.0 * box_mean(part, 1))
    return image * (1 + 2.5 * _level(batch_rng) * grain)


def _level(batch_rng: BatchRandom) -> Tensor:
    return batch_rng.log_uniform(0.01, 0.15)


def _blocks(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    """What strong JPEG compression leaves: brightness steps, and blocks that lose their detail."""
    return batch_rng.some(image, batch_rng.bernoulli(0.05), _compressed)


def _compressed(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    size = image.shape[-1]
    steps = batch_rng.log_uniform(12.0, 64.0)
    stepped = (image * steps).round() / steps
    mean = functional.interpolate(
        functional.avg_pool2d(image, 8, ceil_mode=True), scale_factor=8.0, mode="nearest"
    )[..., :size, :size]
    return torch.lerp(stepped, mean, batch_rng.uniform(0.1, 0.5))


def _invert(image: Tensor, batch_rng: BatchRandom) -> Tensor:
    return torch.where(batch_rng.bernoulli(0.15), 1.0 - image, image)
