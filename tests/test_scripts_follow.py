"""Scripts beside the package follow it: what they import from limner exists."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").rglob("*.py")])


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a script imports from limner, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "limner":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.split(".")[0] == "limner")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_exists(script: Path) -> None:
    pytest.importorskip("torch")
    for module, name in _imports(script):
        home = importlib.import_module(module)
        if name and not hasattr(home, name):
            importlib.import_module(f"{module}.{name}")
