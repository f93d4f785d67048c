"""How much the package weighs: the figures that docs/dependencies.md gives are those of today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import limner

PACKAGE = Path(limner.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "dependencies.md"
MOST_WEIGHTS = 40e6
MOST_PACKAGE = 50e6  # the wheel, which compresses little: weights do not


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]


def test_the_package_is_small_and_the_document_says_how_small() -> None:
    weights = sum(p.stat().st_size for p in _files(PACKAGE / "weights"))
    whole = sum(p.stat().st_size for p in _files(PACKAGE))
    print(f"weights {weights / 1e6:.1f} MB, package {whole / 1e6:.1f} MB")
    assert weights < MOST_WEIGHTS
    assert whole < MOST_PACKAGE
    said = re.search(r"the weights of the three built-in models are ([\d.]+) MB", _document())
    assert said is not None
    assert float(said[1]) == pytest.approx(weights / 1e6, abs=0.5)


def test_every_weight_is_stored_once() -> None:
    """Graphs hold no weights: each is a small fraction of the file that it points into."""
    plain = sorted((PACKAGE / "weights").glob("*.safetensors"))
    assert [p.stem for p in plain] == ["limner-2d", "limner-3d", "limner-seq"]
    for file in plain:
        graphs = sorted(file.parent.glob(f"{file.stem}*.onnx"))
        facts = json.loads(file.with_suffix(".json").read_text())
        assert sorted(facts["sha256"]) == sorted([file.name, *(g.name for g in graphs)])
        assert sum(g.stat().st_size for g in graphs) < 0.05 * file.stat().st_size


def _document() -> str:
    return " ".join(DOCUMENT.read_text(encoding="utf-8").split())
