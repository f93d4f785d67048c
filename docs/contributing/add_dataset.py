"""Add a data set layout: one module in ``datasets/`` with DESCRIPTION, sniff and open_dataset."""

from __future__ import annotations

from package_copy import PackageCopy

LAYOUT = '''
"""Pairs in one folder: ``NAME_image.png`` and ``NAME_mask.png``."""

from __future__ import annotations

from pathlib import Path

from limner.datasets.record import Case, Dataset

DESCRIPTION = "NAME_image.png and NAME_mask.png"


def sniff(folder: Path) -> bool:
    """Whether the folder holds images of such names."""
    return any(folder.glob("*_image.png"))


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the cases of a folder. See `record.Layout`."""
    cases = {}
    for image in sorted(folder.glob("*_image.png")):
        stem = image.name.removesuffix("_image.png")
        mask = folder / f"{stem}_mask.png"
        cases[stem] = Case(
            stem, name, "image", (image,), mask if mask.exists() else None, group=stem.split("-")[0]
        )
    return Dataset(name, folder, "image", cases)
'''

USE = """
import pathlib, tempfile, numpy as np, limner
from limner.datasets import open_datasets
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    mask = np.zeros((32, 32), np.uint8); mask[8:20, 8:20] = 1
    for kind in ("image", "mask"):
        limner.write(folder / f"p1-a_{kind}.png", mask)
    limner.write(folder / "p2-a_image.png", mask)
    (found,) = open_datasets(folder)
    assert list(found.cases) == ["p1-a", "p2-a"] and found.cases["p1-a"].group == "p1"
    assert found.cases["p1-a"].read_labels().to_array().sum() == 144
    assert not found.cases["p2-a"].is_labelled
"""

with PackageCopy() as copy:
    copy.write("datasets/pairs.py", LAYOUT)
    imports = "from limner.datasets.record import"
    copy.edit("datasets/__init__.py", imports, f"from limner.datasets import pairs\n{imports}")
    copy.edit("datasets/__init__.py", "LAYOUTS: tuple[Layout, ...] = (", "LAYOUTS = (pairs, ")
    copy.run(code=USE)
print("a data set layout: datasets/pairs.py and its name in datasets/__init__.py")
