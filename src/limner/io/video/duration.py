"""Stated length of video files, to find truncated ones: RIFF (AVI) and EBML (Matroska, WebM; RFC
8794).
"""

from __future__ import annotations

import logging
from pathlib import Path

from limner.errors import FormatError
from limner.io.video.lenient import LENIENT

_HEAD = 4096  # bytes in which a container says how long it is

_log = logging.getLogger(__name__)


def check_complete(path: Path, stated: int, count: int, *, ends_inside: bool, strict: bool) -> None:
    """Refuse, or with `strict` False report, a file that ends before its container says it does.

    Args:
        path: the file.
        stated: frames that it says it has, 0 if it does not say.
        count: frames that it has.
        ends_inside: whether the last one is cut off.
        strict: whether that is an error.

    Raises:
        FormatError: it is, and `strict`.
    """
    with path.open("rb") as file:
        size, head = path.stat().st_size, file.read(_HEAD)
    if stated > count:
        reason = f"states {stated} frames but holds {count}"
    elif stated_size(head) > size:
        reason = f"states {stated_size(head)} bytes but holds {size}"
    elif ends_inside:
        reason = f"ends inside frame {count - 1}"
    else:
        return
    message = f"{path}: the file {reason}; it is truncated"
    if strict:
        raise FormatError(f"{message}. Copy it again. {LENIENT}")
    _log.warning("%s.", message)


def stated_size(head: bytes) -> int:
    """Bytes that an AVI (RIFF) or Matroska file says it has, 0 where it does not say.

    Args:
        head: the first bytes of the file.
    """
    if head[:4] == b"RIFF" and len(head) >= 8:
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != b"\x1aE\xdf\xa3":
        return 0
    size, start = _ebml_size(head, 4)
    segment = start + size  # EBML header, then the segment, which is the rest of the file
    if head[segment : segment + 4] != b"\x18S\x80g":
        return 0
    size, start = _ebml_size(head, segment + 4)
    return start + size if size else 0


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """Size of a Matroska element and where its content begins; 0 for "unknown" (RFC 8794)."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()  # leading zero bits tell how many bytes follow
    content = head[at : at + length]
    if first == 0 or len(content) < length:
        return 0, at
    value = int.from_bytes(content, "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), at + length
