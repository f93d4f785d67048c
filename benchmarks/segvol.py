"""SegVol here against the way its authors run it: seconds, memory, agreement.

Run: python benchmarks/segvol.py [--parity ../shared/parity] [--rounds 3]. Prints Markdown.

The weights are synthetic (``fill.py`` of the parity folder), written once as the authors' kind of
file: times and memory are those of the real ones, and agreement is harder to reach. "Authors' way"
is the same network in PyTorch, operation by operation in float32.

The ways take turns, each time in a process of its own; shown are the least times and the largest
memory. "Encode" is one window of 32 x 256 x 256, "decode" a word and a box on it. "Answer" is what
a session does with both on a volume of 40 x 300 x 280: the mask of random weights spans it, so the
whole and eight windows are encoded. "Next" is one more click, whose windows are known. Memory is
the peak above what the process held with the volume read, libraries included; "first" is the
process that converts. Dice is between the masks of "answer".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from published import SHARED, WAYS, System, resident_mb, run, seconds, weights_of

SHAPE = (40, 300, 280)
RUNS = 2
HEADS = ("encode", "decode", "word", "answer", "next")
SYSTEM = System("segvol/vit_b", "segvol")
BUILT_IN = "limner-3d"


def volume() -> np.ndarray:
    """Bright balls in noise, HU."""
    rng = np.random.default_rng(0)
    array = rng.normal(-100, 200, SHAPE)
    grid = np.indices(SHAPE)
    for _ in range(6):
        middle = rng.uniform(0.2, 0.8, 3) * SHAPE
        array[
            sum(((g - m) / r) ** 2 for g, m, r in zip(grid, middle, (6, 40, 40), strict=True)) < 1
        ] += 300
    return array.astype(np.int16)


def measure(way: str, weights: Path, out: Path) -> None:
    """Write what one way takes."""
    import limner
    from limner.runtime import _openvino

    array = volume()
    if way == "fp32":
        _openvino.has_bf16 = lambda: False
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident_mb("VmRSS"), time.perf_counter()
    model: Any = (
        limner.create_model(BUILT_IN)
        if way == BUILT_IN
        else limner.create_model(
            SYSTEM.model, weights=weights, device="cpu", exact=way == "authors"
        )
    )
    found: dict[str, Any] = {"load": time.perf_counter() - start, "runtime": model.card.runtime}
    if way != BUILT_IN:
        found |= parts(model)
    with limner.open_session(array, model) as session:
        if way != BUILT_IN:
            session.add(limner.TextPrompt("liver"))
        session.add(limner.Box((10, 60, 70), (30, 240, 220)))
        start = time.perf_counter()
        mask = session.predict().mask
        found["answer"] = time.perf_counter() - start
        session.add(limner.Click((20, 150, 150)))
        start = time.perf_counter()
        session.predict()
        found["next"] = time.perf_counter() - start
    found["memory"] = resident_mb("VmHWM") - before
    np.save(out.with_suffix(".npy"), mask)
    out.write_text(json.dumps(found))


def parts(model: Any) -> dict[str, float]:
    """Seconds of SegVol's networks one by one."""
    from limner.models import segvol
    from limner.models.segvol import prompts

    window = np.random.default_rng(1).random(segvol.SIZE, dtype=np.float32)
    features = model._encode(window)
    found = {"encode": seconds(lambda: model._encode(window), RUNS)}
    start = time.perf_counter()
    text = model._speak(["liver"])["liver"]
    found["word"] = time.perf_counter() - start
    none = np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
    asked = prompts.WindowPrompts(*none, np.array([6, 50, 60, 25, 190, 200], np.float32), text)
    return found | {"decode": seconds(lambda: model._decode(features, [asked]), RUNS)}


def main() -> None:
    """Print a table, one row per way."""
    if sys.argv[1:2] == ["--process"]:
        measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parity", type=Path, default=SHARED / "parity")
    parser.add_argument("--weights", type=Path, help="keep the synthetic weights in this folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = weights_of(SYSTEM, options.parity, options.weights or folder)
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in (*WAYS, BUILT_IN)}
        for _ in range(options.rounds + 1):  # in the first, two of them convert
            for way, row in rows.items():
                out = folder / f"{way}.json"
                if way == "authors" and len(row) == options.rounds:
                    continue
                run(
                    [sys.executable, __file__, "--process", way, str(weights), str(out)],
                    folder / "cache",
                )
                row.append(json.loads(out.read_text()))
        report(rows, folder)


def report(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Print the table."""
    from limner.metrics import dice

    heads = ["way", *(f"{h} s" for h in HEADS), "MB", "MB first", "convert s", "load s", "Dice"]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    theirs = np.load(folder / "authors.npy")
    base = {h: min(r[h] for r in rows["authors"]) for h in HEADS}
    for way, row in rows.items():
        first, later = (None, row) if way == "authors" else (row[0], row[1:])
        least = {h: min(r[h] for r in later) for h in HEADS if h in later[0]}
        cells = [f"{BUILT_IN}, " * (way == BUILT_IN) + later[0]["runtime"]]
        cells += [
            f"{least[h]:.2f} ({base[h] / least[h]:.1f}x)" if h in least else "" for h in HEADS
        ]
        cells.append(f"{max(r['memory'] for r in later):.0f}")
        cells.append("" if first is None else f"{first['memory']:.0f}")
        cells.append("" if first is None else f"{first['load']:.1f}")
        cells.append(f"{min(r['load'] for r in later):.2f}")
        same = dice(np.load(folder / f"{way}.npy"), theirs)
        cells.append("" if way == BUILT_IN else f"{same:.4f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
