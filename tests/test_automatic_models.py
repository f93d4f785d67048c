"""Conformance of all models that need no prompts and no download: automatic and sampling models.

``pytest tests/test_automatic_models.py -k <family>``.
"""

from __future__ import annotations

import numpy as np
import pytest

from limner import models
from limner.models import AutomaticModel, SamplingModel, View, create_model, create_promptable

CARDS = {v.card.name: v.card for v in models.variants() if not v.card.prompts and not v.weights}
SHAPES = {2: ((20, 24), (1, 1), (3, 9)), 3: ((6, 20, 24), (1, 1, 1), (2, 5, 3))}
CASES = [(name, shape) for name, card in CARDS.items() for n in card.ndim for shape in SHAPES[n]]

every_case = pytest.mark.parametrize(("name", "shape"), CASES)


def view_of(shape: tuple[int, ...]) -> View:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return View(pixels, (1.0,) * len(shape), (0.0, 255.0))


@pytest.mark.parametrize("name", CARDS)
def test_card_names_its_labels_and_no_prompts(name: str) -> None:
    model = create_model(name)
    assert isinstance(model, AutomaticModel | SamplingModel)
    assert model.card.labels
    assert min(model.card.labels) >= 1
    assert model.card.to_json()["labels"] == {str(k): v for k, v in model.card.labels.items()}


@every_case
def test_every_channel_has_the_shape_of_the_view(name: str, shape: tuple[int, ...]) -> None:
    model, view = create_model(name), view_of(shape)
    channels = len(model.card.labels) + (not model.card.overlapping)
    if isinstance(model, AutomaticModel):
        logits = model.predict(view)
        assert logits.shape == (channels, *shape)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(logits, model.predict(view))
        return
    assert isinstance(model, SamplingModel)
    drawn = [list(model.sample(view, 3, np.random.default_rng(s))) for s in (0, 0, 1)]
    first, again, other = (np.stack(samples) for samples in drawn)
    assert first.shape == (3, channels, *shape)
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_session_says_what_to_do_with_a_model_that_takes_no_prompts() -> None:
    with pytest.raises(ValueError, match="limner auto"):
        create_promptable("toy-automatic/bands")
