"""The simulated user of the second generation, on a batch.

Beside the first generation's (`limner.train.interactions`): boxes come without a guess at what is
in them and are off by up to a tenth; clicks lie near borders, too; a conversation may begin with a
mask that is wrong in the ways masks are; the newest mark is known; some marks confirm what is right
already, and then the answer should stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from limner.layers.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.chance import Chance, box_mean
from torch import Tensor
from torch.nn import functional

from limner.train import strokes

# Shares of the kinds that a conversation begins with; mixtures come on top.
_KINDS = {
    "box": 0.32,
    "click": 0.28,
    "clicks": 0.08,
    "scribble": 0.16,
    "lasso": 0.08,
    "rough": 0.08,
}
_MIXED = 0.12  # share of conversations that begin with a click besides
_NEGATIVE_FIRST = 0.12  # share with something negative at the start
_STROKE_CORRECTION = 0.25  # share of corrections that are strokes
_CONFIRMING = 0.08  # share of corrections that confirm
_MERGED = 0.5  # share of answers from which only what the newest mark asks for is kept
_WORST_LEFT = 1e-4  # share of the view: smaller errors are not corrected


@dataclass(eq=False)
class Said:
    """What has been said about each sample so far, (B, 1, S, S) each.

    Attributes:
        positive: 1 on positive marks.
        negative: 1 on negative marks.
        region: 1 inside boxes and lassos.
        previous: logits of the round before or of a rough mask, 0 where there is none.
        newest: 1 or -1 on the positive or negative mark that came after the answer before.
        lone: bool (B,): a single mark and nothing else, so that several objects may be meant.
        wanted: what the answer should be: the target, or, to a mark that confirms, the answer
            before.
    """

    positive: Tensor
    negative: Tensor
    region: Tensor
    previous: Tensor
    newest: Tensor
    lone: Tensor
    wanted: Tensor


def begin(target: Tensor, inside: Tensor, chance: Chance, wrong: float) -> Said:
    """First prompts.

    Args:
        target: float32 (B, 1, S, S), 0 or 1.
        inside: 1 where there is a picture.
        chance: of the same batch.
        wrong: share of clumsy prompts.
    """
    kind = chance.uniform()
    is_box, is_click, is_clicks, is_scribble, is_lasso, is_rough = (
        (kind >= low) & (kind < high) for low, high in pairwise([0.0, *accumulate(_KINDS.values())])
    )
    nothing = torch.zeros_like(target)
    region = torch.where(is_box, _box(target, chance, wrong), nothing)
    region = _where(is_lasso, region, target, chance, strokes.outline)
    positive = _where(is_scribble, nothing, target, chance, _stroke)
    more_marks = chance.happens(_MIXED)
    click = _click(target, chance, wrong, strokes.depth(target))
    positive = torch.where(is_click | is_clicks | more_marks, positive.maximum(click), positive)
    for _ in range(2):
        more = _click(target, chance, wrong, None)
        positive = torch.where(is_clicks & chance.happens(0.6), positive.maximum(more), positive)
    begins_with_no = chance.happens(_NEGATIVE_FIRST)
    negative = _where(begins_with_no, nothing, torch.cat([target, inside], 1), chance, _beside)
    previous = torch.where(is_lasso, (region * 2 - 1) * MASK_LOGIT, nothing)
    previous = _where(is_rough, previous, target, chance, _rough)
    lone = (is_click | is_scribble) & ~(is_scribble & more_marks) & ~begins_with_no
    return Said(
        positive,
        negative * (1 - target),
        region * inside,
        previous * inside,
        nothing,
        lone.flatten(),
        target,
    )


def begin_from_mask(said: Said, target: Tensor, inside: Tensor, chance: Chance) -> Said:
    """First prompts, and beside them, as if it were an answer already, a mask with large errors."""
    logits = (mistaken(target, chance) * 2 - 1) * chance.uniform(1.5, 8.0) * inside
    lone = torch.zeros_like(said.lone)
    kept = (said.positive, said.negative, said.region)
    return Said(*kept, logits, torch.zeros_like(target), lone, target)


def correct(
    said: Said, logits: Tensor, target: Tensor, inside: Tensor, chance: Chance, wrong: float
) -> Said:
    """The next round: a click or stroke in the largest error, or one that confirms.

    Args:
        said: so far; not changed.
        logits: of the answer that was shown, (B, 1, S, S).
        target: what is meant.
        inside: 1 where there is a picture.
        chance: of the same batch.
        wrong: share of clicks beside the place meant.
    """
    logits = torch.where(chance.happens(_MERGED), _merged(said, logits), logits)
    answer = (logits > 0).float()
    missing, excess = target * (1 - answer) * inside, answer * (1 - target) * inside
    deep = strokes.depth(torch.cat([missing, excess], dim=1))
    most = deep.amax(dim=(2, 3), keepdim=True)
    add = most[:, :1] >= most[:, 1:]
    error = torch.where(add, missing, excess)
    worth = error.mean(dim=(2, 3), keepdim=True) > _WORST_LEFT
    error, deep = error * worth, torch.where(add, deep[:, :1], deep[:, 1:]) * worth
    confirms = chance.happens(_CONFIRMING)
    add = torch.where(confirms, chance.happens(0.5), add)
    right = torch.where(add, answer * target, (1 - answer) * (1 - target)) * inside
    place = torch.where(confirms, right, error)
    central = chance.happens(0.6) & ~confirms
    at = strokes.one_pixel(place, chance, deep=deep, central=central)
    size = target.shape[-1]
    mark = strokes.disks(_off(at, size, chance, wrong), size, CLICK_RADIUS)
    strokes_too = chance.happens(_STROKE_CORRECTION) & ~confirms
    mark = _where(strokes_too, mark, error, chance, _stroke)
    return Said(
        torch.where(add, said.positive.maximum(mark), said.positive),
        torch.where(add, said.negative, said.negative.maximum(mark)),
        said.region,
        logits.detach().float(),
        torch.where(add, mark, -mark),
        torch.zeros_like(said.lone),
        torch.where(confirms, answer, target),
    )


def begin_with_box(target: Tensor) -> Said:
    """The tight box, and nothing else."""
    said = _nothing(target)
    rows, columns = target.amax(dim=3, keepdim=True), target.amax(dim=2, keepdim=True)
    said.region = _filled(rows, 2) * _filled(columns, 3)
    return said


def begin_with_click(target: Tensor, chance: Chance) -> Said:
    """A click in the middle, and nothing else."""
    said = _nothing(target)
    middle = strokes.one_pixel(target, chance, deep=strokes.depth(target))
    said.positive = strokes.disks(middle, target.shape[-1], CLICK_RADIUS)
    said.lone = torch.ones_like(said.lone)
    return said


def mistaken(target: Tensor, chance: Chance) -> Tensor:
    """The target moved, of another size, with holes, with parts too much or missing: some of it."""
    mask = _moved(target, chance)
    size = target.shape[-1]
    blobs = (chance.smooth(size, 7) > chance.uniform(0.6, 1.4)).float()
    mask = torch.where(chance.happens(0.35), mask * (1 - blobs), mask)
    near = (box_mean(target, max(2, size // 12)) > 0.02).float()
    extra = (chance.smooth(size, 7) > chance.uniform(0.4, 1.2)).float() * near
    mask = torch.where(chance.happens(0.35), mask.maximum(extra), mask)
    cut = (chance.smooth(size, 2) > chance.uniform(-0.8, 0.2)).float()
    return torch.where(chance.happens(0.2), mask * cut, mask)


def _moved(mask: Tensor, chance: Chance) -> Tensor:
    """Shifted by up to a sixth of its size, and scaled by up to a third."""
    number, size = mask.shape[0], mask.shape[-1]
    along = (torch.arange(size, device=mask.device) + 0.5) * 2 / size - 1
    total = mask.sum(dim=(2, 3)).clamp_min(1.0)
    middle = torch.cat(
        [
            (mask * along).sum(dim=(2, 3)) / total,
            (mask * along[:, None]).sum(dim=(2, 3)) / total,
        ],
        dim=1,
    )
    extent = (total / size**2).sqrt() * 2
    scale = torch.where(
        chance.happens(0.5)[:, :, 0, 0], chance.log_uniform(0.7, 1.4, 1), torch.ones_like(total)
    )
    shift = chance.normal(2) * 0.06 * extent * chance.happens(0.6)[:, :, 0, 0]
    theta = torch.zeros(number, 2, 3, device=mask.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale[:, 0]
    theta[:, :, 2] = middle * (1 - scale) + shift
    grid = functional.affine_grid(theta, list(mask.shape), align_corners=False)
    return (functional.grid_sample(mask, grid, align_corners=False) >= 0.5).float()


def _merged(said: Said, logits: Tensor) -> Tensor:
    """A positive newest mark only adds to the answer before, a negative one only takes away."""
    sign = said.newest.sum(dim=(2, 3), keepdim=True)
    before = said.previous
    kept = torch.where(sign > 0, logits.maximum(before), logits)
    return torch.where(sign < 0, logits.minimum(before), kept)


def _nothing(target: Tensor) -> Said:
    empty = [torch.zeros_like(target) for _ in range(5)]
    lone = torch.zeros(len(target), dtype=torch.bool, device=target.device)
    return Said(*empty, lone, target)


def _filled(present: Tensor, axis: int) -> Tensor:
    """Ones from the first to the last one."""
    back = present.flip(axis).cummax(dim=axis).values.flip(axis)
    return present.cummax(dim=axis).values * back


def _box(target: Tensor, chance: Chance, wrong: float) -> Tensor:
    """A filled box: tight, off by a little, off by up to a tenth, or loose."""
    near = strokes.box(target, chance, loose=chance.happens(wrong))
    rows, columns = target.amax(dim=3, keepdim=True), target.amax(dim=2, keepdim=True)
    tight = (_span(rows, 2), _span(columns, 3))
    along = torch.arange(target.shape[-1], device=target.device)
    filled = torch.ones_like(target)
    for axis, (low, high) in zip((2, 3), tight, strict=True):
        length = (high - low).clamp_min(1.0)
        error = chance.uniform(-0.1, 0.1, 2)
        low, high = low + error[:, :1] * length, high + error[:, 1:] * length
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        place = along.view(shape)
        low, high = (v.round().view(-1, 1, 1, 1) for v in (low, high))
        filled = filled * ((place >= low) & (place < high.maximum(low + 1))).float()
    off = filled * target.amax(dim=(2, 3), keepdim=True)
    return torch.where(chance.happens(0.25), off, near)


def _span(present: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the ones, (B, 1) float."""
    flat = present.flatten(1)
    low = flat.argmax(dim=1, keepdim=True)
    high = flat.shape[1] - flat.flip(1).argmax(dim=1, keepdim=True)
    return low.float(), high.float()


def _click(target: Tensor, chance: Chance, wrong: float, deep: Tensor | None) -> Tensor:
    """A click anywhere, sometimes near the border, or, given the depth, often in the middle."""
    size = target.shape[-1]
    border = target * (box_mean(target, 2) < 0.97)
    place = torch.where(chance.happens(0.15), border, target)
    if deep is not None:
        place = torch.where(chance.happens(0.55), target * (1 + deep), place)
    at = strokes.one_pixel(place, chance, deep=deep, central=place.amax((2, 3), keepdim=True) > 1)
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
    return otherwise.index_copy(0, index, draw(mask[index], chance.of(len(index))))


def _stroke(mask: Tensor, chance: Chance) -> Tensor:
    """A scribble; nothing where there is nothing."""
    return strokes.scribble(mask, strokes.depth(mask), chance) * mask.amax((2, 3), keepdim=True)


def _rough(mask: Tensor, chance: Chance) -> Tensor:
    """A rough mask, as one that a person or another model has made."""
    made = torch.where(chance.happens(0.5), strokes.rough(mask, chance), mistaken(mask, chance))
    empty = made.amax(dim=(2, 3), keepdim=True) == 0
    return (torch.where(empty, mask, made) * 2 - 1) * MASK_LOGIT


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
    return torch.where(chance.happens(0.3), _stroke(place, chance), click)


assert math.isclose(sum(_KINDS.values()), 1.0)
