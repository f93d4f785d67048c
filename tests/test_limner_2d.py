"""The built-in 2D model's adapter: what the network is shown, and what becomes of its answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import models, phantoms
from limner.adapters.early_fusion import EarlyFusionModel
from limner.errors import CheckpointError, PromptError
from limner.metrics import dice
from limner.models import View, create_model, limner_2d
from limner.networks import fusion2d as fusion
from limner.prompts import Box, Click, Lasso, MaskPrompt, Prompt, Scribble, TextPrompt
from limner.prompts.simulate import rounds
from limner.sessions.local import LocalSession

WEIGHTS = Path(limner_2d.__file__).parents[1] / "weights"


class Spy:
    """Keeps what it is shown; answers the previous-answer channel, doubled."""

    description = "spy"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        (fused,) = inputs
        self.seen.append(fused)
        return 2.0 * fused[:, 3:4], np.zeros(len(fused), np.float32)


def view(shape: tuple[int, ...], channels: int | None = None, dtype: type = np.uint8) -> View:
    top = 255 if dtype is np.uint8 else 1000
    size = shape if channels is None else (*shape, channels)
    array = np.random.default_rng(0).integers(0, top + 1, size).astype(dtype)
    return View(array, (1.0, 1.0), (0.0, float(top)))


def shown(
    picture: View, prompts: list[Prompt], previous: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, (7, row, column), and the model's logits."""
    spy = Spy()
    model = EarlyFusionModel(spy, limner_2d.CARD, limner_2d.OPTIONS)
    result = model.segment(model.embed(picture), prompts, previous)
    return spy.seen[0][0], result.logits


def test_a_view_of_full_size_is_shown_pixel_by_pixel() -> None:
    picture = view((256, 200))
    seen, logits = shown(picture, [Click((10, 20))])
    assert seen.shape == (fusion.NUM_CHANNELS, 256, 224)
    assert logits.shape == (256, 200)
    expected = (picture.array / 255.0 - fusion.IMAGE_CENTRE) * fusion.IMAGE_SCALE
    for channel in seen[:3]:
        assert np.allclose(channel[:, :200], expected, atol=1e-6)
        assert (channel[:, 200:] == -1).all()  # padding is black
    assert (seen[3:, :, 200:] == 0).all()
    assert (seen[fusion.PREVIOUS] == 0).all()
    assert seen[fusion.POSITIVE].sum() == 21  # the disk that training paints
    assert seen[fusion.POSITIVE, 10, 20] == 1
    assert seen[fusion.NEGATIVE].sum() == seen[fusion.REGION].sum() == 0


def test_training_paints_the_same_disk() -> None:
    torch = pytest.importorskip("torch")
    from limner.train.simulate.strokes import paint_disks

    at = torch.tensor([[10, 20]])
    seen, _ = shown(view((256, 256)), [Click((10, 20))])
    painted = paint_disks(at, 256, fusion.CLICK_RADIUS)[0, 0].numpy()
    assert np.array_equal(painted, seen[fusion.POSITIVE])


def test_a_first_box_comes_with_the_guess_that_training_shows() -> None:
    torch = pytest.importorskip("torch")
    from limner.train.simulate.strokes import paint_ellipse

    rough = np.tanh(fusion.MASK_LOGIT / fusion.LOGIT_SCALE)
    seen, _ = shown(view((256, 256)), [Box((20, 30), (90, 201))])
    boxed = torch.from_numpy(seen[None, fusion.REGION : fusion.REGION + 1])
    guess = paint_ellipse(boxed)[0, 0].numpy()
    assert np.pi / 4 * 70 * 171 == pytest.approx(guess.sum(), rel=0.01)
    assert np.allclose(seen[fusion.PREVIOUS], rough * (2 * guess - 1), atol=1e-6)
    answered, _ = shown(view((256, 256)), [Box((20, 30), (90, 201))], np.zeros((256, 256)))
    assert (answered[fusion.PREVIOUS] == 0).all()


def test_the_network_sees_what_training_fuses() -> None:
    torch = pytest.importorskip("torch")
    from limner.networks.unet2d import fuse

    picture = view((256, 256), 3)
    before = np.random.default_rng(1).normal(0, 4, (256, 256)).astype(np.float32)
    prompts: list[Prompt] = [Click((9, 9)), Click((80, 90), positive=False), Box((5, 6), (70, 99))]
    seen, _ = shown(picture, prompts, before)
    region = np.zeros((256, 256), np.float32)
    region[5:70, 6:99] = 1
    image = torch.from_numpy(np.moveaxis(picture.normalized(), 2, 0).copy())
    parts = [torch.from_numpy(m)[None, None] for m in (before, seen[4], seen[5], region)]
    assert np.allclose(fuse(image[None], *parts)[0].numpy(), seen, atol=1e-6)


@pytest.mark.parametrize(("size", "times"), [(20, 4), (48, 4), (53, 3), (64, 3), (96, 2), (129, 1)])
def test_small_views_are_enlarged_and_answers_come_back_in_place(size: int, times: int) -> None:
    picture = view((size, 40))
    previous = np.full((size, 40), -8.0, np.float32)
    previous[size // 2, 30] = 8.0
    seen, logits = shown(picture, [Click((size // 2, 30)), Box((2, 3), (5, 9))], previous)
    rows, columns = size * times, 40 * times
    assert seen.shape[1:] == (rows + -rows % 32, columns + -columns % 32)
    marked = np.argwhere(seen[fusion.POSITIVE])
    assert np.allclose(marked.mean(axis=0), ((size // 2 + 0.5) * times - 0.5, 30.5 * times - 0.5))
    boxed = np.argwhere(seen[fusion.REGION])
    assert boxed.min(axis=0).tolist() == [2 * times, 3 * times]
    assert boxed.max(axis=0).tolist() == [5 * times - 1, 9 * times - 1]
    assert logits.shape == (size, 40)
    assert np.unravel_index(logits.argmax(), logits.shape) == (size // 2, 30)


def test_it_is_asked_on_the_mirror_image_too() -> None:
    """The answer to a picture's mirror image is the mirror image of the answer."""

    class Right(Spy):
        def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            logits, quality = super().__call__(*inputs)
            quality[:] = np.arange(len(quality))
            return logits + np.linspace(0, 1, logits.shape[3], dtype=np.float32), quality

    model = EarlyFusionModel(Right(), limner_2d.CARD, limner_2d.OPTIONS)
    picture = view((64, 96))
    turned = View(picture.array[:, ::-1].copy(), (1.0, 1.0), (0.0, 255.0))
    one = model.segment(model.embed(picture), [Box((2, 3), (50, 60))])
    other = model.segment(model.embed(turned), [Box((2, 96 - 60), (50, 96 - 3))])
    assert np.allclose(one.logits, other.logits[:, ::-1], atol=1e-5)
    assert one.score == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_channels_become_three() -> None:
    grey, _ = shown(view((64, 64)), [])
    assert np.array_equal(grey[0], grey[2])
    for channels in (1, 2, 3, 4, 7):
        picture = view((256, 256), channels, np.uint16)
        seen, _ = shown(picture, [])
        for k in range(min(channels, 3)):
            assert np.allclose(seen[k], picture.normalized()[..., k] * 2 - 1, atol=1e-6)
    assert np.allclose(shown(view((256, 256), 2), [])[0][:3].std(axis=(1, 2)).min(), 0.4, atol=0.2)


def test_a_rough_mask_is_shown_as_an_unsure_answer_until_there_is_a_better_one() -> None:
    mask = np.zeros((256, 256), bool)
    mask[40:90, 30:70] = True
    rough = np.where(mask, 1, -1) * np.tanh(fusion.MASK_LOGIT / fusion.LOGIT_SCALE)
    better = np.full((256, 256), 12.0, np.float32)
    click, prompt = Click((60, 50)), MaskPrompt(mask)
    assert np.allclose(shown(view((256, 256)), [prompt, click])[0][3], rough, atol=1e-6)
    assert np.allclose(shown(view((256, 256)), [click, prompt], better)[0][3], rough, atol=1e-6)
    answered = shown(view((256, 256)), [prompt, click], better)[0][3]
    assert np.allclose(answered, np.tanh(3.0))


def test_lassos_are_filled_and_thin_strokes_are_seen() -> None:
    lasso = Lasso([(20, 20), (20, 60), (60, 60), (60, 20)])
    stroke = Scribble([(100, 20), (100, 80)], positive=False, radius=0)
    seen, _ = shown(view((256, 256)), [lasso, stroke])
    assert seen[fusion.REGION, 25:55, 25:55].all()
    assert seen[fusion.NEGATIVE, 100, 20:81].all()
    assert seen[fusion.POSITIVE].sum() == 0
    assert np.array_equal(seen[fusion.PREVIOUS] > 0, seen[fusion.REGION] > 0)


def test_what_is_marked_is_obeyed_whatever_the_network_says() -> None:
    against = np.zeros((256, 256), np.float32)
    against[:, 100:] = 9.0
    prompts: list[Prompt] = [Click((5, 5)), Scribble([(9, 120), (9, 140)], positive=False)]
    _, logits = shown(view((256, 256)), prompts, against)
    assert logits[5, 5] > 0
    assert (logits[9, 120:141] < 0).all()
    assert (logits[20:, 100:] > 0).all()


def test_kinds_and_axes_it_does_not_know_are_refused() -> None:
    with pytest.raises(PromptError, match="limner-2d understands box, click"):
        shown(view((64, 64)), [TextPrompt("liver")])
    with pytest.raises(PromptError, match="3 coordinates"):
        shown(view((64, 64)), [Click((1, 2, 3))])


@pytest.mark.slow
def test_the_shipped_weights_are_the_listed_ones_and_small() -> None:
    facts = json.loads((WEIGHTS / "limner-2d.json").read_text())
    sizes = 0
    for name, digest in facts["sha256"].items():
        content = (WEIGHTS / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        sizes += len(content)
    assert sizes <= 25e6
    card = create_model("limner-2d").card
    assert card.weights_sha256 == facts["sha256"]["limner-2d.safetensors"]
    assert card.runtime is not None
    assert "OpenVINO" in card.runtime
    assert create_model("limner-2d", exact=True).card.runtime.endswith("fp32")


@pytest.mark.slow
def test_it_finds_what_a_box_and_clicks_mean_on_phantoms() -> None:
    """Bars are what was measured, minus a margin: they catch a broken adapter, not a weak model."""
    boxed, clicked = [], []
    for seed, colour in ((1, False), (2, True), (3, False)):
        phantom = phantoms.image(seed, (160, 160), color=colour)
        for label in phantom.names:
            target = phantom.truth == label
            for first, values in (("box", boxed), ("click", clicked)):
                with limner.open_session(phantom.image, exact=True) as session:

                    def predict(prompt: Prompt, session: LocalSession = session) -> np.ndarray:
                        session.add(prompt)
                        return session.predict().mask

                    rng = np.random.default_rng(0)
                    steps = list(rounds(target, predict, rng, num_rounds=5, first=first))
                values.append(
                    [dice(steps[0].prediction, target), dice(steps[-1].prediction, target)]
                )
    print(np.mean(boxed, axis=0), np.mean(clicked, axis=0))
    assert (np.mean(boxed, axis=0) > (0.8, 0.88)).all()
    assert np.mean(clicked, axis=0)[1] > 0.8


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no network")
    with pytest.raises(CheckpointError, match=r"wrong\.onnx"):
        create_model("limner-2d", weights=wrong)
    other = tmp_path / "weights.bin"
    other.write_bytes(b"x")
    with pytest.raises(CheckpointError):
        create_model("limner-2d", weights=other)


def test_it_is_the_default_for_pictures() -> None:
    assert models.default_model("image") == "limner-2d"
    assert models.default_model("volume", flat=True) == "limner-2d"
    assert models.default_model("video", flat=True) == "limner-2d"
    assert models.default_model("video") == "limner-seq"
    assert models.default_model("volume", propagates=True) == "limner-seq"
    assert 3 in CARDS[models.default_model("volume")].ndim


CARDS = {card.name: card for card in models.list_models()}
