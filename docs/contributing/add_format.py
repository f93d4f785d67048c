"""Add a file format: one module in ``io/`` with NAME, sniff and read, and its entry."""

from __future__ import annotations

from package_copy import PackageCopy

FORMAT = '''
"""Portable grey maps (.pgm, binary): 8 or 16 bit, one channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.limits import check_allocation

NAME = "PGM"


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins as a binary grey map."""
    return head[:2] == b"P5" and head[2:3].isspace()


def read(
    path: Path,
    *,
    channel: int | None = None,
    series: str | int | None = None,
    strict: bool = True,
) -> Image:
    """Read a grey map.

    Raises:
        FormatError: damaged or cut off.
    """
    content = path.read_bytes()
    try:
        _, width, height, largest = content.split(maxsplit=4)[:4]
        shape, kind = (int(height), int(width)), np.dtype(">u2" if int(largest) > 255 else "u1")
    except ValueError:
        raise FormatError(f"{path}: its header is damaged; write it again.") from None
    check_allocation(shape, kind.itemsize, path)
    needed = shape[0] * shape[1] * kind.itemsize
    if min(shape) < 1 or len(content) < needed:
        raise FormatError(f"{path} is cut off: {len(content)} bytes of at least {needed}.")
    pixels = np.frombuffer(content[-needed:], kind).reshape(shape)
    return Image(pixels.astype(kind.newbyteorder("=")), Geometry(shape), path=path, format=NAME)
'''

USE = """
import pathlib, tempfile, limner, numpy as np
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "a.pgm"
    path.write_bytes(b"P5 3 2 255\\n" + bytes(range(6)))
    image = limner.read(path)
    assert np.array_equal(image.array, [[0, 1, 2], [3, 4, 5]]) and image.format == "PGM"
    path.write_bytes(b"P5 3 2 255\\n" + bytes(2))
    try:
        limner.read(path)
    except limner.LimnerError as error:
        assert "cut off" in str(error)
"""

with PackageCopy() as copy:
    copy.write("io/pgm.py", FORMAT)
    copy.edit(
        "io/formats.py",
        '    FormatEntry(\n        "raster",',
        '    FormatEntry("pgm", (".pgm",), ((0, b"P5"),), placeless=True),\n'
        '    FormatEntry(\n        "raster",',
    )
    copy.run(code=USE)
print(
    "a format: io/pgm.py and its entry in io/formats.py; io/protocols.py says what else it can do"
)
