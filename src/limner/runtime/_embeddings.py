"""On-disk cache of image embeddings, for images that are opened again; kept only on request.

`load` and `save` are the whole interface; `CachedEncoder` puts them around an encoder, so that
neither the adapter nor the session has to know.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.runtime import _modules
from limner.runtime._cache import DiskCache

if TYPE_CHECKING:
    from limner.runtime._network import Network

# 500 images of a ViT-B at 1024 pixels. In float32, though half of it would do nearly as well: so
# an answer never depends on whether its image was seen before.
DISK_CACHE = DiskCache("embeddings", ".embedding", 2 * 2**30, "images are encoded again")

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
    """What was saved, the caller's own, or None where there is nothing whole."""
    content = DISK_CACHE.read(key)
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
        DISK_CACHE.forget(key)
        return None


def save(key: str, arrays: Sequence[NDArray[np.float32]]) -> bool:
    """Keep an embedding, if that is possible.

    Args:
        key: of `key_of`.
        arrays: float32.

    Returns:
        Whether it was kept.
    """
    if not 1 <= len(arrays) <= _LARGEST_COUNT:
        raise ValueError(f"{len(arrays)} arrays given; an embedding has 1 to {_LARGEST_COUNT}.")

    def produce(file: IO[bytes]) -> None:
        file.write(bytes([len(arrays)]))
        for array in arrays:
            np.lib.format.write_array(file, array, allow_pickle=False)

    return DISK_CACHE.write(key, produce)


class CachedEncoder:
    """An encoder that keeps its answers on disk, of each image by itself.

    Args:
        network: images first in all its inputs and outputs. All that it depends on must be in its
            description, in `facts` or in limner's own code.
        facts: of `key_of`.
    """

    def __init__(self, network: Network, *facts: str) -> None:
        self.description = network.description
        self.at_once: int = getattr(network, "at_once", 1)
        self._network, self._facts = network, facts

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `limner.runtime.Network`; only images that are not there are computed."""
        facts = (self.description, _modules.code(), *self._facts)
        keys = [key_of([x[k : k + 1] for x in inputs], *facts) for k in range(len(inputs[0]))]
        found = {k: kept for k, key in enumerate(keys) if (kept := load(key)) is not None}
        missing = [k for k in range(len(keys)) if k not in found]
        if missing:
            some = inputs if len(missing) == len(keys) else tuple(x[missing] for x in inputs)
            made = self._network(*some)
            for place, k in enumerate(missing):
                found[k] = tuple(output[place : place + 1] for output in made)
                save(keys[k], found[k])
        whole = [found[k] for k in range(len(keys))]
        if len(whole) == 1:
            return whole[0]
        return tuple(np.concatenate(parts) for parts in zip(*whole, strict=True))
