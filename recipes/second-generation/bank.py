"""The bank of `limner.train.views` with the same answers at less cost on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from limner.train.targets import Targets
from limner.train.views import Bank
from torch import Tensor
from torch.nn import functional


class LeanBank(Bank):
    """Pictures are sampled one by one, grey ones once; maps of regions only where one is painted
    from (`regions_of`), so that `Scenes.regions` is empty.
    """

    _shown: tuple[Targets, Tensor]

    def regions_of(self, index: Tensor) -> Tensor:
        """Regions to paint from, of some samples of the batch shown last."""
        targets, place = self._shown
        rows = index.numpy()
        some = Targets(
            targets.planes[rows], targets.layers[rows], targets.ids[rows], targets.boxes[rows]
        )
        return super()._regions(some, place[index])

    def _regions(self, targets: Targets, place: Tensor) -> Tensor:
        self._shown = targets, place
        return torch.zeros((1, 1, 1), dtype=torch.int64)

    def _image(self, planes: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        shown = torch.zeros(len(planes), 3, *at[0].shape[1:])
        for k, (plane, row, column) in enumerate(zip(planes, *at, strict=True)):
            rows, columns, channels, first = (int(plane[n]) for n in (3, 4, 5, 6))
            if not channels:
                continue
            flat = self._pixels[first : first + channels * rows * columns]
            picture = flat.view(channels, rows, columns)
            window, places = [], []
            for values, length in ((row, rows), (column, columns)):
                low = int(np.clip(float(values.min()), 0, length - 2))
                high = int(np.clip(np.ceil(float(values.max())) + 1, low + 2, length))
                window.append(slice(low, high))
                places.append((values - low) * (2 / (high - low - 1)) - 1)
            part = picture[:, window[0], window[1]].float()[None] / 255
            grid = torch.stack(places[::-1], dim=-1)[None]
            shown[k] = functional.grid_sample(part, grid, padding_mode="border", align_corners=True)
        return shown
