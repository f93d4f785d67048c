"""The public face is pinned: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import limner
from limner import sessions

NAMES = {
    "Box",
    "Click",
    "Example",
    "Geometry",
    "Image",
    "Lasso",
    "LimnerError",
    "MaskPrompt",
    "ModelCard",
    "Prediction",
    "Scribble",
    "Session",
    "TextPrompt",
    "connect",
    "create_model",
    "everything",
    "list_models",
    "metrics",
    "models",
    "open_session",
    "read",
    "read_labels",
    "refine_3d",
    "render_overlay",
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda: limner.finish, lambda: limner.refine_3d),
        (lambda: limner.models(), lambda: limner.list_models()),
        (lambda: sessions.Entry, lambda: sessions.PromptEntry),
    ],
)
def test_old_names_still_work_and_say_their_new_one(
    old: Callable[[], object], new: Callable[[], object]
) -> None:
    with pytest.warns(DeprecationWarning, match="is now"):
        assert old() == new()


def test_models_are_listed_with_their_cards_and_can_be_made() -> None:
    from limner.models import create_model, variants

    cards = limner.list_models()
    assert "toy" in {card.name for card in cards}
    here = [variant.card for variant in variants() if not variant.weights]
    assert set(map(id, here)) <= set(map(id, cards))
    assert all(create_model(card.name).card.name == card.name for card in here)
