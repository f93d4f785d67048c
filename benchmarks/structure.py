"""Print the measures of the code's structure as a table, for one checkout or several side by side.

    python benchmarks/structure.py [LABEL=CHECKOUT …]

A checkout is a folder with ``src/limner`` and ``tests``; without any it is the one that this file
lies in. An older state is one ``git worktree add FOLDER COMMIT`` away.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))

from import_graph import (  # noqa: E402
    build_graph,
    find_cycles,
    find_modules,
    private_imports,
    room_of,
    upward_imports,
)

LONG_MODULE, LONG_FUNCTION = 400, 50  # lines
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def measure(checkout: Path) -> dict[str, object]:
    """Measure one checkout: what is counted → how many."""
    package = checkout / "src" / "limner"
    modules, graph = find_modules(package), build_graph(package)
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    lines = {name: source.count("\n") for name, source in sources.items()}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    functions = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, Function)]
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in functions]
    private = [name for name in modules if _is_private(name)]
    crossing = private_imports(graph)
    cycles = find_cycles(graph)
    public = [node for tree in trees.values() for node in _public(tree)]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    return {
        "modules": len(modules),
        "lines": f"{sum(lines.values()):,}",
        "median lines of a module": round(statistics.median(lines.values())),
        f"modules over {LONG_MODULE} lines": sum(n > LONG_MODULE for n in lines.values()),
        "private modules": f"{len(private)} ({len(private) / len(modules):.0%})",
        "private modules that other packages import": len({target for _, target in crossing}),
        "such imports": len(crossing),
        "median lines of a function": round(statistics.median(lengths)),
        f"functions over {LONG_FUNCTION} lines": sum(n > LONG_FUNCTION for n in lengths),
        "public functions and classes with a docstring": f"{documented / len(public):.0%}",
        "functions with all types": f"{sum(map(_is_typed, functions)) / len(functions):.0%}",
        "import cycles (modules in them)": f"{len(cycles)} ({sum(map(len, cycles))})",
        "imports upwards": _count_upward(checkout, graph),
        "imports of the public face from below it": sum(
            "limner" in targets and room_of(name) not in ("cli", "__main__")
            for name, targets in graph.items()
        ),
        "file names in several packages": _count_shared_names(modules),
        "class names in several modules": _count_shared_classes(trees),
    }


def _is_private(module: str) -> bool:
    last = module.rpartition(".")[2]
    return last.startswith("_") and last not in ("_version", "__main__")


def _public(tree: ast.Module) -> list[Definition]:
    """Public classes and functions of a module, and public methods of public classes."""
    found: list[Definition] = []
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *Function)) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [
                    n for n in node.body if isinstance(n, Function) and not n.name.startswith("_")
                ]
    return found


def _is_typed(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
    untyped = [a for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    return not untyped and (node.returns is not None or node.name == "__init__")


def _count_upward(checkout: Path, graph: dict[str, set[str]]) -> str:
    """Imports against the layers that the checkout's own test lists."""
    for name in ("test_import_layers.py", "test_layers_point_down.py"):
        path = checkout / "tests" / name
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "LAYERS":
                assert node.value is not None
                return str(len(upward_imports(graph, ast.literal_eval(node.value))))
    return "–"


def _count_shared_names(modules: dict[str, Path]) -> int:
    """File names, leading underscores aside, that occur in two or more first-level packages."""
    rooms: dict[str, set[str]] = {}
    for name, path in modules.items():
        if path.stem != "__init__":
            rooms.setdefault(path.stem.lstrip("_"), set()).add(room_of(name))
    return sum(len(found) > 1 for found in rooms.values())


def _count_shared_classes(trees: dict[str, ast.Module]) -> int:
    names = Counter(
        node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)
    )
    return sum(count > 1 for count in names.values())


def main() -> None:
    """Print the table."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:]) or {"now": str(HERE)}
    columns = {label: measure(Path(folder)) for label, folder in given.items()}
    print(f"| measure | {' | '.join(columns)} |")
    print("| --- |" + " ---: |" * len(columns))
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(str(column[row]) for column in columns.values())} |")


if __name__ == "__main__":
    main()
