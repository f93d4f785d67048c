"""Model protocols in one place: the card, what a session shows a model, what it gets back; and the
entry of a family's ``VARIANTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from limner.adapters.automatic_protocols import AutomaticModel, SamplingModel, SlabModel
from limner.adapters.model_card import ModelCard
from limner.adapters.promptable_protocols import (
    BatchAnswers,
    BatchModel,
    CheckingModel,
    EncodingModel,
    PromptableModel,
    ProposingModel,
    Question,
    Segmentation,
)
from limner.adapters.propagation_protocols import (
    EncodedFrame,
    MaskCarrier,
    MemoryLimits,
    MemoryModel,
    PreviousFrame,
    TrackerModel,
)
from limner.adapters.view import View
from limner.checkpoints.cards import WeightsCard

__all__ = [
    "AnyModel",
    "Array",
    "AutomaticModel",
    "BatchAnswers",
    "BatchModel",
    "CheckingModel",
    "EncodedFrame",
    "EncodingModel",
    "MaskCarrier",
    "MemoryLimits",
    "MemoryModel",
    "ModelCard",
    "PreviousFrame",
    "PromptableModel",
    "ProposingModel",
    "Question",
    "SamplingModel",
    "Segmentation",
    "SlabModel",
    "TrackerModel",
    "Variant",
    "View",
]

Array = NDArray[Any]


AnyModel: TypeAlias = PromptableModel | AutomaticModel | SamplingModel


@dataclass(frozen=True)
class Variant:
    """One model of a family file.

    Attributes:
        card: its facts.
        build: called as ``build(weights=path_or_None, device=name, exact=bool)``. The built model's
            card has the hash of the weights that it was given.
        weights: where its weights can be had, best first; empty where they ship with the package or
            there are none.
        keeps_embeddings: whether `build` takes ``keep_embeddings=bool`` as well: encoded images
            are kept on disk (`limner.runtime.compile_module`, ``remember``).
        build_random: called as ``build_random(seed, device=name, exact=bool)``; see `random`.
    """

    card: ModelCard
    build: Callable[..., AnyModel]
    weights: tuple[WeightsCard, ...] = ()
    keeps_embeddings: bool = False
    build_random: Callable[..., AnyModel] | None = None

    def random(self, seed: int = 0, *, device: str = "auto", exact: bool = False) -> AnyModel:
        """The model with random weights and at a reduced size: small, deterministic, without a
        file. Answers mean nothing, but everything else about them holds. A model without weights is
        itself.

        Args:
            seed: of the weights.
            device: as for `limner.create_model`.
            exact: likewise.

        Raises:
            NotImplementedError: the family needs a file and says of no reduced network.
        """
        if self.build_random is not None:
            return self.build_random(seed, device=device, exact=exact)
        if self.weights:
            raise NotImplementedError(
                f"{self.card.name} has no reduced network; give its Variant a build_random."
            )
        return self.build(device=device, exact=exact)
