"""What the operating system says about a file, as limner says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limner.errors import FormatError


@contextmanager
def plain_errors(path: Path | None) -> Iterator[None]:
    """Turn `OSError` and `MemoryError` into a `FormatError` that names the file.

    Args:
        path: the file or folder; None for pixels that came from nowhere.
    """
    name = "The image" if path is None else str(path)
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FormatError(f"{name} cannot be read or written: {reason}.") from error
    except MemoryError as error:
        raise FormatError(
            f"{name} does not fit into the free memory of this machine. Close other programs, or "
            "crop it first."
        ) from error
