"""Protocols of models that need no prompts: automatic and sampling models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from limner.adapters.model_card import ModelCard
from limner.adapters.view import View


@runtime_checkable
class AutomaticModel(Protocol):
    """A model that needs no prompts: it labels the whole of an image. Stateless.

    Logits have one channel for the background and one for each of `ModelCard.labels`, in their
    order, and the highest one wins; where labels may overlap (`ModelCard.overlapping`) there is no
    background, and a channel counts where it is above 0.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model, with the names of its labels."""

    def predict(self, view: View) -> NDArray[np.float32]:
        """Logits ``(channel, *view.shape)`` of a whole image at `ModelCard.spacing`."""


@runtime_checkable
class SlabModel(AutomaticModel, Protocol):
    """An automatic model whose logits can be had slab by slab, so that not all are in memory."""

    def predict_slabs(
        self, view: View, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The logits of `predict` in parts along the first spatial axis, first to last.

        Args:
            view: the whole image.
            progress: told how many windows of how many are done.
        """


@runtime_checkable
class SamplingModel(Protocol):
    """A model that draws segmentations from a distribution, of which mean and spread tell where it
    is unsure.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model, with the names of its labels."""

    def sample(self, view: View, n: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
        """Draw segmentations one by one.

        Args:
            view: a whole image at `ModelCard.spacing`.
            n: how many.
            rng: the only source of randomness.

        Yields:
            Probabilities ``(channel, *view.shape)``, 0…1, or masks as 0 and 1; channels as of
            `AutomaticModel`.
        """
