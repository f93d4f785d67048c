"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import limner
from import_graph import find_modules

PACKAGE = Path(limner.__file__).parent
WITH_EXAMPLES = [
    name
    for name, path in find_modules(PACKAGE).items()
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


def test_public_functions_have_examples() -> None:
    assert {"limner.geometry", "limner.metrics", "limner.sessions.open"} <= set(WITH_EXAMPLES)
