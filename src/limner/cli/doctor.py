"""``limner doctor``: what is installed, what is missing, what to do about it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata, util

import typer

from limner._version import __version__
from limner.cli import _options as options

# What needs it: distribution, import name, extra that installs it (None: part of the core).
_PARTS = (
    ("read and write NIfTI", "nibabel", "nibabel", None),
    ("read DICOM", "pydicom", "pydicom", None),
    ("write DICOM SEG", "highdicom", "highdicom", None),
    ("read pictures", "pillow", "PIL", None),
    ("read TIFF", "tifffile", "tifffile", None),
    ("decode JPEG-LS, JPEG 2000, lossless JPEG, 16-bit PNG", "imagecodecs", "imagecodecs", None),
    ("fast gzip", "isal", "isal", None),
    ("classical models", "scikit-image", "skimage", None),
    ("run networks on the CPU", "openvino", "openvino", None),
    ("read video files", "av", "av", "video"),
    ("train, and run published models", "torch", "torch", "torch"),
)


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    what: str
    found: str | None
    needed: bool
    advice: str | None


def doctor(as_json: options.AsJson = False) -> None:
    """Check the installation and say what to do about what is missing."""
    checks = [_part(*part) for part in _PARTS]
    facts = {
        "limner": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "models": _num_models(),
        **_runtime(),
    }
    broken = [c for c in checks if c.needed and c.found is None]
    if as_json:
        print(json.dumps({**facts, "parts": [asdict(c) for c in checks]}, indent=2))
    else:
        for key, value in facts.items():
            print(f"{key.replace('_', ' '):>12}  {value}")
        for check in checks:
            mark = "ok" if check.found else ("MISSING" if check.needed else "–")
            print(f"{mark:>12}  {check.what}: {check.found or check.advice}")
        print("Research use only; not a medical device.")
    if broken:
        raise typer.Exit(2)


def _part(what: str, distribution: str, module: str, extra: str | None) -> Check:
    found = None
    if util.find_spec(module) is not None:
        try:
            found = f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            found = f"{distribution}, version unknown"
    target = "limner" if extra is None else f"limner[{extra}]"
    advice = None if found else f"pip install --force-reinstall '{target}'"
    if extra is not None and advice is not None:
        advice = f"optional; pip install '{target}'"
    return Check(what, found, extra is None, advice)


def _memory_gib() -> float:
    from limner.io.limits import physical_memory

    return round(physical_memory() / 2**30, 1)


def _runtime() -> dict[str, str]:
    from limner import errors, runtime

    try:
        return runtime.facts()
    except errors.MissingDependency:
        return {"runtime": "none: OpenVINO is missing"}


def _num_models() -> int:
    from limner.models import list_models

    return len(list_models())
