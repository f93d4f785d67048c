"""Imports point one way: a module imports only from layers below its own, and there is no cycle."""

from __future__ import annotations

from pathlib import Path

import pytest

import limner
from import_graph import (
    build_graph,
    find_cycles,
    private_imports,
    room_of,
    upward_imports,
)

PACKAGE = Path(limner.__file__).parent

# Lowest first. Neighbours on one level do not know each other.
LAYERS: list[set[str]] = [
    {"errors", "_version", "user_folders"},
    {"geometry", "colors", "label_values", "rle", "atomic", "packed_arrays"},
    {"prompts"},
    {"networks", "checkpoints", "io", "metrics", "runtime"},
    {"adapters", "phantoms"},
    {"datasets", "models", "render"},
    {"sessions"},
    {"pipeline", "client"},
    {"engine", "train", "bench"},
    {"export"},
    {"server"},
    {"cli"},
    {"__main__"},
]

# Layers among the sub-packages of a room; its other modules may stand anywhere.
INSIDE: dict[str, list[set[str]]] = {
    "limner.sessions": [{"history"}, {"answers"}, {"propagation"}],
    "limner.train": [{"data"}, {"simulate"}, {"tasks"}],
}

# Formats do not know each other, but for what one of them is made of: a PNG inside another file, a
# film inside DICOM, a TIFF as a frame.
FORMATS = {"coco", "dicom", "mgh", "mha", "nifti", "npz", "nrrd", "raster", "tiff", "video"}
MADE_OF = {
    ("coco", "raster"),
    ("nrrd", "raster"),
    ("tiff", "raster"),
    ("video", "raster"),
    ("video", "tiff"),
    ("dicom", "video"),
}

GRAPH = build_graph(PACKAGE)


def test_every_module_has_a_layer() -> None:
    rooms = {room_of(name) for name in GRAPH} - {""}
    assert rooms <= set().union(*LAYERS)


def test_imports_point_down() -> None:
    assert not upward_imports(GRAPH, LAYERS)


@pytest.mark.parametrize("package", INSIDE)
def test_imports_point_down_inside_a_package(package: str) -> None:
    assert {f"{package}.{part}" for part in set().union(*INSIDE[package])} <= set(GRAPH)
    assert not upward_imports(GRAPH, INSIDE[package], package)


def test_blocks_know_no_network() -> None:
    blocks = [name for name in GRAPH if name.startswith("limner.networks.blocks.")]
    wrong = {
        (name, target)
        for name in blocks
        for target in GRAPH[name]
        if room_of(target) == "networks" and room_of(target, 2) != "networks.blocks"
    }
    assert blocks
    assert not wrong


def test_formats_do_not_know_each_other() -> None:
    used = set()
    for name, targets in GRAPH.items():
        here = room_of(name, 2).removeprefix("io.")
        there = {room_of(t, 2).removeprefix("io.") for t in targets if room_of(t) == "io"}
        if here in FORMATS:
            used |= {(here, other) for other in there & FORMATS - {here}}
    assert used <= MADE_OF


def test_shells_know_sessions_by_their_public_face_only() -> None:
    """So that a session elsewhere, behind the same verbs, can stand in for one that runs here."""
    shells = {"bench", "cli", "engine", "render", "server", "client"}
    used = {
        target
        for name, targets in GRAPH.items()
        for target in targets
        if room_of(name) in shells and room_of(target) == "sessions"
    }
    public = {
        "limner.sessions",
        "limner.sessions.everything",
        "limner.sessions.refine_3d",
        "limner.sessions.wire",
    }
    assert "limner.sessions" in used
    assert used <= public


def test_only_the_top_imports_the_public_face() -> None:
    """`limner` itself resolves names of all layers, so a module below must not need it."""
    below = {name for name, targets in GRAPH.items() if "limner" in targets}
    assert {room_of(name) for name in below} <= {"cli", "__main__"}


def test_an_underscore_means_inside_its_package() -> None:
    assert not private_imports(GRAPH)


def test_modules_have_no_cycle() -> None:
    assert not find_cycles(GRAPH)


def test_models_do_not_import_io() -> None:
    models = [name for name in GRAPH if room_of(name) == "models"]
    assert models
    assert not {n for n in models if any(room_of(t) == "io" for t in GRAPH[n])}


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("models", "def f():\n    from limner.sessions import open_session\n", "up"),
        ("io", "import limner.metrics\n", "up"),
        ("cli", "from limner.sessions import open_session\n", ""),
        ("cli", "from limner.io import _inflate\n", "private"),
        ("io", "from limner.io import _inflate\n", ""),
        (
            "errors",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import limner.a\n",
            "cycle",
        ),
    ],
)
def test_a_planted_import_is_found(room: str, source: str, found: str, tmp_path: Path) -> None:
    package = tmp_path / "limner"
    for name in ("io/_inflate", "metrics/__init__", "sessions/__init__", f"{room}/planted"):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("def open_session(): ...\n")
    (package / f"{room}/planted.py").write_text(source)
    (package / "a.py").write_text("import limner.errors.planted\n")
    graph = build_graph(package)
    assert bool(upward_imports(graph, LAYERS)) == (found == "up")
    assert bool(private_imports(graph)) == (found == "private")
    assert bool(find_cycles(graph)) == (found == "cycle")
