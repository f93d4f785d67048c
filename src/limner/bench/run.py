"""A benchmark run: every model, every object, one row each, appended as it comes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from limner._version import __version__
from limner.bench._shared_embeddings import encoded_once
from limner.bench.automatic import (
    Labeller,
    check_labellers,
    create_labellers,
    find_label,
    label_objects,
    whole_labels,
)
from limner.bench.config import BenchConfig
from limner.bench.disturb import disturb_image
from limner.bench.interaction import run_interaction
from limner.bench.propagation import ModelPair, check_propagates, describe_start, run_propagation
from limner.bench.protocol import check_dimensions, check_speakable
from limner.bench.references import References
from limner.bench.rows import Key, Row, RowStore
from limner.datasets.objects import TargetObject, find_objects
from limner.datasets.record import Dataset
from limner.datasets.selection import find_sets, merge_by_label, open_image, pick_evenly
from limner.datasets.sequences import Track, find_sequences, find_tracks, open_sequence
from limner.errors import FormatError, LimnerError
from limner.io.image import Image
from limner.models import (
    AnyModel,
    ModelCard,
    PromptableModel,
    check_promptable,
    create_promptable,
)

M = TypeVar("M", PromptableModel, ModelPair, Labeller)

_REPORT_EVERY_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        num_rows: conversations in the folder, earlier ones included.
        num_new: of these, held now.
        num_failed: of the new ones, those in which the model raised.
        num_left_out: pictures that could not be asked about.
        num_objects_left_out: of other pictures, those of which there is no example.
        seconds: of wall clock, now.
    """

    num_rows: int
    num_new: int
    num_failed: int
    num_left_out: int
    num_objects_left_out: int
    seconds: float


def run(config: BenchConfig, out: Path, *, models: Sequence[AnyModel] | None = None) -> Outcome:
    """Hold every conversation that has no row yet.

    Ctrl-C or a kill loses at most the conversation at hand; the same call goes on.

    Args:
        config: what to do.
        out: folder of the run, made if missing.
        models: built already, in the order of ``config.models``; by default they are made by name.

    Raises:
        ValueError: a model is unknown or does not understand the protocol.
        CheckpointError: weights are missing or do not fit.
        FormatError: there is nothing to score, or `out` holds another run.
    """
    sets = find_run_sets(config)
    if config.protocol == "automatic":
        labellers = create_labellers(config) if models is None else check_labellers(models, config)
        hashes = {model.card.name: model.card.weights_sha256 for model in labellers}
        return _Automatic(config, labellers, RowStore(out, config, hashes)).over(sets)
    promptable = None if models is None else [check_promptable(model) for model in models]
    if config.protocol == "propagation":
        pairs = _create_pairs(config) if promptable is None else [ModelPair(m) for m in promptable]
        for pair in pairs:
            check_propagates(pair, config)
        hashes = {pair.card.name: pair.card.weights_sha256 for pair in pairs}
        return _Sequences(config, pairs, RowStore(out, config, hashes)).over(sets)
    requested = _create(config) if promptable is None else promptable
    for model in requested:
        check_dimensions(model.card, config.dimensions, by_slices=config.by_slices)
        check_speakable(model.card, config.protocol, config.disturb, mark=config.mark)
    store = RowStore(out, config, {m.card.name: m.card.weights_sha256 for m in requested})
    return _Run(config, requested, store).over(sets)


def find_run_sets(config: BenchConfig) -> list[Dataset]:
    """The sets of a run, objects being what its protocol asks about.

    Raises:
        FormatError: there is nothing to score.
    """
    data = Path(config.data)
    if config.protocol == "propagation":
        return find_sequences(data, config.split, config.sets)
    sets = find_sets(data, config.split, config.sets, dimensions=config.dimensions)
    if config.protocol == "examples":
        return [merge_by_label(s) for s in sets]
    if config.protocol == "automatic":
        return [whole_labels(s) for s in sets]
    if config.protocol == "scribbles":
        sets = [s for s in sets if (s.folder / "scribbles").is_dir()]
        if not sets:
            raise FormatError(f"No set of {data} has a folder scribbles/; use another protocol.")
    return sets


def seed_of(config_seed: int, set_name: str, stem: str, object_id: str) -> int:
    """The seed of one object's user: the same on every machine, for every model and protocol."""
    text = f"{config_seed}|{set_name}|{stem}|{object_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class _Loop(Generic[M]):
    """The loop over pictures, objects and models, with its counts."""

    def __init__(self, config: BenchConfig, models: Sequence[M], store: RowStore) -> None:
        self._config = config
        self._models: Sequence[M] = models
        self._store = store
        self._new = self._failed = self._left_out = self._objects_left_out = 0
        self._reason = ""
        self._began = self._last_report = time.monotonic()

    def over(self, sets: Sequence[Dataset]) -> Outcome:
        """Every picture of every set."""
        images = [
            (s, stem) for s in sets for stem in pick_evenly(list(s.cases), self._config.limit)
        ]
        _log.info("%d images of %d sets, %d models", len(images), len(sets), len(self._models))
        for number, (data_set, stem) in enumerate(images, 1):
            try:
                self._ask_image(data_set, stem)
            except (LimnerError, OSError) as error:
                self._leave_out(data_set.name, stem, str(error))
            self._tell(number, len(images), data_set.name)
        if not self._store.done:
            reason = f": {self._reason}" if self._reason else f" with {self._config.disturb}."
            raise FormatError(f"None of the {len(images)} pictures can be asked about{reason}")
        seconds = time.monotonic() - self._began
        left_out = self._left_out, self._objects_left_out
        return Outcome(len(self._store.done), self._new, self._failed, *left_out, seconds)

    def _ask_image(self, data_set: Dataset, stem: str) -> None:
        """Every object of a picture."""
        raise NotImplementedError

    def _unasked(self, data_set: Dataset, stem: str, case: TargetObject | Track) -> list[M]:
        """The models that have not been asked about an object."""
        done = self._store.done
        return [m for m in self._models if _key(m.card, data_set, stem, case) not in done]

    def _append(self, row: Row) -> None:
        self._store.append(row)
        self._new += 1
        self._failed += row.error is not None

    def _leave_out(
        self, set_name: str, stem: str, reason: str, *, object_id: str | None = None
    ) -> None:
        """Note and count a picture, or one object of it."""
        self._left_out += object_id is None
        self._objects_left_out += object_id is not None
        self._reason = self._reason or reason
        self._store.leave_out(set_name, stem, reason, object_id=object_id)
        what = stem if object_id is None else f"{stem}, object {object_id}"
        _log.warning("%s %s is left out: %s", set_name, what, reason)

    def _tell(self, number: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now - self._last_report < _REPORT_EVERY_S and number < total:
            return
        self._last_report = now
        left = (now - self._began) / number * (total - number)
        failed = f", {self._failed} failed" if self._failed else ""
        _log.info(
            "picture %d of %d (%s), %d conversations%s, about %.0f s left",
            *(number, total, name, len(self._store.done), failed, left),
        )


class _Run(_Loop[PromptableModel]):
    """Conversations about pictures and volumes."""

    _references: References | None = None  # of the set at hand

    def _ask_image(self, data_set: Dataset, stem: str) -> None:
        image = open_image(data_set, stem)
        shown = disturb_image(image, self._config.disturb)
        if shown is None:
            return
        drawn = self._config.protocol == "scribbles"
        found = False
        for case in find_objects(data_set, stem, image, most=self._config.objects, drawn=drawn):
            found = True
            self._object(data_set, stem, image, shown, case)
        if not found:
            reason = "nobody drew on an object" if drawn else "no object is large enough"
            self._leave_out(data_set.name, stem, f"{reason}.")

    def _object(
        self, data_set: Dataset, stem: str, image: Image, shown: Image, case: TargetObject
    ) -> None:
        """Ask every model that has not been asked; `shown` is the picture as disturbed."""
        models = self._unasked(data_set, stem, case)
        if not models:
            return
        seed = seed_of(self._config.seed, data_set.name, stem, case.object_id)
        if self._config.protocol == "examples":
            case = self._with_references(data_set, stem, case, seed)
            if not case.references:
                return
        facts = _facts(self._config, data_set, stem, case)
        facts |= {"image_sha256": image.pixel_hash(), "target_sha256": _hash(case)}
        for model in models:
            row = Row(
                model=model.card.name,
                weights_sha256=model.card.weights_sha256,
                **facts,
                **run_interaction(model, shown, case, self._config, seed=seed),
            )
            self._append(row)

    def _with_references(
        self, data_set: Dataset, stem: str, case: TargetObject, seed: int
    ) -> TargetObject:
        """The case with pictures to show; where there are none that is noted."""
        if self._references is None or self._references.data_set is not data_set:
            self._references = References(data_set, disturb=self._config.disturb)
        rng = np.random.default_rng((seed, 3))
        references = self._references.draw(stem, case.object_id, self._config.examples, rng)
        if not references:
            reason = f"no other picture that may be shown holds label {case.object_id}."
            self._leave_out(data_set.name, stem, reason, object_id=case.object_id)
        return replace(case, references=references)


class _Automatic(_Loop[Labeller]):
    """Images that are labelled as a whole."""

    def _ask_image(self, data_set: Dataset, stem: str) -> None:
        image = open_image(data_set, stem)
        shown = disturb_image(image, self._config.disturb)
        if shown is None:
            return
        targets = list(find_objects(data_set, stem, image, most=self._config.objects))
        if not targets:
            self._leave_out(data_set.name, stem, "no object is large enough.")
        for model in self._models:
            missing = [t for t in targets if model in self._unasked(data_set, stem, t)]
            known = [t for t in missing if find_label(model.card, t) is not None]
            for target in missing:
                if target not in known:
                    what = target.target_name or f"label {target.object_id}"
                    reason = f"{model.card.name} has no label {what}."
                    self._leave_out(data_set.name, stem, reason, object_id=target.object_id)
            if not known:
                continue
            for target, fields in label_objects(model, shown, known, self._config):
                facts = _facts(self._config, data_set, stem, target)
                facts |= {"image_sha256": image.pixel_hash(), "target_sha256": _hash(target)}
                card = model.card
                row = Row(model=card.name, weights_sha256=card.weights_sha256, **facts, **fields)
                self._append(row)


class _Sequences(_Loop[ModelPair]):
    """Objects followed through volumes and videos."""

    def _ask_image(self, data_set: Dataset, stem: str) -> None:
        image, config = open_sequence(data_set, stem), self._config
        found = find_tracks(data_set, stem, image, given=config.annotated, most=config.objects)
        groups = [list(found)] if config.together else ([track] for track in found)
        any_found = False
        for group in groups:
            any_found = any_found or bool(group)
            if group:
                self._group(data_set, stem, image, group)
        if not any_found:
            least = config.annotated + 1
            what = "slice" if data_set.kind == "volume" else "annotated frame"
            few = f"no object is on {least} {what}s, so that one could be scored"
            self._leave_out(data_set.name, stem, f"{few}.")

    def _group(self, data_set: Dataset, stem: str, image: Image, group: Sequence[Track]) -> None:
        """Ask every model that has not been asked about all of some objects."""
        image_sha256 = image.pixel_hash()  # reads a volume, which is then no part of the memory
        of = {track.object_id: self._unasked(data_set, stem, track) for track in group}
        seeds = [seed_of(self._config.seed, data_set.name, stem, t.object_id) for t in group]
        for pair in (m for m in self._models if any(m in models for models in of.values())):
            answers = run_propagation(pair, image, group, self._config, seeds=seeds)
            for track, fields in zip(group, answers, strict=True):
                if pair not in of[track.object_id]:
                    continue
                facts = _facts(self._config, data_set, stem, track)
                facts |= {"image_sha256": image_sha256, "target_sha256": _hash(track)}
                card = pair.card
                row = Row(model=card.name, weights_sha256=card.weights_sha256, **facts, **fields)
                self._append(row)


def _create(config: BenchConfig) -> list[PromptableModel]:
    weights = dict(config.weights)
    return [
        encoded_once(
            create_promptable(name, weights=weights.get(name), device=config.device),
            dimensions=config.dimensions,
            by_slices=config.by_slices,
        )
        for name in config.models
    ]


def _create_pairs(config: BenchConfig) -> list[ModelPair]:
    """Every model is made once, whomever it works with."""
    weights = dict(config.weights)
    made = {
        name: create_promptable(name, weights=weights.get(name), device=config.device)
        for name in config.names
    }
    found = []
    for name in config.models:
        first, plus, second = name.partition("+")
        found.append(ModelPair(made[first], made[second] if plus else None))
    return found


def _facts(
    config: BenchConfig, data_set: Dataset, stem: str, case: TargetObject | Track
) -> dict[str, Any]:
    return {
        "version": __version__,
        "set_name": data_set.name,
        "standing": data_set.standing,
        "modality": data_set.modality_name,
        "split": config.split,
        "stem": stem,
        "group": data_set.cases[stem].group,
        "object_id": case.object_id,
        "target_name": case.target_name,
        "annotator": case.annotator,
        "num_pixels": int(np.count_nonzero(case.target)),
        "protocol": config.protocol,
        "disturbance": config.disturb,
        "seed": config.seed,
        "dimensions": config.dimensions,
        "marks": describe_marks(config),
        **(_shown(config, case) if isinstance(case, TargetObject) and case.references else {}),
    }


def _shown(config: BenchConfig, case: TargetObject) -> dict[str, Any]:
    hashes = "".join(reference.sha256 for reference in case.references)
    return {
        "examples_asked": config.examples,
        "examples": [reference.stem for reference in case.references],
        "examples_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }


def describe_marks(config: BenchConfig) -> str | None:
    """What the protocols ``"slices"`` and ``"propagation"`` say first, in words."""
    if config.protocol == "propagation":
        return describe_start(config)
    if config.protocol != "slices":
        return None
    plural = {"box": "boxes", "click": "clicks"}[config.mark]
    if config.slices == 1:
        return f"{config.mark} on 1 slice"
    return f"{plural} on {config.slices} slices, {config.between}"


def _key(card: ModelCard, data_set: Dataset, stem: str, case: TargetObject | Track) -> Key:
    """As `Row.key` of the row to come."""
    name, sha = card.name, card.weights_sha256
    return (name, sha, data_set.name, stem, case.object_id, case.annotator)


def _hash(case: TargetObject | Track) -> str:
    digest = hashlib.sha256(f"{case.target.shape}".encode())
    digest.update(np.packbits(case.target).tobytes())
    return digest.hexdigest()
