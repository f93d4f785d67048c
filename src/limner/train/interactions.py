"""The simulated user on a batch: first prompts of all kinds, then corrections where the answer is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.layers.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train import strokes
from limner.train.chance import Chance, box_mean

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
    limits = torch.tensor([_BOX, _CLICK, _CLICKS, _SCRIBBLE, _LASSO, _ROUGH]).cumsum(0).tolist()
    is_box = kind < limits[0]
    is_click = (kind >= limits[0]) & (kind < limits[1])
    is_clicks = (kind >= limits[1]) & (kind < limits[2])
    is_scribble = (kind >= limits[2]) & (kind < limits[3])
    is_lasso = (kind >= limits[3]) & (kind < limits[4])
    is_rough = kind >= limits[4]
    deep = strokes.depth(target)
    box = strokes.box(target, chance, loose=chance.happens(wrong))
    region = torch.where(is_box, box, torch.where(is_lasso, strokes.outline(target, chance), 0.0))
    positive = torch.where(is_scribble, strokes.scribble(target, deep, chance), 0.0)
    click = _click(target, chance, wrong, deep)
    positive = torch.where(is_click | is_clicks | chance.happens(_MIXED), click, positive)
    for _ in range(2):
        more = _click(target, chance, wrong, None)
        positive = torch.where(is_clicks & chance.happens(0.6), positive.maximum(more), positive)
    negative = torch.where(chance.happens(_NEGATIVE_FIRST), _beside(target, inside, chance), 0.0)
    rough = (strokes.rough(target, chance) * 2 - 1) * MASK_LOGIT
    previous = torch.where(is_rough, rough, 0.0)
    return Said(positive, negative * (1 - target), region * inside, previous * inside)


def begin_with_box(target: Tensor) -> Said:
    """The tight box, and nothing else."""
    said = _nothing(target)
    rows, columns = target.amax(dim=3, keepdim=True), target.amax(dim=2, keepdim=True)
    filled_rows = rows.cummax(dim=2).values * rows.flip(2).cummax(dim=2).values.flip(2)
    filled_columns = columns.cummax(dim=3).values * columns.flip(3).cummax(dim=3).values.flip(3)
    said.region = filled_rows * filled_columns
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
        stroke = strokes.scribble(error, deep, chance) * worth
        mark = torch.where(chance.happens(_STROKE_CORRECTION), stroke, mark)
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


def _beside(target: Tensor, inside: Tensor, chance: Chance) -> Tensor:
    """A negative click or stroke: near the target as a rule, anywhere else sometimes."""
    size = target.shape[-1]
    near = (box_mean(target, 11) > 0).float()
    around = (1 - target) * inside
    place = torch.where(chance.happens(0.7), around * near, around)
    click = strokes.disks(strokes.one_pixel(place, chance), size, CLICK_RADIUS)
    stroke = strokes.scribble(place, strokes.depth(place), chance)
    return torch.where(chance.happens(0.3), stroke, click)
