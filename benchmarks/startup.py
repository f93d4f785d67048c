"""How long limner takes to start: `limner --help`, `import limner`, a first mask from cold.

Run: python benchmarks/startup.py [--runs N]. Prints medians and ranges of whole-process wall time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

LIMNER = [sys.executable, "-m", "limner.cli"]


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed, by name."""
    ct = str(files("pydicom") / "data" / "test_files" / "CT_small.dcm")
    cell = str(files("skimage") / "data" / "cell.png")
    out = ["-o", str(folder / "mask.png")]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import numpy": [sys.executable, "-c", "import numpy"],
        "import limner": [sys.executable, "-c", "import limner"],
        "limner --help": [*LIMNER, "--help"],
        "limner info CT": [*LIMNER, "info", ct],
        "limner segment, 660x550 PNG": [*LIMNER, "segment", cell, "--click", "373,426", *out],
        "limner segment, 128x128 CT": [*LIMNER, "segment", ct, "--box", "5,40,44,80", *out],
    }


def main() -> None:
    """Time every command in turn, so that a drift of the machine touches all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(runs + 1):
            for name, command in commands(Path(folder)).items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if turn:  # the first turn warms the disk's cache
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    print(f"| command ({runs} runs) | median s | least | most |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        print(
            f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
        )


if __name__ == "__main__":
    main()
