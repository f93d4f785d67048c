"""TensorBoard event files, written without TensorBoard: they are a few framed fields, so that
training needs no package for them.

The format: records of TFRecord (https://www.tensorflow.org/tutorials/load_data/tfrecord), each an
`Event` of tensorflow/core/util/event.proto. One file per start of a run; the first event after the
version says from which step on older files are superseded.
"""

from __future__ import annotations

import functools
import struct
import time
from pathlib import Path

_CASTAGNOLI = 0x82F63B78  # CRC-32C, bits reversed
_MASK = 0xA282EAD8  # of TFRecord, added to the rotated checksum
_START = 1  # SessionLog.START


class TensorBoardWriter:
    """Writes scalars; every event is on its way to the disk when `add` returns.

    Args:
        folder: made if needed; TensorBoard shows it with ``tensorboard --logdir``.
        step: at which the run stands; what older files say about later steps is superseded.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _next(folder).open("xb", buffering=0)
        self._event(_text(3, "brain.Event:2"))
        self._event(_integer(2, step + 1) + _bytes(7, _integer(1, _START)))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Points of several curves.

        Args:
            step: their place along the curve.
            values: by name; names with a slash are grouped by what comes before it.
        """
        points = [_text(1, name) + _float(2, value) for name, value in values.items()]
        summary = b"".join(_bytes(1, point) for point in points)
        self._event(_integer(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _event(self, fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + fields
        size = struct.pack("<Q", len(event))
        self._file.write(size + _checksum(size) + event + _checksum(event))


def _next(folder: Path) -> Path:
    """A new file that TensorBoard, which reads in the order of names, reads last."""
    numbers = [int(p.name.split(".")[3]) for p in folder.glob("events.out.tfevents.[0-9]*.*")]
    number = max(int(time.time()), *(n + 1 for n in numbers), 0)
    return folder / f"events.out.tfevents.{number:010d}.limner"


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _integer(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _checksum(content: bytes) -> bytes:
    value = 0xFFFFFFFF
    table = _table()
    for byte in content:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    rotated = (value >> 15 | value << 17) + _MASK
    return struct.pack("<I", rotated & 0xFFFFFFFF)


@functools.cache
def _table() -> tuple[int, ...]:
    values = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        values.append(value)
    return tuple(values)
