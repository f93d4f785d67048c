"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

from rounds import ROUNDS, times

# Workers of a parallel run share the cores: one thread pool each of all cores would be slower than
# one worker. Set before NumPy, PyTorch and OpenVINO are imported, and inherited by subprocesses.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, str(max(1, (os.cpu_count() or 1) // _WORKERS)))

_WEIGHTS = "LIMNER_TEST_WEIGHTS"

# The same examples on every run, on slow machines, too, and other ones in each long run; nothing is
# written beside the tests.
settings.register_profile(
    "limner",
    deadline=None,
    derandomize=ROUNDS == 1,
    database=None,
    max_examples=times(100),
)
settings.load_profile("limner")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for weights files that tests make, shared by all workers of a run."""
    if _WEIGHTS not in os.environ:
        os.environ[_WEIGHTS] = folder = tempfile.mkdtemp(prefix="limner-weights-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Property tests belong to the long runs without saying so."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.function):
            item.add_marker(pytest.mark.long)


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images with masks beside the checkout; the test is skipped without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data: real images that are not part of this repository")
    return folder


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Commands print what packages log; later tests in the process have loggers of their own."""
    yield
    for loud in (logging.getLogger(), logging.getLogger("limner")):  # set by --verbose
        loud.setLevel(logging.WARNING if loud.parent is None else logging.NOTSET)
    for name in ("limner.train", "limner.datasets"):
        log = logging.getLogger(name)
        log.handlers.clear()
        log.propagate = True
        log.setLevel(logging.NOTSET)
