"""Prompts as values: what they accept, what they refuse, JSON both ways."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limner.errors import PromptError
from limner.prompts import types
from limner.prompts.types import (
    KINDS,
    Box,
    Click,
    Example,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
    from_json,
    to_json,
)

NUMBER = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def positions(draw: st.DrawFn, ndim: int) -> tuple[float, ...]:
    return tuple(draw(NUMBER) for _ in range(ndim))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    ndim = draw(st.sampled_from((2, 3)))
    match draw(st.sampled_from(sorted(KINDS))):
        case "click":
            return Click(draw(positions(ndim)), draw(st.booleans()))
        case "box":
            low = draw(positions(ndim))
            sizes = [draw(st.floats(1.5, 1e5)) for _ in low]
            return Box(low, tuple(a + n for a, n in zip(low, sizes, strict=True)))
        case "scribble":
            points = draw(st.lists(positions(ndim), min_size=1, max_size=5))
            return Scribble(tuple(points), draw(st.booleans()), draw(st.floats(0, 50)))
        case "lasso":
            points = draw(st.lists(positions(2), min_size=3, max_size=6))
            return Lasso(tuple(points if ndim == 2 else [(a, 7.0, b) for a, b in points]))
        case "mask":
            shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=6))
            return MaskPrompt(draw(hnp.arrays(bool, shape)))
        case "text":
            return TextPrompt(draw(st.text("liver größe 肝\n", min_size=1).filter(str.strip)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    dtype = draw(st.sampled_from(("u1", "<i2", "<f4")))
    elements = st.integers(0, 99)
    channels = draw(st.sampled_from(((), (3,))))
    image = draw(hnp.arrays(dtype, shape + channels, elements=elements))
    return Example(image, draw(hnp.arrays(bool, shape)))


@given(prompts())
def test_json_round_trip(prompt: Prompt) -> None:
    again = from_json(json.loads(json.dumps(to_json(prompt))))
    assert again == prompt
    assert hash(again) == hash(prompt)
    assert type(again) is type(prompt)
    assert again.kind == prompt.kind == to_json(prompt)["kind"]


def test_every_kind_has_its_class() -> None:
    assert {name: kind.kind for name, kind in KINDS.items()} == {name: name for name in KINDS}


def test_equality_tells_values_apart() -> None:
    assert Click((1, 2)) == Click((1.0, 2.0))
    assert Click((1, 2)) != Click((1, 2), positive=False)
    mask = np.eye(3, dtype=bool)
    assert MaskPrompt(mask) == MaskPrompt(mask.astype(np.uint8) * 255)
    assert MaskPrompt(mask) != MaskPrompt(~mask)
    assert MaskPrompt(mask) != "mask"
    image = np.zeros((3, 3), np.uint8)
    assert Example(image, mask) != Example(image.astype(np.int16), mask)
    assert len({Click((1, 2)), Click((1, 2)), Box((1, 2), (3, 4))}) == 2


def test_prompts_do_not_change_with_the_arrays_they_were_made_of() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    prompt = MaskPrompt(mask)
    mask[0, 0] = True
    assert not prompt.mask.any()
    with pytest.raises(ValueError, match="read-only"):
        prompt.mask[0, 0] = True


def test_positions_may_be_arrays() -> None:
    points = np.array([[1, 2], [3, 4]])
    assert Scribble(points).points == ((1.0, 2.0), (3.0, 4.0))  # type: ignore[arg-type]
    assert Click(np.array([1, 2, 3])).at == (1.0, 2.0, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "axes"),
    [
        (Click((1, 2)), 2),
        (Box((1, 2, 3), (4, 5, 6)), 3),
        (Scribble(((1, 2),)), 2),
        (Lasso(((5, 1, 2), (5, 3, 4), (5, 5, 0))), 3),
        (MaskPrompt(np.ones((2, 2, 2))), 3),
        (TextPrompt("liver"), None),
        (Example(np.zeros((2, 2)), np.ones((2, 2))), None),
    ],
)
def test_num_axes(prompt: Prompt, axes: int | None) -> None:
    assert prompt.num_axes == axes


def test_lasso_names_its_plane() -> None:
    assert Lasso(((5, 1, 2), (5, 3, 4), (5, 5, 0))).plane_axis == 0
    assert Lasso(((1, 5, 2), (3, 5, 4), (5, 5, 0))).plane_axis == 1
    assert Lasso(((1, 2), (3, 4), (5, 0))).plane_axis is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box((40, 10), (40, 60)), r"low=\(40, 10\) is not below high=\(40, 60\) on axis 0"),
        (lambda: Box((4, 60), (40, 10)), "on axis 1"),
        (lambda: Box((1, 2), (3, 4, 5)), "differ in their number of axes"),
        (lambda: Click((1, float("nan"))), "finite"),
        (lambda: Click((1, float("inf"))), "finite"),
        (lambda: Click((1,)), "2 or 3"),
        (lambda: Click((1, 2, 3, 4)), "2 or 3"),
        (lambda: Click("12"), "sequence of numbers"),  # type: ignore[arg-type]
        (lambda: Click(("1", "2")), "is a number"),  # type: ignore[arg-type]
        (lambda: Click((True, 2)), "is a number"),
        (lambda: Click((10**400, 2)), "is a number"),
        (lambda: Click(np.array(5)), "sequence of numbers"),  # type: ignore[arg-type]
        (lambda: Click(None), "sequence of numbers"),  # type: ignore[arg-type]
        (lambda: Click((1, 2), positive=1), "positive is True or False"),  # type: ignore[arg-type]
        (lambda: Scribble(()), "1 or more points"),
        (lambda: Scribble(((1, 2), (1, 2, 3))), "equal numbers of axes"),
        (lambda: Scribble(((1, 2),), radius=-1), "radius"),
        (lambda: Scribble(((1, 2),), radius="thick"), "radius"),  # type: ignore[arg-type]
        (lambda: Scribble(5), "sequence of positions"),  # type: ignore[arg-type]
        (lambda: Lasso(((1, 2), (3, 4))), "3 or more points"),
        (lambda: Lasso(((1, 2, 3), (4, 5, 6), (7, 8, 0))), "share one coordinate"),
        (lambda: MaskPrompt(np.zeros(3)), "2 or 3 axes"),
        (lambda: TextPrompt("  "), "needs words"),
        (lambda: TextPrompt(3), "needs words"),  # type: ignore[arg-type]
        (lambda: Example(np.zeros((2, 3)), np.zeros((3, 2))), "same rows and columns"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "click",
        [],
        {},
        {"kind": "poke", "at": [1, 2]},
        {"kind": ["click"], "at": [1, 2]},
        {"kind": "click"},
        {"kind": "click", "at": [1, 2], "colour": "red"},
        {"kind": "click", "at": [1, 2], "positive": "yes"},
        {"kind": "click", "at": {"x": 1, "y": 2}},
        {"kind": "box", "low": [1, 2]},
        {"kind": "box", "low": [5, 5], "high": [5, 9]},
        {"kind": "scribble", "points": 7},
        {"kind": "lasso", "points": [[1, 2], [3, 4]]},
        {"kind": "text", "text": ""},
        {"kind": "mask", "shape": [2, 2]},
        {"kind": "mask", "shape": [2, 2], "counts": [3]},
        {"kind": "mask", "shape": [2, 2], "counts": [-1, 5]},
        {"kind": "mask", "shape": [2, 2], "counts": [4], "note": 1},
        {"kind": "mask", "shape": [float("inf"), 2], "counts": [4]},
        {"kind": "mask", "shape": "ab", "counts": [4]},
        {"kind": "mask", "shape": [10**6, 10**6], "counts": [10**12]},
        {"kind": "mask", "shape": [10**30, 1], "counts": [10**30]},
        {"kind": "example", "image": [[1]], "dtype": "|u1"},
        {"kind": "example", "image": [[1]], "dtype": "O", "mask": {"shape": [1, 1], "counts": [1]}},
        {
            "kind": "example",
            "image": [[1]],
            "dtype": "?!",
            "mask": {"shape": [1, 1], "counts": [1]},
        },
    ],
)
def test_malformed_json_is_refused(value: Any) -> None:
    with pytest.raises(PromptError) as caught:
        from_json(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"kind": "box", "low": [1, 2], "high": [5, 9], "name": "liver"},
            "unknown field 'name'; the fields of a box are low, high",
        ),
        ({"kind": "box", "low": [1, 2]}, "missing field 'high'"),
        ({"kind": "click", "pos": [1, 2]}, "unknown field 'pos'; .* at, positive .optional"),
        ({"kind": "mask", "shape": [2, 2]}, "missing field 'counts'"),
        ({"kind": "mask", "shape": "ab", "counts": [4]}, "shape is a list of whole numbers"),
        ({"kind": "mask", "shape": [2, 2], "counts": 4}, "counts is a list of whole numbers"),
        (
            {"kind": "example", "image": [[1]], "dtype": "|u1", "mask": [1]},
            "object with the fields shape, counts",
        ),
    ],
)
def test_malformed_json_is_explained_in_words_of_json(value: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        from_json(value)
    assert "argument" not in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(("kind", "at", "low", "high", "points", "positive", "shape", "counts")),
        st.one_of(st.sampled_from(sorted(KINDS)), st.lists(st.integers() | st.floats()), st.none()),
    )
)
def test_any_json_is_a_prompt_or_refused(value: dict[str, Any]) -> None:
    try:
        prompt = from_json(value)
    except PromptError:
        return
    assert type(prompt) in types.KINDS.values()
