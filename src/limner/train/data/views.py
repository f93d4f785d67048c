"""What of an image is seen: views like those of a session, cut out of the pack on the device.

A session shows a model the whole image, shrunk until it fits, or a window around the object, at
native resolution if that fits (`limner.sessions.answers.zoom`). Training sees both, with windows
of many widths, turned, mirrored and bent. Outside the image a view is black, as padding is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from limner.train.data.pack import COARSE, FINE, LABELS, PackedImages
from limner.train.data.rng import BatchRandom
from limner.train.data.targets import Targets

Array = NDArray[Any]

_WHOLE = 0.3  # share of views that show the whole image
_KEPT_INSIDE = 0.85  # share of windows that do not reach beyond it
_NEAR = 0.65  # share of windows about as wide as those of a session: `_WINDOW` times the target
_NEAR_WIDEST, _FAR_WIDEST = 2.2, 5.0  # of the target's size
_CUT = 0.12  # share of windows smaller than the target, as around a click on something large
_LEAST_SHOWN = 8.0  # pixels of the view that the larger side of a target has on a whole image
_MOST_ENLARGED = 4.0  # pixels of the view per pixel of the image
_WINDOW = 1.6  # of the target's size: a session's first window, `_zoom.MARGIN` on both sides


@dataclass(frozen=True, eq=False)
class Views:
    """Where each view of a batch lies on its image, in pixels of the image.

    Attributes:
        centres: (B, 2) row, column of the middle.
        steps: (B, 2, 2): image pixels (row, column) per pixel of the view down and to the right.
        bend: (B,) strength of the elastic bending, in pixels of the view.
    """

    centres: NDArray[np.float64]
    steps: NDArray[np.float64]
    bend: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """A batch as seen, on the device.

    Attributes:
        image: float32 (B, 3, S, S), 0…1.
        target: float32 (B, 1, S, S), 0 or 1.
        inside: float32 (B, 1, S, S), 1 on the image.
        regions: int64 (B, 2S, 2S): a map of regions to paint a synthetic image from.
        painted: bool (B,): there is no image, only regions.
    """

    image: Tensor
    target: Tensor
    inside: Tensor
    regions: Tensor
    painted: Tensor


def draw_views(pack: PackedImages, targets: Targets, size: int, rng: np.random.Generator) -> Views:
    """Random views of targets, `size` pixels square."""
    number = len(targets.images)
    sides = pack.images[targets.images, 3:5].astype(np.float64)
    low, high = targets.boxes[:, :2], targets.boxes[:, 2:]
    extent = (high - low).max(axis=1)
    longest = sides.max(axis=1)
    widest = np.where(rng.random(number) < _NEAR, _NEAR_WIDEST, _FAR_WIDEST)
    width = extent * np.exp(rng.uniform(np.log(1.2), np.log(widest), number))
    width = np.minimum(width + rng.uniform(0, 36, number), 1.2 * longest)
    cut = rng.random(number) < _CUT
    width = np.where(cut, extent * rng.uniform(0.3, 1.0, number), width)
    width = np.maximum(width, size / _MOST_ENLARGED)
    slack = np.abs(np.where(cut, 0.7, 0.95) * width - extent)[:, None] / 2
    slack = np.where(cut[:, None] | (0.95 * width > extent)[:, None], slack, 0.0)
    centres = (low + high) / 2 + rng.uniform(-1, 1, (number, 2)) * slack
    whole = rng.random(number) < _WHOLE
    whole &= extent * size / longest >= _LEAST_SHOWN
    width = np.where(whole, longest * rng.uniform(0.95, 1.2, number), width)
    middle = sides / 2 + rng.uniform(-0.05, 0.05, (number, 2)) * longest[:, None]
    centres = np.where(whole[:, None], middle, centres)
    half = np.minimum(width[:, None], sides) / 2  # sessions keep windows on the image
    kept = np.clip(centres, half, sides - half)
    centres = np.where(rng.random((number, 1)) < _KEPT_INSIDE, kept, centres)
    turned = rng.random(number) < 0.3
    angle = np.where(turned, rng.uniform(-math.pi, math.pi, number), rng.normal(0, 0.15, number))
    stretch = np.exp(rng.normal(0, 0.1, number).clip(-0.3, 0.3))
    mirror = np.where(rng.random((number, 2)) < 0.5, -1.0, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    steps = np.moveaxis(turn, -1, 0) * (width / size)[:, None, None]
    steps = steps * np.stack([stretch, 1 / stretch], axis=1)[:, None, :] * mirror[:, None, :]
    bend = np.where(rng.random(number) < 0.3, rng.uniform(0.005, 0.03, number) * size, 0.0)
    return Views(centres, steps, bend)


def plain_views(pack: PackedImages, targets: Targets, size: int) -> Views:
    """The views that a session would begin with, unchanged by chance."""
    sides = pack.images[targets.images, 3:5].astype(np.float64)
    low, high = targets.boxes[:, :2], targets.boxes[:, 2:]
    extent = (high - low).max(axis=1)
    width = np.maximum(np.maximum(_WINDOW * extent, extent + 24), size / 2)
    width = np.minimum(width, sides.max(axis=1))
    half = np.minimum(width[:, None], sides) / 2
    centres = np.clip((low + high) / 2, half, sides - half)
    steps = np.eye(2) * (np.maximum(width, size / _MOST_ENLARGED) / size)[:, None, None]
    return Views(centres, steps, np.zeros(len(width)))


class DeviceImages:
    """A pack on a device.

    Args:
        pack: in memory.
        device: that trains; a GPU needs about 9 bytes per pixel of the pack.
    """

    def __init__(self, pack: PackedImages, device: torch.device) -> None:
        self.pack = pack
        self.device = device
        self._pixels = torch.from_numpy(pack.pixels).to(device)
        # int16 by bits: few operations know uint16, and ids are only compared
        self._layers = [torch.from_numpy(m.view(np.int16)).to(device) for m in pack.layers]
        self._images = torch.from_numpy(pack.images).to(device)

    def cut_view(
        self, targets: Targets, views: Views, size: int, generator: torch.Generator
    ) -> SampleBatch:
        """Cut out a batch.

        Args:
            targets: what is meant.
            views: where to look.
            size: of the square views; sampled at twice that and averaged, so that shrinking does
                not alias.
            generator: of the bending; on the device.
        """
        images = self._images[torch.from_numpy(targets.images).to(self.device)]
        at = self._places(views, size, generator)
        rows, columns = (images[:, k].view(-1, 1, 1) for k in (3, 4))
        inside = ((at[0] > -0.5) & (at[0] < rows - 0.5)) & (
            (at[1] > -0.5) & (at[1] < columns - 0.5)
        )
        row = at[0].round().long().clamp_(min=0).minimum(rows - 1)
        column = at[1].round().long().clamp_(min=0).minimum(columns - 1)
        place = images[:, 7].view(-1, 1, 1) + row * columns + column
        target = self._targets(targets, place) & inside
        share = functional.avg_pool2d(target[:, None].float(), 2)
        shown = functional.avg_pool2d(inside[:, None].float(), 2)
        kept = (shown >= 0.5).float()
        regions = self._regions(targets, place)
        regions = torch.where(inside, regions, 0)
        image = self._image(images, at) * inside[:, None]
        image = functional.avg_pool2d(image, 2)
        painted = images[:, 5] == 0
        return SampleBatch(image, (share >= 0.5).float() * kept, kept, regions, painted)

    def _places(self, views: Views, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows and columns on the image, (B, 2S, 2S) each, 0 at the first pixel's centre."""
        device = self.device
        along = (torch.arange(2 * size, device=device, dtype=torch.float32) + 0.5) / 2 - size / 2
        down, right = torch.meshgrid(along, along, indexing="ij")
        offset = torch.stack([down, right]).expand(len(views.bend), -1, -1, -1)
        bend = torch.from_numpy(views.bend).to(device, torch.float32).view(-1, 1, 1, 1)
        smooth = BatchRandom(len(views.bend), generator).smooth(2 * size, 6, 2)
        offset = offset + smooth * bend
        steps = torch.from_numpy(views.steps).to(device, torch.float32)
        at = torch.einsum("bij,bjhw->bihw", steps, offset)
        centres = torch.from_numpy(views.centres).to(device, torch.float32)
        at = at + centres.view(-1, 2, 1, 1) - 0.5
        return at[:, 0], at[:, 1]

    def _targets(self, targets: Targets, place: Tensor) -> Tensor:
        result = torch.zeros(place.shape, dtype=torch.bool, device=self.device)
        ids = torch.from_numpy(targets.ids.astype(np.uint16).view(np.int16)).to(self.device)
        for layer in np.unique(targets.layers):
            chosen = torch.from_numpy(np.flatnonzero(targets.layers == layer)).to(self.device)
            found = self._layers[layer][place[chosen]]
            wanted = ids[chosen]
            mask = found == wanted[:, 0].view(-1, 1, 1)
            for k in range(1, wanted.shape[1]):
                mask |= found == wanted[:, k].view(-1, 1, 1)
            result[chosen] = mask
        return result

    def _regions(self, targets: Targets, place: Tensor) -> Tensor:
        """Regions to paint from: superpixels, with labels laid over them where labels are meant."""
        grouped = torch.from_numpy(targets.layers == COARSE).to(self.device).view(-1, 1, 1)
        named = torch.from_numpy(targets.layers < FINE).to(self.device).view(-1, 1, 1)
        fine, coarse = self._layers[FINE][place].long(), self._layers[COARSE][place].long()
        labels = self._layers[LABELS][place].long()
        regions = torch.where(grouped, coarse, fine)
        return torch.where(named & (labels != 0), labels + 20_011, regions)

    def _image(self, images: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """(B, 3, 2S, 2S) float32, 0…1, interpolated linearly; edges are repeated."""
        rows, columns = (images[:, k].view(-1, 1, 1) for k in (3, 4))
        row, column = at[0].floor(), at[1].floor()
        down, right = (at[0] - row)[:, None], (at[1] - column)[:, None]
        top = row.long().clamp(min=0).minimum(rows - 1)
        left = column.long().clamp(min=0).minimum(columns - 1)
        bottom = (row.long() + 1).clamp(min=0).minimum(rows - 1)
        far = (column.long() + 1).clamp(min=0).minimum(columns - 1)
        channel = torch.arange(3, device=self.device).view(1, 3, 1, 1)
        jump = torch.where(images[:, 5] == 3, images[:, 3] * images[:, 4], 0).view(-1, 1, 1, 1)
        base = images[:, 6].view(-1, 1, 1, 1) + channel * jump
        has_image = (images[:, 5] > 0).view(-1, 1, 1, 1)

        def pixels(r: Tensor, c: Tensor) -> Tensor:
            index = torch.where(has_image, base + (r * columns + c)[:, None], 0)
            return self._pixels[index].float()

        upper = torch.lerp(pixels(top, left), pixels(top, far), right)
        lower = torch.lerp(pixels(bottom, left), pixels(bottom, far), right)
        return torch.lerp(upper, lower, down) / 255.0
