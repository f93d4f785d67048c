"""Cases of a server: the images of a studies folder, and what clients have uploaded.

Clients name cases by opaque ids; no part of an id or of a client's file name becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_bytes
from limner.errors import FormatError, GeometryError, LimnerError, SeriesChoice
from limner.geometry import Geometry
from limner.io import Image, read
from limner.io.formats import read_head, recognise
from limner.io.image import Kind
from limner.server.failures import NotFound, Refused
from limner.server.settings import Settings
from limner.sessions.wire import voxels_id

_MOST_CASES = 10_000
_FRESH_SECONDS = 5.0  # a listing of the studies folder is used for so long
_OPEN_IMAGES = 8
_KINDS = ("image", "volume", "video")
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom", "")
_DTYPES = frozenset("?bBhHiIlLqQefd")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One image that sessions can be opened on.

    Attributes:
        id: opaque.
        name: for people.
        path: file or folder, or the folder of uploaded voxels.
        origin: ``"study"``, ``"upload"`` (a file) or ``"voxels"``.
        series: UID where the folder holds several.
    """

    id: str
    name: str
    path: Path
    origin: str
    series: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What a listing says."""
        return {"id": self.id, "name": self.name, "origin": self.origin, "series": self.series}


@dataclass(frozen=True)
class VoxelFacts:
    """What an uploaded array is, checked before a byte of it is kept."""

    geometry: Geometry
    dtype: np.dtype[Any]
    kind: Kind
    num_channels: int | None = None
    modality: str | None = None
    name: str = "image"
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        channels = () if self.num_channels is None else (self.num_channels,)
        object.__setattr__(self, "shape", self.geometry.shape + channels)

    @classmethod
    def from_json(cls, value: Any, settings: Settings) -> VoxelFacts:
        """Read from what a client says.

        Raises:
            FormatError, GeometryError: malformed or unknown.
            Refused: too large.
        """
        try:
            dtype = np.dtype(str(value["dtype"])).newbyteorder("<")
            channels = value.get("num_channels")
            channels = None if channels is None else int(channels)
            facts = cls(
                Geometry.from_json(value["geometry"]),
                dtype,
                value["kind"],
                channels,
                None if value.get("modality") is None else str(value["modality"])[:16],
                str(value.get("name") or "image")[:200],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(
                f"An image's facts are geometry, dtype, kind, num_channels, modality: {error!r}."
            ) from error
        if facts.kind not in _KINDS or dtype.char not in _DTYPES:
            raise FormatError(f"A kind is {', '.join(_KINDS)}, a dtype bool, integer or float.")
        if (facts.geometry.ndim == 2) != (facts.kind == "image"):
            raise GeometryError(f"One {facts.kind} has no grid of {facts.geometry.ndim} axes.")
        if channels is not None and not 1 <= channels <= 64:
            raise FormatError(f"An image has 1 to 64 channels, not {channels}.")
        if facts.num_values > settings.max_voxels:
            raise Refused(413, f"{facts.num_values} values; at most {settings.max_voxels}.")
        return facts

    @property
    def num_values(self) -> int:
        """Number of values, channels included."""
        result = 1
        for n in self.shape:
            result *= n
        return result

    def to_json(self) -> dict[str, Any]:
        """Inverse of `from_json`."""
        return {
            "geometry": self.geometry.to_json(),
            "dtype": self.dtype.str,
            "kind": self.kind,
            "num_channels": self.num_channels,
            "modality": self.modality,
            "name": self.name,
        }

    def to_image(self, load: Any) -> Image:
        """The image whose pixels a function reads."""
        return Image(
            load,
            self.geometry,
            kind=self.kind,
            modality=self.modality,
            dtype=self.dtype,
            num_channels=self.num_channels,
        )


class CaseStore:
    """All cases of a server.

    Args:
        settings: with the folders and limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._studies: dict[str, Case] = {}
        self._listed = -_FRESH_SECONDS
        self._images: OrderedDict[str, Image] = OrderedDict()

    def list(self) -> list[Case]:
        """All cases: the studies by name, then what was uploaded."""
        with self._lock:
            if time.monotonic() - self._listed >= _FRESH_SECONDS:
                self._studies = {case.id: case for case in self._scan()}
                self._listed = time.monotonic()
            studies = sorted(self._studies.values(), key=lambda case: case.name)
        uploads = (self._upload(f.name) for f in sorted(self._settings.uploads.iterdir()))
        return [*studies, *(case for case in uploads if case is not None)]

    def find(self, case_id: str) -> Case:
        """The case of an id.

        Raises:
            NotFound: there is none.
        """
        case = self._studies.get(case_id) or self._upload(case_id)
        if case is None and any(found.id == case_id for found in self.list()):
            case = self._studies[case_id]
        if case is None:
            raise NotFound("case", case_id)
        return case

    def open(self, case_id: str) -> Image:
        """The image of a case; the ones used last stay open.

        Raises:
            NotFound: there is no such case.
            FormatError, GeometryError: it cannot be read.
        """
        with self._lock:
            if case_id in self._images:
                self._images.move_to_end(case_id)
                return self._images[case_id]
        case = self.find(case_id)
        image = _open_voxels(case.path, self._settings) if case.origin == "voxels" else _read(case)
        with self._lock:
            image = self._images.setdefault(case_id, image)
            while len(self._images) > _OPEN_IMAGES:
                self._images.popitem(last=False)
        return image

    def facts(self, case_id: str) -> dict[str, Any]:
        """What a viewer needs to know of an image before it asks for slices."""
        from limner.adapters.intensity import WINDOWS

        case, image = self.find(case_id), self.open(case_id)
        presets = WINDOWS if image.modality == "CT" else {}
        return {
            **case.to_json(),
            "kind": image.kind,
            "modality": image.modality,
            "geometry": image.geometry.to_json(),
            "dtype": image.dtype.newbyteorder("<").str,
            "num_channels": image.num_channels,
            "num_frames": image.geometry.shape[0] if image.geometry.ndim == 3 else 1,
            "orientation": image.geometry.orientation,
            "window_presets": {name: list(limits) for name, limits in presets.items()},
        }

    def slice_pixels(self, case_id: str, index: int, axis: int = 0) -> NDArray[Any]:
        """Pixels of one slice as they are stored, ``(row, column[, channel])``.

        Raises:
            FormatError: there is no such slice.
        """
        image = self.open(case_id)
        if image.geometry.ndim == 2:
            if (index, axis) != (0, 0):
                raise FormatError("A 2D image has slice 0 across axis 0 only.")
            return image.array
        if axis == 0:
            return image.slice_at(index)
        if axis not in (1, 2) or not 0 <= index < image.geometry.shape[axis]:
            raise FormatError(f"There is no slice {index} across axis {axis}.")
        return np.asarray(np.take(image.array, index, axis=axis))

    def new_upload(self) -> Path:
        """A folder for an upload that has just begun; `keep_voxels` or `keep_file` ends it."""
        folder = self._settings.state / f"incoming-{secrets.token_hex(12)}"
        folder.mkdir(mode=0o700)
        return folder

    def keep_voxels(self, folder: Path, facts: VoxelFacts) -> Case:
        """Make a case of ``voxels.npy``; the same voxels on the same grid are the same case."""
        image = facts.to_image(partial(_map_voxels, folder / "voxels.npy"))
        case_id = voxels_id(image)
        if self._upload(case_id) is None:
            self._keep(folder, case_id, {"origin": "voxels", **facts.to_json()})
        else:
            shutil.rmtree(folder)
        return self.find(case_id)

    def keep_file(self, folder: Path, file: Path, name: str) -> Case:
        """Make a case of an uploaded file that was checked."""
        case_id = f"u-{secrets.token_hex(12)}"
        self._keep(folder, case_id, {"origin": "upload", "name": name, "file": file.name})
        return self.find(case_id)

    def remove(self, case_id: str) -> None:
        """Remove an upload.

        Raises:
            Refused: it is a study, which only its owner removes.
        """
        case = self.find(case_id)
        if case.origin == "study":
            raise Refused(403, "A study of the server's folder cannot be removed by a client.")
        with self._lock:
            self._images.pop(case_id, None)
        shutil.rmtree(self._settings.uploads / case_id)

    def _keep(self, folder: Path, case_id: str, record: dict[str, Any]) -> None:
        atomic_bytes(folder / "case.json", json.dumps(record).encode())
        folder.rename(self._settings.uploads / case_id)

    def _upload(self, case_id: str) -> Case | None:
        if not _is_upload_id(case_id):
            return None
        folder = self._settings.uploads / case_id
        try:
            record = json.loads((folder / "case.json").read_bytes())
            path = folder if record["origin"] == "voxels" else folder / Path(record["file"]).name
            return Case(case_id, str(record["name"]), path, record["origin"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _scan(self) -> Iterator[Case]:
        root = self._settings.studies
        if root is None:
            return
        found = 0
        for path in _find_images(root.resolve()):
            for case in _cases_of(path, root.resolve()):
                yield case
                found += 1
            if found >= _MOST_CASES:
                _log.warning("%s holds more than %d cases; the rest is left out.", root, found)
                return


def _is_upload_id(case_id: str) -> bool:
    return case_id[:2] in ("u-", "v-") and case_id[2:].isalnum() and case_id.isascii()


def _find_images(root: Path) -> Iterator[Path]:
    """Files of images, and folders with DICOM files; links that lead out are left alone."""
    series: set[Path] = set()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = not series.isdisjoint((here, *here.parents))  # of a folder that is read as a whole
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or (inside and path.suffix.lower() in _DICOM_SUFFIXES):
                continue
            found = _format_of(path) if path.resolve().is_relative_to(root) else None
            if found == "dicom.images" and not inside:
                inside = True
                series.add(here)
                yield here
            elif found is not None and found != "dicom.images":
                yield path


def _format_of(path: Path) -> str | None:
    """The format of a file that holds an image."""
    try:
        entry = recognise(path, read_head(path), labels=False)
    except LimnerError:
        return None
    return None if entry is None else entry.module


def _cases_of(path: Path, root: Path) -> Iterator[Case]:
    name = str(path.relative_to(root)) if path != root else path.name
    series: dict[str, str] = {}
    if path.is_dir():
        try:
            read(path, strict=False)
        except SeriesChoice as choice:
            series = choice.series
        except LimnerError:
            return
    for uid, line in (series or {"": name}).items():
        digest = hashlib.sha256(f"{name}\0{uid}".encode(errors="replace")).hexdigest()[:32]
        yield Case(f"s-{digest}", f"{name}: {line}" if uid else name, path, "study", uid or None)


def _read(case: Case) -> Image:
    return read(case.path, series=case.series)


def _open_voxels(folder: Path, settings: Settings) -> Image:
    facts = VoxelFacts.from_json(json.loads((folder / "case.json").read_bytes()), settings)
    return facts.to_image(partial(_map_voxels, folder / "voxels.npy"))


def _map_voxels(path: Path) -> NDArray[Any]:
    return cast(NDArray[Any], np.load(path, mmap_mode="r", allow_pickle=False))
