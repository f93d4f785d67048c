"""A killed writer leaves the old file or the new one, never half."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import limner
from rounds import times

# Writes two masks in turn, over each other, until it is killed.
CHILD = """
import sys, itertools
import numpy as np, limner
pattern = np.indices((24, 96, 96)).sum(0) % 7
masks = [(pattern > k).astype(np.uint8) * k for k in (1, 2)]
for turn in itertools.count():
    limner.write(sys.argv[1], masks[turn % 2], like=limner.Geometry((24, 96, 96)))
    if turn == 1:
        print("ready", flush=True)
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".json", ".npz"])
@pytest.mark.parametrize("seed", range(times(1)))
def test_kill_9_while_writing(seed: int, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"mask{suffix}"
    command = [sys.executable, "-c", CHILD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.15)))
        child.send_signal(signal.SIGKILL)
    found = limner.read_labels(out)
    (label,) = found.ids
    expected = np.indices((24, 96, 96)).sum(0) % 7 > label
    assert label in (1, 2)
    assert np.array_equal(found.mask(label), expected)
