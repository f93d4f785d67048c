"""Builder of the models whose weights ship with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.adapters.early_fusion import EarlyFusionModel, FusionOptions
from limner.adapters.protocols import ModelCard, Variant
from limner.adapters.published import RandomWeights
from limner.errors import CheckpointError
from limner.runtime import is_gpu

if TYPE_CHECKING:
    from torch import nn

    from limner.runtime import Network

SMALL_WIDTHS, SMALL_DEPTHS = (8, 8, 16, 16), (1, 1, 1, 1)  # of reduced networks with random weights
FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class ShippedFamily:
    """A family whose weights are ``NAME.safetensors``, which ``NAME.onnx`` points into, with facts
    in ``NAME.json``.

    Attributes:
        card: whose name is that of the files.
        options: of the network.
        network: makes it from the configuration of its training, in PyTorch.
    """

    card: ModelCard
    options: FusionOptions
    network: Callable[[dict[str, Any]], nn.Module]

    def build(
        self, *, weights: Path | None = None, device: str = "auto", exact: bool = False
    ) -> EarlyFusionModel:
        """The model, with the weights of the package or with others of the same family.

        Raises:
            CheckpointError: a file is damaged or of something else.
        """
        if weights is not None:
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            network = self._compiled(weights, device, "fp32", {})
            return EarlyFusionModel(
                network, replace(self.card, weights_sha256=digest), self.options
            )
        name = self.card.name
        facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        card = replace(self.card, weights_sha256=facts["sha256"][f"{name}.safetensors"])
        path = check_intact(FOLDER / f"{name}.safetensors", facts["sha256"])
        if not is_gpu(device):
            path = check_intact(FOLDER / f"{name}.onnx", facts["sha256"])
        network = self._compiled(path, device, "fp32" if exact else "auto", facts["agreement"])
        return EarlyFusionModel(network, card, self.options)

    def build_random(
        self, seed: int, *, device: str = "auto", exact: bool = False
    ) -> EarlyFusionModel:
        """The model with a reduced network and random weights."""
        from limner import runtime

        network = self.network({"widths": SMALL_WIDTHS, "depths": SMALL_DEPTHS})
        RandomWeights(seed).fill(network)
        compiled = runtime.compile(network, device=device, precision="fp32")
        return EarlyFusionModel(compiled, self.card, self.options)

    def variant(self) -> Variant:
        """The entry of a family's ``VARIANTS``."""
        return Variant(self.card, self.build, build_random=self.build_random)

    def _compiled(
        self, path: Path, device: str, precision: str, agreement: dict[str, float]
    ) -> Network:
        from limner import runtime

        compiled = partial(runtime.compile, device=device, precision=precision, agreement=agreement)
        if path.suffix == ".onnx":
            return compiled(path)
        from limner.checkpoints.load import fill, read_weights

        weights, facts = read_weights(path)
        try:
            network = self.network(facts["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not say the widths and depths of a {self.card.name} network; "
                "use a file that limner train wrote."
            ) from error
        fill(network, weights, path)
        return compiled(network)


def check_intact(path: Path, hashes: dict[str, str]) -> Path:
    """A file of the package, unless it is not the listed one.

    Raises:
        CheckpointError: it is damaged.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != hashes[path.name]:
        raise CheckpointError(f"{path} is damaged: its hash is not the one listed. Reinstall.")
    return path
