"""Seconds and peak memory of a first and of one more click on a large volume, per model.

Run: python benchmarks/clicks.py [--shape 400,512,512]. Every model runs in a process of its own;
memory is the peak above what the process held when the volume was ready.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

import limner

MODELS = ("toy", "classical/region", "classical/graphcut", "classical/randomwalk")


def volume_with_a_ball(shape: tuple[int, int, int]) -> np.ndarray:
    """Soft noise, int16, with a ball of 200 HU and radius 20 around the centre."""
    rng = np.random.default_rng(0)
    plane = rng.normal(0, 20, (2, *shape[1:])).astype(np.int16)
    array = np.repeat(plane, -(-shape[0] // 2), axis=0)[: shape[0]]
    centre = [n // 2 for n in shape]
    grid = np.ogrid[tuple(slice(c - 20, c + 21) for c in centre)]
    ball = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= 20**2
    array[tuple(slice(c - 20, c + 21) for c in centre)][ball] += 200
    return array


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(model: str, shape: tuple[int, int, int]) -> None:
    """Print one row of the table."""
    array = volume_with_a_ball(shape)
    centre = np.array([n // 2 for n in shape])
    before = peak_mb()
    cells = []
    with limner.open_session(array, model) as session:
        for click in (
            limner.Click(tuple(centre)),
            limner.Click(tuple(np.add(centre, (0, 0, 30))), positive=False),
        ):
            start = time.perf_counter()
            session.add(click)
            prediction = session.predict()
            cells.append(f"{time.perf_counter() - start:.2f}")
    size = int(prediction.region.inside.sum())
    print(f"| {model} | {' | '.join(cells)} | {peak_mb() - before:.0f} | {size:,} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="400,512,512")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    slices, rows, columns = (int(n) for n in options.shape.split(","))
    if options.model:
        measure(options.model, (slices, rows, columns))
        return
    print("| model | first click s | one more s | MB above the volume | voxels (ball: 33,401) |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for model in MODELS:
        command = [sys.executable, __file__, "--shape", options.shape, "--model", model]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
