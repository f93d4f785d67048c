"""Weights bundles: what arrives on the other machine is what left, or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner import models
from limner.checkpoints import store
from limner.checkpoints.bundle import MANIFEST, read_bundle, unpack_bundle, write_bundle
from limner.checkpoints.cards import WeightsCard
from limner.cli.__main__ import run
from limner.errors import CheckpointError
from limner.models import Variant
from limner.models.toy import CARD, Toy

NAMES = ("one.safetensors", "two.safetensors")
CARDS = {name: WeightsCard(name, (), "Apache-2.0") for name in NAMES}


def make_weights(path: Path, seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal(5000).astype("<f4").tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [5000], "data_offsets": [0, len(values)]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + values)
    return path.read_bytes()


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder of the machine without a network."""
    folder = tmp_path / "there"
    monkeypatch.setenv("LIMNER_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    files = []
    for seed, name in enumerate(NAMES):
        make_weights(tmp_path / name, seed)
        files.append((CARDS[name], tmp_path / name, ("fake/a", f"fake/{seed}")))
    write_bundle(tmp_path / "models.zip", files, {"fake/a": {"name": "fake/a"}})
    return tmp_path / "models.zip"


def test_what_is_unpacked_is_what_was_bundled(archive: Path, there: Path, tmp_path: Path) -> None:
    places = unpack_bundle(archive, CARDS)
    assert [place.name for place in places] == list(NAMES)
    for place in places:
        assert place.read_bytes() == (tmp_path / place.name).read_bytes()
        record = store.record_of(place)
        assert record is not None
        assert record.sha256 == hashlib.sha256(place.read_bytes()).hexdigest()
        assert record.source == str(archive)
    entries = read_bundle(archive)
    assert [entry.models for entry in entries] == [("fake/a", "fake/0"), ("fake/a", "fake/1")]


def test_only_the_models_that_are_named(archive: Path, there: Path) -> None:
    assert [place.name for place in unpack_bundle(archive, CARDS, ["fake/1"])] == [NAMES[1]]
    with pytest.raises(CheckpointError, match=r"does not hold fake/b; it holds fake/0, fake/1"):
        unpack_bundle(archive, CARDS, ["fake/b"])


def _rewrite(archive: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Write a bundle again with another manifest or other members."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(members.pop(MANIFEST))
    change(manifest, members)
    with zipfile.ZipFile(archive, "w") as new:
        new.writestr(MANIFEST, json.dumps(manifest))
        for name, content in members.items():
            new.writestr(name, content)


def _flip(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    content = bytearray(members[f"weights/{NAMES[1]}"])
    content[-1] ^= 1
    members[f"weights/{NAMES[1]}"] = bytes(content)


def _escape(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    manifest["files"][0]["name"] = "../../evil.safetensors"
    members["weights/../../evil.safetensors"] = members.pop(f"weights/{NAMES[0]}")


def _absolute(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    manifest["files"][0]["name"] = "/tmp/evil.safetensors"
    members["weights//tmp/evil.safetensors"] = members.pop(f"weights/{NAMES[0]}")


def _extra(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    members["../evil"] = b"evil"


def _shorter(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    members[f"weights/{NAMES[1]}"] = members[f"weights/{NAMES[1]}"][:-4]


def _newer(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    manifest["limner_bundle"] = 2


def _no_weights(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    """The hash is right, and the file is none: a script where weights are said to be."""
    content = b"#!/bin/sh\n" * 40
    members[f"weights/{NAMES[1]}"] = content
    manifest["files"][1] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_flip, "hash is not the one in the manifest"),
        (_escape, "no model of this limner uses"),
        (_absolute, "no model of this limner uses"),
        (_extra, "other files than"),
        (_shorter, "has not the size"),
        (_newer, "bundle of format 2"),
        (_no_weights, "safetensors|weights"),
    ],
)
def test_what_is_wrong_is_refused_as_a_whole(
    change: Any, words: str, archive: Path, there: Path, tmp_path: Path
) -> None:
    _rewrite(archive, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=words):
        unpack_bundle(archive, CARDS)
    assert sorted(p for p in tmp_path.rglob("*") if p != there) == before, "nothing was written"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.999])
def test_a_truncated_archive_is_refused(
    share: float, archive: Path, there: Path, tmp_path: Path
) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"no bundle of limner, or it is damaged"):
        unpack_bundle(archive, CARDS)
    assert not there.exists() or not list(there.iterdir())


@pytest.mark.parametrize("position", [0.3, 0.7])
def test_damage_in_the_middle_is_found(position: float, archive: Path, there: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[int(len(content) * position)] ^= 255
    archive.write_bytes(content)
    with pytest.raises(CheckpointError):
        unpack_bundle(archive, CARDS)
    assert not list(there.iterdir())


def test_other_archives_are_refused(there: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"holds no limner-bundle\.json"):
        unpack_bundle(tmp_path / "a.zip", CARDS)


def test_weights_that_are_not_the_published_ones_are_refused(archive: Path, there: Path) -> None:
    known = {name: replace(card, sha256="0" * 64) for name, card in CARDS.items()}
    with pytest.raises(CheckpointError, match="another file than the published one"):
        unpack_bundle(archive, known)


def test_kept_weights_stay_where_a_bundle_is_refused(archive: Path, there: Path) -> None:
    unpack_bundle(archive, CARDS)
    before = {path: path.read_bytes() for path in there.iterdir()}
    _rewrite(archive, _flip)
    with pytest.raises(CheckpointError):
        unpack_bundle(archive, CARDS)
    assert {path: path.read_bytes() for path in there.iterdir()} == before


def test_the_commands(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = tuple(CARDS.values())
    tables = {
        "fake": {
            "a": Variant(replace(CARD, name="fake/a"), lambda **_: Toy(), cards),
            "b": Variant(replace(CARD, name="fake/b"), lambda **_: Toy(), cards[1:]),
        }
    }
    monkeypatch.setattr(models, "list_families", lambda: tuple(tables))
    monkeypatch.setattr(models, "_variants", tables.__getitem__)
    archive = str(tmp_path / "models.zip")
    assert run(["models", "bundle", "-o", archive]) == 2
    assert "limner models fetch NAME" in capsys.readouterr().err
    for seed, card in enumerate(cards):
        make_weights(tmp_path / card.name, seed)
        store.add(card, tmp_path / card.name)
    assert run(["models", "bundle", "-o", archive]) == 0
    assert "fake/a, fake/b: two.safetensors" in capsys.readouterr().out
    shutil.rmtree(there)
    assert run(["models", "bundle", "fake/b", "-o", archive]) == 2, "its weights are not here"
    assert run(["models", "add", "--from", archive, "fake/b"]) == 0
    assert {path.name for path in there.iterdir()} == {NAMES[1], NAMES[1] + ".json"}
    assert run(["models", "add", "--from", archive]) == 0
    assert (there / NAMES[0]).read_bytes() == (tmp_path / NAMES[0]).read_bytes()
    assert run(["models", "add", "fake/a"]) == 2
