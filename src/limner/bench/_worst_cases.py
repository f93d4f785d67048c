"""Worst cases of a report, drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from limner.bench import propagation_tables
from limner.bench import statistics as stats
from limner.bench._charts import BLIND
from limner.bench.rows import Row, decode_answer, read_run_config
from limner.datasets.objects import read_objects
from limner.datasets.record import Dataset
from limner.datasets.selection import find_sets, merge_by_label, open_image
from limner.datasets.sequences import find_sequences, find_track, open_sequence
from limner.errors import FormatError, LimnerError
from limner.io.image import Image
from limner.prompts.simulate_volume import largest_slice
from limner.prompts.types import from_json
from limner.render import cases

Grouped: TypeAlias = Mapping[str, Mapping[str, list[Row]]]  # `Row.task`, then model

_MAX_CASES = 36  # of a page: 5 MB

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorstCase:
    """A case worth looking at.

    Attributes:
        caption: what it is and how it scored.
        png: the picture.
    """

    caption: str
    png: bytes = field(repr=False)


def worst_cases(folders: Sequence[Path], plain: Grouped, count: int) -> list[WorstCase]:
    """Pictures of the lowest scores; baselines, which never look, are shown only if alone.

    Args:
        folders: of the runs, which name the data.
        plain: undisturbed rows.
        count: per model and protocol, at most.
    """
    sets: dict[str, Dataset] = {}
    for folder in folders:
        config = read_run_config(folder)
        try:
            data, dimensions = Path(config.data), config.dimensions
            if config.protocol == "propagation":
                found = find_sequences(data, config.split, config.sets)
            else:
                found = find_sets(data, config.split, config.sets, dimensions=dimensions)
            sets |= {s.name: s for s in found}
        except LimnerError as error:
            _log.warning("No pictures of the cases in %s: %s", folder, error)
    entries = [(p, m, rows) for p, by_model in plain.items() for m, rows in by_model.items()]
    looking = [entry for entry in entries if not entry[1].startswith(BLIND)] or entries
    each = max(1, min(count, _MAX_CASES // len(looking))) if looking else 0
    shown: list[WorstCase] = []
    for protocol, model, rows in looking:
        for row in stats.worst_rows(rows, each):
            drawn = _draw_case(row, f"{model}, {protocol}", sets)
            shown += [drawn] if drawn else []
    return shown


def _draw_case(row: Row, title: str, sets: dict[str, Dataset]) -> WorstCase | None:
    """The end of a conversation; None where the data are gone or have changed."""
    if row.set_name not in sets or row.answer is None:
        return None
    data_set = sets[row.set_name]
    if row.followed is not None:
        return _followed(row, title, data_set)
    try:
        image = open_image(data_set, row.stem)
        if image.pixel_hash() != row.image_sha256:
            raise FormatError("the picture has changed since")
        entries = merge_by_label(data_set) if row.protocol == "examples" else data_set
        target = read_objects(entries, row.stem, image).mask(row.object_id)
    except (LimnerError, OSError, KeyError) as error:
        _log.warning("No picture of %s %s: %s", row.set_name, row.stem, error)
        return None
    prompts = [[from_json(prompt) for prompt in prompts] for prompts in row.prompts]
    name = row.target_name or f"object {row.object_id}"
    person = f", {row.annotator}" if row.annotator else ""
    scores = " → ".join(f"{stats.score(row, 'dice', k):.2f}" for k in range(len(row.dice)))
    caption = f"{title}: {row.set_name} {row.stem}, {name}{person}. Dice {scores}"
    caption += f". Failed: {row.error}" if row.error else ""
    answer = decode_answer(row.answer)
    if target.ndim == 3:
        caption += f". Slice {largest_slice(target)}"
        return WorstCase(caption, cases.draw_slice(image, target, answer, prompts))
    return WorstCase(caption, cases.draw_case(image, target, answer, prompts))


def _followed(row: Row, title: str, data_set: Dataset) -> WorstCase | None:
    """The worst frame of a propagation, with what was given if it lies there."""
    assert row.answer is not None
    try:
        image = open_sequence(data_set, row.stem)
        if image.pixel_hash() != row.image_sha256:
            raise FormatError("the images have changed since")
        track = find_track(data_set, row.stem, image, row.object_id)
    except (LimnerError, OSError, KeyError) as error:
        _log.warning("No picture of %s %s: %s", row.set_name, row.stem, error)
        return None
    frame = propagation_tables.worst_frame(row)
    answer = decode_answer(row.answer)[frame - row.answer["first"]]
    geometry = image.geometry.slice_at(frame)
    frame_image = Image(image.slice_at(frame), geometry, modality=image.modality)
    name = row.target_name or f"object {row.object_id}"
    what = "slice" if image.kind == "volume" else "frame"
    caption = (
        f"{title}: {row.set_name} {row.stem}, {name}. Dice {propagation_tables.dice(row):.2f}; "
        f"{what} {frame}, given {_given(row, what)}"
    )
    caption += f". Failed: {row.error}" if row.error else ""
    return WorstCase(caption, cases.draw_case(frame_image, track.on(frame), answer, []))


def _given(row: Row, what: str) -> str:
    assert row.followed is not None
    frames = row.followed["given"]
    return f"{what}{'s' if len(frames) > 1 else ''} {', '.join(map(str, frames))}"
