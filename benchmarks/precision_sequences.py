"""Whether limner-seq in bf16 carries the masks that it carries in fp32, on real sequences.

Run: python benchmarks/precision_sequences.py [--data ../shared/data] [--exported FOLDER].

One annotated frame in the middle, both ways; Dice between the masks of the two on all other frames
of an object together, and that of either to the truth, for scale. The last line is what belongs
into ``agreement`` of the weights' JSON file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

import limner
from limner import runtime
from limner.adapters.shipped_tracker import EXACT, PARTS, TrackerParts
from limner.datasets.selection import pick_evenly
from limner.datasets.sequences import Track, find_sequences, find_tracks, open_sequence
from limner.io.image import Image
from limner.models import PromptableModel
from limner.models.limner_seq import CARD, LimnerSeq
from limner.prompts import MaskPrompt

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MARGIN = 3  # slices beyond the object


def carried(model: PromptableModel, image: Image, track: Track) -> NDArray[np.bool_]:
    """Masks on the scored frames."""
    (start,) = track.given(1)
    wanted = track.scored([start], MARGIN)
    with limner.open_session(image, model=model) as session:
        session.add(MaskPrompt(track.on(start)), frame=start)
        low, high = min(*wanted, start), max(*wanted, start) + 1
        found = {p.frame: p.mask for p in session.propagate(start=low, stop=high)}
    nothing = np.zeros(image.geometry.shape[1:], np.bool_)
    return np.stack([found.get(k, nothing) for k in wanted])


def built(folder: Path, precision: str) -> LimnerSeq:
    """The model from exported parts."""
    files = {part: folder / f"{CARD.name}-{part}.onnx" for part in PARTS}
    made = {
        part: runtime.compile(path, precision="fp32" if part in EXACT else precision)
        for part, path in files.items()
    }
    return LimnerSeq(CARD, TrackerParts(**made))


def main() -> None:
    """Print a line per set and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--exported", type=Path, default=Path(limner.__file__).parent / "weights")
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args()
    exact, fast = (built(options.exported, precision) for precision in ("fp32", "bf16"))
    same: dict[str, list[float]] = defaultdict(list)
    right: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for data_set in find_sequences(options.data, "test"):
        for stem in pick_evenly(list(data_set.cases), options.images):
            image = open_sequence(data_set, stem)
            for track in find_tracks(data_set, stem, image, given=1, most=options.objects):
                masks = [carried(m, image, track) for m in (exact, fast)]
                truth = np.stack([track.on(k) for k in track.scored(track.given(1), MARGIN)])
                same[data_set.name].append(limner.metrics.dice(*masks))
                scores = [limner.metrics.dice(m, truth) for m in masks]
                right[data_set.name].append((scores[0], scores[1]))
        if same[data_set.name]:
            fp32, bf16 = np.mean(right[data_set.name], axis=0)
            print(
                f"{data_set.name:32} {len(same[data_set.name]):2d} objects: Dice to fp32 "
                f"{fmean(same[data_set.name]):.4f}; to truth fp32 {fp32:.3f}, bf16 {bf16:.3f}",
                flush=True,
            )
    print(f'"bf16": {fmean(fmean(values) for values in same.values() if values):.5f}')


if __name__ == "__main__":
    main()
