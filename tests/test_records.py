"""What a run says about itself, in JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from limner.train import tensorboard
from limner.train.log import RunLog
from limner.train.tensorboard import TensorBoardWriter


def _records(path: Path) -> list[bytes]:
    """The events of a file, checksums verified; a torn last one is passed over."""
    content, at, found = path.read_bytes(), 0, []
    while at + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        event = content[at + 12 : at + 12 + size]
        if len(content) < at + 16 + size:
            break
        assert content[at + 8 : at + 12] == tensorboard._checksum(content[at : at + 8])
        assert content[at + 12 + size : at + 16 + size] == tensorboard._checksum(event)
        found.append(event)
        at += 16 + size
    return found


def _fields(message: bytes) -> dict[int, list[bytes | int]]:
    """A protobuf message, read by the rules of its wire format."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found.setdefault(key >> 3, []).append(varint())
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        found.setdefault(key >> 3, []).append(message[at : at + size])
        at += size
    return found


def _points(folder: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) as TensorBoard shows them: what was superseded is left out."""
    found: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        for event in map(_fields, _records(path)):
            (step,) = event.get(2, [0])
            if 7 in event:
                found = [point for point in found if point[1] < step]
            for summary in event.get(5, []):
                for value in map(_fields, _fields(summary)[1]):
                    (number,) = struct.unpack("<f", value[2][0])
                    found.append((value[1][0].decode(), step, number))
    return found


def _write(records: RunLog, *steps: int) -> None:
    for step in steps:
        records.count(4, {"loss": torch.tensor(float(step))})
        records.write(step, {"rate": 0.5})


def test_bytes_are_those_of_other_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tensorboardX 2.6 and protobuf write the same event."""
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1.5)
    writer = TensorBoardWriter(tmp_path, 299)
    writer.add(300, {"train/loss": 0.25})
    writer.close()
    (path,) = tmp_path.iterdir()
    version, start, points = _records(path)
    assert version.hex() == "09000000000000f83f1a0d627261696e2e4576656e743a32"
    assert start.hex() == "09000000000000f83f10ac023a020801"
    assert points.hex() == "09000000000000f83f10ac022a130a110a0a747261696e2f6c6f7373150000803e"
    # The check value of CRC-32C is e3069283; the frame rotates it and adds a constant.
    assert tensorboard._checksum(b"123456789").hex() == "e5b08ac7"


def test_each_step_is_told_once_after_a_kill(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    killed = RunLog(log, 0)
    _write(killed, 1, 2, 3)  # not closed: what was said is on disk already
    assert [s for name, s, _ in _points(tmp_path / "tensorboard") if "loss" in name] == [1, 2, 3]
    (file,) = (tmp_path / "tensorboard").iterdir()
    with file.open("ab") as torn:
        torn.write(b"\x30\x00\x00")
    resumed = RunLog(log, 2)
    _write(resumed, 3, 4)
    resumed.write_validation(4, {"mean": {"box": 0.75}, "2d/discs": {"box": 0.5}})
    resumed.close()
    killed.close()
    points = _points(tmp_path / "tensorboard")
    losses = [(step, value) for name, step, value in points if name == "train/loss"]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert points[-2:] == [("validation_box/mean", 4, 0.75), ("validation_box/2d/discs", 4, 0.5)]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_files_of_many_starts_stay_apart_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.9000000000.elsewhere").write_bytes(b"")
    for step in range(3):
        writer = TensorBoardWriter(tmp_path, step)
        writer.add(step + 1, {"a": float(step)})
        writer.close()
    assert len(list(tmp_path.iterdir())) == 4
    assert _points(tmp_path) == [("a", 1, 0.0), ("a", 2, 1.0), ("a", 3, 2.0)]
