"""The option to keep encoded pictures: which models take it, and for which of their networks."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import limner
from limner import models
from limner.models import create_model
from limner.sessions.history.manifest import Options

ENCODING = ("medsam/vit_b", "medsam/vit_b_points", "medsam/lite", "sam_med2d/vit_b", "imis/vit_b")


def test_models_with_an_encoder_take_it() -> None:
    keeping = {v.card.name for v in models.variants() if v.keeps_embeddings}
    assert keeping >= set(ENCODING)
    assert not keeping & {"limner-2d", "toy", "scribbleprompt/unet", "universeg/v1"}


def test_others_say_that_they_have_nothing_to_keep(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        create_model("toy", keep_embeddings=True)
    assert "toy encodes nothing ahead, so no embeddings are kept" in caplog.text


@pytest.mark.parametrize("name", ENCODING)
def test_only_the_encoder_is_remembered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"nobody reads this")
    made: dict[str, bool] = {}

    def compiled(build: object, *, key: str, remember: bool = False, **_: Any) -> Any:
        made[key.rpartition("-")[2]] = remember
        return SimpleNamespace(description="of the test")

    monkeypatch.setattr("limner.runtime.compile_module", compiled)
    for keep in (False, True):
        create_model(name, weights=weights, keep_embeddings=keep)
        assert made == {"encoder": keep, "decoder": False}


def test_a_journal_without_the_option_is_one_without_it(caplog: pytest.LogCaptureFixture) -> None:
    with limner.open_session(np.eye(20), "toy", keep_embeddings=True) as session:
        written = session.options.to_json()
    assert Options.from_json(written).keep_embeddings
    del written["keep_embeddings"], written["exact"]  # as before there was one
    assert not Options.from_json(written).keep_embeddings
