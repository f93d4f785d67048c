"""The rule of synthetic weights gives the tensors that the golden outputs were made with."""

from __future__ import annotations

import pytest

import golden_rule
from parity import GOLDEN

_LARGE = 12_000_000  # values: of larger systems the golden stages themselves show it

SYSTEMS = sorted(path.parent.name for path in GOLDEN.glob("*/keys.json"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_synthetic_weights_are_those_of_the_goldens(name: str) -> None:
    spec = golden_rule.load_spec(GOLDEN / name / "keys.json")
    if spec.get("values", _LARGE) >= _LARGE:
        assert spec["keys"]
        return
    assert golden_rule.digest(golden_rule.fill(spec["keys"])) == spec["digest"]


def test_goldens_are_small() -> None:
    total = sum(path.stat().st_size for path in GOLDEN.rglob("*.*"))
    assert total < 12_000_000
