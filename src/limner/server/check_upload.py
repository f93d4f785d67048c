"""Reads an upload in a process of its own: ``python -m limner.server.check_upload PATH VOXELS``.

Prints its shape or the error as JSON. Memory and time are limited, so that a file that breaks a
decoder or claims a terabyte ends this process and not the server.
"""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

from limner.errors import LimnerError

_MEMORY = 8 << 30  # bytes of address space: libraries take some, too
_CPU_SECONDS = 90


def main(arguments: list[str]) -> None:
    """Read and report."""
    _limit()
    print(json.dumps(_report(Path(arguments[0]), int(arguments[1]))))  # noqa: T201


def _report(path: Path, max_voxels: int) -> dict[str, Any]:
    from limner.io import read

    try:
        image = read(path)
        if prod(image.shape) > max_voxels:
            return {"error": f"The image has more than {max_voxels} values."}
        _ = image.slice_at(0) if image.kind == "video" else image.array
    except LimnerError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "The image takes too much memory to read."}
    return {"shape": list(image.shape)}


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))


if __name__ == "__main__":
    main(sys.argv[1:])
