"""Seconds and memory of clicks on volumes of growing size, one process per size.

Run: python benchmarks/volume_clicks.py [--model NAME] [--weights FILE] [--sizes SIZE …]

A made-up CT of a few ellipsoids in noise, as int16 in memory. Three objects, as large as a node, a
kidney and a body: the first prompt (a click, a click, a box), corrections by clicks, then undo and
redo. Memory is what the process takes at most beyond what it held when the volume had been made
(Linux; elsewhere the column is empty). Other load on the machine shows in the seconds: medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import limner
from limner.models import ModelCard, PromptableModel, Segmentation, View, create_model

SIZES: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]] = {
    "64^3": ((64, 64, 64), (1.5, 1.5, 1.5)),
    "256^2x100": ((100, 256, 256), (2.5, 1.2, 1.2)),
    "512^2x300": ((300, 512, 512), (1.5, 0.8, 0.8)),
    "512^2x1000": ((1000, 512, 512), (1.0, 0.8, 0.8)),
}
RADII = {"node": 8.0, "kidney": 40.0, "body": 150.0}  # mm
FAKE = "fake"


class Fake:
    """Half of the range, on windows as large as a network's: what the session itself costs."""

    card = ModelCard(
        FAKE, "", (3,), frozenset({"click", "box"}), "", "", zoom=True, window={3: (64, 128, 128)}
    )

    def embed(self, view: View) -> NDArray[np.float32]:
        return view.normalized()

    def segment(
        self, embedding: NDArray[np.float32], prompts: object, previous: object = None
    ) -> Segmentation:
        return Segmentation((embedding - 0.5) * 8, 0.9)


@dataclass
class Case:
    """A volume and the middles and half axes (in voxels) of its objects."""

    image: limner.Image
    objects: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict
    )


def make_case(size: str) -> Case:
    """Made slice by slice, so that nothing but the volume is ever held."""
    shape, spacing = SIZES[size]
    case = Case(
        limner.Image(np.empty(shape, np.int16), limner.Geometry.from_spacing(shape, spacing))
    )
    for k, (name, radius) in enumerate(RADII.items()):
        place = np.array(((0.2, 0.25, 0.3), (0.35, 0.3, 0.7), (0.65, 0.6, 0.5))[k])
        half = np.minimum(radius / np.array(spacing), 0.3 * np.array(shape) / (2 if k < 2 else 1))
        case.objects[name] = place * shape, np.maximum(half, 2.0)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 25, (7, *shape[1:])).astype(np.int16)
    array = np.empty(shape, np.int16)
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    for k in range(shape[0]):
        array[k] = noise[k % 7]
        for middle, half in case.objects.values():
            rest = 1 - ((k - middle[0]) / half[0]) ** 2
            if rest > 0:
                flat = ((rows - middle[1]) / half[1]) ** 2 + ((columns - middle[2]) / half[2]) ** 2
                array[k][flat <= rest] += 300
    case.image = limner.Image(array, case.image.geometry, modality="CT")
    return case


class Meter:
    """Seconds, and the most memory of the process since it was made."""

    def __init__(self) -> None:
        self.base = self._status("VmRSS")

    def __call__(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds, and megabytes beyond those at the start."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        except OSError:
            self.base = float("nan")
        began = time.perf_counter()
        work()
        return time.perf_counter() - began, self._status("VmHWM") - self.base

    @staticmethod
    def _status(name: str) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return float("nan")
        return next(float(x.split()[1]) / 1024 for x in lines if x.startswith(name))


def measure(size: str, model: PromptableModel, rounds: int) -> dict[str, tuple[float, float]]:
    """What each step costs: median seconds and most megabytes."""
    case, rng = make_case(size), np.random.default_rng(1)
    meter = Meter()
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sessions: list[limner.Session] = []
        journal = Path(folder) / "journal"
        found["open"] = meter(
            lambda: sessions.append(limner.open_session(case.image, model, journal=journal))
        )
        session = sessions[0]
        for number, (name, (middle, half)) in enumerate(case.objects.items(), start=1):
            box = limner.Box(tuple(middle - half), tuple(middle + half))
            first = box if name == "body" else limner.Click(tuple(middle))
            session.add(first, object_id=number)
            found[f"{name}, first"] = meter(lambda n=number: session.predict(object_id=n).box)
            clicks = []
            for k in range(rounds):
                positive = k % 2 == 0
                away = rng.normal(size=3)
                away *= (0.7 if positive else 1.15) * half / np.linalg.norm(away)
                at = np.clip(middle + away, 0, np.subtract(case.image.shape, 1))
                session.add(limner.Click(tuple(at), positive), object_id=number)
                clicks.append(meter(lambda n=number: session.predict(object_id=n).box))
            seconds, memory = np.transpose(clicks)
            found[f"{name}, click"] = float(np.median(seconds)), float(memory.max())

        def back_and_forth() -> None:
            for verb in (session.undo, session.undo, session.redo):
                verb()
                _ = session.predict(object_id=3).box

        found["undo, undo, redo"] = meter(back_and_forth)
        found["label map"] = meter(lambda: session.labels)
        answers = session._answers._answers  # type: ignore[attr-defined]
        kept = [a.nbytes / 2**20 for key, a in answers.items() if key[0] == 3]
        found["kept of a round, body"] = 0.0, max(kept)
    return found


def main() -> None:
    """Measure all sizes, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=FAKE, help=f"'{FAKE}': a window of 64×128×128")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=6, help="corrections per object")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        model = (
            Fake()
            if asked.model == FAKE
            else create_model(asked.model, weights=asked.weights, device=asked.device)
        )
        print(json.dumps(measure(asked.one, model, asked.rounds)))
        return
    columns = {}
    for size in asked.sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", size]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        columns[size] = json.loads(result.stdout.splitlines()[-1])
    print(f"\n{asked.model}: seconds (MB beyond the volume)\n\n| step | {' | '.join(columns)} |")
    print(f"| --- {'| --- ' * len(columns)}|")
    for step in next(iter(columns.values())):
        cells = [f"{c[step][0]:.3f} ({c[step][1]:.3g})" for c in columns.values()]
        print(f"| {step} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
