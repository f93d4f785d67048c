"""A batch for a network that sees volumes: real volumes, painted ones, and images piled up."""

from __future__ import annotations

import numpy as np
import torch

from limner.train.data.augment3d import augment_volumes
from limner.train.data.device_volumes import DeviceVolumes, Sample3d
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.pseudo_volumes import PseudoVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.shapes3d import add_lesion, draw_shapes
from limner.train.data.targets import TargetTable
from limner.train.data.targets3d import TargetTable3d
from limner.train.data.views import SampleBatch, draw_views
from limner.train.data.views3d import Shape, draw_view

_MADE_UP = 0.55  # share of painted volumes that are shapes, not label maps
_LESIONS = 0.08  # share of the other samples that get a lesion put into them
_LEAST = 12  # voxels of a target; another sample is drawn instead
_TRIES = 4


class VolumeSampler:
    """Draws samples.

    Args:
        volumes: to train on.
        images: in 2D, to pile up.
        device: that trains.
        synthetic: share of samples that are painted.
        pseudo_volume_fraction: share of samples that are images stacked into pseudo volumes.
        unlabelled_fraction: share of targets that no label names.
    """

    def __init__(
        self,
        volumes: PackedVolumes,
        images: PackedImages,
        device: torch.device,
        *,
        synthetic: float,
        pseudo_volume_fraction: float,
        unlabelled_fraction: float,
    ) -> None:
        self.device_data = DeviceVolumes(volumes, device)
        self.table = TargetTable3d(volumes, split=0, unlabelled_fraction=unlabelled_fraction)
        self.pseudo_volumes = PseudoVolumes(images, device)
        self.images = TargetTable(images, split=0, unlabelled_fraction=unlabelled_fraction)
        self._synthetic = synthetic
        self._pseudo_volume_fraction = pseudo_volume_fraction

    @torch.no_grad()
    def draw(
        self, number: int, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom
    ) -> SampleBatch:
        """A batch of disturbed volumes with targets that can be seen.

        Args:
            number: of samples.
            shape: slices, rows, columns.
            rng: chooses targets and views.
            batch_rng: paints and disturbs.
        """
        found = [self._visible(shape, rng, batch_rng.of(1)) for _ in range(number)]
        image = torch.stack([s.image.expand(3, -1, -1, -1) for s in found])
        target = torch.stack([s.target for s in found])
        inside = torch.stack([s.inside for s in found])
        image = augment_volumes(image, batch_rng) * inside
        nothing = torch.zeros(0, dtype=torch.int64, device=image.device)
        return SampleBatch(image, target * inside, inside, nothing, nothing > 0)

    def _visible(self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Sample3d:
        for _ in range(_TRIES):
            sample = self._one(shape, rng, batch_rng)
            if float(sample.target.sum()) >= _LEAST:
                break
        return sample

    def _one(self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Sample3d:
        kind = rng.random()
        sample: Sample3d | None = None
        if kind < self._pseudo_volume_fraction:
            targets = self.images.draw(1, rng)
            views = draw_views(self.pseudo_volumes.pack, targets, max(shape[1:]), rng)
            sample = self.pseudo_volumes.cut_view(targets, views, shape, rng, batch_rng)
        elif kind < self._pseudo_volume_fraction + self._synthetic:
            if rng.random() >= _MADE_UP:
                sample = self._of_volume(shape, rng, batch_rng, pictured=False)
            if sample is None:
                return draw_synthetic(shape, rng, batch_rng)
            return sample
        if sample is None:
            sample = self._of_volume(shape, rng, batch_rng, pictured=True)
        if sample is None:
            return draw_synthetic(shape, rng, batch_rng)
        if rng.random() < _LESIONS:
            image, target = add_lesion(sample.image, batch_rng)
            return Sample3d(image * sample.inside, target * sample.inside, sample.inside)
        return sample

    def _of_volume(
        self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom, *, pictured: bool
    ) -> Sample3d | None:
        target = self.table.draw(rng, pictured=pictured)
        if target is None:
            return None
        volume = self.device_data.pack.volumes[target.volume]
        size = np.array(volume.shape, dtype=np.float64)
        view = draw_view(target.box, size, volume.spacing, shape, rng)
        window = int(rng.integers(max(1, len(volume.images))))
        return self.device_data.cut_view(target, view, batch_rng, window)


def draw_synthetic(shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Sample3d:
    """A painted volume of shapes."""
    thickness = 1.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(0.4, 1.6)))
    image, target = draw_shapes(shape, batch_rng, thickness=thickness)
    return Sample3d(image, target, torch.ones_like(target))
