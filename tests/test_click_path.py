"""From `session.predict` to the painted click is a way that a reader can follow."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

MOST_CALLS, MOST_FILES = 8, 10


@pytest.fixture
def click_path(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that measures it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("click_path")


@pytest.mark.parametrize("warm", [False, True])
def test_a_click_is_painted_after_few_calls_in_few_files(
    click_path: ModuleType, warm: bool
) -> None:
    found = click_path.trace_click(warm=warm)
    assert found.to_paint[0].endswith("predict")
    assert found.to_paint[-1].endswith("paint_ball")
    assert len(found.to_paint) <= MOST_CALLS, found.to_paint
    assert len(found.files_to_paint) <= MOST_FILES, found.to_paint
