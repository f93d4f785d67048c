"""Conformance of all models that need no download: every variant answers every prompt of its card.

A new family is tested by being there; one whose weights are a file to get has its own tests.
``pytest tests/test_models.py -k <family>``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from limner import models, phantoms
from limner.errors import CheckpointError, PromptError
from limner.models import PromptableModel, Segmentation, View, create_model
from limner.prompts import Box, Click, Example, Lasso, MaskPrompt, Prompt, Scribble, TextPrompt
from limner.prompts.types import KINDS

CARDS = {v.card.name: v.card for v in models.variants() if v.card.prompts and not v.weights}
CASES = [(name, ndim) for name, card in CARDS.items() for ndim in card.ndim]
SHAPES = {2: (40, 48), 3: (12, 20, 24)}
ODD_SHAPES = {2: ((1, 1), (1, 9), (7, 3), (2, 2)), 3: ((1, 1, 1), (1, 9, 8), (5, 2, 3))}

every_model = pytest.mark.parametrize("name", CARDS)
every_case = pytest.mark.parametrize(("name", "ndim"), CASES)


def blob(ndim: int) -> np.ndarray:
    """The object of the test image: an ellipsoid in the middle."""
    grid = np.indices(SHAPES[ndim])
    radius = sum(((g - n / 2) / (n / 4)) ** 2 for g, n in zip(grid, SHAPES[ndim], strict=True))
    return np.asarray(radius < 1)


def make_view(ndim: int, *, channels: int | None = None, inverted: bool = False) -> View:
    rng = np.random.default_rng(5)
    pixels = np.where(blob(ndim), 160.0, 60.0) + rng.normal(0, 5, SHAPES[ndim])
    if inverted:
        pixels = 220.0 - pixels
    if channels is not None:
        pixels = np.stack([pixels * (1 - 0.1 * k) for k in range(channels)], axis=-1)
    array = np.clip(pixels, 0, 255).astype(np.uint8)
    return View(array, (2.0, 1.0, 1.0)[3 - ndim :], (0.0, 255.0))


def answer(
    model: PromptableModel, view: View, prompts: list[Prompt], previous: np.ndarray | None = None
) -> Segmentation:
    """Ask, and check what must hold for every answer."""
    result = model.segment(model.embed(view), prompts, previous)
    assert result.logits.shape == view.shape
    assert result.logits.dtype == np.float32
    assert np.isfinite(result.logits).all()
    assert 0.0 <= result.score <= 1.0
    return result


def prompt_of(kind: str, ndim: int) -> Prompt:
    """A sensible prompt of a kind for the test image."""
    shape, target = SHAPES[ndim], blob(ndim)
    middle = tuple(n // 2 for n in shape)
    found = np.nonzero(target)
    if kind == "click":
        return Click(middle)
    if kind == "box":
        return Box([f.min() for f in found], [f.max() + 1 for f in found])
    if kind == "scribble":
        return Scribble((middle, (*middle[:-1], middle[-1] + 3)), radius=1)
    if kind == "lasso":
        row, column = middle[-2:]
        corners = (
            ((-9, -10), (-9, 10), (9, 10), (9, -10))
            if ndim == 2
            else ((-5, -6), (-5, 6), (5, 6), (5, -6))
        )
        return Lasso([(*middle[:-2], row + r, column + c) for r, c in corners])
    if kind == "mask":
        return MaskPrompt(ndimage.binary_erosion(target))
    if kind == "text":
        return TextPrompt("bright object")
    return Example(np.zeros((8, 8), np.uint8), np.ones((8, 8), bool))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


@every_model
def test_card_is_complete(name: str) -> None:
    card = CARDS[name]
    model = create_model(name)
    assert isinstance(model, PromptableModel)
    assert replace(model.card, weights_sha256=None, runtime=None) == card
    assert card.summary
    assert card.licence
    assert card.source
    assert card.ndim
    assert set(card.ndim) <= {2, 3}
    assert card.prompts <= set(KINDS)
    assert set(card.window) == set(card.ndim)
    assert all(min(card.limits(ndim)) > 0 and len(card.limits(ndim)) == ndim for ndim in card.ndim)
    assert card.to_json()["name"] == name


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match="classical"):
        create_model("nothing/here")
    with pytest.raises(ValueError, match="classical/region"):
        create_model("classical/nothing")


def test_private_modules_are_not_families() -> None:
    families = models.list_families()
    assert {"toy", "classical", "baseline"} <= set(families)
    assert not any(family.startswith("_") for family in families)


@pytest.mark.slow
@every_case
def test_every_prompt_kind_of_the_card_works(name: str, ndim: int) -> None:
    model, view = create_model(name), make_view(ndim)
    for kind in sorted(CARDS[name].prompts):
        result = answer(model, view, [prompt_of(kind, ndim)])
        assert (result.logits > 0).any(), f"{kind} gives an empty mask"


@every_case
def test_other_prompt_kinds_are_refused_by_name(name: str, ndim: int) -> None:
    model = create_model(name)
    embedding = model.embed(make_view(ndim))
    for kind in sorted(set(KINDS) - CARDS[name].prompts):
        with pytest.raises(PromptError, match=kind) as caught:
            model.segment(embedding, [prompt_of(kind, ndim)])
        assert all(known in str(caught.value) for known in CARDS[name].prompts)


@every_case
def test_wrong_number_of_axes_is_refused(name: str, ndim: int) -> None:
    model = create_model(name)
    if "click" not in CARDS[name].prompts:
        pytest.skip("takes no clicks")
    with pytest.raises(PromptError, match="coordinates"):
        model.segment(model.embed(make_view(ndim)), [Click((1,) * (5 - ndim))])


@pytest.mark.slow
@every_case
def test_same_question_same_answer(name: str, ndim: int) -> None:
    view, prompts = make_view(ndim), [prompt_of(k, ndim) for k in sorted(CARDS[name].prompts)]
    first = answer(create_model(name), view, prompts)
    model = create_model(name)
    answer(model, make_view(ndim, inverted=True), prompts)  # must leave nothing behind
    second = answer(model, view, prompts)
    assert np.array_equal(first.logits, second.logits)
    assert first.score == second.score


@every_case
def test_inputs_are_left_alone(name: str, ndim: int) -> None:
    view = make_view(ndim)
    view.array.flags.writeable = False
    previous = np.where(blob(ndim), 2.0, -2.0).astype(np.float32)
    previous.flags.writeable = False
    prompts = [prompt_of(k, ndim) for k in sorted(CARDS[name].prompts)]
    assert (answer(create_model(name), view, prompts, previous).logits > 0).any()


@every_case
def test_no_prompts_and_negative_prompts_give_an_empty_mask(name: str, ndim: int) -> None:
    model, view = create_model(name), make_view(ndim)
    assert not (answer(model, view, []).logits > 0).any()
    if "click" in CARDS[name].prompts:
        negative = [Click((3,) * ndim, positive=False), Click((1,) * ndim, positive=False)]
        assert not (answer(model, view, negative).logits > 0).any()


@pytest.mark.slow
@every_case
def test_clicks_are_obeyed(name: str, ndim: int) -> None:
    if "click" not in CARDS[name].prompts:
        pytest.skip("takes no clicks")
    rng = np.random.default_rng(11)
    model, view = create_model(name), make_view(ndim)
    previous = None
    prompts: list[Prompt] = [prompt_of("box", ndim)] if "box" in CARDS[name].prompts else []
    for _ in range(12):
        at = tuple(int(rng.integers(n)) for n in view.shape)
        prompts.append(Click(at, bool(rng.random() < 0.5)))
        previous = answer(model, view, prompts, previous).logits
        latest = {p.at: p.positive for p in prompts if isinstance(p, Click)}
        for place, positive in latest.items():
            assert (previous[tuple(int(x) for x in place)] > 0) == positive


@every_case
def test_where_clicks_conflict_the_later_counts(name: str, ndim: int) -> None:
    if "click" not in CARDS[name].prompts:
        pytest.skip("takes no clicks")
    model, view = create_model(name), make_view(ndim)
    middle = tuple(n // 2 for n in view.shape)
    yes, no = Click(middle), Click(middle, positive=False)
    assert answer(model, view, [no, yes]).logits[middle] > 0
    assert answer(model, view, [yes, no]).logits[middle] < 0


@pytest.mark.slow
@every_case
def test_previous_answers_are_accepted(name: str, ndim: int) -> None:
    model, view = create_model(name), make_view(ndim)
    prompts = [prompt_of(k, ndim) for k in sorted(CARDS[name].prompts)]
    for value in (-16.0, 0.0, 16.0):
        previous = np.full(view.shape, value, dtype=np.float32)
        assert (answer(model, view, prompts, previous).logits > 0).any()


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("channels", [None, 1, 3, 5])
def test_channels_and_inverted_contrast(name: str, ndim: int, channels: int | None) -> None:
    if "box" not in CARDS[name].prompts:
        pytest.skip("takes no boxes")
    model = create_model(name)
    for inverted in (False, True):
        view = make_view(ndim, channels=channels, inverted=inverted)
        result = answer(model, view, [prompt_of("box", ndim)])
        assert dice(result.logits > 0, blob(ndim)) > 0.6


@pytest.mark.slow
@every_case
def test_odd_shapes(name: str, ndim: int) -> None:
    model = create_model(name)
    rng = np.random.default_rng(3)
    for shape in ODD_SHAPES[ndim]:
        view = View(rng.integers(0, 255, shape).astype(np.uint8), (1.0,) * ndim, (0.0, 255.0))
        prompts: list[Prompt] = []
        if "box" in CARDS[name].prompts:
            prompts.append(Box((0,) * ndim, shape))
        if "click" in CARDS[name].prompts:
            prompts.append(Click((0,) * ndim))
            assert answer(model, view, [Click((0,) * ndim)]).logits[(0,) * ndim] > 0
        if "mask" in CARDS[name].prompts:
            prompts.append(MaskPrompt(np.ones(shape, dtype=bool)))
        result = answer(model, view, prompts)
        answer(model, view, prompts, result.logits)


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("fill", ["constant", "nan", "infinite", "half nan"])
def test_pathological_intensities(name: str, ndim: int, fill: str) -> None:
    array = np.full(SHAPES[ndim], 7.0, dtype=np.float32)
    if fill == "nan":
        array[:] = np.nan
    elif fill == "infinite":
        array[0], array[1] = np.inf, -np.inf
    elif fill == "half nan":
        array[array.shape[0] // 2 :] = np.nan
    view = View(array, (1.0,) * ndim, (7.0, 7.0))
    model = create_model(name)
    for kind in sorted(CARDS[name].prompts - {"text", "example"}):
        result = answer(model, view, [prompt_of(kind, ndim)])
        assert (result.logits > 0).any() or kind not in ("click", "scribble")


@pytest.mark.slow
@every_case
def test_prompts_over_the_edge_and_empty_masks(name: str, ndim: int) -> None:
    model, view = create_model(name), make_view(ndim)
    known = CARDS[name].prompts
    if "box" in known:
        answer(model, view, [Box((-5,) * ndim, tuple(n + 9 for n in view.shape))])
    if "mask" in known:
        empty = MaskPrompt(np.zeros(view.shape, dtype=bool))
        assert not (answer(model, view, [empty]).logits > 0).any()
    if "scribble" in known:
        line = Scribble(((-9,) * ndim, tuple(n + 9 for n in view.shape)), radius=0)
        assert (answer(model, view, [line]).logits > 0).any()


def test_a_missing_weights_file_and_an_unknown_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        create_model("toy", weights=tmp_path / "none")
    (tmp_path / "some").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="takes no weights"):
        create_model("toy", weights=tmp_path / "some")
    with pytest.raises(ValueError, match="device"):
        create_model("toy", device="banana")


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float64])
def test_a_small_range_of_large_numbers_is_not_lost(dtype: type) -> None:
    array = (10**9 + np.arange(11).reshape(1, 11)).astype(dtype)
    shown = View(array, (1.0, 1.0), (1e9, 1e9 + 10)).normalized()
    assert shown.dtype == np.float32
    assert np.allclose(shown, np.linspace(0, 1, 11)[None])


# Measured Dice on these phantoms minus a margin; they catch a broken rule, not a small change.
BARS = {
    "toy": (0.75, 0.6),
    "baseline/box": (0.65, 0.45),
    "baseline/ellipse": (0.8, 0.6),
    "classical/region": (0.92, 0.75),
    "classical/graphcut": (0.92, 0.75),
    "classical/randomwalk": (0.9, 0.7),
}


@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_box_quality_on_phantoms(name: str, ndim: int) -> None:
    model = create_model(name)
    cases = (
        [phantoms.image(1, (160, 160)), phantoms.image(2, (160, 160), color=True)]
        if ndim == 2
        else [phantoms.volume(3, (32, 56, 56))]
    )
    values = []
    for phantom in cases:
        limits = (-160.0, 240.0) if ndim == 3 else (0.0, float(phantom.image.array.max()))
        view = View(phantom.image.array, phantom.image.spacing, limits)
        embedding = model.embed(view)
        for label in phantom.names:
            target = phantom.truth == label
            found = np.nonzero(target)
            box = Box([f.min() for f in found], [f.max() + 1 for f in found])
            values.append(dice(model.segment(embedding, [box]).logits > 0, target))
    assert np.mean(values) > BARS[name][ndim - 2], np.round(values, 2).tolist()


def test_the_toy_knows_dark_from_bright() -> None:
    model, view = create_model("toy"), make_view(2)
    bright = answer(model, view, [TextPrompt("anything")]).logits > 0
    dark = answer(model, view, [TextPrompt("the Dark part")]).logits > 0
    assert dice(bright, blob(2)) > 0.95
    assert dice(dark, ~blob(2)) > 0.95
