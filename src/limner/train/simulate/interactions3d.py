"""The simulated user on a batch of volumes, as `interactions` on pictures.

A box in space is shown as a region and as the guess that its ellipsoid is the object. What is said
about one slice, a box, a lasso or a mask there, is a guess about that slice alone: elsewhere
nothing is known yet, and previous logits are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from limner.networks.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.data.rng import Chance, block_mean
from limner.train.simulate import strokes, strokes3d
from limner.train.simulate.interactions import Said

# Shares of the kinds that a conversation begins with; mixtures come on top.
_KINDS = {
    "box": 0.34,
    "plane box": 0.08,
    "click": 0.2,
    "clicks": 0.08,
    "scribble": 0.12,
    "lasso": 0.07,
    "rough": 0.06,
    "slice": 0.05,
}
_MIDDLE_BOX = 0.15  # share of boxes that are as wide as the middle slice of the target
_MIXED = 0.15  # share of conversations that begin with a click besides
_NEGATIVE_FIRST = 0.15  # share with something negative at the start
_STROKE_CORRECTION = 0.25  # share of corrections that are strokes
_WORST_LEFT = 2e-5  # share of the view: smaller errors are not corrected


def begin(target: Tensor, inside: Tensor, chance: Chance, wrong: float) -> Said:
    """First prompts.

    Args:
        target: float32 (B, 1, D, H, W), 0 or 1.
        inside: 1 where there is a picture.
        chance: of the same batch.
        wrong: share of clumsy prompts.
    """
    kind = chance.uniform()
    limits = [0.0, *accumulate(_KINDS.values())]
    limits[-1] = 2.0
    chosen = {
        name: (kind >= low) & (kind < high)
        for name, (low, high) in zip(_KINDS, pairwise(limits), strict=True)
    }
    there = target.amax(dim=(2, 3, 4), keepdim=True)
    said = Said(*(torch.zeros_like(target) for _ in range(4)))
    deep = strokes3d.depth(target)
    _begin_with_regions(said, target, deep, chosen, chance, wrong)
    clicked = chosen["click"] | chosen["clicks"] | chance.happens(_MIXED)
    click = _click(target, chance, wrong, deep)
    positive = torch.where(clicked, click, said.positive)
    for _ in range(2):
        more = _click(target, chance, wrong, None)
        chosen_too = chosen["clicks"] & chance.happens(0.6)
        positive = torch.where(chosen_too, positive.maximum(more), positive)
    scene = torch.cat([target, inside], dim=1)
    negative = _where(chance.happens(_NEGATIVE_FIRST), said.negative, scene, chance, _beside)
    return Said(
        positive * there,
        negative * (1 - target),
        said.region * inside * there,
        said.previous * inside * there,
    )


def _begin_with_regions(
    said: Said,
    target: Tensor,
    deep: Tensor,
    chosen: dict[str, Tensor],
    chance: Chance,
    wrong: float,
) -> None:
    """Boxes, lassos, scribbles and masks, in place."""
    shape = target.shape[2:]
    loose = chance.happens(wrong)
    boxes = strokes3d.box(target, chance, loose=loose)
    narrow = chance.uniform(0.0, 1.0, 1, 1) < _MIDDLE_BOX
    boxes = torch.where(narrow, strokes3d.middle_box(target), boxes)
    said.region = torch.where(chosen["box"], strokes3d.filled(boxes, shape), said.region)
    guess = _guess(strokes3d.ellipsoid(boxes, shape))
    said.previous = torch.where(chosen["box"], guess, said.previous)
    said.previous = _where(chosen["rough"], said.previous, target, chance, _rough)
    for name, draw in _DRAWN.items():
        index = chosen[name].flatten().nonzero()[:, 0]
        if not len(index):
            continue
        part, own = target[index], chance.of(len(index))
        at = strokes3d.one_voxel(part, own, deep=deep[index], central=own.happens(0.6))
        drawn, slices = strokes3d.on_slice(part, at, own, draw)
        if name == "scribble":
            said.positive[index] = drawn
            continue
        known = drawn
        if name == "plane box":
            known, drawn = (drawn > 1).float(), (drawn > 0).float()
        if name != "slice":
            said.region[index] = drawn
        said.previous[index] = _guess(known) * slices


def _plane_box(plane: Tensor, chance: Chance) -> Tensor:
    """A box on each slice, 1 in it and 2 in its ellipse."""
    box = strokes.box(plane, chance, loose=chance.happens(0.1))
    return box + strokes.ellipse(box)


def _whole_slice(plane: Tensor, chance: Chance) -> Tensor:
    """The mask of each slice, exact or nearly so."""
    return torch.where(chance.happens(0.6), plane, strokes.rough(plane, chance))


_DRAWN: dict[str, Callable[[Tensor, Chance], Tensor]] = {
    "plane box": _plane_box,
    "scribble": strokes3d.stroke,
    "lasso": strokes.outline,
    "slice": _whole_slice,
}


def begin_with_box(target: Tensor) -> Said:
    """The tight box, and nothing else."""
    said = Said(*(torch.zeros_like(target) for _ in range(4)))
    boxes = strokes3d.corners(target)
    said.region = strokes3d.filled(boxes, target.shape[2:])
    said.previous = _guess(strokes3d.ellipsoid(boxes, target.shape[2:]))
    return said


def begin_with_click(target: Tensor, chance: Chance) -> Said:
    """A click in the middle, and nothing else."""
    said = Said(*(torch.zeros_like(target) for _ in range(4)))
    middle = strokes3d.one_voxel(target, chance, deep=strokes3d.depth(target))
    said.positive = strokes3d.balls(middle, target.shape[2:], CLICK_RADIUS)
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
    """The next round, as `interactions.correct`."""
    shape = target.shape[2:]
    answer = (logits > 0).float()
    missing, excess = target * (1 - answer) * inside, answer * (1 - target) * inside
    deep = strokes3d.depth(torch.cat([missing, excess], dim=1))
    most = deep.amax(dim=(2, 3, 4), keepdim=True)
    add = most[:, :1] >= most[:, 1:]
    error = torch.where(add, missing, excess)
    worth = error.mean(dim=(2, 3, 4), keepdim=True) > _WORST_LEFT
    error = error * worth
    deep = torch.where(add, deep[:, :1], deep[:, 1:]) * worth
    central = chance.happens(0.6 if strokes_too else 1.0)
    at = strokes3d.one_voxel(error, chance, deep=deep, central=central)
    mark = strokes3d.balls(_off(at, shape, chance, wrong), shape, CLICK_RADIUS)
    if strokes_too:
        index = chance.happens(_STROKE_CORRECTION).flatten().nonzero()[:, 0]
        if len(index):
            own = chance.of(len(index))
            drawn = strokes3d.on_slice(error[index], at[index], own, strokes3d.stroke)[0]
            mark = mark.index_copy(0, index, drawn)
    positive = torch.where(add, said.positive.maximum(mark), said.positive)
    negative = torch.where(add, said.negative, said.negative.maximum(mark))
    return Said(positive, negative, said.region, logits.detach().float())


def _click(target: Tensor, chance: Chance, wrong: float, deep: Tensor | None) -> Tensor:
    """A click anywhere, or, given the depth, half of the time in the middle."""
    at = strokes3d.one_voxel(target, chance, deep=deep, central=chance.happens(0.5))
    shape = target.shape[2:]
    return strokes3d.balls(_off(at, shape, chance, wrong), shape, CLICK_RADIUS)


def _off(at: Tensor, shape: torch.Size, chance: Chance, wrong: float) -> Tensor:
    """Some of the positions moved by a few voxels; -1 stays."""
    pace = torch.tensor([1.0, 2.0, 2.0], device=at.device)
    error = (chance.normal(3) * pace).round().long()
    last = torch.tensor(shape, device=at.device) - 1
    moved = torch.where(chance.uniform(0.0, 1.0, 1) < wrong, at + error, at)
    return torch.where(at < 0, at, moved.clamp(min=0).minimum(last))


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


def _guess(mask: Tensor) -> Tensor:
    return (mask * 2 - 1) * MASK_LOGIT


def _rough(mask: Tensor, chance: Chance) -> Tensor:
    return _guess(strokes3d.rough(mask, chance))


def _beside(scene: Tensor, chance: Chance) -> Tensor:
    """A negative click or stroke: near the target as a rule, anywhere else sometimes; the scene is
    (B, 2, D, H, W), target and inside.
    """
    target, inside = scene[:, :1], scene[:, 1:]
    near = (block_mean(target, (3, 9, 9)) > 0).float()
    around = (1 - target) * inside
    place = torch.where(chance.happens(0.7), around * near, around)
    at = strokes3d.one_voxel(place, chance)
    click = strokes3d.balls(at, target.shape[2:], CLICK_RADIUS)
    return _where(
        chance.happens(0.3),
        click,
        torch.cat([place, click], dim=1),
        chance,
        lambda part, own: strokes3d.on_slice(
            part[:, :1], strokes3d.one_voxel(part[:, 1:], own), own, strokes3d.stroke
        )[0],
    )
