"""Models on sets of pictures through real sessions, beside each other.

    python evaluate.py DATA OUT.json --part dev NAME=WEIGHTS[:habit=value,…] …

``shipped`` alone is limner-2d as the package ships it, ``probe=…`` the probe as its own adapter
runs it (with the ellipse; $PROBE is its folder); every other name is a file of the second
generation, or of the probe, with habits of `model.Habits`. The part ``dev`` is the pool sets that
may not be trained on and are no test sets: new kinds, measured without taking anything from
training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent))

from limner.bench.cases import Case, cases
from limner.bench.sets import DataSet, list_sets, open_picture, read_json, spread
from model import CandidateModel, Habits

from limner import metrics
from limner.bench.run import seed_of
from limner.models import create_model
from limner.prompts import simulate
from limner.sessions import open_session

NEW_KINDS = (
    "ct_brain_hemorrhage",
    "ct_curvas",
    "cxr_covid_pool",
    "endo_kvasir_pool",
    "histo_monusac_pool",
    "mr_head_tissue",
    "mr_pancreas_t2",
)
HARM = 0.005  # a correction that lowers Dice by more than this hurts
ROUNDS = {"box": 4, "clicks": 5}
COLUMNS = ("box", "+1", "+3", "1", "3", "5")


def sets_of(data: Path, part: str) -> list[DataSet]:
    """The sets of a part; of `dev`, the new kinds."""
    if part != "dev":
        return list_sets(data, part, "picture")
    units = read_json(data / "splits.json")["unit"]
    found = [s for n in NEW_KINDS for s in list_sets(data / "pool/2d" / n, "all", "picture")]
    return [replace(s, unit=units.get(f"pool/2d/{s.name}", "label")) for s in found]


def objects(
    data: Path, part: str, pictures: int, most: int, only: str
) -> Iterator[tuple[DataSet, str, Any, Case]]:
    """Every object that is asked about."""
    for data_set in sets_of(data, part):
        if only and not any(o in data_set.name for o in only.split(",")):
            continue
        for stem in spread(list(data_set.images), pictures):
            image = open_picture(data_set, stem)
            for case in cases(data_set, stem, image, most=most):
                yield data_set, stem, image, case


def conversation(model: Any, image: Any, case: Case, kind: str, seed: int) -> dict[str, Any]:
    """Dice and predicted quality, round by round; of a lone click also the best candidate's."""
    rng = np.random.default_rng(seed)
    target = case.target
    prompt: Any = simulate.box(target, rng) if kind == "box" else simulate.click(target, rng)
    dices, scores, seconds = [], [], []
    with open_session(image, model) as session:
        for _ in range(ROUNDS[kind]):
            if prompt is not None:
                began = time.perf_counter()
                session.add(prompt)
                found = session.predict()
                seconds.append(time.perf_counter() - began)
                dices.append(float(metrics.dice(found.mask, target)))
                scores.append(float(found.score))
                prompt = simulate.corrective_click(target, found.mask, rng)
            else:
                dices.append(dices[-1])
    return {"dice": dices, "score": scores, "seconds": seconds}


def made(text: str) -> tuple[str, Any]:
    """A model from the command line."""
    name, _, rest = text.partition("=")
    if name == "shipped":
        return name, create_model("limner-2d")
    path, _, habits = rest.partition(":")
    if name.startswith("probe") and not habits:
        place = Path(os.environ.get("PROBE", "../shared/probe2d"))
        spec = importlib.util.spec_from_file_location("probe_model", place / "as_model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        kept = sys.modules.pop("network")  # the probe has a file of that name, too
        sys.path.insert(0, str(place))
        spec.loader.exec_module(module)
        sys.path.remove(str(place))
        sys.modules["network"] = kept
        return name, module.as_model(path)
    types = {f.name: type(f.default) for f in fields(Habits)}
    values: dict[str, Any] = {}
    for part in habits.split(",") if habits else ():
        key, _, value = part.partition("=")
        values[key] = value == "1" if types[key] is bool else types[key](value)
    return name, CandidateModel(Path(path), Habits(**values))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over sets, the share of corrections that hurt, and how good the judge is."""
    by_set: dict[str, dict[str, float]] = {}
    ranks = {"box": [], "clicks": []}  # type: dict[str, list[float]]
    harmful = total = 0
    scores, truths = [], []
    for name in sorted({r["set"] for r in rows}):
        theirs = [r for r in rows if r["set"] == name]
        box, clicks = (np.array([r[k]["dice"] for r in theirs]) for k in ("box", "clicks"))
        places = (box[:, 0], box[:, 1], box[:, 3], clicks[:, 0], clicks[:, 2], clicks[:, 4])
        by_set[name] = {k: float(v.mean()) for k, v in zip(COLUMNS, places, strict=True)}
        for kind in ("box", "clicks"):
            for row in theirs:
                steps = np.diff(row[kind]["dice"][: len(row[kind]["score"])])
                harmful, total = harmful + int((steps < -HARM).sum()), total + len(steps)
                scores += row[kind]["score"]
                truths += row[kind]["dice"][: len(row[kind]["score"])]
            pairs = [(r[kind]["score"][0], r[kind]["dice"][0]) for r in theirs]
            if len(pairs) > 3 and len({d for _, d in pairs}) > 2:
                ranks[kind].append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    mean = {k: float(np.mean([v[k] for v in by_set.values()])) for k in COLUMNS}
    iou = np.array(truths) / (2 - np.array(truths))  # IoU from Dice
    bins = np.clip((np.array(scores) * 10).astype(int), 0, 9)
    ece = sum(
        (bins == b).mean() * abs(np.array(scores)[bins == b].mean() - iou[bins == b].mean())
        for b in np.unique(bins)
    )
    seconds = [s for r in rows for k in ("box", "clicks") for s in r[k]["seconds"]]
    return {
        "mean": mean,
        "hurt": harmful / max(1, total),
        "corrections": total,
        "rank": {k: float(np.nanmean(v)) if v else None for k, v in ranks.items()},
        "ece": float(ece),
        "p50": float(np.median(seconds)),
        "objects": len(rows),
        "sets": by_set,
    }


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=("dev", "train", "val", "test"), default="dev")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = [made(text) for text in args.models]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in models}
    for data_set, stem, image, case in objects(
        args.data, args.part, args.pictures, args.objects, args.only
    ):
        seed = seed_of(0, data_set.name, stem, case.object_id)
        for name, model in models:
            held = {k: conversation(model, image, case, k, seed) for k in ROUNDS}
            about = {"set": data_set.name, "stem": stem, "object": case.object_id}
            rows[name].append(about | held)
    result = {name: summary(found) for name, found in rows.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"summary": result, "rows": rows}))
    columns = "".join(f"{c:>8}" for c in COLUMNS)
    lines = [f"{'model':28}{columns}    hurt  rank(box, 1)   ECE  ms"]
    for name, found in result.items():
        ranks = ", ".join("-" if v is None else f"{v:.2f}" for v in found["rank"].values())
        line = "".join(f"{found['mean'][c]:8.3f}" for c in COLUMNS)
        lines.append(
            f"{name:28}{line}{found['hurt']:8.3f}  {ranks:12}{found['ece']:7.3f}"
            f"{found['p50'] * 1000:5.0f}"
        )
    names = sorted({r["set"] for found in rows.values() for r in found})
    lines.append(f"{len(next(iter(rows.values())))} objects of {len(names)} sets ({args.part})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
