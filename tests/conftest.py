"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, on slow machines, too; nothing is written beside the tests.
settings.register_profile("limner", deadline=None, derandomize=True, database=None)
settings.load_profile("limner")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images with masks beside the checkout; the test is skipped without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data: real images that are not part of this repository")
    return folder
