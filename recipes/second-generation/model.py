"""The second generation as a model for `limner.open_session` (commit b340ec6)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from limner.layers import fusion2d as fusion
from limner.models._family import ModelCard, Segmentation, View
from limner.models._fused import (
    Embedding,
    _before,
    _guess,
    _kept_near,
    _larger,
    _obey,
    _paint,
    _points,
    embedded,
    enlarge,
    reduce,
)
from limner.models._reading import check_understood, footprint
from merge import merge, obeyed, within
from network import NEWEST, NUM_ANSWERS, STRIDE, CandidateUNet2d, load_weights

from limner.checkpoints.load import read_weights
from limner.models import limner_2d
from limner.prompts.raster import rasterize
from limner.prompts.types import Box, Click, Lasso, Prompt, Scribble

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Habits:
    """Choices at run time.

    Attributes:
        side: of the largest view, in pixels.
        mirrored: mean with the answer on the mirror image, at twice the cost.
        merges: corrections change only what their mark asks for.
        least_marks: the rule holds from so many marks on, where there is no box, lasso or mask.
        anew: where there are fewer than `least_marks` and the answer shares less than so much (IoU)
            with the one before, it is another reading of the marks and counts whole; else the rule
            holds all the same.
        neck: see `merge.merge`.
        first: whether a box's first answer stays inside it.
        shift: added to all logits.
        ellipse: a first box is shown with its inscribed ellipse as a rough mask, as the first
            generation does; the network has learnt to do without.
        trust: added inside that ellipse, taken away outside it.
        lone: what is shown to a lone mark. "judged": of the candidates the one judged best;
            "single": the first answer, which is better until the candidates have learnt more.
    """

    side: int = 192
    mirrored: bool = True
    merges: bool = True
    least_marks: int = 9
    anew: float = 0.3
    neck: float = 0.0
    first: bool = True
    shift: float = 0.0
    ellipse: bool = False
    trust: float = 0.0
    lone: str = "single"


class CandidateModel:
    """The network with everything around it.

    Args:
        weights: of the network, or of the probe.
        habits: choices at run time.
    """

    def __init__(self, weights: Path, habits: Habits | None = None) -> None:
        self.habits = habits or Habits()
        self.network = CandidateUNet2d()
        load_weights(self.network, read_weights(weights)[0])
        self.network.eval().to(memory_format=torch.channels_last)
        self.card: ModelCard = replace(
            limner_2d.CARD, window={2: self.habits.side}, name="second", runtime="pytorch"
        )
        self.alternatives: list[tuple[Floats, float]] = []  # of the last lone mark
        self.refused = 0  # pixels that the last correction would have changed, too

    def embed(self, view: View) -> Embedding:
        """Pixels as three channels, enlarged if the view is small, padded with black."""
        check_understood(self.card, (), view.shape)
        times = min(limner_2d.MOST_ENLARGED, max(1, self.habits.side // max(view.shape)))
        return embedded(view, (times, times), (STRIDE, STRIDE))

    def segment(
        self, embedding: Embedding, prompts: Sequence[Prompt], previous: Floats | None = None
    ) -> Segmentation:
        """One pass."""
        check_understood(self.card, prompts, embedding.shape)
        times = embedding.enlarged
        shape = tuple(n * t for n, t in zip(embedding.shape, times, strict=True))
        inside = tuple(slice(n) for n in shape)
        fused = np.zeros((1, NEWEST + 1, *embedding.image.shape[1:]), np.float32)
        fused[0, : fusion.PREVIOUS] = embedding.image
        painted = fused[0, fusion.PREVIOUS : NEWEST][(slice(None), *inside)]
        drawn = [_larger(p, times) for p in prompts if p.kind != "mask"]
        before = _before(prompts, previous)
        guess = self._guess(drawn, shape, times) if before is None else enlarge(before, times)
        if guess is not None:
            painted[0] = np.tanh(guess / fusion.LOGIT_SCALE)
        _paint(painted, drawn)
        newest = drawn[-1] if drawn and prompts[-1].kind in ("click", "scribble") else None
        if before is not None and isinstance(newest, Click | Scribble):
            maps = rasterize([newest], shape, click_radius=fusion.CLICK_RADIUS)
            mark = maps.positive if newest.positive else maps.negative
            if mark is not None:
                fused[0, NEWEST][inside] = mark if newest.positive else -mark.astype(np.float32)
        logits, quality = self._answers(fused)
        answers = [reduce(part[inside], times) + np.float32(self.habits.shift) for part in logits]
        scores = 1.0 / (1.0 + np.exp(-quality))
        lone = (
            before is None
            and len(prompts) == 1
            and isinstance(prompts[0], Click | Scribble)
            and prompts[0].positive
        )
        shown = 0
        if lone and self.habits.lone == "judged":
            shown = 1 + int(np.argmax(quality[1:]))
        self.alternatives = (
            [(a, float(s)) for a, s in zip(answers[1:], scores[1:], strict=True)] if lone else []
        )
        answer = answers[shown]
        if before is None and guess is not None and self.habits.trust:
            share = np.float32(self.habits.trust / fusion.MASK_LOGIT)
            answer = answer + share * reduce(guess, times)
        answer = self._kept(answer, prompts, previous, before)
        _obey(answer, prompts)
        return Segmentation(answer, float(scores[shown]))

    def _guess(
        self, drawn: Sequence[Prompt], shape: tuple[int, ...], times: tuple[int, ...]
    ) -> Floats | None:
        """A rough mask that is shown where there was no answer yet."""
        if self.habits.ellipse:
            return _guess(drawn, shape, times)
        return _lasso_guess(drawn, shape)

    def _kept(
        self,
        answer: Floats,
        prompts: Sequence[Prompt],
        previous: Floats | None,
        before: Floats | None,
    ) -> Floats:
        """What of the answer is taken over."""
        if not _points(prompts, previous):
            return np.minimum(answer, np.float32(-fusion.MASK_LOGIT))
        if not self.habits.merges:
            return answer if previous is None else _kept_near(answer, previous, prompts, 3.0)
        region = _region(prompts, answer.shape)
        marks = [p for p in prompts if isinstance(p, Click | Scribble)]
        if before is None or not (before > 0).any():
            fits = region is not None and self.habits.first
            return within(answer, region) if fits and not _beyond(marks, region) else answer
        last = prompts[-1]
        if not isinstance(last, Click | Scribble):
            return answer
        told = len(marks) < len(prompts)
        mark = footprint(last, answer.shape)
        if not told and len(marks) < self.habits.least_marks:
            both, either = (
                f(answer > 0, before > 0).sum() for f in (np.logical_and, np.logical_or)
            )
            if both < self.habits.anew * either:
                return obeyed(answer, mark, positive=last.positive)
        merged = merge(
            answer, before, mark, positive=last.positive, region=region, neck=self.habits.neck
        )
        self.refused = int(merged.refused.sum())
        return merged.logits

    def _answers(self, fused: Floats) -> tuple[Floats, Floats]:
        """(4, H, W) logits and (4,) qualities."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            view = torch.from_numpy(fused).contiguous(memory_format=torch.channels_last)
            logits, quality = (part.float() for part in self.network(view))
            if self.habits.mirrored:
                turned = view.flip(3).contiguous(memory_format=torch.channels_last)
                other, judged = (part.float() for part in self.network(turned))
                logits, quality = (logits + other.flip(3)) / 2, (quality + judged) / 2
        assert logits.shape[1] == NUM_ANSWERS
        return logits[0].numpy(), quality[0].numpy()


def _region(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Inside of boxes and lassos."""
    parts: list[Any] = [footprint(p, shape) for p in prompts if isinstance(p, Box | Lasso)]
    return np.any(parts, axis=0) if parts else None


def _beyond(marks: Sequence[Prompt], region: NDArray[np.bool_]) -> bool:
    """Whether a positive mark lies outside the region."""
    return any(
        isinstance(m, Click | Scribble)
        and m.positive
        and bool((footprint(m, region.shape) & ~region).any())
        for m in marks
    )


def _lasso_guess(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> Floats | None:
    """All of a lasso, as a rough mask; of a box nothing is guessed."""
    parts: list[Any] = [footprint(p, shape) for p in prompts if isinstance(p, Lasso)]
    if not parts:
        return None
    inside = np.any(parts, axis=0)
    return np.where(inside, fusion.MASK_LOGIT, -fusion.MASK_LOGIT).astype(np.float32)
