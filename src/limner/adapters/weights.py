"""SHA-256 of the weights file that a published model was given."""

from __future__ import annotations

from pathlib import Path

from limner.checkpoints.digest import sha256_of
from limner.errors import CheckpointError


def hash_weights(weights: Path | None, name: str, advice: str) -> str:
    """SHA-256 of the file in hexadecimal.

    Args:
        weights: as the builder was given it.
        name: of the model.
        advice: how to get the file, the rest of a sentence.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if weights is None:
        raise CheckpointError(f"{name} needs its weights, {advice}.")
    try:
        return sha256_of(weights)
    except OSError as error:
        raise CheckpointError(
            f"{weights} cannot be read ({error.strerror}); {name} needs its weights, {advice}."
        ) from error
