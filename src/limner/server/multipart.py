"""Multipart bodies as MONAI Label's client sends and reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from limner.server.failures import Refused

_MOST_PARTS = 64
_NAME = re.compile(r'\bname="([^"]*)"')
_FILENAME = re.compile(r'\bfilename="([^"]*)"')
_BOUNDARY = "limner-part-of-an-answer"


@dataclass(frozen=True)
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        filename: without folders; None where it is no file.
        content: as it is.
    """

    name: str
    filename: str | None
    content: bytes


def read_parts(body: bytes) -> dict[str, Part]:
    """The parts of a form by name.

    The boundary is read from the body's first line: after a call with a token the client announces
    one and uses another.

    Raises:
        Refused: it is no multipart form.
    """
    line = body[:512].lstrip(b"\r\n").split(b"\r\n", 1)[0]
    if not line.startswith(b"--") or len(line) < 3:
        raise Refused(400, "The body is no multipart form.")
    found: dict[str, Part] = {}
    blocks = (b"\r\n" + body.lstrip(b"\r\n")).split(b"\r\n" + line)[1:]
    if len(blocks) > _MOST_PARTS:
        raise Refused(413, f"A form has at most {_MOST_PARTS} parts.")
    for block in blocks:
        head, separator, content = block.partition(b"\r\n\r\n")
        header = head.decode("utf-8", "replace")
        name = _NAME.search(header)
        if not separator or name is None:
            continue
        file = _FILENAME.search(header)
        last = None if file is None else PurePosixPath(file[1].replace("\\", "/")).name
        found[name[1]] = Part(name[1], last, content)
    return found


def write_parts(params: bytes, filename: str, content: bytes) -> tuple[bytes, str]:
    """A form of ``params`` and ``image``, and its content type."""
    edge = f"--{_BOUNDARY}\r\n".encode()
    body = b"".join(
        [
            edge,
            b'Content-Disposition: form-data; name="params"\r\n',
            b"Content-Type: application/json\r\n\r\n",
            params,
            b"\r\n",
            edge,
            f'Content-Disposition: form-data; name="image"; filename="{filename}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            content,
            f"\r\n--{_BOUNDARY}--\r\n".encode(),
        ]
    )
    return body, f"multipart/form-data; boundary={_BOUNDARY}"
