"""Propagation by a memory of earlier frames, all objects together (XMem's loop, section 3.5 of
https://arxiv.org/abs/2207.07115).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.models import EncodedFrame, MemoryModel
from limner.networks.blocks.memory import aggregated
from limner.sessions.answers.answer import Answer
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.zoom import ViewPrediction, to_image_grid
from limner.sessions.propagation.memory_bank import MemoryBank
from limner.sessions.propagation.provenance import digest
from limner.sessions.propagation.schedule import FrameSpan
from limner.sessions.propagation.snapshots import ResumeState

Floats = NDArray[np.float32]

_CERTAIN = 1e-7  # probabilities are kept this far from 0, so that their logarithms are finite
_LEAST = 1e-3  # logit of a pixel that is barely the object's


@dataclass(frozen=True, eq=False)
class ObjectProbabilities:
    """What there is on a frame.

    Attributes:
        objects: ids.
        probabilities: (1 + objects, H, W) on the network's grid, background first; sums to 1.
    """

    objects: tuple[int, ...]
    probabilities: Floats


class MemoryPropagator:
    """One pass over a video in one direction. Begins without memories; another pass is another one.

    Objects are remembered together with those that they were announced with; what is announced
    together has to be carried together.

    Args:
        model: what sees and remembers.
    """

    def __init__(self, model: MemoryModel) -> None:
        self._model, self._limits = model, model.memory
        self.banks: list[tuple[tuple[int, ...], MemoryBank]] = []
        self.sensory: dict[int, Floats] = {}
        self._step = -1
        self._remembered = 0  # the step at which a frame was remembered last
        self._deep = -(self._limits.deep_every or 0)

    def announce(self, objects: Sequence[int]) -> MemoryBank:
        """A memory for objects that are given on the same frames."""
        bank = MemoryBank(self._limits)
        self.banks.append((tuple(objects), bank))
        return bank

    def remember(self, frame: EncodedFrame, given: Mapping[int, Floats], place: int) -> None:
        """Remember a frame that the user annotated before it is reached.

        Args:
            frame: encoded.
            given: masks (H, W) of 0 and 1 by object, on the network's grid.
            place: the frame's number.
        """
        objects = tuple(given)
        blank = {i: self._blank(frame) for i in objects}
        found = ObjectProbabilities(objects, aggregated(np.stack([given[i] for i in objects])))
        self._write(frame, found, blank, set(objects), place)

    def step(
        self,
        frame: EncodedFrame,
        given: Mapping[int, Floats],
        active: Iterable[int],
        *,
        place: int,
        last: bool = False,
    ) -> ObjectProbabilities:
        """Go on to a frame.

        Args:
            frame: encoded.
            given: masks (H, W) of 0 and 1 by object that the user drew here.
            active: objects that are looked for here. What the sensory memory says of the others is
                dropped.
            place: the frame's number.
            last: no frame comes after it, so that nothing has to be remembered.
        """
        self._step += 1
        every = self._limits.deep_every
        due = self._step - self._remembered >= self._limits.every
        remembers = (bool(given) or due) and not last
        deep = remembers if every is None else self._step - self._deep >= every
        remembered = {i for members, bank in self.banks if bank.size for i in members}
        known = tuple(i for i in active if i in remembered)
        found = {}
        if any(i not in given for i in known):
            keeps = last or (every is None and deep)
            found = self._segmented(frame, known, keep_sensory=keeps)
        objects = (*known, *(i for i in given if i not in known))
        self.sensory = {i: self.sensory.get(i, self._blank(frame)) for i in objects}
        result = self._combined(objects, found, given)
        if remembers:
            self._announce_rest(objects)
            after = self._write(frame, result, self.sensory, set(given), place)
            self._remembered = self._step
            if deep:
                self.sensory, self._deep = after, self._step
        return result

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays of its own."""
        counters = np.array([self._step, self._remembered, self._deep], dtype=np.int64)
        arrays: dict[str, NDArray[Any]] = {"counters": counters}
        arrays |= {f"sensory.{i}": hidden.copy() for i, hidden in self.sensory.items()}
        for number, (members, bank) in enumerate(self.banks):
            arrays[f"{number}.members"] = np.array(members, dtype=np.int64)
            arrays |= {f"{number}.{name}": part for name, part in bank.state().items()}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Go back to a state; False, and nothing done, where other objects shared memories then, or
        something is missing.
        """
        try:
            counters = arrays["counters"].tolist()
            banks = self._restored_banks(arrays)
        except KeyError:
            return False
        if [m for m, _ in banks[: len(self.banks)]] != [m for m, _ in self.banks]:
            return False
        self._step, self._remembered, self._deep = counters
        self.banks = banks
        prefix = "sensory."
        hidden = ((k, a) for k, a in arrays.items() if k.startswith(prefix))
        self.sensory = {int(k.removeprefix(prefix)): a.copy() for k, a in hidden}
        return True

    def _restored_banks(
        self, arrays: Mapping[str, NDArray[Any]]
    ) -> list[tuple[tuple[int, ...], MemoryBank]]:
        banks: list[tuple[tuple[int, ...], MemoryBank]] = []
        while (prefix := f"{len(banks)}.") + "members" in arrays:
            own = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
            members = tuple(own.pop("members").tolist())
            banks.append((members, MemoryBank.restored(self._limits, own)))
        return banks

    def _segmented(
        self, frame: EncodedFrame, objects: tuple[int, ...], *, keep_sensory: bool
    ) -> dict[int, Floats]:
        """Probabilities of the background (as 0) and of objects, by memory."""
        readout: dict[int, Floats] = {}
        for members, bank in self.banks:
            if set(members) & set(objects):
                read_out = bank.read(frame).reshape(len(frame.key), len(members), -1)
                readout |= {i: read_out[:, k] for k, i in enumerate(members)}
        readouts = np.stack([readout[i] for i in objects], axis=1)
        sensory = np.stack([self.sensory.get(i, self._blank(frame)) for i in objects])
        alone, after = self._model.segment_frame(frame, readouts, sensory)
        if not keep_sensory:
            self.sensory |= dict(zip(objects, after, strict=True))
        return dict(zip((0, *objects), aggregated(alone), strict=True))

    def _combined(
        self, objects: tuple[int, ...], found: dict[int, Floats], given: Mapping[int, Floats]
    ) -> ObjectProbabilities:
        """What was found, but what the user drew where he drew."""
        if not given:
            return ObjectProbabilities(objects, np.stack([found[i] for i in (0, *objects)]))
        drawn = np.stack(list(given.values())).sum(axis=0) > 0.5
        parts = [given[i] if i in given else np.where(drawn, 0, found[i]) for i in objects]
        return ObjectProbabilities(objects, aggregated(np.stack(parts).astype(np.float32)))

    def _write(
        self,
        frame: EncodedFrame,
        found: ObjectProbabilities,
        sensory: Mapping[int, Floats],
        given: set[int],
        place: int,
    ) -> dict[int, Floats]:
        """Remember the objects on a frame; what that makes of their sensory memory."""
        before = np.stack([sensory[i] for i in found.objects])
        value, after = self._model.encode_memory(frame, found.probabilities[1:], before)
        for members, bank in self.banks:
            if set(members) <= set(found.objects):
                own = value[:, [found.objects.index(i) for i in members]]
                permanent = place if set(members) & given else None
                bank.add(frame, own, permanent=permanent)
        return dict(zip(found.objects, after, strict=True))

    def _announce_rest(self, objects: tuple[int, ...]) -> None:
        announced = {i for members, _ in self.banks for i in members}
        rest = [i for i in objects if i not in announced]
        if rest:
            self.announce(rest)

    def _blank(self, frame: EncodedFrame) -> Floats:
        return np.zeros((self._model.sensory_channels, *frame.grid), np.float32)


@dataclass(frozen=True)
class Waypoint:
    """A frame that a pass visits.

    Attributes:
        frame: its number.
        here: spans that write it, by object.
        given: objects that are annotated on it.
        ahead: annotated frames to remember before going on, with the objects that set out here.
    """

    frame: int
    here: Mapping[int, FrameSpan]
    given: tuple[int, ...]
    ahead: Mapping[int, Sequence[int]]


def plan_route(spans: Sequence[FrameSpan], marks: Mapping[int, Sequence[int]]) -> list[Waypoint]:
    """The stops of one pass, in order: frames to write, and annotated ones before the last.

    Args:
        spans: all in one direction, one at least.
        marks: all annotated frames by object.
    """
    step = spans[0].frames.step
    everyone = sorted({span.object_id for span in spans})
    found = []
    for frame in _list_stops(spans, marks, step):
        here = {span.object_id: span for span in spans if frame in span.frames}
        given = tuple(i for i in everyone if frame in marks[i])
        found.append(Waypoint(frame, here, given, _find_ahead(spans, marks, frame)))
    return found


def chain_digests(
    stops: Sequence[Waypoint], start: str, mark: Callable[[int, int], str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Digests of what a pass has seen: by frame, when it has looked at the frame, which is what the
    masks there follow from; and when it is about to go on, which is what its state does.

    Args:
        stops: of the pass.
        start: what it begins with.
        mark: digest of an object's mask on an annotated frame.
    """
    there: dict[int, str] = {}
    after: dict[int, str] = {}
    so_far = start
    for stop in stops:
        given = [[i, mark(i, stop.frame)] for i in stop.given]
        so_far = there[stop.frame] = digest(so_far, stop.frame, sorted(stop.here), given)
        if stop.ahead:
            ahead = [[i, mark(i, k)] for k, objects in stop.ahead.items() for i in objects]
            so_far = digest(so_far, ahead)
        after[stop.frame] = so_far
    return there, after


def propagate_with_memory(
    model: MemoryModel,
    spans: Sequence[FrameSpan],
    marks: Mapping[int, Sequence[int]],
    view: Callable[[int], ImageView],
    drawn: Callable[[int, int], NDArray[np.bool_]],
    resume: ResumeState | None = None,
) -> Iterator[tuple[FrameSpan, int, Answer]]:
    """One pass over the frames of some spans of one direction, each frame seen once.

    Every annotated frame on the way is remembered for good, and the next one ahead is so before the
    frames that lie between.

    Args:
        model: what sees and remembers.
        spans: all in one direction; where each begins its object is not absent.
        marks: all annotated frames by object.
        view: a frame as the model sees it.
        drawn: an object's mask on an annotated frame.
        resume: to go on where an earlier pass stopped.

    Yields:
        The span, the frame, and where the object is there: logits are above 0 where it is likelier
        than any other and than none; the score is the Dice of its mask with its probabilities.
    """
    if not spans:
        return
    propagator, stops = MemoryPropagator(model), plan_route(spans, marks)
    for together in _group_alike(spans, marks):
        propagator.announce(together)
    frame, parts = (-1, {}) if resume is None else resume.load()
    if None in parts and propagator.restore(parts[None]):
        stops = stops[1 + [stop.frame for stop in stops].index(frame) :]

    def seen(frame: int) -> EncodedFrame:
        shown = view(frame)
        return model.encode_frame(shown.crop(shown.whole, shown.shape))

    def given_on(encoded: EncodedFrame, frame: int, objects: Iterable[int]) -> dict[int, Floats]:
        return {i: model.to_grid(encoded, drawn(i, frame)) for i in objects}

    for stop in stops:
        frame, encoded = stop.frame, seen(stop.frame)
        given = given_on(encoded, frame, stop.given)
        active = sorted(stop.here.keys() | given.keys())
        found = propagator.step(encoded, given, active, place=frame, last=stop is stops[-1])
        if stop.here:
            probabilities = model.to_view(encoded, found.probabilities)
            for object_id, answer in _to_answers(view(frame), probabilities, found.objects):
                if object_id in stop.here:
                    yield stop.here[object_id], frame, answer
        for ahead, objects in stop.ahead.items():
            encoded = seen(ahead)
            propagator.remember(encoded, given_on(encoded, ahead, objects), ahead)
        if resume is not None and stop is not stops[-1] and resume.due():
            resume.save(frame, {None: propagator.state()})


def _list_stops(
    spans: Sequence[FrameSpan], marks: Mapping[int, Sequence[int]], step: int
) -> list[int]:
    """Frames to look at in order: those to write, and annotated ones before the last of these."""
    written = {k for span in spans for k in span.frames}
    last = max(written, key=lambda k: k * step)
    marked = {k for span in spans for k in marks[span.object_id] if k * step < last * step}
    return sorted(written | marked)[::step]


def _group_alike(
    spans: Sequence[FrameSpan], marks: Mapping[int, Sequence[int]]
) -> Iterator[list[int]]:
    """Objects that are annotated, and carried, on the same frames."""
    groups: dict[object, list[int]] = {}
    for i in sorted({span.object_id for span in spans}):
        own = tuple((span.source, span.frames) for span in spans if span.object_id == i)
        groups.setdefault((tuple(marks[i]), own), []).append(i)
    return iter(groups.values())


def _find_ahead(
    spans: Sequence[FrameSpan], marks: Mapping[int, Sequence[int]], frame: int
) -> dict[int, list[int]]:
    """The next annotated frames of the objects that set out here, with these objects."""
    found: dict[int, list[int]] = {}
    for span in (span for span in spans if span.source == frame):
        further = [k for k in marks[span.object_id] if (k - frame) * span.frames.step > 0]
        if further:
            nearest = min(further, key=lambda k: abs(k - frame))
            found.setdefault(nearest, []).append(span.object_id)
    return found


def _to_answers(
    view: ImageView, probabilities: Floats, objects: Sequence[int]
) -> Iterator[tuple[int, Answer]]:
    """Where objects are, by their probabilities (1 + objects, row, column), background first."""
    p = np.maximum(probabilities, np.float32(_CERTAIN))
    first = p.argmax(axis=0)
    best = p.max(axis=0)
    np.put_along_axis(rest := p.copy(), first[None], 0, axis=0)
    second = rest.max(axis=0)
    for number, object_id in enumerate(objects, start=1):
        mask, own = first == number, p[number]
        margin = np.log(own / np.where(mask, second, best))
        logits = np.where(mask, np.maximum(margin, np.float32(_LEAST)), margin)
        found = 2 * float(own[mask].sum()) / float(own.sum() + mask.sum())
        score = min(1.0, found) if mask.any() else 0.0
        yield (
            object_id,
            Answer(to_image_grid(view, ViewPrediction(logits, view.whole, score, None)), score),
        )
