"""Snapshots of a propagation: what it remembered, kept beside the journal, so that one that was cut
short goes on without beginning anew.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError
from limner.sessions.propagation.schedule import FrameSpan

Array = NDArray[Any]
Part: TypeAlias = FrameSpan | None  # of a pass: one span, or all of it together

_log = logging.getLogger(__name__)

EVERY = 20  # frames from one snapshot to the next, at least
_SHARE = 0.05  # of the time that goes into snapshots, at most
BUDGET = 2 << 30  # bytes of a snapshot on the disk; a larger one is not made
_BUDGET_IN_MEMORY = 256 << 20  # where there is no journal
_ABOUT = "limner"  # the entry of a file that says what it is about


class Snapshot(NamedTuple):
    """What was remembered after a frame, by part: digests of what it follows from, and arrays under
    the part's name, a slash and their own.
    """

    frame: int
    bases: dict[str, str]
    arrays: dict[str, Array]


class SnapshotStore:
    """The newest snapshot of each of the two passes of a session.

    Args:
        folder: made when it is needed, removed when nothing is in it; None: they are kept in memory
            and end with the session.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Snapshot] = {}
        self._has_failed = False

    def load(self, name: str) -> Snapshot | None:
        """A snapshot; None where there is none, or it is damaged."""
        if self._folder is None:
            return self._held.get(name)
        try:
            with (
                (self._folder / name).open("rb") as file,
                np.load(file, allow_pickle=False) as held,
            ):
                arrays = {key: held[key] for key in held.files}
            about = json.loads(str(arrays.pop(_ABOUT)))
            return Snapshot(int(about["frame"]), dict(about["bases"]), arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, name: str, state: Snapshot) -> None:
        """Replace a snapshot. One that cannot be written is not worth losing a propagation for."""
        size = sum(a.nbytes for a in state.arrays.values())
        if size > (_BUDGET_IN_MEMORY if self._folder is None else BUDGET):
            _log.info("The propagation remembers %d MB, too much for a snapshot.", size >> 20)
            return
        if self._folder is None:
            self._held[name] = state
            return
        about = json.dumps({"frame": state.frame, "bases": state.bases})
        try:
            self._folder.mkdir(exist_ok=True)
            with atomic_path(self._folder / name) as path, path.open("wb") as file:
                np.savez(file, **{_ABOUT: np.array(about)}, **state.arrays)  # type: ignore[arg-type]
        except (OSError, FormatError) as error:
            if not self._has_failed:  # once: a full disk stays full for many snapshots
                _log.warning("The state of the propagation cannot be kept (%s); it goes on.", error)
            self._has_failed = True

    def clear(self) -> None:
        """Remove what another journal of this name left."""
        for step in (1, -1):
            self.drop(name_of(step))

    def drop(self, name: str) -> None:
        """Remove a snapshot, and what a crash left of one that was being written."""
        self._held.pop(name, None)
        if self._folder is not None:
            with suppress(OSError):
                for file in (self._folder / name, *self._folder.glob(f".{Path(name).stem}-*")):
                    file.unlink(missing_ok=True)
                self._folder.rmdir()  # unless the other is there


class ResumeState:
    """Resume state of one propagation pass: restores the last snapshot and saves new ones.

    A driver asks `load` when it begins. After a frame, once the consumer has come back for more, it
    asks `due`, and hands its state to `save`.

    Args:
        store: where snapshots are.
        step: 1 for the pass forward, -1 backward; each has one snapshot.
        basis: digest of all that the state of a part after a frame follows from. A part is a span,
            or None for a pass that is all one.
        ready: by part the frames up to which everything has been written and still holds.
    """

    def __init__(
        self,
        store: SnapshotStore,
        step: int,
        basis: Callable[[Part, int], str],
        ready: Mapping[Part, Container[int]],
    ) -> None:
        self._store, self._basis, self._ready = store, basis, ready
        self._name = name_of(step)
        self._since = 0  # frames since the last snapshot
        self._cost = self._ended = 0.0  # seconds the last snapshot took, and when it was done

    def load(self) -> tuple[int, dict[Part, dict[str, Array]]]:
        """The frame after which the snapshot was made, and of each part that may go on with the
        frame after that one its state then. A part that is not named has to begin.
        """
        found = self._store.load(self._name)
        if found is None:
            return -1, {}
        frame, parts = found.frame, {}
        for part, ready in self._ready.items():
            label = _label(part)
            if frame in ready and found.bases.get(label) == self._basis(part, frame):
                prefix = f"{label}/"
                own = ((k, a) for k, a in found.arrays.items() if k.startswith(prefix))
                parts[part] = {k.removeprefix(prefix): a for k, a in own}
        return frame, parts

    def due(self) -> bool:
        """Whether it is time for a snapshot; counts frames."""
        self._since += 1
        rested = time.monotonic() - self._ended >= self._cost * (1 / _SHARE - 1)
        return self._since >= EVERY and rested

    def save(self, frame: int, parts: Mapping[Part, Mapping[str, Array]]) -> None:
        """Keep the state of all parts after a frame, names to arrays that nobody changes after."""
        began = time.monotonic()
        bases = {_label(part): self._basis(part, frame) for part in parts}
        arrays = {
            f"{_label(part)}/{k}": a for part, state in parts.items() for k, a in state.items()
        }
        self._store.save(self._name, Snapshot(frame, bases, arrays))
        self._since, self._ended = 0, time.monotonic()
        self._cost = self._ended - began

    def drop(self) -> None:
        """Forget a pass that has come to its end."""
        self._store.drop(self._name)


def name_of(step: int) -> str:
    """The snapshot of the pass forward (1) or backward (-1)."""
    return "forward.npz" if step > 0 else "backward.npz"


def _label(part: Part) -> str:
    return "all" if part is None else f"{part.object_id}-{part.source}"
