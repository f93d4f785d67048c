"""Docstrings name what there is: every parameter and attribute that one describes exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import limner

PACKAGE = Path(limner.__file__).parent
_SECTION = re.compile(r"\n(Args|Attributes):\n((?:    .*\n|\n)+)")
_ENTRY = re.compile(r"^    (?! )([\w*, ]+):", re.MULTILINE)


def _described(docstring: str) -> set[str]:
    """Names that the Args or Attributes section of a docstring describes."""
    section = _SECTION.search(docstring + "\n")
    if section is None:
        return set()
    entries = _ENTRY.findall(section.group(2))
    return {name.strip().lstrip("*") for entry in entries for name in entry.split(",")}


def _parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    found = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return found | {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}


def _members(node: ast.ClassDef) -> set[str]:
    """Fields, methods, properties, what methods set on self, and parameters of the constructor."""
    found: set[str] = set()
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
        elif isinstance(part, ast.Assign):
            found |= {t.id for t in part.targets if isinstance(t, ast.Name)}
        elif isinstance(part, ast.FunctionDef):
            found.add(part.name)
            found |= _parameters(part) if part.name == "__init__" else set()
            found |= {s.attr for s in ast.walk(part) if isinstance(s, ast.Attribute)}
    return found


def _strangers(source: str) -> Iterator[str]:
    """Functions and classes whose docstring describes a name that they do not have."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        inherits = isinstance(node, ast.ClassDef) and bool(node.bases)
        known = _parameters(node) if isinstance(node, ast.FunctionDef) else _members(node)
        extra = _described(ast.get_docstring(node) or "") - known
        if extra and not inherits:
            yield f"{node.name}: {', '.join(sorted(extra))}"


def test_docstrings_describe_parameters_that_exist() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}: {found}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in _strangers(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_stale_name_is_found() -> None:
    source = 'def f(view):\n    """Do.\n\n    Args:\n        scene: what is seen.\n    """\n'
    assert list(_strangers(source)) == ["f: scene"]
    assert not list(_strangers(source.replace("scene:", "view:")))
