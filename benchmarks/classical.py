"""How good the models without weights are on real images, asked by the simulated user.

Run: ``python benchmarks/classical.py [--split train] [--models …] [--limit 6] [--by-set]``. Only
sessions are used, exactly what a user would drive. Two conversations per object: a box and then
corrective clicks, and clicks alone. Prints Markdown: mean Dice (each set counts the same) after
the first prompt and after the last, the curve from prompt to prompt, and the time of a prompt.

The sets are the 2D ones of ``train_commercial_ok`` in ``splits.json``; ``--split pool`` takes those
of the training pool. What one object is, is that file's ``unit``. Constants of the models may be
chosen on ``train`` and ``pool`` only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

import limner
from limner.prompts import Prompt
from limner.prompts.simulate import Kind, rounds

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = (
    "baseline/box",
    "baseline/ellipse",
    "classical/region",
    "classical/graphcut",
    "classical/randomwalk",
)
FIRST: tuple[Kind, ...] = ("box", "click")
LEAST_PIXELS = 64  # of a component, by the rules of splits.json; smaller objects of other units,
LEAST_OBJECT = 16  # too, are fragments at an image's edge


@dataclass(frozen=True, eq=False)
class Case:
    """One object to find: the file of its image, its mask ``(row, column)``, the set's name."""

    set_name: str
    image: Path
    target: np.ndarray


@dataclass
class Tally:
    """What one model did: Dice per first prompt, set and case, one value a round; seconds."""

    dice: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def curve(self, first: str, set_name: str | None = None) -> list[float]:
        """Mean Dice after each prompt, of one set or of all, each set counting the same."""
        found = self.dice[first]
        chosen = found.values() if set_name is None else [found[set_name]]
        return [float(x) for x in np.mean([np.mean(cases, axis=0) for cases in chosen], axis=0)]


def set_names(splits: dict[str, Any], split: str) -> list[str]:
    """The 2D sets that may be used, of the pool or of the open sets."""
    start = "pool/2d/" if split == "pool" else "2d/"
    return [name for name in splits["train_commercial_ok"] if name.startswith(start)]


def cases(data: Path, split: str, limit: int, objects: int) -> Iterator[Case]:
    """Objects of the split: per set at most `limit` images spread over it, `objects` of each."""
    splits = json.loads((data / "splits.json").read_text())
    for name in set_names(splits, split):
        folder = data / name
        paths = {p.stem: p for p in sorted((folder / "images").iterdir())}
        stems = list(paths) if split == "pool" else splits["sets"][name][split]
        unit = splits["unit"].get(name, "label")
        for stem in spread(stems, limit):
            for target in spread(list(targets(folder, stem, unit)), objects):
                yield Case(name, paths[stem], target)


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, at equal steps."""
    if len(values) <= count:
        return list(values)
    return [values[int(k * len(values) / count)] for k in range(count)]


def targets(folder: Path, stem: str, unit: str) -> Iterator[np.ndarray]:
    """Masks of the objects of an image, by the set's unit."""
    instances = folder / "instances" / f"{stem}.png"
    by_instance = unit == "instance" and instances.exists()
    path = instances if by_instance else folder / "masks" / f"{stem}.png"
    labels = np.asarray(limner.read(path).array)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        if unit != "component":
            if mask.sum() >= LEAST_OBJECT:
                yield mask
            continue
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        for k in range(1, count + 1):
            if (parts == k).sum() >= LEAST_PIXELS:
                yield parts == k


def converse(case: Case, model: str, first: Kind, num_rounds: int, tally: Tally) -> None:
    """One conversation; Dice of each round goes into the tally, the last one repeated at the end.

    A user who sees nothing wrong stops: the answer stays what it is.
    """
    values: list[float] = []
    with limner.open_session(case.image, model=model) as session:

        def predict(prompt: Prompt) -> np.ndarray:
            began = time.perf_counter()
            session.add(prompt)
            mask = session.predict().mask
            tally.seconds.append(time.perf_counter() - began)
            return mask

        rng = np.random.default_rng(0)
        for step in rounds(case.target, predict, rng, num_rounds=num_rounds, first=first):
            values.append(limner.metrics.dice(step.prediction, case.target))
    values += values[-1:] * (num_rounds - len(values))
    tally.dice.setdefault(first, {}).setdefault(case.set_name, []).append(values)


def report(tallies: dict[str, Tally], num_rounds: int, by_set: bool) -> None:
    """Print the tables."""
    more = num_rounds - 1
    print(f"\n| model | box | box + {more} clicks | 1 click | {num_rounds} clicks | s per prompt |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model, tally in tallies.items():
        ends = [tally.curve(first)[k] for first in FIRST for k in (0, -1)]
        numbers = " | ".join(f"{x:.3f}" for x in ends)
        print(f"| {model} | {numbers} | {statistics.median(tally.seconds):.3f} |")
    print(f"\n| model, first prompt | mean Dice after prompt 1…{num_rounds} |\n| --- | --- |")
    for model, tally in tallies.items():
        for first in FIRST:
            print(f"| {model}, {first} | {' '.join(f'{x:.3f}' for x in tally.curve(first))} |")
    if not by_set:
        return
    print(f"\n| set | model | box | box + {more} | 1 click | {num_rounds} clicks |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in next(iter(tallies.values())).dice[FIRST[0]]:
        for model, tally in tallies.items():
            ends = [tally.curve(first, name)[k] for first in FIRST for k in (0, -1)]
            print(f"| {name} | {model} | {' | '.join(f'{x:.3f}' for x in ends)} |")


def main() -> None:
    """Ask every model about every case and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with splits.json")
    parser.add_argument("--split", choices=("train", "val", "test", "pool"), default="train")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--limit", type=int, default=4, help="images per set")
    parser.add_argument("--objects", type=int, default=3, help="objects per image")
    parser.add_argument("--rounds", type=int, default=5, help="prompts per conversation")
    parser.add_argument("--by-set", action="store_true", help="print every set as well")
    arguments = parser.parse_args()
    if not (arguments.data / "splits.json").is_file():
        parser.error(f"There is no splits.json in {arguments.data}; say --data FOLDER.")
    found = list(cases(arguments.data, arguments.split, arguments.limit, arguments.objects))
    print(f"{len(found)} objects of {len({c.set_name for c in found})} sets, {arguments.split}")
    tallies = {model: Tally() for model in arguments.models}
    for model, tally in tallies.items():
        for case in found:
            for first in FIRST:
                converse(case, model, first, arguments.rounds, tally)
    report(tallies, arguments.rounds, arguments.by_set)


if __name__ == "__main__":
    main()
