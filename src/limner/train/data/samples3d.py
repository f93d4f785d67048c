"""A batch for a network that sees volumes: real volumes, painted ones, and pictures piled up."""

from __future__ import annotations

import numpy as np
import torch

from limner.train.data.augment3d import disturb
from limner.train.data.device_volumes import Bank3d, Scene3d
from limner.train.data.pack import Pack
from limner.train.data.pack3d import VolumePack
from limner.train.data.pseudo_volumes import Piles
from limner.train.data.rng import BatchRandom
from limner.train.data.shapes3d import invent, lump
from limner.train.data.targets import TargetTable
from limner.train.data.targets3d import TargetTable3d
from limner.train.data.views import Scenes, draw_views
from limner.train.data.views3d import Shape, draw_view

_MADE_UP = 0.55  # share of painted volumes that are shapes, not label maps
_LUMPS = 0.08  # share of the other samples that get a lump put into them
_LEAST = 12  # voxels of a target; another sample is drawn instead
_TRIES = 4


class SceneMaker:
    """Draws samples.

    Args:
        volumes: to train on.
        pictures: of the plane, to pile up.
        device: that trains.
        synthetic: share of samples that are painted.
        piles: share of samples that are pictures piled up.
        invented: share of targets that no label names.
    """

    def __init__(
        self,
        volumes: VolumePack,
        pictures: Pack,
        device: torch.device,
        *,
        synthetic: float,
        piles: float,
        invented: float,
    ) -> None:
        self.bank = Bank3d(volumes, device)
        self.table = TargetTable3d(volumes, split=0, invented=invented)
        self.piles = Piles(pictures, device)
        self.pictures = TargetTable(pictures, split=0, invented=invented)
        self._synthetic, self._piles = synthetic, piles

    @torch.no_grad()
    def draw(
        self, number: int, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom
    ) -> Scenes:
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
        image = disturb(image, batch_rng) * inside
        nothing = torch.zeros(0, dtype=torch.int64, device=image.device)
        return Scenes(image, target * inside, inside, nothing, nothing > 0)

    def _visible(self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Scene3d:
        for _ in range(_TRIES):
            scene = self._one(shape, rng, batch_rng)
            if float(scene.target.sum()) >= _LEAST:
                break
        return scene

    def _one(self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Scene3d:
        kind = rng.random()
        scene: Scene3d | None = None
        if kind < self._piles:
            targets = self.pictures.draw(1, rng)
            views = draw_views(self.piles.pack, targets, max(shape[1:]), rng)
            scene = self.piles.show(targets, views, shape, rng, batch_rng)
        elif kind < self._piles + self._synthetic:
            if rng.random() >= _MADE_UP:
                scene = self._of_volume(shape, rng, batch_rng, pictured=False)
            if scene is None:
                return made_up(shape, rng, batch_rng)
            return scene
        if scene is None:
            scene = self._of_volume(shape, rng, batch_rng, pictured=True)
        if scene is None:
            return made_up(shape, rng, batch_rng)
        if rng.random() < _LUMPS:
            image, target = lump(scene.image, batch_rng)
            return Scene3d(image * scene.inside, target * scene.inside, scene.inside)
        return scene

    def _of_volume(
        self, shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom, *, pictured: bool
    ) -> Scene3d | None:
        target = self.table.draw(rng, pictured=pictured)
        if target is None:
            return None
        solid = self.bank.pack.solids[target.solid]
        size = np.array(solid.shape, dtype=np.float64)
        view = draw_view(target.box, size, solid.spacing, shape, rng)
        window = int(rng.integers(max(1, len(solid.images))))
        return self.bank.show(target, view, batch_rng, window)


def made_up(shape: Shape, rng: np.random.Generator, batch_rng: BatchRandom) -> Scene3d:
    """A painted volume of shapes."""
    thickness = 1.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(0.4, 1.6)))
    image, target = invent(shape, batch_rng, thickness=thickness)
    return Scene3d(image, target, torch.ones_like(target))
