"""Simulated prompts on a batch of volumes, as `interactions` on images.

A box in space is shown as a region and as the guess that its ellipsoid is the object. What is
marked about one slice, a box, a lasso or a mask there, is a guess about that slice alone: elsewhere
nothing is known yet, and previous logits are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from limner.networks.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.data.rng import BatchRandom, block_mean
from limner.train.simulate import strokes, strokes3d
from limner.train.simulate.interactions import SimulatedPrompts

# Shares of the kinds that a conversation begins with; mixtures come on top.
_KINDS = {
    "box": 0.34,
    "slice box": 0.08,
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


def simulate_first_prompts(
    target: Tensor, inside: Tensor, batch_rng: BatchRandom, wrong: float
) -> SimulatedPrompts:
    """First prompts.

    Args:
        target: float32 (B, 1, D, H, W), 0 or 1.
        inside: 1 where there is an image.
        batch_rng: of the same batch.
        wrong: share of clumsy prompts.
    """
    kind = batch_rng.uniform()
    limits = [0.0, *accumulate(_KINDS.values())]
    limits[-1] = 2.0
    chosen = {
        name: (kind >= low) & (kind < high)
        for name, (low, high) in zip(_KINDS, pairwise(limits), strict=True)
    }
    there = target.amax(dim=(2, 3, 4), keepdim=True)
    prompts = SimulatedPrompts(*(torch.zeros_like(target) for _ in range(4)))
    deep = strokes3d.compute_depth(target)
    _simulate_regions(prompts, target, deep, chosen, batch_rng, wrong)
    clicked = chosen["click"] | chosen["clicks"] | batch_rng.bernoulli(_MIXED)
    click = _draw_click(target, batch_rng, wrong, deep)
    positive = torch.where(clicked, click, prompts.positive)
    for _ in range(2):
        more = _draw_click(target, batch_rng, wrong, None)
        chosen_too = chosen["clicks"] & batch_rng.bernoulli(0.6)
        positive = torch.where(chosen_too, positive.maximum(more), positive)
    sample = torch.cat([target, inside], dim=1)
    negative = _draw_where(
        batch_rng.bernoulli(_NEGATIVE_FIRST), prompts.negative, sample, batch_rng, _click_beside
    )
    return SimulatedPrompts(
        positive * there,
        negative * (1 - target),
        prompts.region * inside * there,
        prompts.previous * inside * there,
    )


def _simulate_regions(
    prompts: SimulatedPrompts,
    target: Tensor,
    deep: Tensor,
    chosen: dict[str, Tensor],
    batch_rng: BatchRandom,
    wrong: float,
) -> None:
    """Boxes, lassos, scribbles and masks, in place."""
    shape = target.shape[2:]
    loose = batch_rng.bernoulli(wrong)
    boxes = strokes3d.draw_box(target, batch_rng, loose=loose)
    narrow = batch_rng.uniform(0.0, 1.0, 1, 1) < _MIDDLE_BOX
    boxes = torch.where(narrow, strokes3d.box_of_middle_slice(target), boxes)
    prompts.region = torch.where(chosen["box"], strokes3d.paint_box(boxes, shape), prompts.region)
    guess = _make_guess(strokes3d.paint_ellipsoid(boxes, shape))
    prompts.previous = torch.where(chosen["box"], guess, prompts.previous)
    prompts.previous = _draw_where(
        chosen["rough"], prompts.previous, target, batch_rng, _draw_rough_mask
    )
    for name, draw in _DRAWN.items():
        index = chosen[name].flatten().nonzero()[:, 0]
        if not len(index):
            continue
        part, own = target[index], batch_rng.of(len(index))
        at = strokes3d.draw_voxel(part, own, deep=deep[index], central=own.bernoulli(0.6))
        drawn, slices = strokes3d.draw_on_slice(part, at, own, draw)
        if name == "scribble":
            prompts.positive[index] = drawn
            continue
        known = drawn
        if name == "slice box":
            known, drawn = (drawn > 1).float(), (drawn > 0).float()
        if name != "slice":
            prompts.region[index] = drawn
        prompts.previous[index] = _make_guess(known) * slices


def _draw_slice_box(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A box on each slice, 1 in it and 2 in its ellipse."""
    box = strokes.draw_box(mask, batch_rng, loose=batch_rng.bernoulli(0.1))
    return box + strokes.paint_ellipse(box)


def _draw_whole_slice(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    """The mask of each slice, exact or nearly so."""
    return torch.where(batch_rng.bernoulli(0.6), mask, strokes.draw_rough_mask(mask, batch_rng))


_DRAWN: dict[str, Callable[[Tensor, BatchRandom], Tensor]] = {
    "slice box": _draw_slice_box,
    "scribble": strokes3d.draw_stroke,
    "lasso": strokes.draw_outline,
    "slice": _draw_whole_slice,
}


def prompt_with_box(target: Tensor) -> SimulatedPrompts:
    """The tight box, and nothing else."""
    prompts = SimulatedPrompts(*(torch.zeros_like(target) for _ in range(4)))
    boxes = strokes3d.find_corners(target)
    prompts.region = strokes3d.paint_box(boxes, target.shape[2:])
    prompts.previous = _make_guess(strokes3d.paint_ellipsoid(boxes, target.shape[2:]))
    return prompts


def prompt_with_click(target: Tensor, batch_rng: BatchRandom) -> SimulatedPrompts:
    """A click in the middle, and nothing else."""
    prompts = SimulatedPrompts(*(torch.zeros_like(target) for _ in range(4)))
    middle = strokes3d.draw_voxel(target, batch_rng, deep=strokes3d.compute_depth(target))
    prompts.positive = strokes3d.paint_balls(middle, target.shape[2:], CLICK_RADIUS)
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
    """The next round, as `interactions.correct`."""
    shape = target.shape[2:]
    answer = (logits > 0).float()
    missing, excess = target * (1 - answer) * inside, answer * (1 - target) * inside
    deep = strokes3d.compute_depth(torch.cat([missing, excess], dim=1))
    most = deep.amax(dim=(2, 3, 4), keepdim=True)
    add = most[:, :1] >= most[:, 1:]
    error = torch.where(add, missing, excess)
    worth = error.mean(dim=(2, 3, 4), keepdim=True) > _WORST_LEFT
    error = error * worth
    deep = torch.where(add, deep[:, :1], deep[:, 1:]) * worth
    central = batch_rng.bernoulli(0.6 if strokes_too else 1.0)
    at = strokes3d.draw_voxel(error, batch_rng, deep=deep, central=central)
    mark = strokes3d.paint_balls(_move_aside(at, shape, batch_rng, wrong), shape, CLICK_RADIUS)
    if strokes_too:
        index = batch_rng.bernoulli(_STROKE_CORRECTION).flatten().nonzero()[:, 0]
        if len(index):
            own = batch_rng.of(len(index))
            drawn = strokes3d.draw_on_slice(error[index], at[index], own, strokes3d.draw_stroke)[0]
            mark = mark.index_copy(0, index, drawn)
    positive = torch.where(add, prompts.positive.maximum(mark), prompts.positive)
    negative = torch.where(add, prompts.negative, prompts.negative.maximum(mark))
    return SimulatedPrompts(positive, negative, prompts.region, logits.detach().float())


def _draw_click(
    target: Tensor, batch_rng: BatchRandom, wrong: float, deep: Tensor | None
) -> Tensor:
    """A click anywhere, or, given the depth, half of the time in the middle."""
    at = strokes3d.draw_voxel(target, batch_rng, deep=deep, central=batch_rng.bernoulli(0.5))
    shape = target.shape[2:]
    return strokes3d.paint_balls(_move_aside(at, shape, batch_rng, wrong), shape, CLICK_RADIUS)


def _move_aside(at: Tensor, shape: torch.Size, batch_rng: BatchRandom, wrong: float) -> Tensor:
    """Some of the positions moved by a few voxels; -1 stays."""
    pace = torch.tensor([1.0, 2.0, 2.0], device=at.device)
    error = (batch_rng.normal(3) * pace).round().long()
    last = torch.tensor(shape, device=at.device) - 1
    moved = torch.where(batch_rng.uniform(0.0, 1.0, 1) < wrong, at + error, at)
    return torch.where(at < 0, at, moved.clamp(min=0).minimum(last))


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
    return otherwise.index_copy(0, index, draw(mask[index], batch_rng.of(len(index))))


def _make_guess(mask: Tensor) -> Tensor:
    return (mask * 2 - 1) * MASK_LOGIT


def _draw_rough_mask(mask: Tensor, batch_rng: BatchRandom) -> Tensor:
    return _make_guess(strokes3d.draw_rough_mask(mask, batch_rng))


def _click_beside(sample: Tensor, batch_rng: BatchRandom) -> Tensor:
    """A negative click or stroke: near the target as a rule, anywhere else sometimes; the sample is
    (B, 2, D, H, W), target and inside.
    """
    target, inside = sample[:, :1], sample[:, 1:]
    near = (block_mean(target, (3, 9, 9)) > 0).float()
    around = (1 - target) * inside
    place = torch.where(batch_rng.bernoulli(0.7), around * near, around)
    at = strokes3d.draw_voxel(place, batch_rng)
    click = strokes3d.paint_balls(at, target.shape[2:], CLICK_RADIUS)
    return _draw_where(
        batch_rng.bernoulli(0.3),
        click,
        torch.cat([place, click], dim=1),
        batch_rng,
        lambda part, own: strokes3d.draw_on_slice(
            part[:, :1], strokes3d.draw_voxel(part[:, 1:], own), own, strokes3d.draw_stroke
        )[0],
    )
