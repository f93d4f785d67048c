"""Allocation limits: the size a header claims is checked before memory is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

from limner.errors import FormatError

MEMORY_SHARE = 0.6  # of physical memory one image may take
_FALLBACK_MEMORY = 8 << 30  # bytes, where the system does not tell


def check_allocation(shape: Sequence[int], itemsize: int, path: Path) -> None:
    """Refuse an image that does not fit this machine's memory.

    Args:
        shape: what the header claims, channels included.
        itemsize: bytes per value.
        path: for the message.

    Raises:
        FormatError: the image would take more than `MEMORY_SHARE` of physical memory.
    """
    needed = prod(int(n) for n in shape) * itemsize
    limit = int(physical_memory() * MEMORY_SHARE)
    if needed > limit:
        size = "×".join(str(n) for n in shape)
        raise FormatError(
            f"{path}: the header claims {size} values, {needed / 2**30:.3g} GiB; "
            f"this machine can hold {limit / 2**30:.3g} GiB. The file is damaged, or crop it first."
        )


def physical_memory() -> int:
    """Bytes of physical memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _FALLBACK_MEMORY
