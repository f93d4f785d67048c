"""Short sequences to learn following from: slices of volumes, painted and made-up volumes, and
still images that are moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limner.train.config import SequenceConfig
from limner.train.data import augment3d, motion
from limner.train.data.augment import augment_images
from limner.train.data.device_volumes import DeviceVolumes, Sample3d
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.samples3d import draw_synthetic
from limner.train.data.shapes3d import add_lesion
from limner.train.data.targets import TargetTable
from limner.train.data.targets3d import Target3d, TargetTable3d
from limner.train.data.views import DeviceImages, draw_views
from limner.train.data.views3d import View3d, draw_slices

_LEAST = 12  # pixels of the object on the first frame
_TRIES = 5
_MADE_UP = 0.4  # share of painted volumes that are shapes, not label maps
_LESIONS = 0.1  # share of the other volumes that get a lesion put into them
_PASTED = 0.3  # share of moved images whose object moves by itself
_RESTLESS = 0.3  # share of volumes whose slices are moved as well


@dataclass(frozen=True, eq=False)
class ImageSequences:
    """A batch of sequences, on the device.

    Attributes:
        image: float32 (B, T, 3, S, S), 0…1.
        target: float32 (B, T, 1, S, S), 0 or 1; something on the first frame.
        inside: float32 (B, T, 1, S, S), 1 on the image.
    """

    image: Tensor
    target: Tensor
    inside: Tensor


class SequenceSampler:
    """Draws sequences.

    Args:
        config: shares of kinds.
        volumes: to train on.
        images: in 2D, to move.
        device: that trains.
    """

    def __init__(
        self,
        config: SequenceConfig,
        volumes: PackedVolumes,
        images: PackedImages,
        device: torch.device,
    ) -> None:
        self.device_data = DeviceVolumes(volumes, device)
        self._table = TargetTable3d(
            volumes, split=0, unlabelled_fraction=config.unlabelled_target_fraction
        )
        self._images = DeviceImages(images, device)
        self._targets = TargetTable(
            images, split=0, unlabelled_fraction=config.unlabelled_target_fraction
        )
        self._config = config

    @torch.no_grad()
    def draw(
        self, number: int, size: int, rng: np.random.Generator, batch_rng: BatchRandom
    ) -> ImageSequences:
        """A batch of disturbed sequences.

        Args:
            number: of sequences.
            size: of a frame, square.
            rng: chooses targets and views.
            batch_rng: paints, moves and disturbs.
        """
        still = int(rng.binomial(number, self._config.moved_image_fraction))
        parts = []
        if still:
            parts.append(self._of_images(still, size, rng, batch_rng.of(still)))
        if number - still:
            parts.append(self._of_volumes(number - still, size, rng, batch_rng.of(number - still)))
        image, target, inside = (torch.cat(some) for some in zip(*parts, strict=True))
        image = motion.flicker(image, batch_rng) * inside
        return ImageSequences(image, target * inside, inside)

    def _of_images(
        self, number: int, size: int, rng: np.random.Generator, batch_rng: BatchRandom
    ) -> tuple[Tensor, Tensor, Tensor]:
        targets = self._targets.draw(number, rng)
        views = draw_views(self._images.pack, targets, size, rng)
        samples = self._images.cut_view(targets, views, size, batch_rng.generator)
        image = augment_images(samples.image, batch_rng) * samples.inside
        target = samples.target * samples.inside
        if number > 1 and rng.random() < _PASTED:
            return motion.animate_object(image, target, self._config.frames, batch_rng)
        return motion.animate(image, target, samples.inside, self._config.frames, batch_rng)

    def _of_volumes(
        self, number: int, size: int, rng: np.random.Generator, batch_rng: BatchRandom
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (self._config.frames, size, size)
        found = [self._visible(shape, rng, batch_rng.of(1)) for _ in range(number)]
        image = torch.stack([s.image.expand(3, -1, -1, -1) for s in found])
        volumetric = BatchRandom(number, batch_rng.generator, axes=3)
        image = augment3d.augment_volumes(image, volumetric).transpose(1, 2)
        target = torch.stack([s.target for s in found]).transpose(1, 2)
        inside = torch.stack([s.inside for s in found]).transpose(1, 2)
        restless = (batch_rng.uniform(0, 1, 1)[:, 0] < _RESTLESS).nonzero()[:, 0]
        if len(restless):
            shown = torch.cat([image, target, inside], dim=2)[restless]
            grids = motion.motion_paths(shape[0], size, batch_rng.of(len(restless)))
            again = [motion.warp(shown[:, t], grids[:, t : t + 1]) for t in range(shape[0])]
            part = torch.cat(again, dim=1)
            image = image.index_copy(0, restless, part[:, :, :3])
            target = target.index_copy(0, restless, (part[:, :, 3:4] >= 0.5).float())
            inside = inside.index_copy(0, restless, (part[:, :, 4:] >= 0.5).float())
        return image, target, inside

    def _visible(
        self, shape: tuple[int, int, int], rng: np.random.Generator, batch_rng: BatchRandom
    ) -> Sample3d:
        for _ in range(_TRIES):
            sample = self._one(shape, rng, batch_rng)
            if float(sample.target[:, 0].sum()) >= _LEAST:
                break
        return sample

    def _one(
        self, shape: tuple[int, int, int], rng: np.random.Generator, batch_rng: BatchRandom
    ) -> Sample3d:
        painted = rng.random() < self._config.synthetic_fraction
        if painted and rng.random() < _MADE_UP:
            return draw_synthetic(shape, rng, batch_rng)
        target = self._table.draw(rng, pictured=not painted)
        if target is None:
            return draw_synthetic(shape, rng, batch_rng)
        sample = self._shown(target, shape, rng, batch_rng)
        if not painted and rng.random() < _LESIONS:
            image, lesion = add_lesion(sample.image, batch_rng)
            return Sample3d(image * sample.inside, lesion * sample.inside, sample.inside)
        return sample

    def _shown(
        self,
        target: Target3d,
        shape: tuple[int, int, int],
        rng: np.random.Generator,
        batch_rng: BatchRandom,
    ) -> Sample3d:
        volume = self.device_data.pack.volumes[target.volume]
        size = np.array(volume.shape, dtype=np.float64)
        view = draw_slices(target.box, size, volume.spacing, shape, rng)
        return self.device_data.cut_view(
            target, view, batch_rng, int(rng.integers(max(1, len(volume.images))))
        )


def plain_slices(
    box: np.ndarray, size: np.ndarray, spacing: np.ndarray, shape: tuple[int, int, int]
) -> View3d:
    """Slices from the middle of a target on, one after the other, across the thickest axis; the
    window is as wide as a session's.
    """
    first = int(np.argmax(spacing))
    order = [first, *(k for k in range(3) if k != first)]
    extent = ((box[1] - box[0]) * spacing)[order]
    width = float(np.maximum(1.6 * extent[1:], extent[1:] + 24 * spacing[order][1:]).max())
    step = max(width / shape[2], float(spacing[order][1:].min()) / 4)
    steps = np.array([spacing[first], step, step])
    centre = box.mean(axis=0)
    centre[first] = np.floor(centre[first]) + 0.5 + (shape[0] - 1) / 2
    directions = np.eye(3)[:, order] @ np.diag(steps)
    return View3d(shape, centre, directions / spacing[:, None])


def join_samples(parts: Sequence[Tensor]) -> Tensor:
    """Per-frame parts (B, C, h, w) as pixels of memory, (B, C, N)."""
    return torch.cat([p.flatten(2) for p in parts], dim=2)
