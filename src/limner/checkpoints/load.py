"""Reading weights files and filling networks with them, strictly, with readable complaints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import errors
from limner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SHOWN = 3  # names in a complaint


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


def fill(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network; every name and shape has to fit.

    Args:
        network: of the kind that the weights are of.
        weights: any floating type.
        path: where they come from, for messages.

    Raises:
        CheckpointError: they are of another network; the message names a few differences.
    """
    own = network.state_dict()
    differing = [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of another network: {len(differing)} weights differ, such as "
            f"{', '.join(differing[:_SHOWN])}. Use a recipe with its widths and depths."
        )
    network.load_state_dict({name: value.float() for name, value in weights.items()})
