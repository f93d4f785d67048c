"""The classical models on volumes that may be trained on: a box and corrections; propagation.

Run: python benchmarks/volumes.py [--data ../shared/data]. Prints mean Dice per set, for the first
label of each volume, and for one annotated slice carried both ways through six sarcomas.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import limner
from limner.prompts import simulate

MODELS = ("classical/region", "classical/graphcut", "classical/randomwalk")
CORRECTIONS = 2


def cases(data: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Image and label files by set, none of them a test stem."""
    splits = json.loads((data / "splits.json").read_text())["sets"]
    stems = splits["3d/hippocampus_mr"]["train"][:4]
    folder = data / "3d" / "hippocampus_mr"
    found = {"hippocampus_mr": [folder / "images" / f"{stem}.nii.gz" for stem in stems]}
    for name in ("sarcoma_ct_pool", "sarcoma_mr_t1_pool"):
        found[name] = sorted((data / "pool" / "3d" / name / "images").glob("*.nii.gz"))[:4]
    return {
        name: [(path, path.parents[1] / "labels" / path.name) for path in paths]
        for name, paths in found.items()
    }


def first_object(path: Path) -> NDArray[np.bool_]:
    """The mask of the lowest label."""
    labels = limner.read_labels(path)
    return np.asarray(labels.mask(labels.ids[0]))


def corrected(model: str, image: limner.Image, target: NDArray[np.bool_]) -> list[float]:
    """Dice after a tight box and after the corrective clicks."""
    rng = np.random.default_rng(0)
    with limner.open_session(image, model) as session:
        session.add(simulate.box(target, rng, jitter=0.0))
        mask = session.predict().mask
        scores = [limner.metrics.dice(mask, target)]
        for _ in range(CORRECTIONS):
            click = simulate.corrective_click(target, mask, rng)
            if click is not None:
                session.add(click)
                mask = session.predict().mask
    return [*scores, limner.metrics.dice(mask, target)]


def carried(model: str, image: limner.Image, target: NDArray[np.bool_]) -> float:
    """Dice after the largest slice was given and carried both ways."""
    slice_index = int(target.sum(axis=(1, 2)).argmax())
    if model == "copy":
        return limner.metrics.dice(np.broadcast_to(target[slice_index], target.shape), target)
    with limner.open_session(image, model) as session:
        session.add(limner.MaskPrompt(target[slice_index]), frame=slice_index)
        session.predict(frame=slice_index)
        for _ in session.propagate():
            pass
        return limner.metrics.dice(session.labels, target)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    found = cases(parser.parse_args().data)
    print(f"| box, then {CORRECTIONS} clicks | {' | '.join(found)} |")
    print(f"| --- {'| --- ' * len(found)}|")
    for model in ("baseline/ellipse", *MODELS):
        cells = []
        for pairs in found.values():
            scores = [corrected(model, limner.read(i), first_object(m)) for i, m in pairs]
            cells.append(" → ".join(f"{s:.2f}" for s in np.mean(scores, axis=0)))
        print(f"| {model} | {' | '.join(cells)} |", flush=True)
    sarcomas = [p for name, pairs in found.items() if "sarcoma" in name for p in pairs[:3]]
    print("\n| carried both ways | mean Dice |\n| --- | --- |")
    for model in ("copy", *MODELS):
        scores = [carried(model, limner.read(i), first_object(m)) for i, m in sarcomas]
        print(f"| {model} | {np.mean(scores):.2f} |", flush=True)


if __name__ == "__main__":
    main()
