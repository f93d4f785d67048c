"""The CVPR 2025 challenge on interactive segmentation of volumes: its interaction and its scores.

A box is given for every class, then five clicks, one a round; after each round all classes are
answered and scored together. The area under a score's curve is the trapezoid over the five answers
to clicks, one step apart, so at most 4; the answer to the box does not enter it. A case without
boxes begins with the first click on an empty answer, and the round before counts 0.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner import metrics
from limner.adapters.default_window import ROBUST
from limner.bench.scores import LEAST_DICE, TOLERANCE, area_under_curve
from limner.bench.slices import CroppedMask, SliceBySlice, to_slice_prompt
from limner.datasets.cvpr_npz import ChallengeCase, read_case, write_answer
from limner.datasets.slice_prompts import SlicePrompt
from limner.errors import FormatError, LimnerError
from limner.models import PromptableModel
from limner.prompts.simulate_volume import challenge_click
from limner.prompts.types import Box, MaskPrompt, Prompt
from limner.sessions import open_session

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

NUM_CLICKS = 5
SECONDS_PER_CLASS = 90.0  # of all six rounds together
_SEED = 42  # of the challenge's choice among voxels that are equally deep

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseScores:
    """How one case came out.

    Attributes:
        name: of the file.
        num_classes: how many.
        dsc: after the box and after each click, means over classes; 0 for a round that is skipped.
        nsd: likewise at 2 mm, 0 where the Dice is not above 0.2.
        seconds: of all rounds together, opening the volume included, loading the model not.
        failures: what the model raised, round by round.
    """

    name: str
    num_classes: int
    dsc: tuple[float, ...]
    nsd: tuple[float, ...]
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, float]:
        """The challenge's four numbers and the seconds per class."""
        return {
            "DSC_AUC": area_under_curve(self.dsc[-NUM_CLICKS:]),
            "NSD_AUC": area_under_curve(self.nsd[-NUM_CLICKS:]),
            "DSC_final": self.dsc[-1],
            "NSD_final": self.nsd[-1],
            "s_per_class": self.seconds / self.num_classes,
        }

    @property
    def is_late(self) -> bool:
        """Whether it took longer than the challenge allows."""
        return self.seconds > SECONDS_PER_CLASS * self.num_classes


class CaseInteraction:
    """All classes of a case in one session."""

    def __init__(self, model: PromptableModel, case: ChallengeCase) -> None:
        self._case = case
        self._session = open_session(case.image, model, window=ROBUST)
        self._understood = model.card.prompts
        self._is_solid = 3 in model.card.ndim
        self._hands: dict[int, SliceBySlice] = {}
        self._answers: dict[int, CroppedMask] = {}

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def say(self, number: int, prompts: Sequence[Prompt]) -> None:
        """Say something of a class, by its place, and ask; what the model does not understand is
        not said.
        """
        wanted = [prompt for prompt in prompts if prompt.kind in self._understood]
        if not wanted:
            return
        if self._is_solid:
            for prompt in wanted:
                self._session.add(prompt, object_id=number + 1)
            mask = self._session.predict(object_id=number + 1).mask
        else:
            _, mask = self._hand(number).say(wanted, self._case.image.geometry.shape)
        self._answers[number] = CroppedMask.of(mask)

    def begin_from(self, number: int, mask: Mask) -> bool:
        """Forget what was said of a class and begin from a mask, if the model takes any."""
        if not self._is_solid or "mask" not in self._understood:
            return False
        if number in self._answers:
            self._session.reset(object_id=number + 1)
        self.say(number, [MaskPrompt(mask)])
        return True

    def mask(self, number: int) -> Mask:
        """The answer about a class so far."""
        found = self._answers.get(number)
        shape = self._case.image.geometry.shape
        return np.zeros(shape, dtype=bool) if found is None else found.whole(shape)

    def label_map(self) -> Array:
        """All classes; where they overlap the smaller object counts."""
        classes = self._case.classes
        labels = np.zeros(self._case.image.geometry.shape, np.min_scalar_type(max(classes)))
        for number, found in sorted(self._answers.items(), key=lambda item: -item[1].size):
            labels[found.window][found.inside] = classes[number]
        return labels

    def _hand(self, number: int) -> SliceBySlice:
        """Who says on slices what is about a class."""
        if number not in self._hands:
            boxes = self._case.boxes

            def place(prompt: Prompt) -> SlicePrompt:
                if isinstance(prompt, Box) and boxes is not None:
                    return boxes[number].slice_prompt
                return to_slice_prompt(prompt)

            self._hands[number] = SliceBySlice(self._session, place, object_id=number + 1)
        return self._hands[number]


def answer_case(model: PromptableModel, case: ChallengeCase) -> Array:
    """The label map that answers what a file says, as the challenge runs a system: once.

    What was said is said again round by round, so that the answer is that of one conversation. If
    ``prev_pred`` does not come out before the last round, somebody else made it: a model that takes
    masks of volumes then goes on from there, with what is said last. A class of which nothing is
    said stays as it was.

    Raises:
        Exception: whatever the model raises.
    """
    interaction = CaseInteraction(model, case)
    try:
        for number in range(len(case.classes)):
            _repeat(interaction, case, number)
        labels = interaction.label_map()
    finally:
        interaction.close()
    if case.previous is not None:
        for number, label in enumerate(case.classes):
            if not _given_prompts(case, number):
                labels[(case.previous == label) & (labels == 0)] = label
    return labels


def interact(model: PromptableModel, case: ChallengeCase) -> tuple[Array, CaseScores]:
    """The whole interaction with a simulated user, by the challenge's rules; needs `case.truth`.

    A round in which the model raises counts as an empty answer, and the next one goes on.

    Returns:
        The last label map and the scores.
    """
    assert case.truth is not None
    began = time.perf_counter()
    interaction = CaseInteraction(model, case)
    seconds = time.perf_counter() - began
    labels: Array = np.zeros(case.truth.shape, dtype=np.uint8)
    scores: list[tuple[float, float]] = []
    failures: list[str] = []
    try:
        for number in range(NUM_CLICKS + 1):
            if number == 0 and case.boxes is None:
                scores.append((0.0, 0.0))
                continue
            round_prompts = [
                _next(case, k, labels, first=number == 0) for k in range(len(case.classes))
            ]
            began = time.perf_counter()
            try:
                for k, prompts in enumerate(round_prompts):
                    interaction.say(k, prompts)
                labels = interaction.label_map()
            except Exception as problem:  # a model may raise anything
                failures.append(f"round {number}: {type(problem).__name__}: {problem}")
                _log.debug("a model failed", exc_info=True)
                labels = np.zeros_like(labels)
            seconds += time.perf_counter() - began
            scores.append(_scores(labels, case))
    finally:
        interaction.close()
    dsc, nsd = zip(*scores, strict=True)
    name, count = case.path.name, len(case.classes)
    return labels, CaseScores(name, count, dsc, nsd, seconds, tuple(failures))


def answer_all(
    model: PromptableModel, cases: Path, out: Path, *, truth: Path | None = None
) -> Iterator[CaseScores | str]:
    """Answer a file, or every file of a folder, and write label maps of the same names.

    Files with ``gts``, or with a truth, are talked about with a simulated user.

    Args:
        model: that is asked.
        cases: an npz file, or a folder of them.
        out: folder, made if missing.
        truth: see `challenge_files.read_case`.

    Yields:
        Of every case its scores, or its name where there is no truth.

    Raises:
        FormatError: no files, or none that can be read; those that cannot are logged.
    """
    files = sorted(cases.glob("*.npz")) if cases.is_dir() else [cases]
    if not files:
        raise FormatError(f"{cases} holds no npz files; name a case of the challenge or a folder.")
    if out.resolve() == files[0].resolve().parent or (truth and out.resolve() == truth.resolve()):
        raise FormatError(f"{out} holds the cases themselves; name another folder to write to.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{out} cannot be made: {error.strerror or error}.") from error
    read = 0
    for path in files:
        try:
            case = read_case(path, truth=truth)
        except LimnerError as error:
            if len(files) == 1:
                raise
            _log.warning("Left out: %s", error)
            continue
        read += 1
        if case.truth is None:
            write_answer(out / path.name, answer_case(model, case))
            yield path.name
            continue
        labels, scores = interact(model, case)
        write_answer(out / path.name, labels)
        yield scores
    if not read:
        raise FormatError(f"None of the {len(files)} files in {cases} can be read.")


def _given_prompts(case: ChallengeCase, number: int) -> list[tuple[Prompt, ...]]:
    """What a file says of a class, round by round."""
    rounds: list[tuple[Prompt, ...]] = []
    if case.boxes is not None:
        rounds.append((case.boxes[number].volume_box,))
    return rounds + list(case.clicks[number] if case.clicks else ())


def _repeat(interaction: CaseInteraction, case: ChallengeCase, number: int) -> None:
    *earlier, last = _given_prompts(case, number) or [()]
    for prompts in earlier:
        interaction.say(number, prompts)
    if case.previous is not None and last:
        before = case.previous == case.classes[number]
        free = before | (case.previous == 0)  # elsewhere another class may cover this one
        differs = bool(((interaction.mask(number) != before) & free).any())
        if differs and before.any():
            interaction.begin_from(number, before)
    interaction.say(number, last)


def _next(case: ChallengeCase, number: int, labels: Array, *, first: bool) -> tuple[Prompt, ...]:
    """What the user says of a class next."""
    if first:
        assert case.boxes is not None
        return (case.boxes[number].volume_box,)
    label = case.classes[number]
    wanted, given = np.asarray(case.truth == label), np.asarray(labels == label)
    click = challenge_click(wanted, given, _choose)
    return () if click is None else (click,)


def _choose(count: int) -> int:
    """One of equal voxels, the same that the challenge's script takes."""
    return int(np.random.RandomState(_SEED).choice(count))  # its own generator


def _scores(labels: Array, case: ChallengeCase) -> tuple[float, float]:
    """Mean Dice and NSD over classes."""
    assert case.truth is not None
    most = max(case.classes) + 1
    both, given, wanted = np.zeros((3, most), dtype=np.int64)
    for mine, true in zip(labels, case.truth, strict=True):
        both += np.bincount(true[mine == true], minlength=most)
        given += np.bincount(mine.ravel(), minlength=most)
        wanted += np.bincount(true.ravel(), minlength=most)
    classes = list(case.classes)
    dice = float(np.mean(2 * both[classes] / (given[classes] + wanted[classes])))
    if dice <= LEAST_DICE:
        return dice, 0.0
    found = metrics.evaluate(labels, case.truth, case.spacing, tolerance=TOLERANCE, labels=classes)
    return dice, float(np.mean([found[label].nsd for label in classes]))
