"""Batch segmentation: a folder of images with the same prompts, or with prompts per file name.

Every file that is done is a line in ``limner.jsonl`` of the output folder, on the disk before the
next one is begun; a run that was killed goes on there. At the end ``summary.csv`` lists all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from limner._version import __version__
from limner.cli._options import (
    ModelOptions,
    ObjectOptions,
    OutputOptions,
    PlaceOptions,
    PromptOptions,
    ReadOptions,
    ServerOptions,
)
from limner.errors import FormatError, LimnerError, PromptError

if TYPE_CHECKING:
    from limner.cli._prompt_files import PromptFile
    from limner.cli._prompts import CommandPrompts

Options: TypeAlias = tuple[
    PlaceOptions, ObjectOptions, ModelOptions, ServerOptions, ReadOptions, OutputOptions
]

STATE, SUMMARY = "limner.jsonl", "summary.csv"
BAD_INPUT, INTERRUPTED = 2, 130
_MOST_LISTED = 10  # files of one kind in a message
_COLUMNS = (
    *("file", "status", "output", "object", "name", "pixels", "area_mm2", "volume_mm3"),
    *("score", "model", "seconds", "error"),
)


@dataclass(frozen=True)
class FolderPrompts:
    """Prompts for the files of a folder.

    Attributes:
        default: for every file that has none of its own; None: such files are left out.
        files: by name below the folder; None where a file is to be left out.
    """

    default: Any = None
    files: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> FolderPrompts:
        """Read ``--prompts`` of a folder: ``{"default": …, "files": {NAME: …}}``, or what one image
        takes, which then is meant for all.

        Raises:
            FormatError: not JSON, or not of that form.
        """
        from limner.cli._prompt_files import load_json

        value = load_json(path)
        if not isinstance(value, dict) or not value.keys() & {"files", "default"}:
            return cls(value)
        strangers = value.keys() - {"files", "default"}
        files = value.get("files", {})
        if strangers or not isinstance(files, dict):
            raise FormatError(
                f'{path}: prompts of a folder are {{"default": …, "files": {{"a.png": …}}}}, each '
                "as for one image (docs/prompts.md); "
                + (f"not {', '.join(sorted(strangers))}." if strangers else f"not {files!r}.")
            )
        return cls(value.get("default"), files)

    def find(self, name: str) -> Any:
        """What is given for a file."""
        return self.files.get(name, self.default)


def is_folder_run(path: Path, output: Path) -> bool:
    """Whether a folder of images is meant, not a folder that is one image: the mask is a folder."""
    return path.is_dir() and (output.is_dir() or not output.suffix)


def segment_folder(
    folder: Path,
    output: Path,
    prompts: PromptOptions,
    options: Options,
    *,
    suffix: str | None,
) -> None:
    """Segment all images of a folder into another one.

    Raises:
        FormatError: nothing can be written there, or the folder holds no images.
        PromptError: the prompts are none, or name files that do not exist.
        typer.Exit: some files could not be done (2), or the user stopped (130).
    """
    run = FolderRun(folder, output, prompts, options, suffix)
    try:
        run.run()
    except KeyboardInterrupt:
        run.write_summary()
        print(
            f"limner: stopped; {run.count('done')} of {len(run.names)} files are in {output}. The "
            "same command goes on.",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    run.write_summary()
    run.report()
    if run.count("failed"):
        raise typer.Exit(BAD_INPUT)


class FolderRun:
    """One run over a folder; arguments as for `segment_folder`.

    Attributes:
        names: of the files and folders with an image each, below the folder.
        rows: what is known of each, by name.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        prompts: PromptOptions,
        options: Options,
        suffix: str | None,
    ) -> None:
        from limner.cli._prompts import CommandPrompts

        self._folder, self._output, self._suffix = folder, output, suffix
        self._options = options
        _check_options(folder, output, options[-1])
        file = prompts.prompts
        self._given = FolderPrompts() if file is None else FolderPrompts.read(file)
        self._prompts_path = file
        self._command = CommandPrompts.parse(replace(prompts, prompts=None), options[0].slice_)
        if self._given == FolderPrompts() and self._command == CommandPrompts():
            raise PromptError(
                "Nothing says what to delineate in the files: give --prompts FILE.json with "
                "prompts for all or per file name (docs/prompts.md), or --box, --click, --text …"
            )
        if self._given.default is not None:
            self._parse(self._given.default)  # its errors now, not once for every file
        self.names, self._others = find_images(folder, output)
        missing = [name for name in self._given.files if not (folder / name).exists()]
        if missing:
            raise PromptError(
                f"{file} has prompts for files that are not in {folder}: {_list(missing)}. Names "
                "are those below the folder, such as a.png or patient1/ct.nii.gz."
            )
        self.names = sorted({*self.names, *self._given.files})
        if not self.names:
            raise FormatError(f"{folder} holds no images that limner reads.")
        output.mkdir(parents=True, exist_ok=True)
        self.rows = _read_state(output / STATE)
        self._known = 0
        self._outputs: dict[str, Path] = {}

    def run(self) -> None:
        """Segment what is not done yet; an error is noted and stops nobody."""
        from limner.cli._progress import bar

        stems = Counter(_stem(name) for name in self.names)
        with bar("segmenting", "files") as tell, (self._output / STATE).open("ab") as state:
            for k, name in enumerate(self.names):
                tell(k, len(self.names))
                row = self._segment_if_new(name, alone=stems[_stem(name)] == 1)
                if row is None:
                    continue
                self.rows[name] = row
                state.write(json.dumps(row).encode() + b"\n")
                state.flush()
                os.fsync(state.fileno())
            tell(len(self.names), len(self.names))

    def _segment_if_new(self, name: str, *, alone: bool) -> dict[str, Any] | None:
        """The row of a file, None where it was done before with the same prompts."""
        began = time.perf_counter()
        row: dict[str, Any] = {"file": name}
        try:
            given = self._prompts_of(name)
            if given is None:
                return {**row, "status": "left out", "error": "no prompts for it"}
            key = self._key(name, given)
            before = self.rows.get(name, {})
            is_done = (before.get("status"), before.get("key")) == ("done", key)
            if is_done and (self._output / before["output"]).exists():
                self._known += 1
                return None
            target, facts = self._segment(name, given, began, alone=alone)
            facts = {k: v for k, v in facts.items() if k not in ("image", "notice", "output")}
            return {**row, "status": "done", "key": key, "output": target, **facts}
        except Exception as error:
            return {**row, "status": "failed", "error": _explain(error)}

    def _prompts_of(self, name: str) -> CommandPrompts | None:
        """What is given for a file, in the file of prompts and on the command line."""
        from limner.cli._prompts import CommandPrompts

        given, command = self._given.find(name), self._command
        if given is None:
            return None if command == CommandPrompts() or name in self._given.files else command
        return replace(command, file=self._parse(given))

    def _parse(self, value: Any) -> PromptFile:
        from limner.cli._prompt_files import parse_prompts

        assert self._prompts_path is not None
        return parse_prompts(value, self._prompts_path, self._options[0].slice_)

    def _segment(
        self, name: str, given: CommandPrompts, began: float, *, alone: bool
    ) -> tuple[str, dict[str, Any]]:
        """The name of the mask, and what is in it."""
        from limner.cli._prompt_files import parse_axis
        from limner.cli._prompts import add_prompts, collect_prompts
        from limner.cli._result import check_output, write_answers
        from limner.models import default_model

        place, objects, model, server, reading, result = self._options
        image = reading.read(self._folder / name)
        target = Path((_stem(name) if alone else name) + self._suffix_of(name, image.kind))
        output = self._output / target
        output.parent.mkdir(parents=True, exist_ok=True)
        check_output(output, None, image, inputs=given.paths, dicom_type=result.dicom_type)
        axis = parse_axis(place.axis, image, place.slice_)
        entries = collect_prompts(given, image, place, axis=axis)
        default = default_model(image.kind, flat=place.slice_ is not None and axis == 0)
        with server.open_session(image, model, default, file=given.file) as session:
            add_prompts(session, entries, given.file, objects)
            facts = write_answers(session, output, dicom_type=result.dicom_type, began=began)
        return target.as_posix(), facts

    def _suffix_of(self, name: str, kind: str) -> str:
        """The suffix of a mask: as asked for, else the image's own where masks can have it."""
        from limner.io import writer

        if self._suffix is not None:
            return self._suffix if self._suffix.startswith(".") else f".{self._suffix}"
        if (self._folder / name).is_dir():
            return ".dcm" if kind == "volume" else ".npz"
        own = name[len(_stem(name)) :].lower()
        if own in (".png", ".tif", ".nii", ".nii.gz", ".nrrd", ".mha", ".dcm"):
            writer(f"mask{own}")
            return own
        return {"image": ".png", "volume": ".nii.gz"}.get(kind, ".npz")

    def _key(self, name: str, given: CommandPrompts) -> str:
        """Hash of what a mask follows from: file, prompts, options, version."""
        path = self._folder / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [other for other in given.paths if other is not None]
        state = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        place, objects, model, _, reading, result = self._options
        entry = json.dumps(self._given.find(name), sort_keys=True)
        command = replace(given, file=None)
        whole = (state, entry, command, place, objects, model, reading, result.dicom_type)
        text = f"{__version__} {self._suffix} {whole!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def count(self, status: str) -> int:
        """How many files have a status."""
        return sum(self.rows.get(name, {}).get("status") == status for name in self.names)

    def write_summary(self) -> None:
        """Write a table of all files, a row per object."""
        from limner.atomic import atomic_bytes

        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for name in self.names:
            row = self.rows.get(name, {"file": name, "status": "not reached"})
            seconds = row.get("seconds", {}).get("total")
            for found in row.get("objects") or [{}]:
                facts = {**found, "object": found.get("id")}
                table.writerow({**row, **facts, "seconds": seconds})
        atomic_bytes(self._output / SUMMARY, text.getvalue().encode())

    def report(self) -> None:
        """Print what was done, and what was not and why; as JSON on stdout where asked for."""
        failed = [n for n in self.names if self.rows[n]["status"] == "failed"]
        absent = [n for n in self.names if self.rows[n]["status"] == "left out"]
        facts = {
            "done": self.count("done"),
            "known": self._known,
            "failed": {name: self.rows[name]["error"] for name in failed},
            "left_out": [*absent, *self._others],
            "summary": str(self._output / SUMMARY),
        }
        if self._options[-1].as_json:
            print(json.dumps(facts, indent=2))
        before = f" ({self._known} of them before)" if self._known else ""
        text = f"{self.count('done')} of {len(self.names)} files done{before} → {self._output}"
        print(text, file=sys.stderr)
        if absent:
            print(f"without prompts, so left out: {_list(absent)}", file=sys.stderr)
        if self._others:
            print(f"no images, so left out: {_list(self._others)}", file=sys.stderr)
        for name in failed:
            print(f"failed: {name}: {self.rows[name]['error']}", file=sys.stderr)


def find_images(folder: Path, output: Path) -> tuple[list[str], list[str]]:
    """The names of what holds an image each in a folder, and of other files there.

    That is every file of a known kind, damaged ones included, and every folder with a DICOM series
    or the frames of a video in it.

    Raises:
        FormatError: the DICOM files of the folder itself are one series.
    """
    names, others, dicom = [], [], list[Path]()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == output.resolve():
            continue
        if path.is_dir():
            names.append(path.name)
        elif (kind := _kind_of(path)) is None:
            others.append(path.name)
        else:
            names.append(path.name)
            dicom += [path] if kind.startswith("dicom") else []
    _refuse_one_series(dicom, folder)
    return names, others


def _kind_of(path: Path) -> str | None:
    """The format of an image, or what its name says; None where it is no image."""
    from limner.io.formats import choose_reader

    if path.name.lower().endswith((".json", ".raw", ".img", ".jsonl", ".csv")):
        return None  # prompts and manifests; the pixels of a header beside them
    try:
        return choose_reader(path).module
    except LimnerError:
        empty = path.stat().st_size == 0
        return "unknown" if empty and path.suffix else None  # an error worth being told


def _refuse_one_series(paths: Sequence[Path], folder: Path) -> None:
    import pydicom

    if len(paths) < 2:
        return
    seen: set[str] = set()
    for path in paths:
        try:
            head = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True
            )
        except Exception:  # a damaged file is told of where it is read
            continue
        uid = str(head.get("SeriesInstanceUID", ""))
        if uid and uid in seen:
            raise FormatError(
                f"{folder} holds a DICOM series, which is one image; name a file with -o, or give "
                "the folder above it for all the series there."
            )
        seen.add(uid)


def _check_options(folder: Path, output: Path, result: OutputOptions) -> None:
    if output.resolve() == folder.resolve():
        raise FormatError(f"{output} is the folder of the images; name another one with -o.")
    for option, value in (("--journal", result.journal), ("--preview", result.preview)):
        if value is not None:
            raise FormatError(f"{option} is one file, and a folder has many images; leave it out.")


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of earlier runs by name; a line that a crash cut short does not count."""
    rows: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return rows
    content = path.read_bytes()
    for line in content.splitlines():
        try:
            row = json.loads(line)
            rows[row["file"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    if content and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return rows


def _explain(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, MemoryError):
        text = "not enough memory for this image on this machine."
    elif isinstance(error, OSError) and not isinstance(error, LimnerError) and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}."
    elif isinstance(error, (LimnerError, ValueError)):
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error}. This is a bug of limner."
    return " ".join(text.split())


def _stem(name: str) -> str:
    """A name without the suffix of a format."""
    lowered = name.lower()
    for double in (".nii.gz", ".hdr.gz", ".img.gz", ".dcm.gz", ".ome.tif", ".ome.tiff"):
        if lowered.endswith(double):
            return name[: -len(double)]
    return name.removesuffix(Path(name).suffix)


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + rest
