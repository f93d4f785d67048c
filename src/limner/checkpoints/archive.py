"""Weights files by content: PyTorch's archive, its older form, safetensors. Values stay on disk."""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from limner import errors
from limner.checkpoints._pickle import Storage, Tensor, read_pickle
from limner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MOST_INDEX = 64 * 2**20  # bytes of names and shapes; those of the largest known files are 1 MB
_HEAD = 512  # bytes that tell what a file is
# Files of PyTorch before 1.6 begin with three small pickles, the first of which is this number.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_OLD_PREAMBLE = 3
_SAFE_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
ITEM_BYTES |= {"int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error, zlib.error)
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # as Hugging Face lays models out
_EXPORT = "torch.save(model.state_dict(), 'weights.pth')"


@dataclass(frozen=True, eq=False)
class Archive:
    """A weights file whose values have not been read.

    Attributes:
        path: of the file.
        value: what it holds, `limner.checkpoints._pickle` says of what kinds.
        places: first byte and number of bytes of each storage.
    """

    path: Path
    value: Any
    places: Mapping[str, tuple[int, int]]


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a folder as Hugging Face lays models out.

    Raises:
        CheckpointError: neither.
    """
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"There is no weights file {path}.")
        return path
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in _IN_FOLDER):
        raise CheckpointError(f"{path} holds weights in several parts; save them as one file.")
    raise CheckpointError(
        f"{path} is a folder without {' or '.join(_IN_FOLDER)}; name the weights file."
    )


def open_archive(path: Path) -> Archive:
    """Read what a weights file holds and where, without its values and without running its code.

    Raises:
        CheckpointError: not a weights file, damaged or cut off; the message says which.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            _refuse_strangers(path, head)
            file.seek(0)
            if head.startswith(b"PK"):
                return _zipped(path, file)
            if head[8:9] == b"{":
                return _safe(path, file)
            return _old(path, file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"{path} cannot be read: {reason}.") from error


def _refuse_strangers(path: Path, head: bytes) -> None:
    """Files that people have by mistake, by their first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for strange, what in (
        (not head, "is empty; get it again"),
        (
            text.startswith(b"version https://git-lfs"),
            "is a Git LFS pointer, not the file it points to; run git lfs pull, or download it",
        ),
        (
            text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")),
            "is a web page, saved in place of the file; open its address in a browser, "
            "and download the file from there",
        ),
        (head.startswith(b"\x1f\x8b"), "is compressed with gzip; unpack it"),
        (
            head[257:262] == b"ustar",
            "is a tar archive; unpack it, or, if PyTorch before 0.4 wrote it, save it anew",
        ),
        (head.startswith(b"\x89HDF"), "is an HDF5 file, not weights for PyTorch"),
    ):
        if strange:
            raise CheckpointError(f"{path} {what}.")


def _zipped(path: Path, file: IO[bytes]) -> Archive:
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
        found = [n for n in names if n.count("/") <= 1 and n.rpartition("/")[2] == "data.pkl"]
        if not found:
            raise CheckpointError(
                f"{path} is a zip archive without weights of PyTorch in it; unpack it and give "
                "the file inside."
            )
        root = found[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program, not plain weights. Where it came from: "
                "model = torch.jit.load(FILE); " + _EXPORT
            )
        if _member(path, archive, f"{root}byteorder", b"little").strip() != b"little":
            raise CheckpointError(f"{path} is from a big-endian machine; save it on another.")
        index = _member(path, archive, found[0], None)
        value, _ = _pickled(path, io.BytesIO(index))
        return Archive(path, value, _members(path, archive, file, f"{root}data/"))
    except _ZIP_ERRORS as error:
        raise CheckpointError(_cut_off(path)) from error


def _member(path: Path, archive: zipfile.ZipFile, name: str, default: bytes | None) -> bytes:
    if name not in archive.namelist():
        assert default is not None
        return default
    if archive.getinfo(name).file_size > _MOST_INDEX:
        raise CheckpointError(f"{path} declares an index of absurd size; it is damaged.")
    return archive.read(name)


def _members(
    path: Path, archive: zipfile.ZipFile, file: IO[bytes], root: str
) -> dict[str, tuple[int, int]]:
    """Where the storages lie: in a zip archive, each behind a header of its own."""
    places, end = {}, path.stat().st_size
    for info in archive.infolist():
        if not info.filename.startswith(root):
            continue
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path} was zipped anew with compression; get the original.")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CheckpointError(_cut_off(path))
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        first = info.header_offset + 30 + sum(lengths)
        if first + info.file_size > end:
            raise CheckpointError(_cut_off(path))
        places[info.filename.removeprefix(root)] = first, info.file_size
    return places


class _Limited:
    """The part of a file that an index may be in; a damaged one cannot make us read gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _MOST_INDEX
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self._counted(self._file.read(min(count, self._left + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("it is larger than any")
        return content


def _pickled(path: Path, file: Any) -> tuple[Any, dict[str, str]]:
    try:
        return read_pickle(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is {error}; get it again.") from error


def _old(path: Path, file: IO[bytes]) -> Archive:
    """PyTorch before 1.6: values one after the other, each storage behind its length."""
    head = file.read(_HEAD)
    if _OLD_MAGIC not in head[:32]:
        if head[:1] == b"\x80":
            raise CheckpointError(
                f"{path} is a Python pickle that torch.save did not write. Where it was made, "
                f"write {_EXPORT}."
            )
        raise CheckpointError(
            f"{path} is no weights file; those of PyTorch (.pth, .pt, .bin) and .safetensors are."
        )
    file.seek(0)
    index = _Limited(file)
    for _ in range(_OLD_PREAMBLE):
        _pickled(path, index)
    value, dtypes = _pickled(path, index)
    keys, _ = _pickled(path, index)
    places, end = {}, path.stat().st_size
    for key in keys if isinstance(keys, list) else ():
        size = int.from_bytes(file.read(8), "little") * ITEM_BYTES[dtypes.get(key, "uint8")]
        if not isinstance(key, str) or file.tell() + size > end:
            raise CheckpointError(_cut_off(path))
        places[key] = file.tell(), size
        file.seek(size, io.SEEK_CUR)
    return Archive(path, value, places)


def _safe(path: Path, file: IO[bytes]) -> Archive:
    """safetensors: the length of a JSON index, the index, the values."""
    length, end = int.from_bytes(file.read(8), "little"), path.stat().st_size
    if length > min(_MOST_INDEX, end - 8):
        raise CheckpointError(_cut_off(path))
    try:
        index = json.loads(file.read(length))
        found, places = {}, {}
        for name, facts in index.items():
            if name == "__metadata__":
                continue
            first, last = facts["data_offsets"]
            shape = tuple(facts["shape"])
            dtype = _SAFE_DTYPES.get(facts["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{path}: {name} is of type {facts['dtype']}, which has no "
                    "counterpart here; save the weights as float16 or float32."
                )
            if not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
                raise ValueError(name)
            if 8 + length + last > end or math.prod(shape) * ITEM_BYTES[dtype] != last - first:
                raise CheckpointError(_cut_off(path))
            stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            found[name] = Tensor(Storage(name, dtype, math.prod(shape)), dtype, 0, shape, stride)
            places[name] = 8 + length + first, last - first
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its index cannot be read.") from error
    return Archive(path, found, places)


def _cut_off(path: Path) -> str:
    return (
        f"{path} is cut off or damaged, it has {path.stat().st_size:,} bytes; get it again, whole."
    )


def build(archive: Archive, tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU. Their values are mapped, so the disk is read where they are used.

    Changing them does not change the file. The file has to stay while they live.

    Raises:
        CheckpointError: one reaches beyond its storage, or the storage is not there.
        MissingDependency: PyTorch is not installed.
    """
    torch = errors.require("torch", extra="torch", purpose="read weights for PyTorch")
    with archive.path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    built = {}
    for name, tensor in tensors.items():
        first, count = _place(archive, name, tensor)
        dtype = getattr(torch, tensor.dtype)
        if count == 0:
            built[name] = torch.empty(tensor.shape, dtype=dtype)
            continue
        size = ITEM_BYTES[tensor.dtype]
        aligned = first % size == 0
        source = whole if aligned else bytearray(whole[first : first + count * size])
        flat = torch.frombuffer(source, dtype=dtype, count=count, offset=first if aligned else 0)
        built[name] = flat.as_strided(tensor.shape, tensor.stride)
    return built


def _place(archive: Archive, name: str, tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its file, and the number of values from there on."""
    storage = tensor.storage
    if storage.key not in archive.places:
        raise CheckpointError(_cut_off(archive.path))
    first, length = archive.places[storage.key]
    size = ITEM_BYTES[tensor.dtype]
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    count = steps + 1 if math.prod(tensor.shape) else 0
    begin = storage.start * ITEM_BYTES[storage.dtype] + tensor.offset * size
    if begin + count * size > length or math.prod(tensor.shape) > count:
        raise CheckpointError(
            f"{archive.path} is damaged: {name} of shape {tensor.shape} is larger than its values."
        )
    return first + begin, count
