"""Builder of the built-in tracker in its parts, from the package or from a weights file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.adapters.published import RandomWeights
from limner.adapters.shipped import FOLDER, SMALL_DEPTHS, SMALL_WIDTHS, check_intact
from limner.errors import CheckpointError
from limner.runtime import is_gpu

if TYPE_CHECKING:
    from limner.networks.tracker2d import TrackerNetwork
    from limner.runtime import Network

PARTS = ("frame", "memory", "reader", "decoder")
EXACT = ("reader",)  # always in float32


@dataclass(frozen=True)
class TrackerParts:
    """The network in parts; see `limner.networks.tracker2d`."""

    frame: Network
    memory: Network
    reader: Network
    decoder: Network


def build_parts(
    name: str, *, weights: Path | None, device: str, exact: bool
) -> tuple[TrackerParts, str]:
    """The parts, and the hash of the weights.

    Args:
        name: of the files in the package: ``NAME.safetensors``, ``NAME-PART.onnx`` that point into
            it, ``NAME.json``.
        weights: another safetensors file, such as that of a training run.
        device: as for `limner.create_model`.
        exact: compute in float32.

    Raises:
        CheckpointError: a file is damaged or of something else.
    """
    from limner import runtime

    if weights is not None:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        return _of_file(weights, device), digest
    facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    digest = facts["sha256"][f"{name}.safetensors"]
    plain = check_intact(FOLDER / f"{name}.safetensors", facts["sha256"])
    if is_gpu(device):
        return _of_file(plain, device), digest
    precision = "fp32" if exact else "auto"
    made = {
        part: runtime.compile(
            check_intact(FOLDER / f"{name}-{part}.onnx", facts["sha256"]),
            device=device,
            precision="fp32" if part in EXACT else precision,
            agreement=facts["agreement"],
        )
        for part in PARTS
    }
    return TrackerParts(**made), digest


def _of_file(path: Path, device: str) -> TrackerParts:
    """The parts in PyTorch, float32."""
    from limner.checkpoints.load import fill, read_weights
    from limner.networks.tracker2d import TrackerNetwork

    weights, facts = read_weights(path)
    try:
        network = TrackerNetwork(facts["config"]["widths"], facts["config"]["depths"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say the widths and depths of a network that follows; use a file that "
            "limner train wrote."
        ) from error
    fill(network, weights, path)
    return _compiled(network, device)


def build_random_parts(seed: int, *, device: str) -> TrackerParts:
    """The parts of a reduced network with random weights."""
    from limner.networks.tracker2d import TrackerNetwork

    network = TrackerNetwork(SMALL_WIDTHS, SMALL_DEPTHS)
    RandomWeights(seed).fill(network)
    return _compiled(network, device)


def _compiled(network: TrackerNetwork, device: str) -> TrackerParts:
    from limner import runtime
    from limner.networks.tracker2d import MemoryReader

    parts = (network.frame, network.memory, MemoryReader(), network.decoder)
    made = (runtime.compile(p, device=device, precision="fp32") for p in parts)
    return TrackerParts(*made)
