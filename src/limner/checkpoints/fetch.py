"""Downloading a weights file: resumed where it stopped, checked, and whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from limner.checkpoints import _http, store
from limner.checkpoints.archive import open_archive
from limner.checkpoints.cards import WeightsCard
from limner.checkpoints.sources import Address, addresses, in_hub_cache
from limner.errors import CheckpointError

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known

_TRIES = 6  # per address, as long as a try brings nothing
_FIRST_PAUSE_S = 1.0  # doubled each time

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """An address does not have the file that is wanted; the next one may."""


def mirrors_of_environment() -> tuple[str, ...]:
    """``LIMNER_MIRROR``: addresses of mirrors, separated by spaces."""
    return tuple(os.environ.get("LIMNER_MIRROR", "").split())


def fetch(
    card: WeightsCard,
    into: Path,
    *,
    progress: Progress | None = None,
    mirrors: Sequence[str] | None = None,
    source: str | None = None,
    known_as: str = "NAME",
    first_pause_s: float = _FIRST_PAUSE_S,
) -> Path:
    """Get a weights file and keep it in a folder, with a record beside it.

    Each address is tried with patience; what was fetched stays when the connection drops or the
    user interrupts, and the next call goes on from there. A file that the tools of the Hugging Face
    hub have in their cache is taken from there.

    Args:
        card: name and sources; size and hash are checked where the hash is known. Without it the
            file has to have the hash that the hub states, if it does, and to be a weights file.
        into: the folder, such as `store.weights_folder`; made if needed.
        progress: called as bytes come.
        mirrors: addresses to try first; None for those of the environment.
        source: the only one to try, instead of those of the card and all mirrors.
        known_as: the model's name, for the message.
        first_pause_s: after a dropped connection; doubled each time.

    Returns:
        The file.

    Raises:
        CheckpointError: it cannot be had; the message says what each address answered and how to
            go on by hand.
    """
    progress = progress or (lambda done, total: None)
    if source is not None:
        card, mirrors = replace(card, sources=(source,)), ()
    chosen = mirrors_of_environment() if mirrors is None else mirrors
    if card.sha256 is None:
        card = replace(card, size=None)  # authors replace files; a size alone proves nothing
    if not (card.sources or chosen):
        raise CheckpointError(_nowhere(card, (), known_as))
    tried = addresses(card, chosen)
    store.make_room(into, card.size)
    path, answers = into / card.name, []
    with _alone(path):
        for cached in filter(None, map(in_hub_cache, card.sources)):
            if card.sha256 is None or _digest(cached) == card.sha256:
                return _keep_copy(card, cached, into)
        for address in tried:
            try:
                return _from_address(card, address, path, progress, first_pause_s)
            except _Unusable as reason:
                _log.info("%s: %s", address.url, reason)
                answers.append(f"{address.url} {reason}")
    raise CheckpointError(_nowhere(card, answers, known_as))


def _from_address(
    card: WeightsCard, address: Address, path: Path, progress: Progress, pause: float
) -> Path:
    local = address.local
    if local is not None:
        if not local.is_file():
            raise _Unusable("does not exist")
        _check(card, local, None)
        return _keep_copy(card, local, path.parent)
    tries = 0
    while True:
        part, _ = store.partial_files(path)
        before = part.stat().st_size if part.exists() else 0
        try:
            stated = _http.download(address, path, card.size, progress)
            break
        except _http.Refused as error:
            raise _Unusable(str(error)) from error
        except _http.Dropped as error:
            gained = part.exists() and part.stat().st_size > before
            tries = 1 if gained else tries + 1
            if tries >= _TRIES:
                raise _Unusable(f"{error}, again and again") from error
            wait = pause * 2 ** (tries - 1)
            _log.info("%s: %s; going on in %.0f s.", path.name, error, wait)
            time.sleep(wait)
    try:
        _check(card, part, stated)
    except _Unusable:
        for old in store.partial_files(path):
            old.unlink(missing_ok=True)
        raise
    kept = store.keep(card, part, source=address.url)
    store.partial_files(path)[1].unlink(missing_ok=True)
    return kept


def _check(card: WeightsCard, file: Path, stated: str | None) -> None:
    """Size, hash (of the card, else as the server states it) and form of a complete file."""
    size = file.stat().st_size
    if card.size is not None and size != card.size:
        raise _Unusable(f"gave {size:,} bytes where the file has {card.size:,}")
    expected = card.sha256 or stated
    if expected is not None and (found := _digest(file)) != expected:
        raise _Unusable(f"gave another file: its SHA-256 is {found[:12]}…, not {expected[:12]}…")
    try:
        open_archive(file)
    except CheckpointError as error:
        raise _Unusable(f"gave no weights: {str(error).removeprefix(str(file)).strip()}") from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _keep_copy(card: WeightsCard, file: Path, folder: Path) -> Path:
    store.make_room(folder, file.stat().st_size)
    whole = folder / f".{card.name}-{os.getpid()}{store.PARTIAL}"
    try:
        shutil.copyfile(file, whole)
        return store.keep(card, whole, source=file.absolute().as_uri())
    finally:
        whole.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else fetches this file meanwhile.

    Raises:
        CheckpointError: somebody does.
    """
    from filelock import lock_descriptor

    try:
        file = store.lock_file(path).open("a")
    except OSError as error:
        raise CheckpointError(store.not_kept(path.parent, error)) from error
    with file:
        try:
            is_ours = lock_descriptor(file.fileno(), blocking=False)
        except OSError:  # a file system without locks
            is_ours = True
        if not is_ours:
            raise CheckpointError(f"Another process is fetching {path}; wait for it.")
        yield


def _nowhere(card: WeightsCard, answers: Sequence[str], model: str) -> str:
    """What happened, and the way by hand."""
    add = f"limner models add {model} FILE"
    if not card.sources and not answers:
        way = card.note if "limner models add" in card.note else f"{card.note}; then: {add}"
        return f"{card.name} is not offered for direct download: {way.rstrip('.')}."
    why = "; ".join(answers) or "HF_HUB_OFFLINE is set and it is not in the hub's cache"
    origin = ", ".join(card.sources) or card.note
    return f"{card.name} cannot be fetched: {why}. Get it by hand ({origin}), then: {add}."
