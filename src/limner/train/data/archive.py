"""Archives of arrays: one compressed file per data set, opened with Python and NumPy alone, and a
summary in JSON with what each set holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_bytes
from limner.errors import FormatError

Array = NDArray[Any]
Parts = list[dict[str, Array]]  # the arrays of each image or volume

VERSION = 1

_log = logging.getLogger(__name__)


class ArchiveWriter:
    """Writes images or volumes, each set as soon as it is complete; goes on where it was stopped.

    Args:
        folder: is made; its files of the same names are replaced.
        summary: name of the JSON file, which is written last.
        prefix: of the names of the other files.
        seed: of what is found in the images; every one has its own generator.
        source: what is packed, as a hash; sets that an earlier writer of the same source completed
            are kept (`finished_sets`). Empty: begin anew.
    """

    def __init__(
        self, folder: Path, summary: str, *, prefix: str = "", seed: int = 0, source: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._summary, self._prefix, self._seed = folder, summary, prefix, seed
        self._source = source
        self._facts: dict[str, dict[str, Any]] = _read_unfinished(folder, summary, seed, source)
        self._current, self._parts = "", Parts()  # the set that is being collected

    def next_rng(self, set_name: str) -> np.random.Generator:
        """A generator for the next part of a set."""
        count = len(self._parts) if set_name == self._current else 0
        return np.random.default_rng([self._seed, len(self._facts), count])

    def add(
        self, set_name: str, stem: str, split: str, part: dict[str, Array], **facts: Any
    ) -> None:
        """Add a part.

        Args:
            set_name: of its data set.
            stem: of its case.
            split: ``"train"`` or ``"val"``.
            part: its arrays, of the same keys as all others.
            facts: of the set, for the summary.

        Raises:
            ValueError: parts of the set were added before those of another one.
        """
        if set_name != self._current:
            if set_name in self._facts:
                raise ValueError(f"The parts of {set_name} are not added one after the other.")
            self._finish_set()
            self._current = set_name
        self._parts.append(part)
        fact = self._facts.setdefault(set_name, {**facts, "train": 0, "val": 0, "stems": {}})
        fact[split] += 1
        fact["stems"][stem] = split

    def write(self) -> dict[str, Any]:
        """Write all files.

        Returns:
            The summary.

        Raises:
            FormatError: nothing was added.
        """
        if not self._facts:
            raise FormatError("There is no annotated case to pack.")
        self._finish_set()
        digest = hashlib.sha256()
        for fact in self._facts.values():
            digest.update((self._folder / fact["file"]).read_bytes())
        summary = {
            "version": VERSION,
            "seed": self._seed,
            "sha256": digest.hexdigest(),
            "sets": self._facts,
        }
        atomic_bytes(self._folder / self._summary, json.dumps(summary, indent=1).encode())
        (self._folder / _unfinished(self._summary)).unlink(missing_ok=True)
        return summary

    def _finish_set(self) -> None:
        """Write the set that is complete, and note that it is."""
        if not self._parts:
            return
        parts, fact = self._parts, self._facts[self._current]
        content = compress(parts)
        number = list(self._facts).index(self._current)
        fact["file"], fact["bytes"] = f"{self._prefix}{number:02d}.xz", len(content)
        if "shape" in parts[0]:
            fact["mebipixels"] = round(sum(p["shape"].prod() for p in parts) / 2**20, 2)
        atomic_bytes(self._folder / fact["file"], content)
        _log.info("%s: %d packed, %.2f MB", self._current, len(parts), len(content) / 1e6)
        self._parts = Parts()
        state = {"version": VERSION, "seed": self._seed, "source": self._source}
        text = json.dumps(state | {"sets": self._facts})
        atomic_bytes(self._folder / _unfinished(self._summary), text.encode())


def finished_sets(folder: Path, summary: str, *, seed: int, source: str) -> tuple[str, ...]:
    """The sets that a writer of the same source completed before it was stopped."""
    return tuple(_read_unfinished(folder, summary, seed, source))


def _unfinished(summary: str) -> str:
    return f"{summary}.unfinished"


def _read_unfinished(
    folder: Path, summary: str, seed: int, source: str
) -> dict[str, dict[str, Any]]:
    """Facts of the sets that are complete; none where their files are not there whole."""
    try:
        state = json.loads((folder / _unfinished(summary)).read_text(encoding="utf-8"))
        same = (state["version"], state["seed"], state["source"]) == (VERSION, seed, source)
        facts: dict[str, dict[str, Any]] = state["sets"] if same and source else {}
        whole = all((folder / f["file"]).stat().st_size == f["bytes"] for f in facts.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return facts if whole else {}


def read_archive(
    folder: Path,
    summary: str,
    *,
    command: str,
    what: str = "pack",
    leave_out: Collection[str] = (),
    wide: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, Any], Parts]]:
    """Read what an `ArchiveWriter` wrote: name, facts and parts of each set.

    Args:
        folder: of the archive.
        summary: name of the JSON file.
        command: that makes such an archive, for messages.
        what: it is, for messages.
        leave_out: names of sets to pass over.
        wide: keys that become uint16 whatever they are stored as.

    Raises:
        FormatError: it is none, of another version, or damaged; the latter may come last.
    """
    facts = _read_summary(folder, summary, command, what)
    digest = hashlib.sha256()
    for name, fact in facts["sets"].items():
        content = (folder / fact["file"]).read_bytes()
        digest.update(content)
        if name in leave_out:
            continue
        yield name, fact, decompress(content, folder / fact["file"], wide)
    if digest.hexdigest() != facts["sha256"]:
        raise FormatError(f"{folder} is damaged: its files are not those of its {summary}.")


def read_digest(folder: Path, summary: str) -> str:
    """SHA-256 of the packed files of an archive."""
    facts = json.loads((folder / summary).read_text(encoding="utf-8"))
    return str(facts["sha256"])


def _read_summary(folder: Path, summary: str, command: str, what: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / summary).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder} is no {what}: {error}. Make one with: {command}") from error
    if facts.get("version") != VERSION:
        raise FormatError(
            f"{folder} is a {what} of version {facts.get('version')}, not {VERSION}; make it again."
        )
    return facts


def compress(parts: list[dict[str, Array]]) -> bytes:
    """All arrays of a set, grouped by kind, since like compresses with like.

    Args:
        parts: one dictionary per plane or volume, with the same keys.
    """
    head: list[dict[str, Any]] = []
    body = bytearray()
    for key in parts[0]:
        for part in parts:
            array = np.ascontiguousarray(part[key])
            if array.dtype == np.uint16 and array.ndim >= 2 and array.max(initial=0) < 256:
                array = array.astype(np.uint8)
            head.append({"key": key, "shape": array.shape, "type": array.dtype.str})
            body += array.tobytes()
    text = json.dumps({"planes": len(parts), "arrays": head}).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 5, "lc": 3, "lp": 0, "pb": 0}]
    return lzma.compress(len(text).to_bytes(8, "little") + text + body, filters=filters)


def decompress(content: bytes, path: Path, wide: Collection[str] = ()) -> list[dict[str, Array]]:
    """Inverse of `compress`.

    Args:
        content: of the file.
        path: for messages.
        wide: keys that become uint16 whatever they are stored as.

    Raises:
        FormatError: it is damaged.
    """
    try:
        raw = lzma.decompress(content)
        size = int.from_bytes(raw[:8], "little")
        head = json.loads(raw[8 : 8 + size])
        parts: list[dict[str, Array]] = [{} for _ in range(head["planes"])]
        offset = 8 + size
        for k, fact in enumerate(head["arrays"]):
            dtype, shape = np.dtype(fact["type"]), tuple(fact["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(raw, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
            key = fact["key"]
            parts[k % head["planes"]][key] = array.astype(np.uint16) if key in wide else array
    except (lzma.LZMAError, ValueError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}. Make the pack again.") from error
    return parts


def encode_differences(levels: NDArray[np.uint8], axes: int) -> NDArray[np.uint8]:
    """Levels as differences along the last axes, modulo 256: noise where there was a picture."""
    for axis in range(-1, -1 - axes, -1):
        levels = np.diff(levels, axis=axis, prepend=np.uint8(0))
    return levels


def decode_differences(levels: NDArray[np.uint8], axes: int) -> NDArray[np.uint8]:
    """Inverse of `encode_differences`."""
    for axis in range(-1, -1 - axes, -1):
        levels = np.cumsum(levels, axis=axis, dtype=np.uint8)
    return levels
