"""Simulated prompts on a batch: first prompts of all kinds, then corrections where the answer is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from limner.networks.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.data.rng import BatchRandom, box_mean
from limner.train.simulate import strokes

# Shares of the kinds that a conversation begins with; mixtures come on top.
_BOX, _CLICK, _CLICKS, _SCRIBBLE, _LASSO, _ROUGH = 0.34, 0.24, 0.1, 0.16, 0.08, 0.08
_MIXED = 0.15  # share of conversations that begin with a click besides
_NEGATIVE_FIRST = 0.15  # share with something negative at the start
_STROKE_CORRECTION = 0.25  # share of corrections that are strokes
_WORST_LEFT = 1e-4  # share of the view: smaller errors are not corrected


@dataclass(eq=False)
class SimulatedPrompts:
    """Prompts about each sample so far, (B, 1, S, S) each; grows as rounds go by.

    Attributes:
        positive: 1 on positive marks.
        negative: 1 on negative marks.
        region: 1 inside boxes and lassos.
        previous: logits of the round before or of a rough mask, 0 where there is none.
    """

    positive: Tensor
    negative: Tensor
    region: Tensor
    previous: Tensor


def simulate_first_prompts(
    target: Tensor, inside: Tensor, batch_rng: BatchRandom, wrong: float
) -> SimulatedPrompts:
    """First prompts.

    Args:
        target: float32 (B, 1, S, S), 0 or 1.
        inside: 1 where there is an image.
        batch_rng: of the same batch.
        wrong: share of clumsy prompts.
    """
    kind = batch_rng.uniform()
    limits = [0.0, *accumulate((_BOX, _CLICK, _CLICKS, _SCRIBBLE, _LASSO, _ROUGH))]
    is_box, is_click, is_clicks, is_scribble, is_lasso, is_rough = (
        (kind >= low) & (kind < high) for low, high in pairwise(limits)
    )
    nothing = torch.zeros_like(target)
    loose = batch_rng.bernoulli(wrong)
    region = torch.where(is_box, strokes.draw_box(target, batch_rng, loose=loose), nothing)
    region = _draw_where(is_lasso, region, target, batch_rng, strokes.draw_outline)
    positive = _draw_where(is_scribble, nothing, target, batch_rng, _draw_stroke)
    clicked = is_click | is_clicks | batch_rng.bernoulli(_MIXED)
    click = _draw_click(target, batch_rng, wrong, strokes.compute_depth(target))
    positive = torch.where(clicked, click, positive)
    for _ in range(2):
        more = _draw_click(target, batch_rng, wrong, None)
        positive = torch.where(
            is_clicks & batch_rng.bernoulli(0.6), positive.maximum(more), positive
        )
    begins_with_no = batch_rng.bernoulli(_NEGATIVE_FIRST)
    negative = _draw_where(
        begins_with_no, nothing, torch.cat([target, inside], 1), batch_rng, _click_beside
    )
    previous = torch.where(is_box | is_lasso, _make_guess(region, is_box), nothing)
    previous = _draw_where(is_rough, previous, target, batch_rng, _draw_rough_mask)
    return SimulatedPrompts(positive, negative * (1 - target), region * inside, previous * inside)


def prompt_with_box(target: Tensor) -> SimulatedPrompts:
    """The tight box, and nothing else."""
    prompts = _empty_prompts(target)
    rows, columns = target.amax(dim=3, keepdim=True), target.amax(dim=2, keepdim=True)
    filled_rows = rows.cummax(dim=2).values * rows.flip(2).cummax(dim=2).values.flip(2)
    filled_columns = columns.cummax(dim=3).values * columns.flip(3).cummax(dim=3).values.flip(3)
    prompts.region = filled_rows * filled_columns
    prompts.previous = _make_guess(
        prompts.region, torch.ones_like(target[:, :, :1, :1], dtype=torch.bool)
    )
    return prompts


def prompt_with_click(target: Tensor, batch_rng: BatchRandom) -> SimulatedPrompts:
    """A click in the middle, and nothing else."""
    prompts = _empty_prompts(target)
    middle = strokes.draw_pixel(target, batch_rng, deep=strokes.compute_depth(target))
    prompts.positive = strokes.paint_disks(middle, target.shape[-1], CLICK_RADIUS)
    return prompts


def simulate_correction(
    prompts: SimulatedPrompts,
    logits: Tensor,
    target: Tensor,
    inside: Tensor,
    batch_rng: BatchRandom,
    wrong: float,
    *,
    strokes_too: bool = True,
) -> SimulatedPrompts:
    """The next round: a click or stroke in the largest error, and the answer shown again.

    Args:
        prompts: so far; not changed.
        logits: of the answer, (B, 1, S, S).
        target: what is meant.
        inside: 1 where there is an image.
        batch_rng: of the same batch.
        wrong: share of clicks beside the place meant.
        strokes_too: False for clicks in the middle of the error only.
    """
    size = target.shape[-1]
    answer = (logits > 0).float()
    missing, excess = target * (1 - answer) * inside, answer * (1 - target) * inside
    deep = strokes.compute_depth(torch.cat([missing, excess], dim=1))
    most = deep.amax(dim=(2, 3), keepdim=True)
    add = most[:, :1] >= most[:, 1:]
    error = torch.where(add, missing, excess)
    worth = error.mean(dim=(2, 3), keepdim=True) > _WORST_LEFT
    error = error * worth
    deep = torch.where(add, deep[:, :1], deep[:, 1:]) * worth
    central = batch_rng.bernoulli(0.6 if strokes_too else 1.0)
    at = strokes.draw_pixel(error, batch_rng, deep=deep, central=central)
    mark = strokes.paint_disks(_move_aside(at, size, batch_rng, wrong), size, CLICK_RADIUS)
    if strokes_too:
        mark = _draw_where(
            batch_rng.bernoulli(_STROKE_CORRECTION), mark, error, batch_rng, _draw_stroke
        )
    positive = torch.where(add, prompts.positive.maximum(mark), prompts.positive)
    negative = torch.where(add, prompts.negative, prompts.negative.maximum(mark))
    return SimulatedPrompts(positive, negative, prompts.region, logits.detach().float())


def _empty_prompts(target: Tensor) -> SimulatedPrompts:
    return SimulatedPrompts(*(torch.zeros_like(target) for _ in range(4)))


def _draw_click(
    target: Tensor, batch_rng: BatchRandom, wrong: float, deep: Tensor | None
) -> Tensor:
    """A click anywhere, or, given the depth, half of the time in the middle."""
    size = target.shape[-1]
    at = strokes.draw_pixel(target, batch_rng, deep=deep, central=batch_rng.bernoulli(0.5))
    return strokes.paint_disks(_move_aside(at, size, batch_rng, wrong), size, CLICK_RADIUS)


def _move_aside(at: Tensor, size: int, batch_rng: BatchRandom, wrong: float) -> Tensor:
    """Some of the positions moved by a few pixels; -1 stays."""
    error = (batch_rng.normal(2) * 2.5).round().long()
    moved = torch.where(batch_rng.bernoulli(wrong)[:, :, 0, 0], at + error, at).clamp(0, size - 1)
    return torch.where(at < 0, at, moved)


def _draw_where(
    chosen: Tensor,
    otherwise: Tensor,
    mask: Tensor,
    batch_rng: BatchRandom,
    draw: Callable[[Tensor, BatchRandom], Tensor],
) -> Tensor:
    """What is drawn from the masks of the samples chosen, and `otherwise` for the rest."""
    index = chosen.flatten().nonzero()[:, 0]
    if not len(index):
        return otherwise
    return otherwise.index_copy(
        0, index, draw(mask[index], BatchRandom(len(index), batch_rng.generator))
    )


def _make_guess(region: Tensor, is_box: Tensor) -> Tensor:
    """What a region says by itself, as a rough mask: the ellipse in a box, all of a lasso."""
    guess = torch.where(is_box, strokes.paint_ellipse(region), region)
    return (guess * 2 - 1) * MASK_LOGIT


def _draw_stroke(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A scribble; nothing where there is nothing."""
    return strokes.draw_scribble(mask, strokes.compute_depth(mask), batch_rng) * mask.amax(
        (2, 3), keepdim=True
    )


def _draw_rough_mask(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    return (strokes.draw_rough_mask(mask, batch_rng) * 2 - 1) * MASK_LOGIT


def _click_beside(sample: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A negative click or stroke: near the target as a rule, anywhere else sometimes; the sample is
    (B, 2, S, S), target and inside.
    """
    target, inside = sample[:, :1], sample[:, 1:]
    size = target.shape[-1]
    near = (box_mean(target, 11) > 0).float()
    around = (1 - target) * inside
    place = torch.where(batch_rng.bernoulli(0.7), around * near, around)
    click = strokes.paint_disks(strokes.draw_pixel(place, batch_rng), size, CLICK_RADIUS)
    stroke = _draw_stroke(place, batch_rng)
    return torch.where(batch_rng.bernoulli(0.3), stroke, click)
