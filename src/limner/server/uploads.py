"""Uploads: streamed to disk within limits, and read by a process of their own before they count."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from limner.errors import FormatError
from limner.io.formats import FORMATS
from limner.server.case_store import Case, VoxelFacts
from limner.server.failures import Refused
from limner.server.service import Service

_CHUNK = 4 << 20  # bytes that are written at a time
_SECONDS = 120  # that reading an upload may take
_MOST_MEMBERS = 20_000  # of an archive
_DETACHED = (".nhdr", ".mhd", ".hdr", ".img", ".hdr.gz", ".img.gz")  # name another file


async def receive_voxels(service: Service, facts: VoxelFacts, body: AsyncIterator[bytes]) -> Case:
    """Keep an array that comes as zlib.

    Raises:
        FormatError: it is not zlib, or not of the size that its facts say.
    """
    folder = service.cases.new_upload()
    try:
        with (folder / "voxels.npy").open("wb") as file:
            header = {"descr": facts.dtype.str, "fortran_order": False, "shape": facts.shape}
            np.lib.format.write_array_header_1_0(file, header)
            unpacker = zlib.decompressobj()
            left = facts.num_values * facts.dtype.itemsize
            async for chunk in body:
                data = chunk
                while data:
                    try:
                        values = unpacker.decompress(data, min(left, _CHUNK) + 1)
                    except zlib.error as error:
                        raise FormatError(f"The voxels are not zlib: {error}.") from error
                    left -= len(values)
                    if left < 0:
                        raise FormatError("There are more voxels than the facts say.")
                    file.write(values)
                    data = unpacker.unconsumed_tail
            if left or not unpacker.eof:
                raise FormatError(f"{left} bytes of voxels are missing; send the image again.")
        return await service.in_thread(lambda: service.cases.keep_voxels(folder, facts))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def receive_file(service: Service, name: str, body: AsyncIterator[bytes]) -> Case:
    """Keep an image file, or a .zip of one DICOM series.

    Raises:
        FormatError: of no kind that is read from one file, or it cannot be read.
        Refused: it takes too much to read.
    """
    suffix = _suffix_of(name)
    folder = service.cases.new_upload()
    try:
        file = folder / f"image{suffix}"
        with file.open("wb") as target:
            async for chunk in body:
                target.write(chunk)

        def keep() -> Case:
            place = _unpack(file, service.settings.max_upload) if suffix == ".zip" else file
            check_readable(place, service.settings.max_voxels)
            return service.cases.keep_file(folder, place, Path(name.replace("\\", "/")).name)

        return await service.in_thread(keep)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_readable(path: Path, max_voxels: int) -> None:
    """Read an image in a process of its own, whose memory and time are limited.

    Raises:
        FormatError: it cannot be read.
    """
    command = [sys.executable, "-m", "limner.server.check_upload", str(path), str(max_voxels)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Refused(413, f"Reading the upload took more than {_SECONDS} s.") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": "the reader ended without an answer; it may be too large"}
    if "error" in answer:
        text = str(answer["error"]).replace(str(path), "The upload")
        text = text.replace(str(path.parent), "the upload")
        raise FormatError(text)


def _suffix_of(name: str) -> str:
    """The known suffix of a client's file name; nothing else of it is used."""
    known = {s for entry in FORMATS if entry.images for s in entry.suffixes} | {".zip"}
    lower = name.lower()
    for suffix in sorted(known - set(_DETACHED), key=len, reverse=True):
        if lower.endswith(suffix):
            return suffix
    raise FormatError(
        f"{name[-40:]!r} has no suffix of an image in one file; a DICOM series goes as a .zip."
    )


def _unpack(archive: Path, most_bytes: int) -> Path:
    """Write the members of an archive under names of ours, within limits."""
    folder = archive.with_name("series")
    folder.mkdir()
    left = most_bytes
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            if len(members) > _MOST_MEMBERS:
                raise Refused(413, f"The archive holds more than {_MOST_MEMBERS} files.")
            for number, member in enumerate(members):
                with (
                    opened.open(member) as source,
                    (folder / f"{number:05}.dcm").open("wb") as file,
                ):
                    while chunk := source.read(_CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise Refused(413, f"The archive unpacks to over {most_bytes} bytes.")
                        file.write(chunk)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise FormatError(f"The archive cannot be unpacked: {error}.") from error
    archive.unlink()
    return folder
