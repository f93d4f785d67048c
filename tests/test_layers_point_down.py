"""Imports point one way: a module may import only from layers below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import limner

PACKAGE = Path(limner.__file__).parent

# Lowest first. Neighbours on one level do not know each other.
LAYERS: list[set[str]] = [
    {"errors", "_version"},
    {"geometry", "rle", "atomic"},
    {"prompts"},
    {"networks", "checkpoints", "io", "metrics", "runtime"},
    {"adapters", "phantoms"},
    {"datasets", "models"},
    {"sessions"},
    {"pipeline", "render"},
    {"engine", "train", "bench"},
    {"export"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _imports(tree: ast.AST) -> set[str]:
    """First-level names below `limner` that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("limner.")}
    return found & set(LEVEL)


def _violations(room: str, source: str) -> set[str]:
    return {
        f"{room} imports {other}"
        for other in _imports(ast.parse(source)) - {room}
        if LEVEL[other] >= LEVEL[room]
    }


def test_every_module_has_a_layer() -> None:
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__"} <= set(LEVEL)


def test_imports_point_down() -> None:
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            wrong |= {f"{path.name}: {v}" for v in _violations(room, path.read_text())}
    assert not wrong


def test_a_planted_upward_import_is_found() -> None:
    assert _violations("models", "def f():\n    from limner.sessions import open_session\n")
    assert _violations("io", "import limner.metrics\n")
    assert not _violations("cli", "from limner.sessions import open_session\n")


def test_models_do_not_import_io() -> None:
    for path in (PACKAGE / "models").rglob("*.py"):
        assert "io" not in _imports(ast.parse(path.read_text())), path.name
