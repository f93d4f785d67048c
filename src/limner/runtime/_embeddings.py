"""Encoded pictures on disk, for those who open the same pictures again; kept only on request.

`load` and `save` are the whole interface; `Remembering` puts them around an encoder, so that
neither the model nor the session has to know.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.runtime._cache import Shelf

if TYPE_CHECKING:
    from limner.runtime import Network

# 1,000 pictures of a ViT-B in half precision.
SHELF = Shelf("embeddings", ".embedding", 2 * 2**30, "pictures are encoded again")

# Root mean square error of float16, in standard deviations of the array, below which it is taken.
# Rounding alone gives 2e-4, an encoder in bf16 1e-2; more means that values are out of its range.
HALF_ENOUGH = 5e-4

_LARGEST_COUNT = 64  # arrays in an entry; a larger number means another format


def key_of(pixels: Sequence[NDArray[Any]], *facts: str) -> str:
    """The key of an embedding.

    Args:
        pixels: exactly what is encoded.
        facts: all else that the embedding depends on: hash of the weights, which network, what
            computes it and how precisely (`Network.description`), the view if `pixels` is more.
    """
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(len(fact.encode()).to_bytes(8, "big") + fact.encode())
    for array in pixels:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def load(key: str) -> tuple[NDArray[np.float32], ...] | None:
    """What was saved, as float32 of the caller's own, or None where there is nothing whole."""
    content = SHELF.read(key)
    if content is None:
        return None
    stream = io.BytesIO(content.tobytes())
    try:
        count = int.from_bytes(stream.read(1), "big")
        if not 1 <= count <= _LARGEST_COUNT:
            raise ValueError("no embedding")
        arrays = [np.lib.format.read_array(stream, allow_pickle=False) for _ in range(count)]
        return tuple(np.asarray(array, dtype=np.float32) for array in arrays)
    except (ValueError, EOFError, OSError):  # written by another version
        SHELF.forget(key)
        return None


def save(key: str, arrays: Sequence[NDArray[np.float32]], *, exact: bool = False) -> bool:
    """Keep an embedding, if that is possible.

    Args:
        key: of `key_of`.
        arrays: float32; kept as float16 where that changes next to nothing.
        exact: keep float32 in any case.

    Returns:
        Whether it was kept.
    """
    if not 1 <= len(arrays) <= _LARGEST_COUNT:
        raise ValueError(f"{len(arrays)} arrays given; an embedding has 1 to {_LARGEST_COUNT}.")
    kept = [array if exact else _smaller(array) for array in arrays]

    def produce(file: IO[bytes]) -> None:
        file.write(bytes([len(kept)]))
        for array in kept:
            np.lib.format.write_array(file, array, allow_pickle=False)

    return SHELF.write(key, produce)


class Remembering:
    """An encoder that keeps its answers on disk.

    Args:
        network: all that it depends on must be in its description and `facts`.
        facts: of `key_of`.
        exact: keep float32.
    """

    def __init__(self, network: Network, *facts: str, exact: bool = False) -> None:
        self.description = network.description
        self._network, self._facts, self._exact = network, facts, exact

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `limner.runtime.Network`."""
        key = key_of(inputs, self.description, *self._facts)
        found = load(key)
        if found is None:
            found = self._network(*inputs)
            save(key, found, exact=self._exact)
        return found


def _smaller(array: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    error = np.sqrt(np.mean(np.square(half.astype(np.float32) - array), dtype=np.float64))
    return half if error <= HALF_ENOUGH * float(array.std()) else array
