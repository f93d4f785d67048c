"""The header of a NRRD file: its lines, as values.

A line is a field (``name: value``, names in any case), a key of the writer's own (``key:=value``)
or a comment (``#``); a blank line, or the end of a detached header, is the end. Which fields there
are and what they hold is from http://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError

Array = NDArray[Any]

MAGIC = b"NRRD000"

_VERSIONS = ("NRRD0001", "NRRD0002", "NRRD0003", "NRRD0004", "NRRD0005")
_MAX_HEADER = 1 << 20  # bytes; Slicer's segmentations write some 10 kB
_MAX_AXES = 16  # Teem's own limit; without one a header of 1 MiB could ask for 200 GB of vectors
_SHOWN = 60  # letters of a bad value that a message repeats

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # fits 64 bits
_VECTOR = re.compile(r"\s*(?:\(([^()]*)\)|none(?![^\s(]))", re.IGNORECASE)
_QUOTED = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))')


@dataclass(frozen=True)
class NrrdHeader:
    """What a header says.

    Attributes:
        fields: the format's own fields by full lower-case name; lists have one entry per axis,
            fastest first; vectors are rows of an array, a missing one (``none``) is NaN.
        keys: the writer's own pairs, without their escapes.
        end: the byte behind the blank line, where attached pixels begin.
    """

    fields: Mapping[str, Any]
    keys: Mapping[str, str]
    end: int


def read_header(path: Path) -> NrrdHeader:
    """Read the header of a file, attached or detached.

    Raises:
        FormatError: not NRRD, a version to come, or a header that is malformed or without end.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    if not head.startswith(MAGIC):
        raise FormatError(f"{path} is not NRRD: it begins with {head[:8]!r}, not with NRRD000.")
    lines, end, ended = [], 0, False
    for line in BytesIO(head):
        end += len(line)
        ended = not line.strip()
        if ended:
            break
        lines.append(line.decode("utf-8", "replace").rstrip())
    if not ended and len(head) == _MAX_HEADER:
        raise FormatError(
            f"{path}: its NRRD header has no blank line within {_MAX_HEADER} bytes, where it must "
            "end. The file is damaged; write it anew."
        )
    if lines[0] not in _VERSIONS:
        raise FormatError(
            f"{path} is of version {lines[0][:_SHOWN]!r}; {_VERSIONS[0]} to {_VERSIONS[-1]} are "
            "read. Convert it first."
        )
    try:
        fields, keys = parse_lines(lines[1:])
    except ValueError as error:
        raise FormatError(
            f"{path}: its NRRD header is malformed: {error}. Correct the header first."
        ) from error
    return NrrdHeader(fields, keys, end)


def parse_lines(lines: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields and the keys of a header's lines, without the first line and the blank one.

    Raises:
        ValueError: says which line or field, and what it should be.
    """
    fields: dict[str, Any] = {}
    keys: dict[str, str] = {}
    remaining = iter(lines)
    for line in remaining:
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        known = _BY_NAME.get(_field_key(name))
        if known is not None and not value.startswith("="):
            if known in fields:
                raise ValueError(f"the field {known!r} is there twice")
            fields[known] = _value_of(known, value.strip())
            if known == "data file" and value.split()[:1] == ["LIST"]:
                fields["listed files"] = list(remaining)
        elif ":=" in line:
            name, _, value = line.partition(":=")
            keys[_unescape(name.strip())] = _unescape(value.strip())
        elif colon:  # as older programs write their own keys
            keys[name.strip()] = value.strip()
        else:
            raise ValueError(f"the line {line[:_SHOWN]!r} has no colon")
    return fields, keys


def _value_of(name: str, text: str) -> Any:
    parse, meaning = _FIELDS[name]
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name!r} is {text[:_SHOWN]!r}; {meaning} expected") from error


def _field_key(name: str) -> str:
    """A field's name as it is looked up: ``line skip`` and ``lineskip`` are the same."""
    return name.replace(" ", "").lower()


def _unescape(text: str) -> str:
    return re.sub(r"\\([n\\])", lambda m: "\n" if m[1] == "n" else "\\", text)


def _integer(word: str) -> int:
    if not _INTEGER.fullmatch(word):
        raise ValueError(word)
    return int(word)


def _number(word: str) -> float:
    if "_" in word or not word.isascii():  # Python takes 1_000 and the digits of every script
        raise ValueError(word)
    return float(word)


def _integers(text: str) -> list[int]:
    return [_integer(word) for word in text.split()]


def _numbers(text: str) -> Array:
    return np.array([_number(word) for word in text.split()], dtype=np.float64)


def _vectors(text: str) -> Array:
    """Rows of numbers; a missing row is NaN, and all are of no length where all are missing."""
    rows = [None if m[1] is None else m[1].split(",") for m in _scan(_VECTOR, text)]
    widths = {len(row) for row in rows if row is not None} or {0}
    if len(widths) > 1 or not rows or max(len(rows), *widths) > _MAX_AXES:
        raise ValueError(text)
    array = np.full((len(rows), *widths), np.nan)
    for target, row in zip(array, rows, strict=True):
        if row is not None:
            target[:] = [_number(word.strip()) for word in row]
    return array


def _vector(text: str) -> Array:
    vectors = _vectors(text)
    if vectors.shape[0] != 1 or vectors.shape[1] == 0:
        raise ValueError(text)
    return np.asarray(vectors[0])


def _split_quoted(text: str) -> list[str]:
    """Words in quotation marks; without them, as some programs write units, also."""
    found = _scan(_QUOTED, text)
    return [m[2] or re.sub(r'\\(["\\])', r"\1", m[1] or "") for m in found]


def _scan(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Matches that follow one another and leave nothing over."""
    text = text.rstrip()
    found, at = [], 0
    while at < len(text):
        match = pattern.match(text, at)
        if match is None:
            raise ValueError(text)
        found.append(match)
        at = match.end()
    return found


_WHOLE: tuple[Callable[[str], Any], str] = (_integer, "a whole number")
_REAL: tuple[Callable[[str], Any], str] = (_number, "a number")
_REALS: tuple[Callable[[str], Any], str] = (_numbers, "numbers")
_TEXT: tuple[Callable[[str], Any], str] = (str, "text")
_WORDS: tuple[Callable[[str], Any], str] = (str.split, "words")
_QUOTES: tuple[Callable[[str], Any], str] = (_split_quoted, 'words in "quotation marks"')
_ROWS: tuple[Callable[[str], Any], str] = (_vectors, "vectors such as (1,0,0) of equal length")

_FIELDS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("dimension", "space dimension", "block size", "number"), _WHOLE),
    **dict.fromkeys(("line skip", "byte skip"), _WHOLE),
    **dict.fromkeys(("min", "max", "old min", "old max"), _REAL),
    **dict.fromkeys(("type", "encoding", "endian", "content", "sample units"), _TEXT),
    **dict.fromkeys(("space", "data file"), _TEXT),
    "sizes": (_integers, "whole numbers"),
    **dict.fromkeys(("spacings", "thicknesses", "axis mins", "axis maxs"), _REALS),
    **dict.fromkeys(("kinds", "centerings"), _WORDS),
    **dict.fromkeys(("labels", "units", "space units"), _QUOTES),
    "space origin": (_vector, "a vector such as (1,2,3)"),
    **dict.fromkeys(("space directions", "measurement frame"), _ROWS),
}
_BY_NAME = {_field_key(name): name for name in _FIELDS} | {"centers": "centerings"}
