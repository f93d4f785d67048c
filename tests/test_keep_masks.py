"""Masks that stand to the pixel, and clicks that change only what hangs together with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import limner
from limner.adapters.prompt_checks import mask_of_prompt
from limner.geometry import Geometry
from limner.io import Image
from limner.models import Segmentation
from limner.models.toy import Toy
from limner.prompts.types import Click, Prompt
from limner.sessions.history.manifest import Options


class Bright(Toy):
    """All that is bright belongs to the object, and what is marked is as it was said."""

    card = replace(Toy.card, name="bright")

    def segment(
        self, embedding: Any, prompts: Sequence[Prompt], previous: Any = None
    ) -> Segmentation:
        logits = np.where(embedding.features[..., 0] > 0.5, 4.0, -4.0).astype(np.float32)
        for prompt in prompts:
            if isinstance(prompt, Click):
                logits[mask_of_prompt(prompt, logits.shape)] = 4.0 if prompt.positive else -4.0
        return Segmentation(logits, 0.5)


SHAPE = (10, 60, 150)  # columns: more than the model's window, so that its view is coarser


def make_image(ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bright blocks on dark, and a ragged mask of the first one."""
    pixels = np.zeros(SHAPE[3 - ndim :], np.uint8)
    pixels[..., 10:40, 20:80] = 200
    pixels[..., 10:40, 95:140] = 200
    mask = np.zeros(pixels.shape, bool)
    mask[..., 10:40, 20:80] = True
    mask &= np.random.default_rng(0).random(mask.shape) < 0.9
    mask[..., 12:20, 60:80] = False
    return pixels, mask


@pytest.fixture(params=[2, 3])
def case(request: pytest.FixtureRequest) -> tuple[Image, np.ndarray]:
    pixels, mask = make_image(request.param)
    spacing = (2.0, 1.0, 1.0)[3 - request.param :]
    return Image(pixels, Geometry.from_spacing(pixels.shape, spacing)), mask


def test_a_mask_is_the_answer_to_the_pixel_only_where_that_is_wanted(
    case: tuple[Image, np.ndarray],
) -> None:
    image, mask = case
    with limner.open_session(image, Bright(), keep_masks=True) as session:
        session.add(limner.MaskPrompt(mask))
        np.testing.assert_array_equal(session.predict().mask, mask)
        np.testing.assert_array_equal(session.labels, mask)
    with limner.open_session(image, Bright()) as session:
        session.add(limner.MaskPrompt(mask))
        assert (session.predict().mask != mask).any()


@pytest.mark.parametrize("asked_between", [True, False])
def test_a_click_changes_what_hangs_together_with_it_and_undo_brings_all_back(
    case: tuple[Image, np.ndarray], asked_between: bool
) -> None:
    image, mask = case
    at = (4, 15, 70)[3 - mask.ndim :]
    with limner.open_session(image, Bright(), keep_masks=True) as session:
        session.add(limner.MaskPrompt(mask))
        if asked_between:
            session.predict()
        session.add(limner.Click(at))
        found = session.predict().mask
        changed = found != mask
        assert found[at]
        assert not (mask & ~found).any()
        assert changed.sum() > 20
        near = ndimage.binary_dilation(changed, np.ones((7,) * mask.ndim))
        assert ndimage.label(near)[1] == 1
        session.undo()
        np.testing.assert_array_equal(session.predict().mask, mask)
        inside = tuple(index[0] for index in np.nonzero(mask))
        session.add(limner.Click(inside, positive=False))
        found = session.predict().mask
        assert not found[inside]
        assert not (found & ~mask).any()


def test_the_journal_says_so(tmp_path: Path) -> None:
    pixels, mask = make_image(2)
    journal = tmp_path / "case.limner"
    with limner.open_session(pixels, "toy", keep_masks=True, journal=journal) as session:
        session.add(limner.MaskPrompt(mask))
    with limner.resume(journal, image=pixels) as session:
        assert session.options.keep_masks
        np.testing.assert_array_equal(session.predict().mask, mask)
    older = Options(zoom=True).to_json()
    del older["keep_masks"]
    assert not Options.from_json(older).keep_masks


def test_prompts_that_are_no_marks_are_answered_by_the_model() -> None:
    pixels, mask = make_image(2)
    box = limner.Box((5, 90), (45, 145))
    with limner.open_session(pixels, Bright(), keep_masks=True) as session:
        session.add(limner.MaskPrompt(mask))
        session.add(box)
        assert session.predict().mask[20:30, 100:130].all()


def test_how_the_volume_is_stored_makes_no_difference() -> None:
    pixels, mask = make_image(3)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    turned = Image(np.ascontiguousarray(pixels[:, ::-1]), Geometry(SHAPE, affine))
    with limner.open_session(turned, Bright(), keep_masks=True) as session:
        session.add(limner.MaskPrompt(mask[:, ::-1]))
        session.add(limner.Click((4, SHAPE[1] - 1 - 15, 70)))
        found = session.predict().mask[:, ::-1]
    assert found[4, 15, 70]
    assert not (mask & ~found).any()
    assert 20 < (found != mask).sum() < 10 * 8 * 20 * 3
