"""Weights of XMem's adapters: those that learn, those that stay, and files that hold both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limner.atomic import atomic_path
from limner.checkpoints.load import fill, read_checkpoint
from limner.errors import CheckpointError
from limner.models.xmem.network import Adapter, XMemNetwork

_OWN = ".adapter."  # in the names of what learns
_STAGES = (("res2", 3, 256), ("layer2", 4, 512), ("layer3", 6, 1024))  # blocks and channels
_KNOWN = ("key_encoder.conv1.weight", "key_proj.key_proj.weight", "decoder.pred.weight")
_COUNTER = "num_batches_tracked"


class Adapters(nn.Module):
    """All that learns, with the names that it has in a whole file.

    Args:
        width: channels inside.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        stages = {
            name: nn.ModuleList(
                nn.ModuleDict({"adapter": Adapter(channels, width)}) for _ in range(count)
            )
            for name, count, channels in _STAGES
        }
        self.key_encoder = nn.ModuleDict(stages)

    def put_into(self, network: XMemNetwork) -> None:
        """Make these the adapters of a network."""
        for name, _, _ in _STAGES:
            blocks = getattr(network.key_encoder, name)
            for number, block in enumerate(blocks):
                block.adapter = self.get_submodule(f"key_encoder.{name}.{number}.adapter")


@dataclass(frozen=True, eq=False)
class Base:
    """What stays as it is, from a file with the authors' names.

    Attributes:
        path: of the file.
        frozen: weights of XMem by name, of the types in the file.
        adapters: those that the file has besides; empty for the authors' own.
        facts: ``file``, its name; ``sha256`` of it; ``weights``, the hash of `frozen` alone, which
            is the same in any container.
    """

    path: Path
    frozen: dict[str, Tensor]
    adapters: dict[str, Tensor]
    facts: dict[str, str]

    def network(self) -> XMemNetwork:
        """XMem without adapters, frozen.

        Raises:
            CheckpointError: the file is of another network.
        """
        shapes = {name: tuple(value.shape) for name, value in self.frozen.items()}
        network = XMemNetwork.for_weights(shapes)
        fill(network, self.frozen, self.path)
        network.requires_grad_(False)
        return network.eval()


def read_base(path: Path) -> Base:
    """Read a file of XMem.

    Args:
        path: as the authors publish it, or a whole file with adapters.

    Raises:
        CheckpointError: unreadable, or adapters alone.
    """
    read = read_checkpoint(path, _KNOWN)
    adapters = {name: value for name, value in read.tensors.items() if _OWN in name}
    frozen = {name: value for name, value in read.tensors.items() if _OWN not in name}
    if adapters and not frozen:
        raise CheckpointError(
            f"{path} holds adapters alone; join them with what they were trained on first: "
            f"limner train export {path} --base XMem.pth -o DIR"
        )
    facts = {"file": path.name, "sha256": read.sha256, "weights": _digest(frozen)}
    return Base(path, frozen, adapters, facts)


def join_adapters(
    base: Path, adapters: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A whole network's weights.

    Args:
        base: file that the adapters were trained on, or any other with the same weights.
        adapters: what was learnt.
        facts: of the run.

    Raises:
        CheckpointError: the adapters were trained on other weights, or are of another network.
    """
    known, wanted = read_base(base), facts["base"]
    if known.facts["weights"] != wanted["weights"]:
        raise CheckpointError(
            f"{base} is not what the adapters were trained on: that was {wanted['file']}, "
            f"SHA-256 {wanted['sha256']}; this has {known.facts['sha256']}."
        )
    fill(Adapters(adapter_width(facts["config"])), adapters, base)
    return known.frozen | {name: value.float() for name, value in adapters.items()}


def write_whole(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a whole network as safetensors, its values as they are."""
    from safetensors.torch import save_file

    values = {name: value.contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:
        save_file(values, temporary, metadata={"limner": json.dumps(facts)})


def adapter_width(config: Mapping[str, Any]) -> int:
    """Channels inside the adapters of a run, from its configuration as JSON values."""
    return int(config.get("adapter_width", config.get("adapters", 0)))


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Of names and values, in single precision; the same for every container."""
    found = hashlib.sha256()
    for name in sorted(n for n in weights if not n.endswith(_COUNTER)):
        found.update(name.encode())
        found.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()
