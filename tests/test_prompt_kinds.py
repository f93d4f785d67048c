"""Every kind of prompt goes through everything that prompts go through.

A new kind needs its samples here; all the rest runs by itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import limner
from limner.adapters.axes import Axes
from limner.adapters.resize import shrink_all
from limner.errors import PromptError
from limner.geometry import Geometry
from limner.models.toy import Toy
from limner.prompts.convert import check_inside, from_world, from_xyz
from limner.prompts.kinds.base import PlacelessPrompt
from limner.prompts.perturb import perturb_prompt
from limner.prompts.raster import rasterize
from limner.prompts.types import (
    AREAS,
    KINDS,
    MARKS,
    Box,
    Click,
    Example,
    GridMap,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
    from_json,
    to_json,
)
from limner.render.cases import draw_case
from limner.render.overlay import render_overlay
from limner.sessions.history.journal import Journal, read_journal

FLAT, SOLID = (24, 20), (6, 24, 20)  # shapes of the images


def region(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[..., 5:11, 4:9] = True
    return mask


SAMPLES: dict[str, tuple[Prompt, Prompt]] = {  # by kind: on FLAT, in SOLID
    "click": (Click((7, 6)), Click((3, 7, 6))),
    "box": (Box((4, 3), (12, 10)), Box((2, 4, 3), (5, 12, 10))),
    "scribble": (
        Scribble(((5, 4), (9, 8)), radius=1.0),
        Scribble(((3, 5, 4), (3, 9, 8)), radius=1.0),
    ),
    "lasso": (
        Lasso(((4, 3), (4, 10), (12, 10))),
        Lasso(((3, 4, 3), (3, 4, 10), (3, 12, 10))),
    ),
    "mask": (MaskPrompt(region(FLAT)), MaskPrompt(region(SOLID))),
    "text": (TextPrompt("bright"), TextPrompt("bright")),
    "example": (Example(np.eye(6), np.eye(6) > 0), Example(np.eye(6), np.eye(6) > 0)),
}
KIND = pytest.mark.parametrize("kind", KINDS)
PLACED = pytest.mark.parametrize("kind", sorted(MARKS | AREAS))


class AllKinds(Toy):
    """A model that is told to understand every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.card = dataclasses.replace(self.card, prompts=frozenset(KINDS), name="all-kinds")


def painted(prompt: Prompt, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    maps = rasterize([prompt], shape, click_radius=0.0)
    return np.asarray(getattr(maps, str(prompt.layer)))


def picture(shape: tuple[int, ...]) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (region(shape) * 100 + rng.uniform(0, 10, shape)).astype(np.float32)


def test_every_kind_has_samples_and_one_group() -> None:
    assert set(SAMPLES) == set(KINDS)
    for kind, samples in SAMPLES.items():
        assert [type(p) for p in samples] == [KINDS[kind]] * 2
        assert all((p.layer is not None) == (kind in MARKS | AREAS) for p in samples)


@KIND
def test_json_holds_it(kind: str) -> None:
    for prompt in SAMPLES[kind]:
        assert from_json(json.loads(json.dumps(to_json(prompt)))) == prompt


@KIND
@pytest.mark.parametrize("shape", [FLAT, SOLID])
def test_sessions_and_journals_keep_it(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    prompt, array, path = SAMPLES[kind][len(shape) - 2], picture(shape), tmp_path / "case.limner"
    with limner.open_session(array, AllKinds(), journal=path) as session:
        session.add(prompt)
        mask = session.predict().mask
        session.undo()
        assert session.prompts == ()
        session.redo()
        assert session.prompts == (prompt,)
        assert np.array_equal(session.predict().mask, mask)
    with limner.resume(path, image=array, model=AllKinds()) as again:
        assert again.prompts == (prompt,)
        assert np.array_equal(again.predict().mask, mask)
        assert again.can_undo


@KIND
def test_a_volume_stored_in_another_order_gives_the_same(kind: str) -> None:
    prompt, array = SAMPLES[kind][1], picture(SOLID)
    axes = Axes((2, 0, 1), (True, False, True))
    affine = np.diag([-1.0, 1.0, 2.5, 1.0])[:, [2, 1, 0, 3]]  # axial, the columns to the right
    matrix = np.eye(4)
    matrix[:3, :3] = axes.directions(np.eye(3))
    matrix[:3, 3] = (0, SOLID[1] - 1, SOLID[2] - 1)
    turned = limner.Image(
        np.ascontiguousarray(axes.apply(array)), Geometry(axes.sizes(SOLID), affine @ matrix)
    )
    answers = []
    for image, said in (
        (limner.Image(array, Geometry(SOLID, affine)), prompt),
        (turned, axes.prompt(prompt, SOLID)),
    ):
        with limner.open_session(image, AllKinds()) as session:
            session.add(said)
            answers.append(session.predict().mask)
    assert np.array_equal(axes.apply(answers[0]), answers[1])
    assert answers[0].any() == (kind != "example")  # which says nothing to this model


@PLACED
def test_a_window_shows_the_same_pixels(kind: str) -> None:
    for prompt, shape in zip(SAMPLES[kind], (FLAT, SOLID), strict=True):
        low, high = (1, 2, 1)[-len(shape) :], (6, 18, 15)[-len(shape) :]
        size = tuple(np.subtract(high, low).tolist())
        seen = prompt.in_view(low, high, size, shrink_all)
        assert seen is not None
        window = tuple(map(slice, low, high))
        assert np.array_equal(painted(seen, size), painted(prompt, shape)[window])
        small = prompt.in_view(low, high, tuple(n // 2 for n in size), shrink_all)
        assert small is not None
        assert painted(small, tuple(n // 2 for n in size)).any()


@KIND
def test_what_lies_elsewhere_is_not_shown(kind: str) -> None:
    seen = SAMPLES[kind][0].in_view((18, 14), (24, 20), (6, 6), shrink_all)
    if kind in MARKS | AREAS - {"mask"}:
        assert seen is None
    else:  # an empty mask says something, too
        assert seen is not None


@KIND
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_volumes(kind: str, axis: int) -> None:
    prompt = SAMPLES[kind][0]
    if kind == "mask":
        with pytest.raises(PromptError, match="frame=K"):
            prompt.on_slice(3, axis)
        return
    lifted = prompt.on_slice(3, axis)
    if kind not in MARKS | AREAS:
        assert lifted == prompt
        assert lifted.to_slice(axis) is None
        return
    assert lifted.to_slice(axis) == (prompt, 3)
    assert lifted.section(3, axis) == prompt
    assert lifted.section(9, axis) is None


@KIND
def test_foreign_orders(kind: str) -> None:
    for prompt, shape in zip(SAMPLES[kind], (FLAT, SOLID), strict=True):
        given = from_xyz(prompt)
        assert from_xyz(given) == prompt
        if kind in MARKS | AREAS:
            assert np.array_equal(painted(given, shape[::-1]), painted(prompt, shape).T)


@KIND
@pytest.mark.parametrize("system", ["lps", "ras"])
def test_millimetres(kind: str, system: str) -> None:
    prompt = SAMPLES[kind][1]
    affine = np.array([[0, 0, -0.5, 7.0], [0, 0.75, 0, -3.0], [2.0, 0, 0, 11.0], [0, 0, 0, 1]])
    geometry = Geometry(SOLID, affine)
    sign = np.array([1.0, 1.0, 1.0] if system == "lps" else [-1.0, -1.0, 1.0])

    def world(offset: float) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
        return lambda p: tuple((geometry.index_to_world(np.subtract(p, offset)) * sign).tolist())

    given = prompt.mapped(GridMap(world(0.0), world(0.5)))
    assert from_world(given, geometry, system=system) == prompt


@PLACED
def test_pictures_show_it(kind: str) -> None:
    prompt, array = SAMPLES[kind][0], picture(FLAT)
    image, nothing = limner.Image(array, Geometry(FLAT)), np.zeros(FLAT, dtype=np.uint8)
    assert (
        render_overlay(image, nothing, prompts=[prompt]) != render_overlay(image, nothing)
    ).any()
    target = region(FLAT)
    assert draw_case(image, target, target, [[prompt]]) != draw_case(image, target, target, [[]])
    volume = limner.Image(picture(SOLID), Geometry(SOLID))
    empty = np.zeros(SOLID, dtype=np.uint8)
    shown = render_overlay(volume, empty, prompts=[SAMPLES[kind][1]], frame=3)
    assert (shown != render_overlay(volume, empty, frame=3)).any()


@KIND
def test_the_simulated_user_wavers(kind: str) -> None:
    prompt, rng = SAMPLES[kind][0], np.random.default_rng(1)
    assert perturb_prompt(prompt, 0.0, rng, shape=FLAT) == prompt
    moved = perturb_prompt(prompt, 3.0, rng, shape=FLAT)
    check_inside(moved, FLAT)
    assert type(moved) is type(prompt)
    assert (moved != prompt) == (kind in MARKS | AREAS)


@PLACED
def test_it_is_refused_outside_the_image(kind: str) -> None:
    with limner.open_session(picture((3, 3)), AllKinds()) as session:
        with pytest.raises(PromptError):
            session.add(SAMPLES[kind][0])
        assert session.prompts == ()


@dataclasses.dataclass(frozen=True)
class Hunch(PlacelessPrompt):
    """A kind that nobody listed."""

    kind: ClassVar[str] = "hunch"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())

    def to_fields(self) -> dict[str, object]:
        return {}


def test_an_unknown_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "case.limner"
    with limner.open_session(picture(FLAT), AllKinds(), journal=path) as session:
        session.add(Click((7, 6)))
        before = path.read_bytes()
        with pytest.raises(PromptError, match="Unknown kind of prompt 'hunch'; known are click"):
            session.add(Hunch())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="A prompt is one of Click"):
            session.add(None)  # type: ignore[arg-type]
        assert path.read_bytes() == before
    with pytest.raises(PromptError, match="hunch"):
        to_json(Hunch())  # type: ignore[arg-type]


def test_the_journal_takes_no_null_prompt(tmp_path: Path) -> None:
    path = tmp_path / "case.limner"
    with limner.open_session(picture(FLAT), AllKinds(), journal=path) as session:
        session.add(Click((7, 6)))
    journal, _, _ = Journal.reopen(path)
    with pytest.raises(ValueError, match="takes prompts, not None"):
        journal.append({"op": "add", "prompt": None, "object_id": 1, "frame": None})
    journal.close()
    assert len(read_journal(path)[1]) == 1
