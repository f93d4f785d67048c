"""Checkpoint loading: weights files into networks, strictly, with readable errors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import errors
from limner.checkpoints._recognise import recognise
from limner.checkpoints.archive import build, open_archive, weights_file
from limner.checkpoints.digest import sha256_of
from limner.checkpoints.unwrap import unwrap
from limner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SHOWN = 3  # names in a complaint
# What a network counts in training and never reads afterwards; some tools leave it out.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights in a file.

    Attributes:
        tensors: on the CPU, by the names in the file without what wrapped them, in the types of the
            file. Their values are mapped from the file, which has to stay while they are used.
        sha256: of the whole file, in hexadecimal.
        notes: what was unwrapped and left out, one line each.
    """

    tensors: dict[str, torch.Tensor]
    sha256: str
    notes: tuple[str, ...]


def read_checkpoint(path: Path, wanted: Collection[str] | None = None) -> Checkpoint:
    """Read the weights in a file as people have it; no code in it ever runs.

    Understood are files of ``torch.save`` (any suffix, old ones, too), safetensors, and folders as
    Hugging Face lays models out; weights at the top or beside an optimiser and other objects, under
    any name; with prefixes such as ``module.`` of parallel training.

    Args:
        path: of the file, or of such a folder.
        wanted: names in the published weights. Where a file holds several sets of weights, the one
            that has the most of them is taken, and a prefix that hides them is taken off. Weights
            with other names are returned, too.

    Raises:
        CheckpointError: missing, damaged, cut off, no weights file, or weights that only running
            its code would give; the message says what to do.
        MissingDependency: PyTorch is not installed.
    """
    file = weights_file(Path(path))
    archive = open_archive(file)
    found = unwrap(archive, None if wanted is None else frozenset(wanted))
    return Checkpoint(build(archive, found.tensors), sha256_of(file), found.notes)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights by name on the CPU, and what the file says about them.

    Args:
        path: ``.safetensors``, or ``.pt`` as `limner train` writes it without that package.

    Raises:
        CheckpointError: unreadable, or neither.
        MissingDependency: PyTorch or safetensors is not installed.
    """
    torch = errors.require("torch", extra="torch", purpose="read weights for PyTorch")
    try:
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content["weights"], json.loads(content["facts"])
        if path.suffix == ".safetensors":
            library = errors.require("safetensors", extra="torch", purpose="read .safetensors")
            with library.safe_open(path, framework="pt") as file:
                facts = (file.metadata() or {}).get("limner", "{}")
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(facts)  # noqa: SIM118
    except errors.MissingDependency:
        raise
    except Exception as error:  # both packages raise many kinds
        raise CheckpointError(
            f"{path} is no readable weights file ({type(error).__name__}: {error})."
        ) from error
    raise CheckpointError(f"{path} is no weights file; it ends in .safetensors or .pt.")


def fill(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network; every name and shape has to fit.

    Args:
        network: of the kind that the weights are of.
        tensors: any floating type; they are converted to the network's.
        path: where they come from, for messages.

    Raises:
        CheckpointError: they are of another network; the message counts the differences, names a
            few of each kind, and says what network they are of if limner knows it.
    """
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    missing = [n for n in own if n not in given and not n.endswith(_COUNTER)]
    unexpected = [n for n in given if n not in own and not n.endswith(_COUNTER)]
    reshaped = [
        f"{n} {given[n]}, not {shape}" for n, shape in own.items() if given.get(n, shape) != shape
    ]
    if missing or unexpected or reshaped:
        differences = (
            _some(f"{len(missing)} of {len(own)} weights are missing", missing),
            _some(f"{len(unexpected)} are unexpected", unexpected),
            _some(f"{len(reshaped)} have another shape", reshaped),
        )
        found = "; ".join(text for text in differences if text)
        raise CheckpointError(f"{path} is of another network: {found}. {recognise(given)}")
    network.load_state_dict(dict(tensors), strict=False)  # strict but for the counters


def _some(what: str, names: Iterable[str]) -> str:
    """``"5 are unexpected (a, b, c, …)"``; empty for no names."""
    listed = list(names)
    rest = ", …" if len(listed) > _SHOWN else ""
    return f"{what} ({', '.join(listed[:_SHOWN])}{rest})" if listed else ""
