"""Weights bundle: one archive that brings models to a machine without a network.

A zip archive, members uncompressed: ``limner-bundle.json`` with card, size and SHA-256 of each
file, and the files as ``weights/NAME``. It is checked as a whole before any file is put in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limner.atomic import atomic_path
from limner.checkpoints import store
from limner.checkpoints.archive import open_archive
from limner.checkpoints.cards import WeightsCard
from limner.checkpoints.digest import sha256_of
from limner.errors import CheckpointError

MANIFEST = "limner-bundle.json"
FORMAT = 1
_FOLDER = "weights/"
_CHUNK = 2**20
_LARGEST_MANIFEST = 2**22  # bytes


@dataclass(frozen=True)
class BundledFile:
    """One weights file of a bundle.

    Attributes:
        models: that use it.
        name: of the file, as it is kept (`WeightsCard.name`).
        size: bytes.
        sha256: of the whole file.
        licence: of the weights.
    """

    models: tuple[str, ...]
    name: str
    size: int
    sha256: str
    licence: str


def write_bundle(
    path: Path,
    files: Sequence[tuple[WeightsCard, Path, Sequence[str]]],
    cards: Mapping[str, Mapping[str, Any]],
) -> tuple[BundledFile, ...]:
    """Write a bundle; an older file of that name stays until the new one is complete.

    Args:
        path: of the archive.
        files: card and place of each weights file, and the models that use it.
        cards: model cards as JSON values, by model; for people who look into the archive.

    Returns:
        What is in it.

    Raises:
        CheckpointError: a weights file is damaged.
        FormatError: the archive cannot be written.
        OSError: a weights file cannot be read.
    """
    entries = tuple(
        BundledFile(tuple(users), card.name, file.stat().st_size, sha256_of(file), card.licence)
        for card, file, users in files
    )
    for _, file, _ in files:
        open_archive(file)
    manifest = {
        "limner_bundle": FORMAT,
        "files": [asdict(entry) for entry in entries],
        "models": {model: dict(facts) for model, facts in cards.items()},
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2) + "\n")
        for card, file, _ in files:
            archive.write(file, _FOLDER + card.name)
    return entries


def read_bundle(path: Path) -> tuple[BundledFile, ...]:
    """Read what a bundle holds; the weights themselves are not read.

    Raises:
        CheckpointError: no bundle, damaged, or of a newer limner.
        OSError: it cannot be read.
    """
    with _opened(path) as archive:
        return _read_manifest(path, archive)


def unpack_bundle(
    path: Path, known: Mapping[str, WeightsCard], models: Collection[str] = ()
) -> tuple[Path, ...]:
    """Check a bundle and keep its weights files: all of them, or none where anything is wrong.

    Args:
        path: of the archive.
        known: cards of the weights files that this limner can use, by name. Only these are taken,
            so that an archive cannot choose where it writes.
        models: only those of these models; all if empty.

    Returns:
        Where the files are now.

    Raises:
        CheckpointError: no bundle, damaged, a file that is unknown or not what its card or the
            manifest says, no such model in it, or the folder cannot take the files.
        OSError: the archive cannot be read.
    """
    with _opened(path) as archive, contextlib.ExitStack() as stack:
        entries = _choose(path, _read_manifest(path, archive), models)
        for entry in entries:
            _check_known(path, entry, known)
        folder = store.make_room(store.weights_folder(), sum(entry.size for entry in entries))
        try:
            copies = [_copy(path, archive, entry, folder, stack) for entry in entries]
            return tuple(
                store.keep(known[entry.name], copy, source=str(path.absolute()))
                for entry, copy in zip(entries, copies, strict=True)
            )
        except OSError as error:
            raise CheckpointError(store.not_kept(folder, error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise CheckpointError(
            f"{path} is no bundle of limner, or it is damaged ({error}); make it again with limner "
            "models bundle, and compare the hashes of both copies."
        ) from error


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> tuple[BundledFile, ...]:
    """Read the manifest, and check that the members are those that it lists."""
    names = archive.namelist()
    if MANIFEST not in names or archive.getinfo(MANIFEST).file_size > _LARGEST_MANIFEST:
        raise CheckpointError(
            f"{path} is no bundle of limner: it holds no {MANIFEST}. A single weights file is "
            "added with limner models add NAME FILE."
        )
    try:
        manifest = json.loads(archive.read(MANIFEST))
        version = manifest["limner_bundle"]
        entries = tuple(map(_parse_file, manifest["files"]))
        stored = {e.name: _FOLDER + e.name for e in entries}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its {MANIFEST} cannot be read ({error}).") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} is a bundle of format {version}, and this limner reads {FORMAT}; update it."
        )
    if sorted(names) != sorted([MANIFEST, *stored.values()]):
        raise CheckpointError(f"{path} holds other files than its {MANIFEST} lists.")
    return entries


def _parse_file(facts: dict[str, Any]) -> BundledFile:
    return BundledFile(
        tuple(map(str, facts["models"])),
        str(facts["name"]),
        int(facts["size"]),
        str(facts["sha256"]),
        str(facts["licence"]),
    )


def _choose(
    path: Path, entries: Sequence[BundledFile], models: Collection[str]
) -> tuple[BundledFile, ...]:
    there = sorted({model for entry in entries for model in entry.models})
    for model in models:
        if model not in there:
            raise CheckpointError(f"{path} does not hold {model}; it holds {', '.join(there)}.")
    return tuple(entry for entry in entries if not models or set(entry.models) & set(models))


def _check_known(path: Path, entry: BundledFile, known: Mapping[str, WeightsCard]) -> None:
    """Refuse files that no model of this limner uses, and others than the published ones."""
    card = known.get(entry.name)
    if card is None:
        raise CheckpointError(
            f"{path} holds {entry.name!r}, which no model of this limner uses; update limner, or "
            "name the models to take."
        )
    if card.sha256 not in (None, entry.sha256):
        raise CheckpointError(
            f"{path}: {entry.name} is another file than the published one, by its hash; add it by "
            "itself with limner models add NAME FILE if you want it."
        )


def _copy(
    path: Path,
    archive: zipfile.ZipFile,
    entry: BundledFile,
    folder: Path,
    stack: contextlib.ExitStack,
) -> Path:
    """Copy one member into the store's folder under a temporary name, and check it."""
    info = archive.getinfo(_FOLDER + entry.name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != entry.size:
        raise CheckpointError(f"{path}: {entry.name} has not the size that its manifest says.")
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{entry.name}-", suffix=store.PARTIAL)
    copy = Path(name)
    stack.callback(copy.unlink, missing_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(handle, "wb") as target, archive.open(info) as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != entry.sha256:
        raise CheckpointError(
            f"{path}: {entry.name} is damaged: its hash is not the one in the manifest. Nothing "
            "was put in place; copy the bundle again."
        )
    open_archive(copy)
    return copy
