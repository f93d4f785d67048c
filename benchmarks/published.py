"""Published models here against the way their authors run them: seconds, memory, agreement.

Run: python benchmarks/published.py [--models medsam/vit_b …] [--parity ../shared/parity]
[--data ../shared/data] [--pictures 6] [--runs 5]. Prints Markdown.

The weights are synthetic, a pure function of the names of tensors (``fill.py`` of the parity
folder), written once as the authors' kind of file: times and memory are those of the real ones,
agreement is harder to reach, since the masks of random weights have no clear edges. "Authors' way"
is the same network in PyTorch, operation by operation in float32, with the published handling of
pictures; what is fused there (attention in one call) makes it faster than the authors' own code.

Every way runs in a process of its own. "Encode" and "boxes" are the least times of what a session
does (`embed`, `segment_batch`), the handling of pictures included: the least, since a busy machine
slows PyTorch, whose threads wait for one another, more than OpenVINO. Memory is the peak above what
the process held when the pictures were read, libraries included; "first" is the process that
converts. Errors of embeddings are root mean squares in standard deviations, Dice is between masks,
both against the authors' way. Cold start is ``limner segment`` from a PNG to a mask, whole process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared"
FEW, MANY = 1, 20  # boxes asked together
SUPPORT = 16  # examples for UniverSeg


@dataclass(frozen=True)
class System:
    """A model and its folder of the parity cases."""

    model: str
    folder: str


SYSTEMS = (
    System("medsam/vit_b", "medsam"),
    System("medsam/lite", "litemedsam"),
    System("sam_med2d/vit_b", "sam_med2d"),
    System("imis/vit_b", "imis"),
    System("scribbleprompt/unet", "scribbleprompt_unet"),
    System("universeg/v1", "universeg"),
)
WAYS = ("authors", "fp32", "bf16")


# The process of one way


def resident_mb(what: str) -> float:
    """Resident memory of this process: ``"VmRSS"`` now, ``"VmHWM"`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"This needs Linux: there is no {what} in /proc/self/status.")


def largest_plane(embedding: Any) -> NDArray[np.float32]:
    """The features among what a model remembers of a view."""
    found = [embedding] if isinstance(embedding, np.ndarray) else []
    if is_dataclass(embedding):
        found = [getattr(embedding, f.name) for f in fields(embedding)]
    planes = [a for a in found if isinstance(a, np.ndarray) and a.dtype == np.float32]
    return max(planes, key=lambda a: a.size)


def seconds(action: Any, runs: int) -> float:
    """Least time of a call after a first one."""
    action()
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return min(spent)


def boxes(shape: Sequence[int], count: int) -> list[Any]:
    """Boxes all over a picture, the same on every run."""
    import limner

    rng = np.random.default_rng(0)
    rows, columns = shape[:2]
    made = []
    for _ in range(count):
        low = rng.uniform(0, 0.7, 2) * (rows, columns)
        high = low + rng.uniform(0.1, 0.3, 2) * (rows, columns)
        made.append(limner.Box(tuple(map(int, low)), tuple(map(int, high))))
    return made


def measure(model: str, way: str, weights: Path, task: Path, runs: int) -> None:
    """Write what one way takes and answers beside the task; see `ask`."""
    import limner
    from limner.adapters.intensity import robust_limits
    from limner.adapters.protocols import Question, View
    from limner.runtime import _openvino

    given = json.loads(task.read_text())
    pictures = [limner.read(p["path"]).array[:] for p in given["pictures"]]
    views = [View(p, (1.0, 1.0), robust_limits(p)) for p in pictures]
    said = [[limner.Box(*box) for box in p["boxes"]] for p in given["pictures"]]
    if way == "fp32":
        _openvino.has_bf16 = lambda: False
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    start = time.perf_counter()
    built: Any = limner.create_model(model, weights=weights, device="cpu", exact=way == "authors")
    found: dict[str, Any] = {"load": time.perf_counter() - start, "runtime": built.card.runtime}

    def ask(embedding: Any, questions: Sequence[Any]) -> list[Any]:
        if hasattr(built, "segment_batch"):
            return list(built.segment_batch(embedding, questions))
        return [built.segment(embedding, q.prompts, q.previous) for q in questions]

    def question(box: Any) -> Any:
        return Question([*examples, box] if "box" in built.card.prompts else examples)

    examples: list[Any] = []
    if "example" in built.card.prompts:
        examples = example_prompts(views[0].array)
    saved, encode = {}, []
    for k, view in enumerate(views):
        start = time.perf_counter()
        embedding = built.embed(view)
        encode.append(time.perf_counter() - start)
        saved[f"embedding{k}"] = largest_plane(embedding)
        for j, answer in enumerate(ask(embedding, [question(box) for box in said[k]])):
            saved[f"mask{k}.{j}"] = answer.logits > 0
    found["encode"] = min(encode[1:] or encode)
    counts = (FEW, MANY) if hasattr(built, "segment_batch") else (FEW,)
    for count in counts:
        some = [question(box) for box in boxes(views[0].shape, count)]
        first = built.embed(views[0])
        found[f"decode{count}"] = seconds(lambda a=first, q=some: ask(a, q), runs)
    found["memory"] = resident_mb("VmHWM") - before
    np.savez(task.with_name(f"{way}.npz"), **saved)
    task.with_name(f"{way}.json").write_text(json.dumps(found))


def example_prompts(like: NDArray[Any]) -> list[Any]:
    """Discs in noise with their masks."""
    import limner

    rng = np.random.default_rng(0)
    made = []
    for _ in range(SUPPORT):
        rows, columns = np.ogrid[:128, :128]
        middle, radius = rng.uniform(40, 88, 2), rng.uniform(10, 30)
        inside = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2
        picture = np.clip(rng.normal(70, 15, (128, 128)) + 70 * inside, 0, 255).astype(like.dtype)
        made.append(limner.Example(picture, inside))
    return made


# The process that asks


def weights_of(system: System, parity: Path, folder: Path) -> Path:
    """The synthetic weights as the authors' kind of file."""
    spec = importlib.util.spec_from_file_location("fill", parity / "fill.py")
    if spec is None or spec.loader is None or not (parity / system.folder / "keys.json").is_file():
        raise SystemExit(
            f"There are no parity cases of {system.model} in {parity}; name their folder with "
            "--parity."
        )
    fill: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    path = folder / f"{system.folder}.pth"
    if not path.is_file():
        fill.write_checkpoint(path, fill.load_spec(parity / system.folder / "keys.json"))
    return path


def tasks(data: Path, count: int, objects: int) -> list[dict[str, Any]]:
    """Test pictures, one each of as many sets, with boxes around objects."""
    from limner.datasets.objects import find_objects
    from limner.datasets.selection import find_sets, open_image, pick_evenly

    found = []
    for data_set in pick_evenly(find_sets(data, "test", ["2d/*"]), count):
        stem = sorted(data_set.cases)[0]
        image = open_image(data_set, stem)
        around = []
        for case in find_objects(data_set, stem, image, most=objects):
            rows, columns = (np.flatnonzero(case.target.any(axis=axis)) for axis in (1, 0))
            low, high = (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)
            around.append((low, high))
        found.append({"path": str(data_set.cases[stem].images[0]), "boxes": around})
    return found


def run(command: Sequence[str], cache: Path) -> float:
    """Seconds of a whole process with a cache of its own."""
    start = time.perf_counter()
    environment = {**os.environ, "LIMNER_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def cold_starts(system: System, weights: Path, picture: str, folder: Path) -> dict[str, float]:
    """Seconds from a picture to a mask: authors' way, with an empty cache, with a full one."""
    command = [sys.executable, "-m", "limner.cli", "segment", picture, "--model", system.model]
    command += ["--weights", str(weights), "--device", "cpu", "-o", str(folder / "mask.png")]
    if system.model.startswith("universeg"):
        for name, prompt in zip(
            range(SUPPORT), example_prompts(np.zeros(1, np.uint8)), strict=True
        ):
            command += ["--example", _example_files(prompt, folder / str(name))]
    else:
        command += ["--box", "40,50,140,170"]
    cache = folder / "cold"
    found = {"authors": run([*command, "--exact"], cache)}
    for name in ("empty", "full"):
        found[name] = run(command, cache)
    return found


def _example_files(prompt: Any, stem: Path) -> str:
    from PIL import Image

    picture, mask = stem.with_suffix(".png"), stem.with_name(f"{stem.name}-mask.png")
    Image.fromarray(prompt.image).save(picture)
    Image.fromarray(prompt.mask.astype(np.uint8)).save(mask)
    return f"{picture}={mask}"


def agreement(folder: Path, way: str) -> tuple[float, float, float]:
    """Error of embeddings, mean and least Dice of masks, against the authors' way."""
    from limner.metrics import dice

    ours, theirs = (np.load(folder / f"{name}.npz") for name in (way, "authors"))
    errors, same = [], []
    for name in theirs.files:
        if name.startswith("embedding"):
            gap = ours[name] - theirs[name]
            errors.append(float(np.sqrt(np.mean(gap * gap)) / theirs[name].std()))
        elif theirs[name].any() or ours[name].any():
            same.append(dice(ours[name], theirs[name]))
    return fmean(errors), fmean(same or [1.0]), min(same or [1.0])


def report(system: System, options: argparse.Namespace, folder: Path) -> None:
    """Print the rows of one model."""
    weights = weights_of(system, options.parity, options.weights or folder)
    pictures = tasks(options.data, options.pictures, options.objects)
    (folder / "task.json").write_text(json.dumps({"pictures": pictures}))
    me = [sys.executable, __file__, "--process", system.model]
    rows: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        command = [*me, way, str(weights), str(folder / "task.json"), str(options.runs)]
        first = {}
        if way != "authors":  # the first process converts
            run(command, folder / "cache")
            first = json.loads((folder / f"{way}.json").read_text())
        run(command, folder / "cache")
        rows[way] = json.loads((folder / f"{way}.json").read_text()) | {"first": first}
        if rows[way]["runtime"] in [rows[w]["runtime"] for w in WAYS[: WAYS.index(way)]]:
            del rows[way]  # this model stays in fp32
    base = rows["authors"]
    for row_way, row in rows.items():
        error, mean, least = agreement(folder, row_way)
        cells = [system.model if row_way == "authors" else "", row["runtime"]]
        for name in ("encode", f"decode{FEW}", f"decode{MANY}"):
            cells.append(f"{row[name]:.3f} ({base[name] / row[name]:.1f}x)" if name in row else "")
        cells.append(f"{row['memory']:.0f}")
        cells.append(f"{row['first']['memory']:.0f}" if row["first"] else "")
        cells.append(f"{row['first']['load']:.1f}" if row["first"] else "")
        cells += [f"{row['load']:.2f}", f"{error:.2g}", f"{mean:.4f}", f"{least:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    if not options.no_cold:
        cold = cold_starts(system, weights, pictures[0]["path"], folder)
        print(
            f"| | cold start s | authors' way {cold['authors']:.1f} | empty cache "
            f"{cold['empty']:.1f} | full cache {cold['full']:.1f} |" + " |" * 7,
            flush=True,
        )


def main() -> None:
    """Print a table, one block of rows per model."""
    if sys.argv[1:2] == ["--process"]:
        model, way, weights, task, runs = sys.argv[2:]
        measure(model, way, Path(weights), Path(task), int(runs))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[s.model for s in SYSTEMS])
    parser.add_argument("--parity", type=Path, default=SHARED / "parity")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--weights", type=Path, help="keep the synthetic weights in this folder")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--objects", type=int, default=3, help="per picture")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-cold", action="store_true", help="leave out cold starts")
    options = parser.parse_args()
    if not (options.parity / "fill.py").is_file():
        raise SystemExit(f"There is no fill.py in {options.parity}; name its folder with --parity.")
    if not options.data.is_dir():
        raise SystemExit(f"There is no folder {options.data}; name the data with --data.")
    unknown = set(options.models) - {s.model for s in SYSTEMS}
    if unknown:
        raise SystemExit(f"Unknown: {', '.join(sorted(unknown))}.")
    heads = ["model", "computed by", "encode s", "one box s", f"{MANY} boxes s", "MB", "MB first"]
    heads += ["convert s", "load s", "embedding off by", "Dice", "least Dice"]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|", flush=True)
    for system in SYSTEMS:
        if system.model in options.models:
            with tempfile.TemporaryDirectory() as folder:
                report(system, options, Path(folder))


if __name__ == "__main__":
    main()
