"""What a user of pictures waits for: a mask from a cold start, a click, a pass of the network.

Run: python benchmarks/seconds.py [--runs 7] [--clicks 20] [--exported FOLDER]. Prints Markdown.
Volumes: benchmarks/clicks.py. Imports and the other commands: benchmarks/startup.py.

Cold start is the wall time of the whole process ``limner segment PICTURE --box … -o MASK``; the
commands take turns, so that a drift of the machine touches all. "empty cache" means that no
compiled network was kept. Clicks are timed in a process per model and size, on a disc in noise,
every click placed at random near the rim of the disc and each answer fed to the next; memory is the
peak above what the process held when the picture was ready, libraries included. The network in
PyTorch is the same adapter with the safetensors file instead of the ONNX file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import limner
from limner import runtime

LIMNER = [sys.executable, "-m", "limner.cli"]
WEIGHTS = Path(limner.__file__).parent / "weights"
SIZES = (256, 1024, 4096)  # pixels per side
NETWORK = "limner-2d"
OTHERS = ("classical/region", "classical/graphcut", "classical/randomwalk")


def disc(size: int) -> NDArray[np.uint8]:
    """A square picture: a disc of an eighth of the size, twice as bright as the noise around."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:size, :size]
    middle = size // 2
    inside = (rows - middle) ** 2 + (columns - middle) ** 2 <= (size // 8) ** 2
    picture = rng.normal(70, 15, (size, size)).astype(np.float32) + 70 * inside
    return np.clip(picture, 0, 255).astype(np.uint8)


def clicks_near_the_rim(size: int, count: int) -> list[limner.Click]:
    """The centre, then corrections just inside and just outside the disc in turns."""
    rng = np.random.default_rng(1)
    middle, radius = size / 2, size / 8
    said = [limner.Click((size // 2, size // 2))]
    for k in range(count):
        positive = k % 2 == 0
        angle, away = rng.uniform(0, 2 * np.pi), radius * (0.85 if positive else 1.15)
        at = (int(middle + away * np.sin(angle)), int(middle + away * np.cos(angle)))
        said.append(limner.Click(at, positive=positive))
    return said


def resident_mb(what: str) -> float:
    """Resident memory of this process: ``"VmRSS"`` now, ``"VmHWM"`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"This needs Linux: there is no {what} in /proc/self/status.")


def measure(model: str, weights: str | None, size: int, count: int) -> None:
    """Print, as JSON, the seconds of every click and the peak memory above the picture."""
    picture = disc(size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of drawing the picture is forgotten
    before = resident_mb("VmRSS")
    seconds = []
    with limner.open_session(picture, model, weights=weights, device="cpu") as session:
        for click in clicks_near_the_rim(size, count):
            start = time.perf_counter()
            session.add(click)
            found = session.predict().region
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "mb": resident_mb("VmHWM") - before, "low": found.low}))


def shown(values: Sequence[float]) -> str:
    """Median and 95th percentile in milliseconds, as two cells."""
    return f"{1e3 * np.percentile(values, 50):.0f} | {1e3 * np.percentile(values, 95):.0f}"


def time_starts(ways: dict[str, tuple[str, Path | None]], runs: int) -> None:
    """Print the table of cold starts."""
    picture = str(files("skimage") / "data" / "cell.png")
    print(
        f"| cold start, 660x550, {runs} runs | p50 ms | p95 ms |\n| --- | --- | --- |", flush=True
    )
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(runs + 1):
            for name, (model, weights) in ways.items():
                command = [*LIMNER, "segment", picture, "--model", model]
                command += ["--box", "320,380,430,480", "-o", f"{folder}/mask.png"]
                command += [] if weights is None else ["--weights", str(weights)]
                cache = f"{folder}/{turn}" if "empty" in name else f"{folder}/cache"
                start = time.perf_counter()
                subprocess.run(
                    command,
                    check=True,
                    capture_output=True,
                    env={**os.environ, "LIMNER_CACHE": cache},
                )
                if turn:  # the first turn warms the disk's cache, and ours
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"| {name} | {shown(values)} |", flush=True)


def time_clicks(ways: dict[str, tuple[str, Path | None]], count: int) -> None:
    """Print the table of clicks."""
    print(f"\n| one click of {count} | size | first ms | next p50 ms | next p95 ms | MB above |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for size in SIZES:
        for name, (model, weights) in ways.items():
            command = [sys.executable, __file__, "--one", model, "--size", str(size)]
            command += ["--clicks", str(count)]
            command += [] if weights is None else ["--weights", str(weights)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            first, *rest = found["seconds"]
            cells = f"{name} | {size}² | {1e3 * first:.0f} | {shown(rest)} | {found['mb']:.0f}"
            print(f"| {cells} |", flush=True)


def time_passes(folder: Path, runs: int) -> None:
    """Print the table of single passes of the network, which take turns."""
    from limner.checkpoints.load import fill, read_weights
    from limner.networks.promptable2d import make_network_2d

    path = folder / f"{NETWORK}.safetensors"
    weights, facts = read_weights(path)
    module = make_network_2d(facts["config"])
    fill(module, weights, path)
    found: list[tuple[runtime.Network, list[float]]] = []
    for precision in runtime.facts()["precision"].split(", "):
        exported = runtime.compile(folder / f"{NETWORK}.onnx", precision=precision)
        found.append((exported, []))
        found.append((runtime.compile(module, device="cpu", precision=precision), []))
    fused = np.random.default_rng(0).standard_normal((1, 7, 256, 256)).astype(np.float32)
    for turn in range(runs + 2):
        for network, seconds in found:
            start = time.perf_counter()
            network(fused)
            if turn > 1:  # the first ones prepare memory
                seconds.append(time.perf_counter() - start)
    print(f"\n| one pass, 256x256, {runs} runs | p50 ms | p95 ms |")
    print("| --- | --- | --- |")
    for network, seconds in found:
        print(f"| {network.description} | {shown(seconds)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="cold starts")
    parser.add_argument("--clicks", type=int, default=20, help="after the first")
    parser.add_argument(
        "--exported", type=Path, default=WEIGHTS, help="folder of limner train export"
    )
    for hidden in ("--one", "--weights"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.weights, options.size, options.clicks)
        return
    shipped = options.exported == WEIGHTS
    graph = None if shipped else options.exported / f"{NETWORK}.onnx"
    classical: dict[str, tuple[str, Path | None]] = {name: (name, None) for name in OTHERS}
    network = {NETWORK: (NETWORK, graph)}
    eager = {f"{NETWORK} in PyTorch": (NETWORK, options.exported / f"{NETWORK}.safetensors")}
    cold = {f"{NETWORK}, empty cache": (NETWORK, graph)}
    time_starts({**network, **cold, **eager, **classical}, options.runs)
    time_passes(options.exported, options.clicks)
    time_clicks({**network, **eager, **classical}, options.clicks)


if __name__ == "__main__":
    main()
