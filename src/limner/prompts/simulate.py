"""Simulated user: first prompts from a target, corrections from a target and an answer.

Every random choice comes from the generator that is passed in, so a seed fixes what the user does.
Positions are integer pixels; a positive click or stroke lies on the target and a negative one off
it; nothing lies outside the image. In 3D, lines (scribbles, lassos) are drawn on one slice, as by
hand. The kinds of stroke follow ScribblePrompt (Wong et al. 2023, https://arxiv.org/abs/2312.07381).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.prompts import _strokes
from limner.prompts.convert import fit_box
from limner.prompts.regions import bounds, depth, inmost, largest_error, stride
from limner.prompts.simulate_volume import challenge_click
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, Prompt, Scribble

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]
Kind: TypeAlias = Literal["click", "random_click", "box", "scribble", "lasso", "mask"]
Style: TypeAlias = Literal["line", "centreline", "contour"]
Rule: TypeAlias = Literal["separate", "cvpr2025"]

STYLES: tuple[Style, ...] = ("line", "centreline", "contour")


@dataclass(frozen=True, eq=False)
class Round:
    """One prompt and the answer to it.

    Attributes:
        number: 0 for the first prompt.
        prompt: what the user said.
        prediction: boolean mask of the target's shape, the answer.
    """

    number: int
    prompt: Prompt
    prediction: Mask


def rounds(
    target: ArrayLike,
    predict: Callable[[Prompt], ArrayLike],
    rng: np.random.Generator,
    *,
    num_rounds: int,
    first: Kind = "click",
    correction: Literal["click", "scribble"] = "click",
    spacing: Sequence[float] | None = None,
) -> Iterator[Round]:
    """Prompt, look at the answer, correct, and so on, until nothing is wrong or the user gives up.

    Args:
        target: 2D or 3D mask of what the user wants.
        predict: takes the new prompt, in addition to all before, and returns the new mask.
        rng: source of every random choice.
        num_rounds: at most so many prompts, the first included.
        first: kind of the first prompt.
        correction: kind of the others.
        spacing: millimetres per step in index order, for "most inner"; 1 on each axis if None.

    Raises:
        ValueError: the target is empty, or an answer has another shape.
    """
    wanted = _region(target)
    prompt: Prompt | None = first_prompt(wanted, rng, kind=first, spacing=spacing)
    for number in range(num_rounds):
        if prompt is None:
            return
        prediction = _same_shape(predict(prompt), wanted)
        yield Round(number, prompt, prediction)
        if correction == "click":
            prompt = corrective_click(wanted, prediction, rng, spacing=spacing)
        else:
            prompt = corrective_scribble(wanted, prediction, rng)


def first_prompt(
    target: ArrayLike,
    rng: np.random.Generator,
    *,
    kind: Kind = "click",
    spacing: Sequence[float] | None = None,
) -> Prompt:
    """What a user says first about a target.

    Args:
        target: 2D or 3D mask, not empty.
        rng: source of every random choice.
        kind: ``"click"`` on the most inner pixel, ``"random_click"`` anywhere on the target, the
            tight ``"box"``, a ``"scribble"`` of random style, a ``"lasso"``, a rough ``"mask"``.
        spacing: millimetres per step in index order, for clicks; 1 on each axis if None.

    Raises:
        ValueError: the target is empty or not 2D or 3D, or the kind is unknown.
    """
    match kind:
        case "click":
            return click(target, rng, spacing=spacing)
        case "random_click":
            return random_click(target, rng)
        case "box":
            return box(target, rng)
        case "scribble":
            return scribble(target, rng)
        case "lasso":
            return lasso(target, rng)
        case "mask":
            return rough_mask(target, rng)
    raise ValueError(
        f"A first prompt of kind {kind!r} cannot be simulated; "
        "use click, random_click, box, scribble, lasso or mask."
    )


def click(
    target: ArrayLike,
    rng: np.random.Generator,
    *,
    spacing: Sequence[float] | None = None,
    positive: bool = True,
) -> Click:
    """A click on the most inner pixel of a region: the farthest from its edge, `rng` choosing among
    equals. The image's edge counts as the region's. Arguments as for `first_prompt`.
    """
    return Click(inmost(_region(target), rng, spacing), positive)


def random_click(target: ArrayLike, rng: np.random.Generator, *, positive: bool = True) -> Click:
    """A click anywhere on a region, each pixel being as likely."""
    region = _region(target)
    inside = np.flatnonzero(region)
    at = np.unravel_index(inside[rng.integers(len(inside))], region.shape)
    return Click(tuple(float(x) for x in at), positive)


def box(target: ArrayLike, rng: np.random.Generator, *, jitter: float = 0.0) -> Box:
    """The box around a target, each side moved in or out at random.

    Args:
        target: 2D or 3D mask, not empty.
        rng: source of every random choice.
        jitter: a side moves by up to this share of the box's length along that axis.
    """
    if not (np.isfinite(jitter) and jitter >= 0):
        raise ValueError(f"jitter={jitter} must be finite and not below 0.")
    region = _region(target)
    low, high = bounds(region)
    reach = jitter * (high - low)
    return fit_box(
        low + rng.uniform(-reach, reach), high + rng.uniform(-reach, reach), region.shape
    )


def scribble(
    target: ArrayLike,
    rng: np.random.Generator,
    *,
    style: Style | None = None,
    positive: bool = True,
    radius: float = 2.0,
    axis: int | None = 0,
) -> Scribble:
    """A stroke inside a region.

    Args:
        target: 2D or 3D mask of the region to draw in, not empty.
        rng: source of every random choice.
        style: ``"line"`` between two random pixels, along the ``"centreline"``, or along a
            ``"contour"`` inside the edge; one of them at random if None. All waver, and some part
            of the stroke is left out; it never leaves the region.
        positive: polarity of the prompt.
        radius: of the brush in pixels; smaller where the region is narrow.
        axis: in 3D, across which axis the slice is taken; random if None.
    """
    region = _region(target)
    region_2d, across, index = _strokes.choose_slice(region, rng, axis)
    name = STYLES[rng.integers(len(STYLES))] if style is None else style
    if name not in STYLES:
        raise ValueError(f"style={style!r} is unknown; use {', '.join(STYLES)}.")
    low, high = bounds(region_2d)
    part = np.pad(region_2d[tuple(map(slice, low, high))], 1)
    pixels = _strokes.stroke(name, part, rng)
    if not len(pixels):
        pixels = np.array([inmost(part, rng, None)])
    kept = max(1, round(rng.uniform(0.5, 1.0) * len(pixels)))
    start = rng.integers(len(pixels) - kept + 1)
    pixels = pixels[start : start + kept]
    # Between pixel centres the line is less than 0.71 away from one: a brush that is 1 smaller
    # than the distance to the edge stays inside.
    room = float(depth(part)[tuple(pixels.T)].min()) - 1.0
    points = _strokes.lift(_strokes.corners(pixels) + low - 1, across, index)
    if across is not None and (points == points[0]).all(axis=0).argmax() != across:
        room = 0.0  # a line along an axis: a brush would be taken to have painted another slice
    return Scribble(tuple(map(tuple, points)), positive, min(radius, max(0.0, room)))


def lasso(
    target: ArrayLike,
    rng: np.random.Generator,
    *,
    margin: float = 0.15,
    roughness: float = 0.8,
    axis: int | None = 0,
) -> Lasso:
    """A rough line around a target, in 3D around its part on one slice. All of that part is inside.

    Args:
        target: 2D or 3D mask, not empty.
        rng: source of every random choice.
        margin: mean distance of the line from the target, as a share of the radius of a disk of
            the target's area (at least one pixel).
        roughness: 0…1, how much the distance varies along the line, as a share of itself.
        axis: in 3D, across which axis the slice is taken; random if None.
    """
    if not (np.isfinite(margin) and margin >= 0 and 0 <= roughness <= 1):
        raise ValueError(f"margin={margin} must be 0 or more, roughness={roughness} from 0 to 1.")
    region_2d, across, index = _strokes.choose_slice(_region(target), rng, axis)
    distance = max(1.0, margin * float(np.sqrt(region_2d.sum() / np.pi)))
    line = _strokes.outline(region_2d, distance, roughness, rng)
    return Lasso(tuple(map(tuple, _strokes.lift(line, across, index))))


def rough_mask(
    target: ArrayLike, rng: np.random.Generator, *, roughness: float = 0.2
) -> MaskPrompt:
    """A mask like the target with a wavering edge, somewhat too large or too small; never empty.

    Args:
        target: 2D or 3D mask, not empty.
        rng: source of every random choice.
        roughness: how far the edge moves at most, as a share of the radius of a disk or ball of
            the target's size (at least one pixel).
    """
    if not (np.isfinite(roughness) and roughness >= 0):
        raise ValueError(f"roughness={roughness} must be finite and not below 0.")
    region = _region(target)
    size = np.count_nonzero(region)
    round_radius = np.sqrt(size / np.pi) if region.ndim == 2 else np.cbrt(size * 0.75 / np.pi)
    reach = max(1.0, roughness * float(round_radius))
    low, high = bounds(region)
    low, high = np.maximum(low - int(reach) - 1, 0), np.minimum(high + int(reach) + 1, region.shape)
    window = tuple(map(slice, low, high))
    step = stride(region[window].shape)
    part = region[window][(slice(None, None, step),) * region.ndim]
    if not part.any():  # so thin that it falls between the voxels looked at
        return MaskPrompt(region)
    edge = depth(part) if part.all() else depth(part) - depth(~part, closed=False)
    wave = 0.6 * _strokes.noise(part.shape, max(part.shape) / 6, rng) + rng.uniform(-0.4, 0.4)
    part = edge * step + reach * wave > 0
    for axis in range(part.ndim):
        part = np.repeat(part, step, axis=axis)
    rough = np.zeros(region.shape, dtype=bool)
    rough[window] = part[tuple(slice(0, n) for n in high - low)]
    return MaskPrompt(rough if rough.any() else region)


def corrective_click(
    target: ArrayLike,
    prediction: ArrayLike,
    rng: np.random.Generator,
    *,
    spacing: Sequence[float] | None = None,
    rule: Rule = "separate",
) -> Click | None:
    """A click on the most inner pixel of the largest error; None where nothing is wrong.

    Args:
        target: 2D or 3D mask of what the user wants; may be empty.
        prediction: the answer so far, a mask of the same shape.
        rng: source of every random choice.
        spacing: millimetres per step in index order, for "most inner"; 1 on each axis if None.
        rule: ``"separate"``: missed and spilled pixels form components of their own (touching at
            corners counts). ``"cvpr2025"``: components of both together, distances in voxels
            whatever the spacing, polarity by the clicked voxel: the rule of the CVPR 2025
            interactive challenge, see `simulate_volume.challenge_click`.

    Returns:
        Positive where the target was missed, negative where the prediction spilled.

    Raises:
        ValueError: the shapes differ, or the rule is unknown.
    """
    wanted = _mask(target)
    given = _same_shape(prediction, wanted)
    if rule == "cvpr2025":
        return challenge_click(wanted, given, rng)
    if rule != "separate":
        raise ValueError(f"rule={rule!r} is unknown; use 'separate' or 'cvpr2025'.")
    found = largest_error(wanted, given)
    return None if found is None else Click(inmost(found[0], rng, spacing), found[1])


def corrective_scribble(
    target: ArrayLike,
    prediction: ArrayLike,
    rng: np.random.Generator,
    *,
    style: Style | None = None,
    radius: float = 2.0,
    axis: int | None = 0,
) -> Scribble | None:
    """A stroke in the largest error, by the rule ``"separate"`` of `corrective_click`; None where
    nothing is wrong. Other arguments as for `scribble`.
    """
    wanted = _mask(target)
    found = largest_error(wanted, _same_shape(prediction, wanted))
    if found is None:
        return None
    return scribble(found[0], rng, style=style, positive=found[1], radius=radius, axis=axis)


def _mask(value: ArrayLike) -> Mask:
    array = np.asarray(value)
    mask: Mask = array if array.dtype == np.bool_ else array != 0
    if mask.ndim not in (2, 3):
        raise ValueError(f"The simulated user sees 2D and 3D masks, not shape {mask.shape}.")
    return mask


def _region(target: ArrayLike) -> Mask:
    mask = _mask(target)
    if not mask.any():
        raise ValueError("The target is empty: there is nothing to point at.")
    return mask


def _same_shape(prediction: ArrayLike, target: Mask) -> Mask:
    mask = _mask(prediction)
    if mask.shape != target.shape:
        raise ValueError(f"A prediction of {mask.shape} does not fit the target of {target.shape}.")
    return mask
