"""The same volume stored in any of the 48 orders and directions gets the same mask in space."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import pytest

import limner
from limner import Box, Click, Geometry, Lasso, MaskPrompt, Scribble, phantoms
from limner.adapters.axes import Axes, canonical, facing
from limner.adapters.protocols import ModelCard, Segmentation, View
from limner.adapters.resize import bin_edges
from limner.errors import CheckpointError
from limner.models import create_model
from limner.prompts.convert import from_world
from limner.prompts.types import Prompt
from limner.sessions.answers.sparse_logits import SparseLogits
from rounds import ROUNDS

CLASSICAL = ("classical/region", "classical/graphcut", "classical/randomwalk")
NETWORKS = ("limner-3d",)
ORDERS = [
    Axes(order, flips)
    for order in permutations(range(3))
    for flips in product((False, True), repeat=3)
]
# Each order of axes and each flip once: what a model is shown is proved to be the same for all 48.
FEW = [ORDERS[8 * order + flips] for order, flips in enumerate((7, 1, 2, 4, 3, 6))]
SHAPE = (10, 18, 22)


def oblique(degrees: float) -> np.ndarray:
    """A rotation about a skew axis."""
    axis = np.array((1.0, -2.0, 0.5)) / np.linalg.norm((1.0, -2.0, 0.5))
    cross = np.cross(np.eye(3), axis)
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def stored(image: limner.Image, axes: Axes) -> limner.Image:
    """The same volume in space, stored in another order."""
    geometry = image.geometry
    affine = np.array(geometry.affine)
    turned = affine[:, [*axes.order, 3]]
    for k, (axis, flip) in enumerate(zip(axes.order, axes.flipped, strict=True)):
        if flip:
            turned[:3, 3] += affine[:3, axis] * (geometry.shape[axis] - 1)
            turned[:3, k] *= -1
    array = np.ascontiguousarray(axes.apply(np.asarray(image.array)))
    shape = axes.sizes(geometry.shape)
    return limner.Image(array, Geometry(shape, turned), modality=image.modality)


def make_image(spacing: tuple[float, ...], degrees: float = 0.0, shape=SHAPE) -> limner.Image:  # type: ignore[no-untyped-def]
    phantom = phantoms.volume(5, shape, spacing=spacing)
    direction = oblique(degrees) @ Geometry.from_spacing(shape, spacing).direction
    geometry = Geometry.from_spacing(
        shape, spacing, origin=(-31.0, 8.0, 120.5), direction=direction
    )
    return limner.Image(phantom.image.array, geometry, modality="CT")


def world_prompts(image: limner.Image, axes: Axes) -> Iterator[Prompt]:
    """A conversation in millimetres, about the reference image, on the image as it is stored."""
    here = stored(image, axes)
    geometry = image.geometry

    def place(*index: float) -> tuple[float, ...]:
        return tuple(geometry.index_to_world(np.asarray(index)).tolist())

    corners = geometry.index_to_world(np.array(((2.5, 4.5, 4.5), (7.5, 13.5, 16.5))))
    box = Box(tuple(corners.min(axis=0)), tuple(corners.max(axis=0)))
    yield from_world(box, here.geometry, system="lps")
    click = Click(place(5, 9, 10))
    yield from_world(click, here.geometry, system="lps")
    stroke = Scribble((place(3, 4, 5), place(6, 5, 7)), positive=False, radius=1.0)
    yield from_world(stroke, here.geometry, system="lps")


def masks(model: object, image: limner.Image, axes: Axes, **options: object) -> list[np.ndarray]:
    """What is found after each prompt, turned back to the reference's order."""
    here = stored(image, axes)
    found = []
    with limner.open_session(here, model, **options) as session:  # type: ignore[arg-type]
        for prompt in world_prompts(image, axes):
            session.add(prompt)
            prediction = session.predict()
            assert prediction.mask.shape == here.geometry.shape
            found.append(axes.undo(prediction.mask))
            assert np.array_equal(prediction.logits > 0, prediction.mask)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(4.0, 1.5, 1.2), (1.5, 1.6, 1.5)])
@pytest.mark.parametrize("degrees", [0.0, 21.0])
def test_the_toy_finds_the_same_in_all_48_orders(
    spacing: tuple[float, ...], degrees: float
) -> None:
    image = make_image(spacing, degrees)
    reference = masks("toy", image, ORDERS[0])
    assert all(mask.any() for mask in reference)
    assert not np.array_equal(reference[0], reference[-1])
    for axes in ORDERS:
        for expected, found in zip(reference, masks("toy", image, axes), strict=True):
            assert np.array_equal(found, expected), axes


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSICAL, *NETWORKS])
def test_every_model_in_3d_finds_the_same_however_a_volume_is_stored(name: str) -> None:
    image = make_image((3.0, 1.5, 1.2), 21.0)
    try:
        model = create_model(name)
    except (CheckpointError, FileNotFoundError) as error:
        pytest.skip(f"{name} is not here: {error}")
    reference = masks(model, image, ORDERS[0])
    assert reference[0].any()
    for axes in FEW if ROUNDS == 1 else ORDERS[1:]:
        for expected, found in zip(reference, masks(model, image, axes), strict=True):
            assert np.array_equal(found, expected), axes


class Watching:
    """The toy on small windows; keeps the views and questions."""

    def __init__(self, window: int | tuple[int, ...] = (6, 9, 10)) -> None:
        self._toy = create_model("toy")
        self.card = ModelCard(**{**self._toy.card.__dict__, "window": {3: window}, "ndim": (3,)})
        self.views: list[View] = []
        self.said: list[list[Prompt]] = []

    def embed(self, view: View) -> object:
        self.views.append(view)
        return self._toy.embed(view)

    def segment(
        self, embedding: object, prompts: list[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        self.said.append(list(prompts))
        return self._toy.segment(embedding, prompts, previous)  # type: ignore[arg-type]


def test_a_model_is_shown_the_same_views_however_a_volume_is_stored() -> None:
    image = make_image((4.0, 1.5, 1.2), 21.0, (15, 31, 37))
    reference = Watching()
    expected = masks(reference, image, ORDERS[0])
    assert any(view.shape != (15, 31, 37) for view in reference.views)
    for axes in ORDERS[::3]:
        model = Watching()
        found = masks(model, image, axes)
        for one, other in zip(reference.views, model.views, strict=True):
            assert np.array_equal(one.array, other.array)
            assert one.spacing == pytest.approx(other.spacing)
            assert one.intensity == other.intensity
            assert one.directions == pytest.approx(other.directions)
        assert [len(p) for p in reference.said] == [len(p) for p in model.said]
        for one, other in zip(found, expected, strict=True):
            assert limner.metrics.dice(one, other) > 0.999  # sums in another order


def test_masks_and_lassos_are_turned_with_the_volume() -> None:
    image = make_image((4.0, 1.5, 1.2))
    drawn = np.zeros(SHAPE, dtype=bool)
    drawn[3:7, 5:12, 6:15] = True
    outline = ((5, 4, 5), (5, 4, 15), (5, 12, 15), (5, 12, 5))
    found = {}
    for axes in ORDERS[::7]:
        here = stored(image, axes)
        with limner.open_session(here, "toy") as session:
            session.add(MaskPrompt(axes.apply(drawn)))
            first = axes.undo(session.predict().mask)
            session.add(axes.prompt(Lasso(outline), SHAPE), object_id=2)
            second = axes.undo(session.predict(object_id=2).mask)
        found.setdefault("mask", first)
        found.setdefault("lasso", second)
        assert first.any()
        assert second.any()
        assert np.array_equal(found["mask"], first)
        assert np.array_equal(found["lasso"], second)


@pytest.mark.parametrize("axes", ORDERS, ids=str)
def test_axes_turn_arrays_prompts_and_bounds_alike(axes: Axes) -> None:
    shape = (4, 5, 6)
    array = np.zeros(shape, dtype=bool)
    array[1:3, 2:5, 1] = True
    turned = axes.apply(array)
    assert turned.shape == axes.sizes(shape)
    assert np.array_equal(axes.undo(turned), array)
    low, high = axes.bounds(((1, 2, 1), (3, 5, 2)), shape)
    expected = np.zeros(turned.shape, dtype=bool)
    expected[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    assert np.array_equal(turned, expected)
    box = axes.prompt(Box((1, 2, 1), (3, 5, 2)), shape)
    assert isinstance(box, Box)
    assert (box.low, box.high) == (low, high)
    click = axes.prompt(Click((1, 2, 1), positive=False), shape)
    assert isinstance(click, Click)
    assert turned[tuple(int(x) for x in click.at)]
    assert axes.inverse.prompt(click, turned.shape) == Click((1, 2, 1), positive=False)
    mask = axes.prompt(MaskPrompt(array), shape)
    assert isinstance(mask, MaskPrompt)
    assert np.array_equal(mask.mask, turned)
    coloured = np.stack([array, ~array], axis=-1)
    assert np.array_equal(axes.apply(coloured)[..., 1], ~turned)


@pytest.mark.parametrize("axes", ORDERS[::5], ids=str)
def test_coarse_regions_turn_like_their_masks(axes: Axes) -> None:
    shape, rng = (19, 25, 30), np.random.default_rng(2)
    logits = rng.normal(size=(6, 8, 9)).astype(np.float32)
    edges = [a + bin_edges(b - a, n) for a, b, n in zip((2, 1, 5), (17, 22, 29), (6, 8, 9))]  # noqa: B905
    region = SparseLogits.of_bins(shape, logits, edges)
    turned = region.turned(axes)
    assert turned.shape == axes.sizes(shape)
    assert np.mean(turned.mask() != axes.apply(region.mask())) < 1e-4
    assert np.array_equal(turned.turned(axes.inverse).mask(), region.mask())
    assert turned.mask_bounds == axes.bounds(region.mask_bounds, shape)


def test_the_order_that_models_see() -> None:
    def seen(letters: str, spacing: tuple[float, ...]) -> str:
        columns = {"L": (1, 0, 0), "P": (0, 1, 0), "S": (0, 0, 1)}
        columns |= {"R": (-1, 0, 0), "A": (0, -1, 0), "I": (0, 0, -1)}
        matrix = np.array([columns[x] for x in letters], dtype=float).T
        geometry = Geometry.from_spacing((4, 5, 6), spacing, direction=matrix @ np.eye(3))
        turned = canonical(geometry).directions(geometry.direction)
        return "".join(
            "LPS"[int(np.abs(c).argmax())] if c.sum() > 0 else "RAI"[int(np.abs(c).argmax())]
            for c in turned.T
        )

    assert seen("SPL", (5, 1, 1)) == "SPL"
    assert seen("IAR", (5, 1, 1)) == "SPL"
    assert seen("LIP", (5, 1, 1)) == "LIP"  # sagittal slices stay slices
    assert seen("RSA", (5, 1, 1)) == "LIP"
    assert seen("AIR", (3, 1, 1)) == "PIL"  # coronal
    assert seen("AIR", (1.1, 1, 1)) == "SPL"  # nearly cubes: axial
    assert seen("LPS", (1, 1, 5)) == "SPL"
    unknown = Geometry((4, 5, 6), has_spacing=False)
    assert canonical(unknown).is_same
    assert facing(None, "SPL").is_same


def test_a_view_says_where_its_axes_point() -> None:
    model = Watching(64)
    image = stored(make_image((4.0, 1.5, 1.2)), Axes((2, 0, 1), (True, False, True)))
    with limner.open_session(image, model) as session:
        session.add(Click((5, 5, 5)))
        session.predict()
    (view,) = {id(v): v for v in model.views}.values()
    assert view.directions == pytest.approx(Geometry.from_spacing((2, 2, 2), (1, 1, 1)).direction)
    assert view.spacing == pytest.approx((4.0, 1.5, 1.2))
    assert facing(view.directions, "SPL").is_same
    plain = Watching(64)
    with limner.open_session(np.zeros((6, 7, 8)), plain) as session:
        session.add(Click((5, 5, 5)))
        session.predict()
    assert plain.views[0].directions is None
