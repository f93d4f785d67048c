"""Import graph of the package: which module imports which, cycles, arrows between rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def find_modules(package: Path) -> dict[str, Path]:
    """Find all modules by dotted name; a package is the name of its ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a module imports, inside functions and for types only, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def build_graph(package: Path) -> Graph:
    """Build the graph: module → modules of the same package that it imports."""
    modules = find_modules(package)
    graph: Graph = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].add(target)
    return graph


def find_cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Find the groups of modules that import each other (strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in graph[name]:
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                cycles.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return sorted(cycles)


def room_of(module: str, depth: int = 1) -> str:
    """The package below the root that a module lies in, `depth` levels down: its room."""
    return ".".join(module.split(".")[1 : 1 + depth])


def private_imports(graph: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Find imports of an underscored module from outside its first-level package."""
    return {
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if any(_is_private(part) for part in target.split(".")[1:])
        and room_of(name) != room_of(target)
    }


def _is_private(part: str) -> bool:
    return part.startswith("_") and part not in ("_version", "__main__")


def upward_imports(
    graph: Mapping[str, set[str]], layers: list[set[str]], inside: str = ""
) -> set[tuple[str, str]]:
    """Find imports that do not point to a lower layer.

    Args:
        graph: of the package.
        layers: rooms, lowest first; rooms on one layer do not know each other.
        inside: a package such as ``"limner.train"`` whose sub-packages are the rooms; the root if
            empty. Modules in no listed room are left out.
    """
    level = {room: number for number, rooms in enumerate(layers) for room in rooms}

    def room(module: str) -> str | None:
        prefix = f"{inside}." if inside else f"{module.split('.')[0]}."
        name = module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None
        return name if name in level else None

    wrong = set()
    for name, targets in graph.items():
        here = room(name)
        for target in targets:
            there = room(target)
            if here is None or there is None or here == there:
                continue
            if level[there] >= level[here]:
                wrong.add((name, target))
    return wrong
