"""The public face is pinned: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import limner

NAMES = {
    "Box",
    "Click",
    "Example",
    "Geometry",
    "Image",
    "Lasso",
    "LimnerError",
    "MaskPrompt",
    "Prediction",
    "Scribble",
    "Session",
    "TextPrompt",
    "create_model",
    "everything",
    "finish",
    "metrics",
    "models",
    "open_session",
    "read",
    "read_labels",
    "resume",
    "segment_automatically",
    "write",
}


def test_the_names_are_these() -> None:
    assert set(limner.__all__) == NAMES


def test_every_name_resolves_and_is_documented() -> None:
    for name in NAMES:
        assert getattr(limner, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(limner, "segment_everything")


def test_models_can_be_called_for_cards_and_imported_as_a_package() -> None:
    from limner.models import create_model, variants

    cards = limner.models()
    assert "toy" in {card.name for card in cards}
    here = [variant.card for variant in variants() if not variant.weights]
    assert set(map(id, here)) <= set(map(id, cards))
    assert all(create_model(card.name).card.name == card.name for card in here)
