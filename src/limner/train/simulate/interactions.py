"""The simulated user on a batch: first prompts of all kinds, then corrections where the answer is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from limner.networks.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.data.rng import Chance, box_mean
from limner.train.simulate import strokes

# Shares of the kinds that a conversation begins with; mixtures come on top.
_BOX, _CLICK, _CLICKS, _SCRIBBLE, _LASSO, _ROUGH = 0.34, 0.24, 0.1, 0.16, 0.08, 0.08
_MIXED = 0.15  # share of conversations that begin with a click besides
_NEGATIVE_FIRST = 0.15  # share with something negative at the start
_STROKE_CORRECTION = 0.25  # share of corrections that are strokes
_WORST_LEFT = 1e-4  # share of the view: smaller errors are not corrected


@dataclass(eq=False)
class Said:
    """What has been said about each sample so far, (B, 1, S, S) each; grows as rounds go by.

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


def begin(target: Tensor, inside: Tensor, chance: Chance, wrong: float) -> Said:
    """First prompts.

    Args:
        target: float32 (B, 1, S, S), 0 or 1.
        inside: 1 where there is a picture.
        chance: of the same batch.
        wrong: share of clumsy prompts.
    """
    kind = chance.uniform()
    limits = [0.0, *accumulate((_BOX, _CLICK, _CLICKS, _SCRIBBLE, _LASSO, _ROUGH))]
    is_box, is_click, is_clicks, is_scribble, is_lasso, is_rough = (
        (kind >= low) & (kind < high) for low, high in pairwise(limits)
    )
    nothing = torch.zeros_like(target)
    loose = chance.happens(wrong)
    region = torch.where(is_box, strokes.box(target, chance, loose=loose), nothing)
    region = _where(is_lasso, region, target, chance, strokes.outline)
    positive = _where(is_scribble, nothing, target, chance, _stroke)
    clicked = is_click | is_clicks | chance.happens(_MIXED)
    click = _click(target, chance, wrong, strokes.depth(target))
    positive = torch.where(clicked, click, positive)
    for _ in range(2):
        more = _click(target, chance, wrong, None)
        positive = torch.where(is_clicks & chance.happens(0.6), positive.maximum(more), positive)
    begins_with_no = chance.happens(_NEGATIVE_FIRST)
    negative = _where(begins_with_no, nothing, torch.cat([target, inside], 1), chance, _beside)
    previous = torch.where(is_box | is_lasso, _guess(region, is_box), nothing)
    previous = _where(is_rough, previous, target, chance, _rough)
    return Said(positive, negative * (1 - target), region * inside, previous * inside)


def begin_with_box(target: Tensor) -> Said:
    """The tight box, and nothing else."""
    said = _nothing(target)
    rows, columns = target.amax(dim=3, keepdim=True), target.amax(dim=2, keepdim=True)
    filled_rows = rows.cummax(dim=2).values * rows.flip(2).cummax(dim=2).values.flip(2)
    filled_columns = columns.cummax(dim=3).values * columns.flip(3).cummax(dim=3).values.flip(3)
    said.region = filled_rows * filled_columns
    said.previous = _guess(said.region, torch.ones_like(target[:, :, :1, :1], dtype=torch.bool))
    return said


def begin_with_click(target: Tensor, chance: Chance) -> Said:
    """A click in the middle, and nothing else."""
    said = _nothing(target)
    middle = strokes.one_pixel(target, chance, deep=strokes.depth(target))
    said.positive = strokes.disks(middle, target.shape[-1], CLICK_RADIUS)
    return said


def correct(
    said: Said,
    logits: Tensor,
    target: Tensor,
    inside: Tensor,
    chance: Chance,
    wrong: float,
    *,
    strokes_too: bool = True,
) -> Said:
    """The next round: a click or stroke in the largest error, and the answer shown again.

    Args:
        said: so far; not changed.
        logits: of the answer, (B, 1, S, S).
        target: what is meant.
        inside: 1 where there is a picture.
        chance: of the same batch.
        wrong: share of clicks beside the place meant.
        strokes_too: False for clicks in the middle of the error only.
    """
    size = target.shape[-1]
    answer = (logits > 0).float()
    missing, excess = target * (1 - answer) * inside, answer * (1 - target) * inside
    deep = strokes.depth(torch.cat([missing, excess], dim=1))
    most = deep.amax(dim=(2, 3), keepdim=True)
    add = most[:, :1] >= most[:, 1:]
    error = torch.where(add, missing, excess)
    worth = error.mean(dim=(2, 3), keepdim=True) > _WORST_LEFT
    error = error * worth
    deep = torch.where(add, deep[:, :1], deep[:, 1:]) * worth
    central = chance.happens(0.6 if strokes_too else 1.0)
    at = strokes.one_pixel(error, chance, deep=deep, central=central)
    mark = strokes.disks(_off(at, size, chance, wrong), size, CLICK_RADIUS)
    if strokes_too:
        mark = _where(chance.happens(_STROKE_CORRECTION), mark, error, chance, _stroke)
    positive = torch.where(add, said.positive.maximum(mark), said.positive)
    negative = torch.where(add, said.negative, said.negative.maximum(mark))
    return Said(positive, negative, said.region, logits.detach().float())


def _nothing(target: Tensor) -> Said:
    return Said(*(torch.zeros_like(target) for _ in range(4)))


def _click(target: Tensor, chance: Chance, wrong: float, deep: Tensor | None) -> Tensor:
    """A click anywhere, or, given the depth, half of the time in the middle."""
    size = target.shape[-1]
    at = strokes.one_pixel(target, chance, deep=deep, central=chance.happens(0.5))
    return strokes.disks(_off(at, size, chance, wrong), size, CLICK_RADIUS)


def _off(at: Tensor, size: int, chance: Chance, wrong: float) -> Tensor:
    """Some of the positions moved by a few pixels; -1 stays."""
    error = (chance.normal(2) * 2.5).round().long()
    moved = torch.where(chance.happens(wrong)[:, :, 0, 0], at + error, at).clamp(0, size - 1)
    return torch.where(at < 0, at, moved)


def _where(
    chosen: Tensor,
    otherwise: Tensor,
    mask: Tensor,
    chance: Chance,
    draw: Callable[[Tensor, Chance], Tensor],
) -> Tensor:
    """What is drawn from the masks of the samples chosen, and `otherwise` for the rest."""
    index = chosen.flatten().nonzero()[:, 0]
    if not len(index):
        return otherwise
    return otherwise.index_copy(0, index, draw(mask[index], Chance(len(index), chance.generator)))


def _guess(region: Tensor, is_box: Tensor) -> Tensor:
    """What a region says by itself, as a rough mask: the ellipse in a box, all of a lasso."""
    guess = torch.where(is_box, strokes.ellipse(region), region)
    return (guess * 2 - 1) * MASK_LOGIT


def _stroke(mask: Tensor, chance: Chance) -> Tensor:
    """A scribble; nothing where there is nothing."""
    return strokes.scribble(mask, strokes.depth(mask), chance) * mask.amax((2, 3), keepdim=True)


def _rough(mask: Tensor, chance: Chance) -> Tensor:
    return (strokes.rough(mask, chance) * 2 - 1) * MASK_LOGIT


def _beside(scene: Tensor, chance: Chance) -> Tensor:
    """A negative click or stroke: near the target as a rule, anywhere else sometimes; the scene is
    (B, 2, S, S), target and inside.
    """
    target, inside = scene[:, :1], scene[:, 1:]
    size = target.shape[-1]
    near = (box_mean(target, 11) > 0).float()
    around = (1 - target) * inside
    place = torch.where(chance.happens(0.7), around * near, around)
    click = strokes.disks(strokes.one_pixel(place, chance), size, CLICK_RADIUS)
    stroke = _stroke(place, chance)
    return torch.where(chance.happens(0.3), stroke, click)
