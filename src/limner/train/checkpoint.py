"""Checkpoints of a run: written whole or not at all, read without running code from them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.atomic import atomic_path
from limner.checkpoints.load import fill, read_weights
from limner.errors import CheckpointError

_FORMAT = 2


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands after `step` steps.

    Attributes:
        step: optimiser steps taken; random numbers and the order of the data follow from it and the
            seed.
        networks: weights by name, of each network by its name.
        averaged: likewise, exponential moving averages; empty if the run keeps none.
        optimiser: AdamW's moments.
        config: of the run, as JSON values.
        digest: SHA-256 of what is trained on.
    """

    step: int
    networks: dict[str, dict[str, Tensor]]
    averaged: dict[str, dict[str, Tensor]]
    optimiser: dict[str, Any]
    config: dict[str, Any]
    digest: str


def save(path: Path, state: State) -> None:
    """Replace the checkpoint."""
    values = {
        "format": _FORMAT,
        "step": state.step,
        "networks": state.networks,
        "averaged": state.averaged,
        "optimiser": state.optimiser,
        "config": json.dumps(state.config),
        "digest": state.digest,
    }
    with atomic_path(path) as temporary:
        torch.save(values, temporary)


def load(path: Path) -> State:
    """Read a checkpoint.

    Raises:
        CheckpointError: damaged or of another format.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values["format"] == 1:  # of one network, always on a pack
            averaged = {"network": values["averaged"]} if values["averaged"] else {}
            values |= {"networks": {"network": values["network"]}, "averaged": averaged}
            values |= {"digest": values["pack"]}
        elif values["format"] != _FORMAT:
            raise CheckpointError(f"{path} is of format {values['format']}, not {_FORMAT}.")
        return State(
            values["step"],
            values["networks"],
            values["averaged"],
            values["optimiser"],
            json.loads(values["config"]),
            values["digest"],
        )
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{path} is no readable checkpoint ({type(error).__name__}). Delete it to begin anew."
        ) from error


def write_weights(
    path: Path,
    averaged: dict[str, Tensor],
    facts: dict[str, Any],
    kind: torch.dtype = torch.float16,
) -> Path:
    """The result of a run as safetensors, or, where that package is not installed,
    as a file of PyTorch.

    Args:
        path: ends in ``.safetensors``; ``.pt`` is used instead without that package.
        averaged: weights by name.
        facts: about the run, JSON values, kept inside.
        kind: of the values in the file.

    Returns:
        What was written.
    """
    weights = {k: v.detach().cpu().to(kind).contiguous() for k, v in averaged.items()}
    text = json.dumps(facts)
    if importlib.util.find_spec("safetensors") is None:
        path = path.with_suffix(".pt")
        with atomic_path(path) as temporary:
            torch.save({"weights": weights, "facts": text}, temporary)
        return path
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"limner": text})
    return path


def load_weights(path: Path, network: torch.nn.Module) -> None:
    """Fill a network with the result of a run.

    Args:
        path: of `write_weights`.
        network: of the same widths and depths.

    Raises:
        CheckpointError: unreadable, or of another network; the message names a few differences.
    """
    weights, _ = read_weights(path)
    fill(network, weights, path)
