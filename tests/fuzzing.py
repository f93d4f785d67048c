"""Fuzzing of all readers: mutated files of every kind, each with a limit of time and of memory.

    PYTHONPATH=src python tests/fuzzing.py --inputs 100000 --keep found/

reads so many mutated files and prints what went wrong, each kind of fault once. Every input follows
from its number and ``--seed``. What counts as a fault: an exception that is not limner's own, or a
warning of another package; a reader that takes longer than `SECONDS`; a process that dies; memory
above `MEMORY`, or that ran out and was reported as if the file were at fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import fuzz_mutations as mutations
from fuzz_seeds import Seed, make_seeds

SECONDS = 20.0  # a reader may take, on a busy machine
MEMORY = 700 << 20  # bytes above what the process had before; a header may claim `CLAIMED`
CLAIMED = 256 << 20  # bytes that limner would allow one image
_SMALL = 64 << 20  # bytes of pixels that are read as a whole


@dataclass
class Report:
    """What a run found.

    Attributes:
        inputs: how many files were read.
        accepted: how many of them were taken for sound.
        by_seed: inputs by the file they were made of.
        faults: one line each, by kind of fault.
        peak: bytes of memory above the start, at most.
        slowest: seconds of one input, at most.
        seconds: of all.
    """

    inputs: int = 0
    accepted: int = 0
    by_seed: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    peak: int = 0
    slowest: float = 0.0
    seconds: float = 0.0


def run(count: int, seed: int = 0, *, only: str = "", keep: Path | None = None) -> Report:
    """Read `count` mutated files in a process of its own, which is replaced when it dies or hangs.

    Args:
        count: of inputs.
        seed: of the random generator.
        only: part of the names of the files to mutate.
        keep: folder for the inputs of faults.
    """
    report, number, began = Report(), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="limner-fuzz-", dir=_fast_folder()) as name:
        while number < count:
            number = _watch(Path(name), number, count, seed, only, keep, report)
    report.seconds = time.monotonic() - began
    return report


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _watch(
    folder: Path, first: int, count: int, seed: int, only: str, keep: Path | None, report: Report
) -> int:
    """Run one worker until it is done or has to be ended; the number of the next input."""
    command = [sys.executable, __file__, "--work", str(folder), "--first", str(first)]
    command += ["--inputs", str(count), "--seed", str(seed), "--only", only]
    if keep is not None:
        command += ["--keep", str(keep)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=False)
    assert worker.stdout is not None
    os.set_blocking(worker.stdout.fileno(), False)
    number, name, rest, ended = first, "", b"", ""
    wait = 120.0  # for the imports
    while not ended:
        ready, _, _ = select.select([worker.stdout], [], [], wait)
        if not ready:
            ended = f"hang: {name} took more than {wait:g} s"
            worker.kill()
            break
        wait = SECONDS
        data = worker.stdout.read()
        if data == b"":
            code = worker.wait()
            if code == 0:
                worker.stdout.close()
                return count
            ended = f"crash: {name} ended the process with {code}"
            break
        *rows, rest = (rest + (data or b"")).split(b"\n")
        for row in rows:
            fact = json.loads(row)
            number, name = fact["number"], fact["name"]
            if "fault" in fact:
                _note(report, fact["fault"], fact["line"], name, number)
            if "done" in fact:
                report.inputs += 1
                report.accepted += fact["done"]
                report.by_seed[name] += 1
                report.peak = max(report.peak, fact["peak"])
                report.slowest = max(report.slowest, fact["seconds"])
    worker.wait()
    worker.stdout.close()
    _note(report, ended, ended, name, number)
    _keep(folder / "input", keep, number)
    report.inputs += 1
    report.by_seed[name] += 1
    return number + 1


def _note(report: Report, kind: str, line: str, name: str, number: int) -> None:
    if kind not in report.faults:
        report.faults[kind] = f"input {number} ({name}): {line}"
        print(report.faults[kind], flush=True)


def _keep(place: Path, folder: Path | None, number: int) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(place, folder / f"{number}", dirs_exist_ok=True)


# ---------------------------------------------------------------- the process that reads


def work(folder: Path, first: int, count: int, seed: int, only: str, keep: Path | None) -> None:
    """Read the inputs from number `first` on, and print one line before and after each."""
    import limner
    from limner.io import limits

    limits.physical_memory = lambda: int(CLAIMED / limits.MEMORY_SHARE)  # type: ignore[assignment]
    os.environ["LIMNER_DEBUG"] = "1"
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = [s for s in make_seeds(Path(made)) if only in s.name or only == s.kind]
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def say(**facts: object) -> None:
        print(json.dumps(facts), file=out, flush=True)

    place = folder / "input"
    for number in range(first, count):
        rng = random.Random(f"{seed} {number}")
        chosen = rng.choice(seeds)
        path = _write_input(rng, chosen, place)
        say(number=number, name=chosen.name)
        start, before = time.monotonic(), _reset_peak()
        accepted, fault = True, None
        try:
            READERS[chosen.kind](rng, path)
        except limner.LimnerError as error:
            accepted = False
            cause = error.__cause__  # FFmpeg refuses by itself what is too large
            if isinstance(cause, MemoryError) and not type(cause).__module__.startswith("av."):
                fault = ("memory ran out", str(error))
        except Exception as error:
            accepted, fault = False, _describe(error)
        peak, seconds = _peak() - before, time.monotonic() - start
        if peak > MEMORY and fault is None:
            fault = (f"memory: {chosen.name}", f"{peak >> 20} MiB")
        if fault is not None:
            _keep(place, keep, number)
            say(number=number, name=chosen.name, fault=fault[0], line=fault[1])
        say(number=number, name=chosen.name, done=accepted, peak=peak, seconds=seconds)


def _write_input(rng: random.Random, seed: Seed, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in seed.beside.items():
        (place / name).write_bytes(content)
    mutate = rng.choice((mutations.any_bytes, mutations.cut, *seed.mutations, *seed.mutations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = mutate(rng, seed.content)
        except Exception:  # of the library that writes it
            content = mutations.any_bytes(rng, seed.content)
        if rng.random() < 0.1:
            content = mutations.any_bytes(rng, content)
    path = place / seed.name
    path.write_bytes(content)
    return path


def _describe(error: BaseException) -> tuple[str, str]:
    """Kind of fault (type, and the place in limner) and one line about it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f"{os.sep}limner{os.sep}" in f.filename] or list(frames)
    last = ours[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__} at {where}", f"{type(error).__name__}: {error} ({where})"[:400]


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Bytes of memory at most since `_reset_peak`; 0 where the system does not tell."""
    try:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("VmHWM"):
                return int(row.split()[1]) << 10
    except OSError:
        pass
    return 0


class UnexpectedExit(Exception):
    """The command line met an error that it calls a bug."""


def _command(*arguments: str) -> None:
    from limner.cli.__main__ import OUR_FAULT
    from limner.cli.__main__ import run as run_command

    with _last_error() as caught:
        code = run_command(list(arguments))
    if code == OUR_FAULT:
        raise caught[-1] if caught else UnexpectedExit(str(arguments))


@contextlib.contextmanager
def _last_error() -> Iterator[list[BaseException]]:
    """What `limner.cli.__main__` traces, which it does for bugs and foreign errors only."""
    import limner.cli.__main__ as command

    caught: list[BaseException] = []
    before = command._trace

    def keep() -> None:
        error = sys.exc_info()[1]
        if error is not None:
            caught.append(error)

    command._trace = keep
    try:
        yield caught
    finally:
        command._trace = before


def _read_image(rng: random.Random, path: Path) -> None:
    import limner
    from limner.cli.info import describe
    from limner.io import holds_labels

    if rng.random() < 0.05:
        _command("info", str(path), "--json")
        _command("convert", str(path), str(path.with_name("out.nrrd")))
        return
    if rng.random() < 0.2:
        holds_labels(path)
        labels = limner.read_labels(path)
        assert labels.to_array().shape == labels.geometry.shape
        return
    image = limner.read(path, strict=rng.random() < 0.7)
    json.dumps(describe(image), default=str)
    repr(image)
    if image.geometry.ndim == 3:
        middle = image.geometry.shape[0] // 2
        assert image.slice_at(middle).shape == image.shape[1:]
    if prod(image.shape) * image.dtype.itemsize < _SMALL:
        assert image.array.shape == image.shape
        assert image.array.dtype == image.dtype


def _read_labels(rng: random.Random, path: Path) -> None:
    import limner

    if rng.random() < 0.05:
        _command("info", str(path), "--json")
        _command("convert", str(path), str(path.with_name("out.nrrd")))
        return
    beside = [p for p in path.parent.iterdir() if p != path]
    like = beside[0] if beside and rng.random() < 0.7 else None
    labels = limner.read_labels(path, like=like)
    assert labels.to_array().shape == labels.geometry.shape
    labels.num_overlapping()
    for i in labels.ids[:3]:
        assert labels.mask(i).shape == labels.geometry.shape


def _read_journal(rng: random.Random, path: Path) -> None:
    import limner
    from limner.sessions import read_journal

    if rng.random() < 0.1:
        _command("info", str(path))
    read_journal(path)
    with limner.resume(path, image=path.with_name("image.nii")) as session:
        session.predict()
        session.undo()


def _read_prompts(rng: random.Random, path: Path) -> None:
    from limner.cli._prompt_files import read_prompts

    _command("info", str(path))
    read_prompts(path)
    image, out = path.with_name("image.nii"), path.with_name("out.nii.gz")
    given = ["--prompts", str(path), "--model", "baseline/box", "-o", str(out)]
    if image.exists():
        _command("segment", str(image), *given)


def _read_recipe(rng: random.Random, path: Path) -> None:
    from limner.train.recipe import read_recipe

    read_recipe(path)


def _read_weights(rng: random.Random, path: Path) -> None:
    from limner.checkpoints.bundle import read_bundle
    from limner.checkpoints.load import read_checkpoint

    if rng.random() < 0.05:
        read_bundle(path)
    for tensor in read_checkpoint(path).tensors.values():
        tensor.float().sum()


READERS: dict[str, Callable[[random.Random, Path], None]] = {
    "image": _read_image,
    "labels": _read_labels,
    "journal": _read_journal,
    "prompts": _read_prompts,
    "recipe": _read_recipe,
    "weights": _read_weights,
}


def main() -> int:
    """Run from the command line; 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a file name, or a kind of reader")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of faults")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.first, given.inputs, given.seed, given.only, given.keep)
        return 0
    report = run(given.inputs, given.seed, only=given.only, keep=given.keep)
    print(
        f"{report.inputs} inputs of {len(report.by_seed)} files in {report.seconds:.0f} s: "
        f"{report.accepted} accepted, {len(report.faults)} kinds of fault; "
        f"memory at most {report.peak >> 20} MiB, slowest {report.slowest:.1f} s"
    )
    for line in report.faults.values():
        print(f"  {line}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
