"""Files that a detached header names: one, a list, or a numbered pattern.

Only plain names in the header's own folder are followed. A path could make a reader open any file
of the machine for whoever sent the header; so could a link in a folder that was sent, which is
followed only to a file of the same suffix or into a store of git-annex or DVC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from limner.errors import FormatError

MOST_FILES = 100_000  # that one header may name

_PATTERN = re.compile(
    r"(?P<before>[^%]*)%(?P<width>0?\d{0,2})d(?P<after>[^%]*?)"
    r"\s+(?P<low>-?\d{1,9})\s+(?P<high>-?\d{1,9})\s+(?P<step>-?\d{1,9})(\s+\d)?"
)
_STORES = ((".git", "annex", "objects"), (".dvc", "cache"))


def find_files(header: Path, text: str, listed: Sequence[str] = ()) -> list[Path]:
    """The files that hold the pixels, in order.

    Args:
        header: the detached header.
        text: its field: a name, ``LIST`` (perhaps with a number of axes), or a pattern such as
            ``slice%03d.raw 1 20 1`` (first, last, step, perhaps a number of axes).
        listed: the lines that follow ``LIST``.

    Raises:
        FormatError: a name is no plain one, or there is no such file in the header's folder.
    """
    if text.split()[:1] == ["LIST"] and not (header.parent / text).is_file():
        names = [line.strip() for line in listed if line.strip()]
        if not names:
            raise FormatError(f"{header}: its pixels are in a LIST that names no such file.")
    else:
        names = _numbered(text) or [text]
    if len(names) > MOST_FILES:
        raise FormatError(f"{header} names more than {MOST_FILES:,} files of pixels.")
    return [_find_sibling(header, name.removeprefix("./")) for name in names]


def _numbered(text: str) -> list[str]:
    """The names of a pattern; none if it is no pattern."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return []
    low, high, step = (int(match[name]) for name in ("low", "high", "step"))
    if step == 0:
        return []
    numbers = range(low, high + (1 if step > 0 else -1), step)[: MOST_FILES + 1]
    return [f"{match['before']}{k:{match['width']}d}{match['after']}" for k in numbers]


def _find_sibling(header: Path, name: str) -> Path:
    plain = name and Path(name).name == name and not set(name) & set('\\/:*?%"\0')
    if not plain or name in (".", ".."):
        raise FormatError(
            f"{header}: its pixels are in {name[:80]!r}; only one plain file name in the same "
            "folder is followed. Convert it to a single file first."
        )
    for folder in (header.parent, header.resolve().parent):  # a link to a header lies elsewhere
        target = folder / name
        if not target.is_file() or target.resolve() == header.resolve():
            continue
        if _is_followed(target):
            return target
        raise FormatError(
            f"{header}: {name!r} beside it is a link to another kind of file, which is not "
            "followed; no such file is there. Copy the pixels into the folder."
        )
    raise FormatError(
        f"{header}: its pixels should be in {name!r} beside it, and no such file is there (one "
        "plain file name in the same folder)."
    )


def _is_followed(target: Path) -> bool:
    """Whether a file is none but itself, or a link as stores of large files make them."""
    real = target.resolve()
    if real.parent == target.parent.resolve() or real.suffix.lower() == target.suffix.lower():
        return True
    parts = real.parts
    return any(parts[k : k + len(store)] == store for store in _STORES for k in range(len(parts)))
