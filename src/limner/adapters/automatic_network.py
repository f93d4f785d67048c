"""An automatic model around a network with a fixed patch: normalisation and sliding window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner.adapters.network_plan import NetworkPlan
from limner.adapters.protocols import ModelCard, View
from limner.adapters.sliding_window import SlidingWindow

if TYPE_CHECKING:
    from limner.runtime import Network

Floats = NDArray[np.float32]


class AutomaticNetwork:
    """A network with everything around it; a `limner.models.SlabModel`.

    Args:
        network: answers ``(batch, channel, *patch)`` with logits ``(batch, label, *patch)``.
        card: its facts; labels, channels, spacing and patch are those of the plan.
        plan: what it was trained for.
        window: how windows are laid; by default half of a patch overlaps, without mirroring.
    """

    def __init__(
        self,
        network: Network,
        card: ModelCard,
        plan: NetworkPlan,
        window: SlidingWindow | None = None,
    ) -> None:
        ndim = len(plan.patch)
        self.card = replace(
            card,
            ndim=(2, 3) if ndim == 2 else (3,),
            window={ndim: plan.patch},
            labels=plan.labels,
            overlapping=plan.overlapping,
            channels=len(plan.normalization),
            spacing=plan.spacing,
            runtime=network.description,
        )
        self._network = network
        self._plan = plan
        self._window = window or SlidingWindow(plan.patch)

    def predict(self, view: View) -> Floats:
        """Logits ``(label, *view.shape)``; see `limner.models.AutomaticModel`."""
        return np.concatenate(list(self.predict_slabs(view)), axis=1)

    def predict_slabs(
        self, view: View, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Floats]:
        """The logits of `predict` in parts along the first axis, first to last."""
        image = self._plan.normalize(view.array, len(view.shape))
        return self._window.predict_slabs(image, self._answer, progress=progress)

    def _answer(self, batch: Floats) -> Floats:
        return self._network(batch)[0]
