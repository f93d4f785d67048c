"""Importing limner costs NumPy at most; heavy packages wait until they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "PIL",
    "av",
    "cv2",
    "fastapi",
    "highdicom",
    "imagecodecs",
    "matplotlib",
    "nibabel",
    "nrrd",
    "openvino",
    "pydicom",
    "scipy",
    "skimage",
    "tifffile",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
}
LIGHT = ["limner", "limner.prompts", "limner.io", "limner.metrics", "limner.models"]
LIGHT += ["limner.client", "limner.sessions", "limner.prompts.simulate", "limner.prompts.raster"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    loaded = _modules_after(f"import {module}")
    assert not loaded & HEAVY


def test_command_line_help_imports_no_numpy() -> None:
    loaded = _modules_after("import limner.cli.__main__")
    assert not loaded & (HEAVY | {"numpy"})


@pytest.mark.slow
def test_listing_the_models_imports_no_framework() -> None:
    listing = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    loaded = _modules_after(
        f"{listing}    from limner.cli.__main__ import run\n    assert run(['models']) == 0"
    )
    assert not loaded & {"torch", "openvino", "safetensors"}


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
