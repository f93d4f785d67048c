"""A benchmark run: every model, every object, one row each, appended as it comes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import limner
from limner import metrics, rle
from limner.bench._encoded import encoded_once
from limner.bench.cases import Case, DataSet, cases, find_sets, open_picture, spread
from limner.bench.config import BenchConfig
from limner.bench.disturb import disturb_image
from limner.bench.protocol import Exchange, User, check_speakable, converse, repeat_shuffled
from limner.bench.rows import Row, RowStore
from limner.errors import FormatError, LimnerError
from limner.io.image import Image
from limner.models import PromptableModel, create_model
from limner.prompts.types import to_json
from limner.sessions import Session, open_session

TOLERANCE = 2.0  # of NSD, in pixels: pictures mostly state no physical size
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
        seconds: of wall clock, now.
    """

    num_rows: int
    num_new: int
    num_failed: int
    num_left_out: int
    seconds: float


def run(
    config: BenchConfig, out: Path, *, models: Sequence[PromptableModel] | None = None
) -> Outcome:
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
    data = Path(config.data)
    sets = find_sets(data, config.split, config.sets)
    if config.protocol == "scribbles":
        sets = [s for s in sets if (s.folder / "scribbles").is_dir()]
        if not sets:
            raise FormatError(f"No set of {data} has a folder scribbles/; use another protocol.")
    asked = list(models) if models is not None else _create(config)
    for model in asked:
        check_speakable(model.card, config.protocol, config.disturb)
    store = RowStore(out, config, {m.card.name: m.card.weights_sha256 for m in asked})
    return _Run(config, asked, store).over(sets)


def seed_of(config_seed: int, set_name: str, stem: str, object_id: str) -> int:
    """The seed of one object's user: the same on every machine, for every model and protocol."""
    text = f"{config_seed}|{set_name}|{stem}|{object_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class _Run:
    """The loop over pictures, objects and models, with its counts."""

    def __init__(
        self, config: BenchConfig, models: Sequence[PromptableModel], store: RowStore
    ) -> None:
        self._config = config
        self._models = models
        self._store = store
        self._new = self._failed = self._left_out = 0
        self._reason = ""
        self._began = self._told = time.monotonic()

    def over(self, sets: Sequence[DataSet]) -> Outcome:
        """Every picture of every set."""
        pictures = [(s, stem) for s in sets for stem in spread(list(s.images), self._config.limit)]
        _log.info("%d pictures of %d sets, %d models", len(pictures), len(sets), len(self._models))
        for number, (data_set, stem) in enumerate(pictures, 1):
            try:
                self._picture(data_set, stem)
            except (LimnerError, OSError) as error:
                self._leave_out(data_set.name, stem, str(error))
            self._tell(number, len(pictures), data_set.name)
        if not self._store.done:
            reason = f": {self._reason}" if self._reason else f" with {self._config.disturb}."
            raise FormatError(f"None of the {len(pictures)} pictures can be asked about{reason}")
        seconds = time.monotonic() - self._began
        return Outcome(len(self._store.done), self._new, self._failed, self._left_out, seconds)

    def _picture(self, data_set: DataSet, stem: str) -> None:
        image = open_picture(data_set, stem)
        shown = disturb_image(image, self._config.disturb)
        if shown is None:
            return
        drawn = self._config.protocol == "scribbles"
        found = False
        for case in cases(data_set, stem, image, most=self._config.objects, drawn=drawn):
            found = True
            for model in self._models:
                facts = _facts(self._config, data_set, stem, case) | {
                    "model": model.card.name,
                    "weights_sha256": model.card.weights_sha256,
                }
                if _key(facts) in self._store.done:
                    continue
                row = Row(
                    **facts,
                    **hold(model, shown, case, self._config, seed=_seed(self._config, facts)),
                    image_sha256=image.pixel_hash(),
                    target_sha256=_hash(case),
                )
                self._store.append(row)
                self._new += 1
                self._failed += row.error is not None
        if not found:
            reason = "nobody drew on an object" if drawn else "no object is large enough"
            self._leave_out(data_set.name, stem, f"{reason}.")

    def _leave_out(self, set_name: str, stem: str, reason: str) -> None:
        self._left_out += 1
        self._reason = self._reason or reason
        self._store.leave_out(set_name, stem, reason)
        _log.warning("%s %s is left out: %s", set_name, stem, reason)

    def _tell(self, number: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now - self._told < _REPORT_EVERY_S and number < total:
            return
        self._told = now
        left = (now - self._began) / number * (total - number)
        failed = f", {self._failed} failed" if self._failed else ""
        _log.info(
            "picture %d of %d (%s), %d conversations%s, about %.0f s left",
            *(number, total, name, len(self._store.done), failed, left),
        )


def hold(
    model: PromptableModel, image: Image, case: Case, config: BenchConfig, *, seed: int
) -> dict[str, Any]:
    """One conversation: the fields of its row that come from the answers.

    What the model raises ends the conversation and is kept as text; the scores are 0 from there.
    """

    def opened() -> Session:
        return open_session(image, model)

    user = User(case, config.protocol, model.card.prompts, seed=seed, disturbance=config.disturb)
    held: list[Exchange] = []
    final: Exchange | None = None
    error = None
    try:
        with opened() as session:
            for exchange in converse(session, user, config.rounds):
                held.append(exchange)
        if config.disturb == "shuffled":
            rng = np.random.default_rng((seed, 2))
            final = repeat_shuffled(opened, [e.said for e in held], rng)
    except Exception as problem:  # a model may raise anything, and the others go on
        error = f"{type(problem).__name__}: {problem}"
        _log.debug("a model failed", exc_info=True)
    values: list[tuple[float | None, float | None]]
    if config.disturb == "shuffled":
        values = [(None, None)] * (config.rounds - 1)
        values.append((0.0, 0.0) if final is None else _scores(final.mask, case))
    else:
        values = [_scores(exchange.mask, case) for exchange in held]
        final = held[-1] if held else None
        last = (0.0, 0.0) if error or not values else values[-1]
        values += [last] * (config.rounds - len(values))
    return {
        "dice": [dice for dice, _ in values],
        "nsd": [nsd for _, nsd in values],
        "seconds": [round(exchange.seconds, 5) for exchange in held],
        "prompts": [[to_json(prompt) for prompt in exchange.said] for exchange in held],
        "answer": None if final is None else rle.coco_encode(final.mask),
        "error": error,
    }


def _scores(mask: Any, case: Case) -> tuple[float, float]:
    dice = metrics.dice(mask, case.target)
    return round(dice, 6), round(metrics.nsd(mask, case.target, tolerance=TOLERANCE), 6)


def _create(config: BenchConfig) -> list[PromptableModel]:
    weights = dict(config.weights)
    return [
        encoded_once(create_model(name, weights=weights.get(name), device=config.device))
        for name in config.models
    ]


def _facts(config: BenchConfig, data_set: DataSet, stem: str, case: Case) -> dict[str, Any]:
    return {
        "version": limner.__version__,
        "set_name": data_set.name,
        "standing": data_set.standing,
        "modality": data_set.modality,
        "split": config.split,
        "stem": stem,
        "group": data_set.groups.get(stem, stem),
        "object_id": case.object_id,
        "target_name": case.target_name,
        "annotator": case.annotator,
        "num_pixels": int(np.count_nonzero(case.target)),
        "protocol": config.protocol,
        "disturbance": config.disturb,
        "seed": config.seed,
    }


def _key(facts: dict[str, Any]) -> Any:
    names = ("model", "weights_sha256", "set_name", "stem", "object_id", "annotator")
    return tuple(facts[name] for name in names)


def _seed(config: BenchConfig, facts: dict[str, Any]) -> int:
    return seed_of(config.seed, facts["set_name"], facts["stem"], facts["object_id"])


def _hash(case: Case) -> str:
    digest = hashlib.sha256(f"{case.target.shape}".encode())
    digest.update(np.packbits(case.target).tobytes())
    return digest.hexdigest()
