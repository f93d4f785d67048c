"""Golden outputs of the published implementations, and the weights files that belong to them.

Weights are a pure function of the names of tensors, so a file in the published container is made on
the spot (`golden_rule`); see tests/golden/README.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import golden_rule

GOLDEN = Path(__file__).parent / "golden"

Case = Mapping[str, Any]


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        name: its folder, such as ``"medsam"``.
    """

    name: str

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Names, shapes and container of the published file."""
        content: dict[str, Any] = golden_rule.load_spec(GOLDEN / self.name / "keys.json")
        return content

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors by their published names; made anew, since they are large."""
        made: dict[str, np.ndarray] = golden_rule.fill(self.spec["keys"])
        return made

    def checkpoint(self, suffix: str = ".pth") -> Path:
        """A file with all tensors, made once per run: the published container, or bare tensors for
        ``".safetensors"``. Not to be changed.
        """
        path = Path(os.environ["LIMNER_TEST_WEIGHTS"]) / f"{self.name}{suffix}"
        with FileLock(f"{path}.lock"):  # workers of a parallel run share it
            if not path.exists():
                golden_rule.write_checkpoint(path, self.spec)
        return path

    def case(self, name: str) -> Case:
        """The entries of ``case_NAME.npz``."""
        with np.load(GOLDEN / self.name / f"case_{name}.npz") as file:
            return dict(file)


def system(name: str) -> System:
    """A published system; the test is skipped without PyTorch."""
    pytest.importorskip("torch")
    return System(name)


def picture(case: Case) -> np.ndarray:
    """The picture of a case, uint8 (row, column, 3)."""
    seed, shape = str(case["image.seed"]), tuple(int(n) for n in case["image.hw"])
    if bool(case.get("image.grey", False)):
        grey, _ = golden_rule.phantom(seed, shape)
        made = np.repeat(grey[..., None], 3, axis=2)
    else:
        made, _ = golden_rule.phantom_rgb(seed, shape)
    if "image.mean" in case:
        assert made.mean() == pytest.approx(float(case["image.mean"]), abs=1e-9)
    return np.asarray(made)


def check(value: np.ndarray, case: Case, name: str, tolerance: float) -> None:
    """A stage agrees with the golden one.

    Args:
        value: all of it.
        case: the goldens.
        name: of the stage.
        tolerance: largest error, in standard deviations of the golden values.
    """
    errors = golden_rule.compare(value, case, name)
    assert max(errors["rel"], errors["stat"]) <= tolerance, f"{name}: {errors}"


def check_mask(logits: np.ndarray, case: Case, name: str, margin: float, index: Any = ...) -> None:
    """A mask agrees with the golden one, bit by bit except where the logit is next to 0.

    Args:
        logits: above 0 inside.
        case: the goldens.
        name: of the mask.
        margin: pixels whose logits are so near to 0 may differ.
        index: which part of the golden array this is.
    """
    golden = golden_rule.unpack_mask(case, name)[index]
    assert logits.shape == golden.shape
    wrong = (logits > 0) != golden
    assert np.abs(logits[wrong]).max(initial=0.0) <= margin, f"{wrong.sum()} pixels of {name}"
