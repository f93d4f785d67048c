"""The weights store: the folder of kept files, with a record of each.

Beside ``FILE`` lies ``FILE.json``: its hash, where it came from and when, and its licence.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from limner.checkpoints.archive import open_archive, weights_file
from limner.checkpoints.cards import WeightsCard
from limner.checkpoints.digest import sha256_of
from limner.errors import CheckpointError
from limner.user_folders import find_data_home

_RECORD = ".json"
PARTIAL = ".part"
_STALE_S = 3600.0
_SPARE = 2**20  # bytes that stay free on the disk


@dataclass(frozen=True)
class Record:
    """What is known of a kept file.

    Attributes:
        sha256: of the file when it was put there.
        size: bytes.
        source: the address or path that it came from.
        licence: of the weights, as their card says.
        added: date and time, ISO 8601.
    """

    sha256: str
    size: int
    source: str
    licence: str
    added: str


def weights_folder() -> Path:
    """Where weights files are kept; it need not exist.

    ``LIMNER_WEIGHTS``, else ``limner/weights`` in the platform's folder for data
    (`limner.user_folders`).

    Raises:
        CheckpointError: none of them can be, for a user without a home.
    """
    own = os.environ.get("LIMNER_WEIGHTS")
    if own:
        return Path(own).expanduser().absolute()
    home = find_data_home()
    if home is None:
        raise CheckpointError(
            "There is no home folder to keep weights in; set LIMNER_WEIGHTS to a folder."
        )
    return home / "limner" / "weights"


def locate(name: str) -> Path | None:
    """The kept file of a name (`WeightsCard.name`), or None."""
    try:
        path = weights_folder() / name
    except CheckpointError:
        return None
    return path if path.is_file() else None


def record_of(path: Path) -> Record | None:
    """What is known of a kept file; None for one that somebody put there by hand."""
    try:
        return Record(**json.loads(_record(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def add(card: WeightsCard, file: Path) -> Path:
    """Keep a copy of a weights file; an older one of the name is replaced.

    Only a copy is safe: a training script that writes the original again would change a link, too.

    Args:
        card: of the weights that it has.
        file: or a folder as Hugging Face lays models out.

    Returns:
        Where it is now.

    Raises:
        CheckpointError: not a weights file, damaged, or the folder cannot take it.
    """
    file = weights_file(file)
    open_archive(file)
    folder = make_room(weights_folder(), file.stat().st_size)
    _sweep(folder / card.name)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{card.name}-", suffix=PARTIAL)
        os.close(handle)
        try:
            shutil.copyfile(file, name)
            return keep(card, Path(name), source=str(file.absolute()))
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(not_kept(folder, error)) from error


def keep(card: WeightsCard, whole: Path, *, source: str) -> Path:
    """Move a complete file of the store's folder to its place and note what is known of it.

    Raises:
        OSError: it cannot be moved.
    """
    path = whole.with_name(card.name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(sha256_of(whole), whole.stat().st_size, source, card.licence, now)
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    whole.chmod(0o644)
    _record(path).unlink(missing_ok=True)  # rather no record than one of another file
    whole.replace(path)
    beside = _record(path)
    beside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return path


def remove(name: str) -> bool:
    """Delete a kept file, its record and what is left of an unfinished download.

    Returns:
        Whether there was anything.
    """
    path, found = weights_folder() / name, False
    for old in (path, _record(path), *partial_files(path)):
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
            found = True
    lock_file(path).unlink(missing_ok=True)
    _sweep(path)
    return found


def _sweep(path: Path) -> None:
    """Delete copies that were being made when their process was killed."""
    for old in path.parent.glob(f".{path.name}-*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_S:
                old.unlink()


def partial_files(path: Path) -> tuple[Path, Path]:
    """The unfinished download of a file, and what is known of it."""
    part = path.with_name(f".{path.name}{PARTIAL}")
    return part, part.with_name(part.name + _RECORD)


def lock_file(path: Path) -> Path:
    """Held by the process that fetches a file."""
    return path.with_name(f".{path.name}.lock")


def make_room(folder: Path, size: int | None) -> Path:
    """A folder that exists and has so many bytes free.

    Raises:
        CheckpointError: it cannot be made, or the disk is too full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(not_kept(folder, error)) from error
    if size is not None and free < size + _SPARE:
        raise CheckpointError(
            f"The weights need {size / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free; "
            "make room, or set LIMNER_WEIGHTS to a folder on another disk."
        )
    return folder


def _record(path: Path) -> Path:
    return path.with_name(path.name + _RECORD)


def not_kept(folder: Path, error: OSError) -> str:
    """What to say where the folder cannot be written."""
    reason = (error.strerror or str(error)).lower()
    return f"Weights cannot be kept in {folder}: {reason}. Set LIMNER_WEIGHTS to another folder."
