"""What intensities alone tell: tiny objects, cavities, slices that an object does not reach."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.adapters.evidence import open_cavities, outline_tiny, stop_across
from limner.metrics import dice
from limner.prompts import Box, Click

Mask = NDArray[np.bool_]


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Mask:
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    away = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    return np.asarray(away <= radius**2)


def noisy(truth: Mask, low: float, high: float, noise: float, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(0, noise, truth.shape)
    return (values + np.where(truth, high, low)).astype(np.float32)


def boxed(image: NDArray[np.float32], truth: Mask, model: str, margin: int = 0) -> Mask:
    places = np.argwhere(truth)
    low, high = places.min(axis=0) - margin, places.max(axis=0) + 1 + margin
    with limner.open_session(image, model) as session:
        session.add(Box(tuple(low), tuple(high)))
        return session.predict().mask


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_tiny_lesions_in_a_box_are_found_to_the_pixel(side: int, margin: int) -> None:
    for seed, (low, high) in enumerate(((60, 140), (140, 60))):
        truth = np.zeros((200, 200), np.bool_)
        truth[97 : 97 + side, 103 : 103 + side] = True
        image = noisy(truth, low, high, 8, seed)
        assert np.array_equal(boxed(image, truth, "limner-2d", margin), truth)


@pytest.mark.parametrize("radius", [1, 1.5, 2, 2.5])
def test_small_nodules_in_a_tight_box_are_found(radius: float) -> None:
    truth = ball((40, 96, 96), (20, 50, 40), radius)
    image = noisy(truth, -800, 0, 30)
    for margin in (0, 1):
        assert dice(boxed(image, truth, "limner-3d", margin), truth) > 0.95


def test_without_contrast_a_tiny_box_is_left_to_the_network() -> None:
    logits = np.full((9, 9), 2.0, np.float32)
    pixels = np.random.default_rng(0).normal(0, 1, (9, 9)).astype(np.float32)
    assert np.array_equal(outline_tiny(logits, pixels, [Box((3, 3), (6, 6))]), logits)
    bright = pixels + 20 * ball((9, 9), (4, 4), 1)
    found = outline_tiny(logits, bright, [Box((3, 3), (6, 6))]) > 0
    assert np.array_equal(found[3:6, 3:6], ball((3, 3), (1, 1), 1))
    large = np.full((40, 40), 2.0, np.float32)
    assert outline_tiny(large, noisy(large < 0, 0, 1, 1), [Box((3, 3), (20, 20))]) is large


def test_a_negative_click_in_a_cavity_opens_all_of_it() -> None:
    shape = (49, 96, 96)
    cavity = ball(shape, (24, 48, 48), 12)
    shell = ball(shape, (24, 48, 48), 18) & ~cavity
    with limner.open_session(noisy(shell, 20, 200, 10), "limner-3d") as session:
        session.add(Box((6, 30, 30), (43, 67, 67)))
        session.add(Click((24, 48, 48), positive=False))
        mask = session.predict().mask
    assert (mask & cavity).sum() < 0.2 * cavity.sum()
    assert dice(mask, shell) > 0.9


def test_what_looks_like_the_object_is_not_taken_with_a_cavity() -> None:
    shape = (9, 20, 20)
    answer = np.where(ball(shape, (4, 10, 10), 7), 3.0, -3.0).astype(np.float32)
    even = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    click = Click((4, 10, 10), positive=False)
    assert np.array_equal(open_cavities(answer, even, [click]), answer)
    dark = even + 40 * ~ball(shape, (4, 10, 10), 3)
    assert (open_cavities(answer, dark, [click]) > 0).sum() < (answer > 0).sum()
    both = [click, Click((4, 10, 11))]
    assert np.array_equal(open_cavities(answer, dark, both), answer)


def test_an_answer_does_not_leak_through_thick_slices() -> None:
    truth = np.zeros((10, 96, 96), np.bool_)
    for k, radius in ((4, 10), (5, 12), (6, 10)):
        truth[k] = ball((96, 96), (48, 48), radius)
    pixels = noisy(truth, 60, 160, 10)
    leaked = np.where(truth | ball(truth.shape, (5, 48, 48), 11), 3.0, -3.0).astype(np.float32)
    click = Click((5, 48, 48))
    found = stop_across(leaked, pixels, [click], (6.0, 1.0, 1.0)) > 0
    assert not found[[0, 1, 2, 3, 7, 8, 9]].any()
    assert np.array_equal(found[4:7], leaked[4:7] > 0)
    assert stop_across(leaked, pixels, [click], (1.0, 1.0, 1.0)) is leaked
    even = np.random.default_rng(1).normal(0, 1, truth.shape).astype(np.float32)
    assert stop_across(leaked, even, [click], (6.0, 1.0, 1.0)) is leaked
    image = limner.Image(pixels, limner.Geometry.from_spacing(truth.shape, (6.0, 1.0, 1.0)))
    with limner.open_session(image, "limner-3d") as session:
        session.add(click)
        mask = session.predict().mask
    assert dice(mask, truth) > 0.85
    assert mask[[0, 1, 2, 3, 7, 8, 9]].sum() < 0.05 * truth.sum()
