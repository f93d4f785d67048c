"""The rows of a run on disk: appended one by one, never lost, read back for reports."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner import rle
from limner._version import __version__
from limner.atomic import atomic_bytes
from limner.bench.config import BenchConfig, config_from_json
from limner.bench.measures import MEASURES
from limner.datasets.files import read_json
from limner.errors import FormatError

Key: TypeAlias = tuple[str, str | None, str, str, str, str | None]

ROWS, CONFIG, LEFT_OUT = "rows.jsonl", "config.json", "left_out.jsonl"


@dataclass(frozen=True)
class Row:
    """One conversation and its scores.

    Attributes:
        model: name on its card.
        weights_sha256: hash of its weights, None where there are none.
        version: of limner.
        set_name: of the data set.
        standing: of the set, see `cases.Dataset`.
        modality: of the set.
        split: which part of the data the picture is in, as asked for.
        stem: of the picture.
        group: patient, volume or animal where known, else the stem: what intervals resample.
        object_id: see `cases.Case`.
        target_name: in words, empty if unknown.
        annotator: whose strokes, None where the user is simulated.
        num_pixels: of the target.
        protocol: key of `config.PROTOCOLS`.
        disturbance: key of `config.DISTURBANCES`.
        seed: of the run.
        scores: by key of `measures.MEASURES` one value a round, as long as the run has rounds; None
            where it is not defined (all but the last of ``"shuffled"``, infinite distances); those
            of no answer from the round on in which the model failed. In files each is a field.
        seconds: wall clock of the rounds that were held.
        prompts: of each round that was held, as JSON values; examples are named by `examples`.
        answer: the last mask by `encode_answer`, None if there is none.
        image_sha256: `Image.pixel_hash` of the undisturbed picture.
        target_sha256: of the target's shape and pixels.
        error: what the model raised, None if nothing.
        examples_asked: how many pictures were to be shown, None for other protocols.
        examples: stems of those that were, in order; fewer where the set has no more.
        examples_sha256: of their pixels and masks.
        dimensions: 2 of a picture, 3 of a volume.
        way: of a volume, ``"whole"`` or ``"slices"``: how the model was asked.
        marks: what was said first by the protocols ``"slices"`` and ``"propagation"``, such as
            ``"3 boxes, interpolate"`` and ``"1 mask"``.
        peak_mb: of a volume, memory above that at the conversation's start; None if not known.
        followed: of the protocol ``"propagation"``, what `propagation.Followed` holds; its Dice is
            then that of all scored frames together, and `seconds` those to the first carried frame.
    """

    model: str
    weights_sha256: str | None
    version: str
    set_name: str
    standing: str
    modality: str
    split: str
    stem: str
    group: str
    object_id: str
    target_name: str
    annotator: str | None
    num_pixels: int
    protocol: str
    disturbance: str
    seed: int
    scores: dict[str, list[float | None]]
    seconds: list[float]
    prompts: list[list[dict[str, Any]]] = field(repr=False)
    answer: dict[str, Any] | None = field(repr=False)
    image_sha256: str
    target_sha256: str
    error: str | None = None
    examples_asked: int | None = None
    examples: list[str] = field(default_factory=list, repr=False)
    examples_sha256: str | None = None
    dimensions: int = 2
    way: str | None = None
    marks: str | None = None
    peak_mb: float | None = None
    followed: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def dice(self) -> list[float | None]:
        """Dice 0…1 of each round."""
        return self.scores["dice"]

    @property
    def key(self) -> Key:
        """What a run has at most one row of."""
        return (
            self.model,
            self.weights_sha256,
            self.set_name,
            self.stem,
            self.object_id,
            self.annotator,
        )

    @property
    def task(self) -> str:
        """The protocol, or what there is of it in the plural: ``"16 examples"``; in volumes
        ``"box, 3D"``.
        """
        if self.protocol == "propagation":
            return f"propagation, {self.marks}"
        if self.dimensions == 3:
            return f"{self.protocol if self.marks is None else self.marks}, 3D"
        if self.examples_asked is None:
            return self.protocol
        return f"{self.examples_asked} example{'s' if self.examples_asked > 1 else ''}"


def encode_answer(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as JSON values: COCO RLE of a picture; of a volume likewise ``size`` (slices, rows,
    columns) and ``counts``, whose runs go along columns, then rows, then slices.
    """
    if mask.ndim == 2:
        return rle.coco_encode(mask)
    return {"size": list(mask.shape), "counts": rle.coco_compress(rle.encode(mask))}


def decode_answer(value: dict[str, Any]) -> NDArray[np.bool_]:
    """Inverse of `encode_answer`.

    Raises:
        ValueError: as for `rle.coco_decode`.
    """
    if len(value["size"]) == 2:
        return np.asarray(rle.coco_decode(value), dtype=bool)
    return np.asarray(rle.decode(rle.coco_decompress(value["counts"]), value["size"]), dtype=bool)


class RowStore:
    """The folder of one run, open for appending.

    Args:
        folder: made if missing; a run of the same configuration that is there is continued.
        config: of the run.
        weights: hash of the weights by model name.

    Raises:
        FormatError: the folder holds another run, or damaged rows.
    """

    def __init__(
        self, folder: Path, config: BenchConfig, weights: Mapping[str, str | None]
    ) -> None:
        self._folder = folder
        wanted = {"config": config.to_json(), "weights_sha256": dict(weights)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise FormatError(f"{folder} is a file; name a folder for the run.") from error
        if (folder / CONFIG).exists():
            _check_same(folder, read_json(folder / CONFIG), wanted)
        elif (folder / ROWS).exists():
            raise FormatError(f"{folder} has {ROWS} but no {CONFIG}; name a new folder.")
        else:
            text = json.dumps({**wanted, "version": __version__}, indent=1)
            atomic_bytes(folder / CONFIG, text.encode())
        for name in (ROWS, LEFT_OUT):
            _drop_torn_line(folder / name)
        self.done: set[Key] = {row.key for row in read_rows(folder)}
        self._left_out = {(f["set"], f["stem"], f.get("object")) for f in read_left_out(folder)}

    def append(self, row: Row) -> None:
        """Write a row and wait until it is on the disk."""
        _append(self._folder / ROWS, _to_json(row))
        self.done.add(row.key)

    def leave_out(
        self, set_name: str, stem: str, reason: str, *, object_id: str | None = None
    ) -> None:
        """Note a picture, or one object of it, that cannot be asked about, once."""
        if (set_name, stem, object_id) in self._left_out:
            return
        self._left_out.add((set_name, stem, object_id))
        one = {} if object_id is None else {"object": object_id}
        _append(self._folder / LEFT_OUT, {"set": set_name, "stem": stem, **one, "reason": reason})


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run in the order in which they came; a last line cut short is not one.

    Raises:
        FormatError: a line is damaged; the message names it.
    """
    fields = [f for f in dataclasses.fields(Row) if f.name != "scores"]
    names = {f.name for f in fields} | set(MEASURES)
    needed = {"dice"} | {
        f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING
    }
    rows: dict[Key, Row] = {}
    for number, value in _lines(folder / ROWS):
        if not isinstance(value, dict) or not needed <= set(value) <= names:
            raise FormatError(f"{folder / ROWS}, line {number} is not a row of limner bench.")
        row = _from_json(value)
        rows.setdefault(row.key, row)
    return list(rows.values())


def read_left_out(folder: Path) -> list[dict[str, str]]:
    """Pictures that could not be asked about: ``set``, ``stem`` and ``reason`` each, and ``object``
    where it is only that one.
    """
    return [value for _, value in _lines(folder / LEFT_OUT)]


def read_run_config(folder: Path) -> BenchConfig:
    """The configuration of a run.

    Raises:
        FormatError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{folder} has no {CONFIG}; name a folder that limner bench run wrote.")
    return config_from_json(read_json(folder / CONFIG).get("config"), folder / CONFIG)


def _to_json(row: Row) -> dict[str, Any]:
    """A row with its scores as fields; a measure that it has not is an empty list."""
    values = dataclasses.asdict(row)
    scores = values.pop("scores")
    return values | {key: scores.get(key, []) for key in MEASURES}


def _from_json(values: dict[str, Any]) -> Row:
    """Inverse of `_to_json`; measures that are newer than the row are missing."""
    scores = {key: values[key] for key in MEASURES if values.get(key)}
    facts = {name: value for name, value in values.items() if name not in MEASURES}
    return Row(scores=scores, **facts)


def _check_same(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    old = config_from_json(there.get("config"), folder / CONFIG).to_json()
    different = [name for name, value in wanted["config"].items() if old.get(name) != value]
    if different:
        name = different[0]
        raise FormatError(
            f"{folder} holds a run with another {', '.join(different)} ({name}: {old[name]!r} "
            f"there, {wanted['config'][name]!r} now); name another folder."
        )
    hashes = there.get("weights_sha256", {})
    changed = [m for m, value in wanted["weights_sha256"].items() if hashes.get(m) != value]
    if changed:
        raise FormatError(
            f"{folder} holds a run with other weights of {', '.join(changed)}; name another folder."
        )


def _append(path: Path, value: dict[str, Any]) -> None:
    line = json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Number, from 1, and value of every whole line; nothing if there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise FormatError(f"{path}, line {number} is damaged: {error}.") from error


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next one begins a line."""
    if not path.exists():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, whole)
