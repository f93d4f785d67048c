"""Conformance of all promptable models: every card keeps what it says, without a download.

A model without a weights file is tested as it is; one with a file as `limner.models.Variant.random`
makes it: its own adapter and network, reduced, with random weights. What such a network delineates
means nothing, so tests that look at masks (`sensible_case`) are for the others. A new family is
tested by being there: ``pytest tests/test_models.py -k <family>``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import limner
from limner import models, phantoms
from limner.errors import CheckpointError, MissingDependency, PromptError
from limner.models import (
    BatchModel,
    EncodingModel,
    PromptableModel,
    Question,
    Segmentation,
    View,
    create_model,
)
from limner.prompts import Box, Click, Example, Lasso, MaskPrompt, Prompt, Scribble, TextPrompt
from limner.prompts.types import KINDS

VARIANTS = {v.card.name: v for v in models.variants() if v.card.prompts}
CARDS = {name: chosen.card for name, chosen in VARIANTS.items()}
SENSIBLE = [name for name, chosen in VARIANTS.items() if not chosen.weights]
SHAPES = {2: (40, 48), 3: (12, 20, 24)}
ODD_SHAPES = {2: ((1, 1), (1, 9), (7, 3), (2, 2)), 3: ((1, 1, 1), (1, 9, 8), (5, 2, 3))}


def cases(names: list[str]) -> list[Any]:
    """Pairs of a model and a number of axes; networks are slow."""
    return [
        pytest.param(name, ndim, marks=pytest.mark.slow if VARIANTS[name].build_random else ())
        for name in names
        for ndim in CARDS[name].ndim
    ]


every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if chosen.build_random else ())
        for name, chosen in VARIANTS.items()
    ],
)
every_case = pytest.mark.parametrize(("name", "ndim"), cases([*CARDS]))
sensible_case = pytest.mark.parametrize(("name", "ndim"), cases(SENSIBLE))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the network fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("A model has asked for the network.")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@cache
def model_of(name: str) -> PromptableModel:
    """The model to test, built once; `test_same_question_same_answer` builds another."""
    return build(name)


def build(name: str, *, exact: bool = True) -> PromptableModel:
    if name in SENSIBLE:
        return models.create_promptable(name)
    pytest.importorskip("torch")
    try:
        made = VARIANTS[name].random(seed=1, device="cpu", exact=exact)
    except MissingDependency as error:
        pytest.skip(str(error))
    assert isinstance(made, PromptableModel)
    return made


def ask(model: PromptableModel, embedding: Any, prompts: list[Prompt]) -> Segmentation | None:
    """An answer, or None where a model says that it needs something else in addition."""
    try:
        return model.segment(embedding, prompts)
    except PromptError as error:
        if model.card.name not in str(error):
            raise
        return None
    except MissingDependency as error:
        pytest.skip(str(error))


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
        return TextPrompt("liver")
    return Example(np.zeros((8, 8), np.uint8), np.ones((8, 8), bool))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


def check(result: Segmentation | None, view: View) -> None:
    """What must hold for every answer."""
    if result is None:
        return
    assert result.logits.shape == view.shape
    assert result.logits.dtype == np.float32
    assert np.isfinite(result.logits).all()
    assert 0.0 <= result.score <= 1.0


def check_kinds(name: str, view: View, make: Callable[[str], Prompt], *, some: bool = True) -> None:
    """Ask with one prompt of each kind that the card lists; one at least has to be answered."""
    model = model_of(name)
    embedding = model.embed(view)
    found = [ask(model, embedding, [make(kind)]) for kind in sorted(CARDS[name].prompts)]
    for result in found:
        check(result, view)
    assert any(result is not None for result in found) or not some


# -- Every model: what it says about itself


@every_model
def test_card_is_complete(name: str) -> None:
    card = CARDS[name]
    assert replace(model_of(name).card, weights_sha256=None, runtime=None) == card
    assert card.summary
    assert card.licence
    assert card.source
    assert card.ndim
    assert set(card.ndim) <= {2, 3}
    assert card.prompts <= set(KINDS)
    assert set(card.window) <= set(card.ndim)
    for ndim in card.window:
        limits = card.limits(ndim)
        assert limits is not None
        assert len(limits) == ndim
        assert min(limits) > 0
    written = json.loads(json.dumps(card.to_json()))
    assert written["name"] == name
    assert written["prompts"] == sorted(card.prompts)
    assert bool(VARIANTS[name].weights) == (name not in SENSIBLE)


@every_model
def test_random_weights_need_no_file_and_are_those_of_the_seed(name: str) -> None:
    chosen = VARIANTS[name]
    if chosen.build_random is None:
        pytest.skip("has no weights")
    ndim = chosen.card.ndim[0]
    view, kind = make_view(ndim), sorted(chosen.card.prompts)[0]
    embedding, prompts = model_of(name).embed(view), [prompt_of(kind, ndim)]
    first = model_of(name) if name not in SENSIBLE else chosen.random(1, device="cpu", exact=True)
    again, other = (chosen.random(seed, device="cpu", exact=True) for seed in (1, 2))
    answers = [model.segment(embedding, prompts).logits for model in (first, again, other)]
    assert np.array_equal(answers[0], answers[1])
    if not chosen.card.mask_is_answer and kind not in ("lasso", "mask"):  # else taken as drawn
        assert not np.array_equal(answers[0], answers[2])


# -- Every model: prompts


@every_case
def test_every_prompt_kind_of_the_card_is_answered(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    embedding = model.embed(view)
    for kind in sorted(CARDS[name].prompts):
        try:
            result = model.segment(embedding, [prompt_of(kind, ndim)])
        except MissingDependency as error:
            pytest.skip(str(error))
        check(result, view)
        if name in SENSIBLE:
            assert (result.logits > 0).any(), f"{kind} gives an empty mask"


@every_case
def test_other_prompt_kinds_are_refused_by_name(name: str, ndim: int) -> None:
    model = model_of(name)
    embedding = model.embed(make_view(ndim))
    for kind in sorted(set(KINDS) - CARDS[name].prompts):
        with pytest.raises(PromptError, match=kind) as caught:
            model.segment(embedding, [prompt_of(kind, ndim)])
        assert all(known in str(caught.value) for known in CARDS[name].prompts)


@every_case
def test_wrong_number_of_axes_is_refused(name: str, ndim: int) -> None:
    kinds = CARDS[name].prompts & {"click", "box", "scribble", "lasso"}
    if not kinds:
        pytest.skip("takes nothing that has a place")
    model = model_of(name)
    with pytest.raises(PromptError, match="coordinates"):
        model.segment(model.embed(make_view(ndim)), [prompt_of(sorted(kinds)[0], 5 - ndim)])


@every_case
def test_views_of_other_axes_are_refused(name: str, ndim: int) -> None:
    if 5 - ndim in CARDS[name].ndim:
        pytest.skip("takes both")
    model, view = model_of(name), make_view(5 - ndim)
    kind = sorted(CARDS[name].prompts & set(KINDS) - {"text", "example"} or {"example"})[0]
    with pytest.raises((PromptError, ValueError)):
        model.segment(model.embed(view), [prompt_of(kind, ndim)])


@every_case
def test_nothing_said_is_an_empty_mask_or_refused(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    result = ask(model, model.embed(view), [])
    check(result, view)
    if name in SENSIBLE or CARDS[name].prompts <= {"box", "example"}:
        assert result is None or not (result.logits > 0).any()


@every_case
def test_prompts_over_the_edge(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    embedding, known = model.embed(view), CARDS[name].prompts
    beyond = tuple(n + 9 for n in view.shape)
    if "box" in known:
        check(ask(model, embedding, [Box((-5,) * ndim, beyond)]), view)
    if "scribble" in known:
        check(ask(model, embedding, [Scribble(((-9,) * ndim, beyond), radius=0)]), view)
    if "mask" in known:
        empty = MaskPrompt(np.zeros(view.shape, dtype=bool))
        check(ask(model, embedding, [empty]), view)


# -- Every model: answers


@every_case
def test_same_question_same_answer(name: str, ndim: int) -> None:
    view, model = make_view(ndim), model_of(name)
    for kind in sorted(CARDS[name].prompts):
        prompts = [prompt_of(kind, ndim)]
        first = ask(model, model.embed(view), prompts)
        ask(
            model, model.embed(make_view(ndim, inverted=True)), prompts
        )  # must leave nothing behind
        second = ask(model, model.embed(view), prompts)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert np.array_equal(first.logits, second.logits)
            assert first.score == second.score


@every_case
def test_inputs_are_left_alone(name: str, ndim: int) -> None:
    view, model = make_view(ndim), model_of(name)
    view.array.flags.writeable = False
    previous = np.where(blob(ndim), 2.0, -2.0).astype(np.float32)
    previous.flags.writeable = False
    kind = sorted(CARDS[name].prompts)[0]
    check(model.segment(model.embed(view), [prompt_of(kind, ndim)], previous), view)


@every_case
def test_previous_answers_are_accepted(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    embedding, kind = model.embed(view), sorted(CARDS[name].prompts)[0]
    for value in (-16.0, 0.0, 16.0):
        previous = np.full(view.shape, value, dtype=np.float32)
        check(model.segment(embedding, [prompt_of(kind, ndim)], previous), view)


@every_case
def test_answers_of_a_batch_are_those_of_single_questions(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    if not isinstance(model, BatchModel):
        pytest.skip("answers one question at a time")
    embedding = model.embed(view)
    questions = [Question([prompt_of(kind, ndim)]) for kind in sorted(CARDS[name].prompts)]
    questions = [q for q in questions if ask(model, embedding, [*q.prompts]) is not None] * 2
    together = model.segment_batch(embedding, questions)
    assert len(together) == len(questions)
    for question, found in zip(questions, together, strict=True):
        alone = model.segment_batch(embedding, [question])[0]
        # Sums over a batch may be taken in another order, no more.
        scale = float(np.abs(alone.logits).max()) + 1.0
        assert np.abs(found.logits - alone.logits).max() < 1e-4 * scale
        assert abs(found.score - alone.score) < 1e-4


@every_case
def test_embeddings_of_a_batch_are_those_of_single_views(name: str, ndim: int) -> None:
    model = model_of(name)
    if not isinstance(model, EncodingModel):
        pytest.skip("encodes one view at a time")
    views = [make_view(ndim), make_view(ndim, inverted=True), make_view(ndim)]
    prompts = [prompt_of(sorted(CARDS[name].prompts)[0], ndim)]
    for view, embedding in zip(views, model.embed_batch(views), strict=True):
        alone = model.segment(model.embed(view), prompts)
        assert np.allclose(model.segment(embedding, prompts).logits, alone.logits, atol=1e-4)


# -- Every model: images


@every_case
@pytest.mark.parametrize("image", ["16 bit", "grey channel", "RGB", "5 channels", "large floats"])
def test_kinds_of_pixels(name: str, ndim: int, image: str) -> None:
    view = make_view(ndim, channels={"grey channel": 1, "RGB": 3, "5 channels": 5}.get(image))
    if image == "16 bit":
        view = replace(view, array=view.array.astype(np.uint16) * 200, intensity=(0.0, 51e3))
    elif image == "large floats":
        view = replace(view, array=view.array * 1e6 - 1e8, intensity=(-1e8, 1.6e8))
    check_kinds(name, view, lambda kind: prompt_of(kind, ndim))


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
    check_kinds(name, view, lambda kind: prompt_of(kind, ndim))


@every_case
def test_odd_shapes(name: str, ndim: int) -> None:
    rng = np.random.default_rng(3)
    for shape in ODD_SHAPES[ndim]:
        view = View(rng.integers(0, 255, shape).astype(np.uint8), (1.0,) * ndim, (0.0, 255.0))
        made: dict[str, Prompt] = {
            "box": Box((0,) * ndim, shape),
            "click": Click((0,) * ndim),
            "mask": MaskPrompt(np.ones(shape, dtype=bool)),
            "scribble": Scribble(((0,) * ndim,)),
            "lasso": Lasso([(*(0,) * (ndim - 2), *at) for at in ((0, 0), (0, 2), (2, 2))]),
        }
        check_kinds(name, view, lambda kind, made=made: made.get(kind) or prompt_of(kind, ndim))


# -- Every model: in a session


def open_case(name: str, ndim: int) -> tuple[Any, list[str]]:
    """A session on the test image, and the kinds of prompt to give in it."""
    session = limner.open_session(make_view(ndim).array, model_of(name))
    return session, sorted(CARDS[name].prompts)


@every_case
def test_undo_and_redo_give_the_answers_again(name: str, ndim: int) -> None:
    session, kinds = open_case(name, ndim)
    with session:
        session.add(prompt_of(kinds[0], ndim))
        first = session.predict().logits.copy()
        session.add(
            Click((1,) * ndim, positive=False) if "click" in kinds else prompt_of(kinds[0], ndim)
        )
        try:
            second = session.predict().logits.copy()
        except PromptError:  # a second box
            second = None
        session.undo()
        assert np.array_equal(session.predict().logits, first)
        session.redo()
        if second is not None:
            assert np.array_equal(session.predict().logits, second)


@every_case
def test_several_objects(name: str, ndim: int) -> None:
    session, kinds = open_case(name, ndim)
    with session:
        for object_id in (1, 2):
            session.add(prompt_of(kinds[0], ndim), object_id=object_id)
        one, two = (session.predict(object_id=k).logits for k in (1, 2))
        assert one.shape == two.shape == SHAPES[ndim]
        scale = float(np.abs(one).max()) + 1.0
        assert np.abs(one - two).max() < 1e-4 * scale  # the same was asked about both
        assert session.labels.shape == SHAPES[ndim]
        assert set(np.unique(session.labels)) <= {0, 1, 2}


@every_model
def test_volumes_in_all_orientations(name: str) -> None:
    if 3 not in CARDS[name].ndim:
        pytest.skip("takes no volumes")
    stored = make_view(3).array
    kind = sorted(CARDS[name].prompts)[0]
    for order, flipped in (((0, 1, 2), ()), ((2, 1, 0), (0,)), ((1, 2, 0), (1, 2))):
        array = np.flip(stored.transpose(order), flipped)
        affine = np.zeros((4, 4))
        for axis, source in enumerate(order):
            step = (2.0, 1.0, 1.0)[source] * (-1 if axis in flipped else 1)
            affine[2 - source, axis] = step
        affine[3, 3] = 1
        geometry = limner.Geometry(array.shape, affine=affine)
        image = limner.Image(np.ascontiguousarray(array), geometry)
        prompt = prompt_of(kind, 3)
        mask = np.flip(blob(3).transpose(order), flipped)
        if kind in ("box", "click"):
            found = np.argwhere(mask)
            middle = tuple(int(n) for n in found.mean(axis=0))
            prompt = (
                Box(found.min(axis=0), found.max(axis=0) + 1) if kind == "box" else Click(middle)
            )
        with limner.open_session(image, model_of(name)) as session:
            session.add(prompt)
            prediction = session.predict()
            assert prediction.mask.shape == array.shape
            assert np.isfinite(prediction.logits).all()


# -- Every model: runtimes


@pytest.mark.slow
@every_model
def test_openvino_agrees_with_pytorch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near as the precision allows: rounding to bf16 is 2^-9 of a value, in float32 2^-24; both
    grow with the depth, by less than 100 in networks of this size.
    """
    if name in SENSIBLE:
        pytest.skip("has one way to compute, or tests of its own")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    ndim = CARDS[name].ndim[0]
    view, fast, exact = make_view(ndim), build(name, exact=False), build(name)
    assert "OpenVINO" in str(fast.card.runtime)
    assert "PyTorch" in str(exact.card.runtime)
    rounding = 2.0**-9 if "bf16" in str(fast.card.runtime) else 2.0**-24
    for kind in sorted(CARDS[name].prompts - {"text"}):
        first, second = (
            ask(model, model.embed(view), [prompt_of(kind, ndim)]) for model in (fast, exact)
        )
        if first is None or second is None:
            continue
        error = np.sqrt(np.square(first.logits - second.logits).mean())
        assert error <= 100 * rounding * (np.abs(second.logits).max() + 1e-3)


# -- Names


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match="classical"):
        create_model("nothing/here")
    with pytest.raises(ValueError, match="classical/region"):
        create_model("classical/nothing")


def test_private_modules_are_not_families() -> None:
    families = models.list_families()
    assert {"toy", "classical", "baseline"} <= set(families)
    assert not any(family.startswith("_") for family in families)


# -- Models whose answers mean something


@sensible_case
def test_no_prompts_and_negative_prompts_give_an_empty_mask(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
    assert not (answer(model, view, []).logits > 0).any()
    if "click" in CARDS[name].prompts:
        negative = [Click((3,) * ndim, positive=False), Click((1,) * ndim, positive=False)]
        assert not (answer(model, view, negative).logits > 0).any()


@sensible_case
def test_clicks_are_obeyed(name: str, ndim: int) -> None:
    if "click" not in CARDS[name].prompts:
        pytest.skip("takes no clicks")
    rng = np.random.default_rng(11)
    model, view = model_of(name), make_view(ndim)
    previous = None
    prompts: list[Prompt] = [prompt_of("box", ndim)] if "box" in CARDS[name].prompts else []
    for _ in range(12):
        at = tuple(int(rng.integers(n)) for n in view.shape)
        prompts.append(Click(at, bool(rng.random() < 0.5)))
        previous = answer(model, view, prompts, previous).logits
        latest = {p.at: p.positive for p in prompts if isinstance(p, Click)}
        for place, positive in latest.items():
            assert (previous[tuple(int(x) for x in place)] > 0) == positive


@sensible_case
def test_where_clicks_conflict_the_later_counts(name: str, ndim: int) -> None:
    if "click" not in CARDS[name].prompts:
        pytest.skip("takes no clicks")
    model, view = model_of(name), make_view(ndim)
    middle = tuple(n // 2 for n in view.shape)
    yes, no = Click(middle), Click(middle, positive=False)
    assert answer(model, view, [no, yes]).logits[middle] > 0
    assert answer(model, view, [yes, no]).logits[middle] < 0


@sensible_case
@pytest.mark.parametrize("channels", [None, 1, 3, 5])
def test_channels_and_inverted_contrast(name: str, ndim: int, channels: int | None) -> None:
    if "box" not in CARDS[name].prompts:
        pytest.skip("takes no boxes")
    model = model_of(name)
    for inverted in (False, True):
        view = make_view(ndim, channels=channels, inverted=inverted)
        result = answer(model, view, [prompt_of("box", ndim)])
        assert dice(result.logits > 0, blob(ndim)) > 0.6


@sensible_case
def test_prompts_over_the_edge_and_empty_masks(name: str, ndim: int) -> None:
    model, view = model_of(name), make_view(ndim)
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
    model = model_of(name)
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
