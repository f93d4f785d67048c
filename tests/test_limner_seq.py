"""The built-in network that follows objects, with the weights that ship."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import models, phantoms
from limner.adapters.shipped_tracker import PARTS
from limner.errors import CheckpointError
from limner.metrics import dice
from limner.models import PromptableModel, TrackerModel, View, create_model, limner_seq
from limner.prompts import Box, Click, MaskPrompt, Prompt

WEIGHTS = Path(limner_seq.__file__).parents[1] / "weights"
FACTS = json.loads((WEIGHTS / "limner-seq.json").read_text())


def test_files_are_those_that_are_listed() -> None:
    names = {"limner-seq.safetensors", *(f"limner-seq-{part}.onnx" for part in PARTS)}
    assert set(FACTS["sha256"]) == names
    for name, digest in FACTS["sha256"].items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest
    assert sum((WEIGHTS / name).stat().st_size for name in names) < 40e6
    model = create_model("limner-seq")
    assert isinstance(model, TrackerModel)
    assert model.card.weights_sha256 == FACTS["sha256"]["limner-seq.safetensors"]


def test_it_has_at_most_ten_million_parameters() -> None:
    torch = pytest.importorskip("torch")
    from limner.checkpoints.load import read_weights

    weights, facts = read_weights(WEIGHTS / "limner-seq.safetensors")
    assert sum(w.numel() for w in weights.values()) < 10e6
    assert all(torch.isfinite(w.float()).all() for w in weights.values())
    assert facts["config"]["frames"] > 2


@pytest.mark.slow
def test_a_phantom_is_followed_both_ways_from_one_mask() -> None:
    phantom = phantoms.sequence(3, (16, 128, 128))
    scores = {}
    for label in (1, 2):
        truth = phantom.truth == label
        with limner.open_session(phantom.image, model="limner-seq") as session:
            session.add(MaskPrompt(truth[8]), frame=8)
            found = {p.frame: p for p in session.propagate()}
        assert sorted(found) == [*range(8), *range(9, 16)]
        masks = np.stack([truth[8] if k == 8 else found[k].mask for k in range(16)])
        scores[label] = dice(masks, truth)
        assert all(0 <= p.score <= 1 for p in found.values())
    print(scores)
    assert min(scores.values()) > 0.85


@pytest.mark.slow
def test_a_box_or_a_click_starts_it_with_the_answer_of_limner_2d() -> None:
    phantom = phantoms.sequence(5, (6, 128, 128))
    truth = phantom.truth[2] == 1
    rows, columns = np.nonzero(truth)
    prompts: list[Prompt] = [
        Box((rows.min(), columns.min()), (rows.max() + 1, columns.max() + 1)),
        Click((int(rows.mean()), int(columns.mean()))),
    ]
    view = View(phantom.image.array[2], (1.0, 1.0), (0.0, 255.0))
    logits = []
    for name in ("limner-seq", "limner-2d"):
        model = create_model(name)
        assert isinstance(model, PromptableModel)
        logits.append(model.segment(model.embed(view), prompts).logits)
    assert np.array_equal(*logits)
    assert (logits[0] > 0).any()


@pytest.mark.slow
def test_a_drawn_mask_stays_as_it_is_also_where_views_are_coarser() -> None:
    phantom = phantoms.sequence(5, (3, 400, 500))
    mask = np.zeros((400, 500), np.bool_)
    mask[40:371:2, 33:461] = True
    with limner.open_session(phantom.image, model="limner-seq") as session:
        session.add(MaskPrompt(mask), frame=1)
        assert np.array_equal(session.predict(frame=1).mask, mask)
        session.add(Click((41, 34), positive=False), frame=1)  # from now on a guess
        assert not session.predict(frame=1).mask[41, 34]


@pytest.mark.slow
def test_both_files_give_the_same_masks() -> None:
    pytest.importorskip("torch")
    phantom = phantoms.sequence(7, (5, 96, 96))
    truth = phantom.truth == 1
    found = []
    for options in ({"exact": True}, {"weights": WEIGHTS / "limner-seq.safetensors"}):
        model = create_model("limner-seq", device="cpu", **options)
        with limner.open_session(phantom.image, model=model) as session:
            session.add(MaskPrompt(truth[0]), frame=0)
            found.append(np.stack([p.mask for p in session.propagate()]))
    assert found[0].shape == found[1].shape == (4, 96, 96)
    assert dice(*found) > 0.999


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(CheckpointError):
        create_model("limner-seq", weights=WEIGHTS / "limner-2d.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="broken"):
        create_model("limner-seq", weights=broken)


def test_it_is_the_default_where_masks_are_carried() -> None:
    assert models.default_model("video") == "limner-seq"
    for kind in ("volume", "video"):
        assert models.default_model(kind, propagates=True) == "limner-seq"
