"""XMem: the authors' outputs stage by stage and over sequences, from a file as they publish it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import limner
import parity
from limner.cli.__main__ import run
from limner.errors import CheckpointError, PromptError
from limner.models import EncodedFrame, MemoryModel, View, create_model, xmem
from limner.networks.blocks import memory
from limner.prompts import Box, MaskPrompt
from limner.sessions.propagation.memory_propagator import MemoryPropagator

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

# Three times what the authors' code differs from itself in float64: 2.9e-5 where values have a
# standard deviation of 4, 6e-6 in probabilities and sensory memory.
STAGE, SEQUENCE = 2e-5, 2e-5
LIMITS = {
    "every": "mem_every",
    "most_frames": "max_mid_term_frames",
    "least_frames": "min_mid_term_frames",
    "prototypes": "num_prototypes",
    "most_elements": "max_long_term_elements",
    "top": "top_k",
    "long_term": "enable_long_term",
}


@pytest.fixture(scope="module")
def weights() -> Path:
    return parity.system("xmem").checkpoint()


@pytest.fixture(scope="module")
def model(weights: Path) -> xmem.XMem:
    made = create_model("xmem/base", weights=weights, exact=True)
    assert isinstance(made, xmem.XMem)
    assert isinstance(made, MemoryModel)
    assert made.card.weights_sha256 is not None
    return made.adjusted(side=None)


@lru_cache(maxsize=4)
def video(seed: str, frames: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    made: tuple[np.ndarray, np.ndarray] = parity.golden_rule.phantom_video(seed, frames, shape)
    return made


def video_of(case: parity.Case) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a case, and the masks of its objects as labels 1, 2, …"""
    shape = tuple(int(n) for n in case["video.hw"])
    pixels, labels = video(str(case["video.seed"]), int(case.get("video.frames", 2)), shape)
    assert pixels.mean() == pytest.approx(float(case["video.mean"]), abs=1e-9)
    own = np.zeros_like(labels)
    for number, label in enumerate(case["objects"], start=1):
        own[labels == label] = number
    return pixels, own


def adjusted(model: xmem.XMem, case: parity.Case) -> xmem.XMem:
    limits = {ours: case[f"config.{theirs}"].item() for ours, theirs in LIMITS.items()}
    deep = int(case["config.deep_update_every"])
    return model.adjusted(side=None, deep_every=None if deep < 0 else deep, **limits)


def see(model: xmem.XMem, pixels: np.ndarray) -> EncodedFrame:
    return model.encode_frame(View(pixels, (1.0, 1.0), (0.0, 255.0)))


# The network.


@dataclass(frozen=True)
class Stages:
    """What the network says of the first two frames of the case."""

    frames: list[EncodedFrame]
    value: np.ndarray  # (1, 2, V, h, w)
    deep: np.ndarray  # (1, 2, C, h, w)
    masks: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Values as memory keeps them."""
        q = len(self.frames[0].key)
        return self.value.transpose(0, 3, 4, 1, 2).reshape(q, -1)


def planes(rows: np.ndarray, frame: EncodedFrame) -> np.ndarray:
    """(Q, N, V) as (1, N, V, h, w)."""
    return rows.transpose(1, 2, 0).reshape(1, *rows.shape[1:], *frame.grid)


@pytest.fixture(scope="module")
def case() -> parity.Case:
    return parity.system("xmem").case("network")


@pytest.fixture(scope="module")
def stages(model: xmem.XMem, case: parity.Case) -> Stages:
    pixels, labels = video_of(case)
    frames = [see(model, frame) for frame in pixels]
    masks = np.stack([model.to_grid(frames[0], labels[0] == i) for i in (1, 2)])
    sensory = np.zeros((2, 64, *frames[0].grid), np.float32)
    value, deep = model.encode_memory(frames[0], masks, sensory)
    return Stages(frames, planes(value, frames[0]), deep[None], masks)


def test_frames_as_keys(stages: Stages, case: parity.Case) -> None:
    frame = stages.frames[0]
    parity.check(frame.features.image, case, "frame0", 1e-6)
    for mine, name in ((frame.key, "key"), (frame.selection, "selection")):
        assert np.abs(mine.T.reshape(case[name].shape) - case[name]).max() < STAGE
    assert np.abs(frame.shrinkage - case["shrinkage"].ravel()).max() < STAGE
    parity.check(frame.features.deep, case, "f16", STAGE)


def test_features_of_all_scales(weights: Path, stages: Stages, case: parity.Case) -> None:
    network = xmem.network_of(weights).eval()
    with torch.no_grad():
        found = network.key_encoder(torch.from_numpy(stages.frames[0].features.image))
    for value, name in zip(found, ("f16", "f8", "f4"), strict=True):
        parity.check(value.numpy(), case, name, STAGE)


def test_what_is_remembered(model: xmem.XMem, stages: Stages, case: parity.Case) -> None:
    parity.check(stages.value, case, "value", STAGE)
    parity.check(stages.deep, case, "hidden_deep", STAGE)
    sensory = np.zeros((1, 64, *stages.frames[0].grid), np.float32)
    alone, _ = model.encode_memory(stages.frames[0], stages.masks[:1], sensory)
    parity.check(planes(alone, stages.frames[0]), case, "value_one_object", STAGE)


def test_reading_memory(stages: Stages, case: parity.Case) -> None:
    known, asked = stages.frames
    near = memory.similarity(known.key, known.shrinkage, asked.key, asked.selection)
    plain = memory.similarity(known.key, known.shrinkage, asked.key, None)
    parity.check(near.T[None], case, "similarity", STAGE)
    parity.check(plain.T[None], case, "similarity_no_selection", STAGE)
    chosen, shares = memory.top(near, 30)
    affinity = np.zeros_like(near)
    np.put_along_axis(affinity, chosen, shares, axis=1)
    errors = parity.golden_rule.compare(affinity.T[None], case, "affinity_top30")
    assert errors["max"] < 5e-6
    used = memory.usage(chosen, shares, len(known.key))
    assert np.abs(used - case["usage_top30"].ravel()).max() < STAGE
    for count, name in ((30, "readout_top30"), (None, "readout_full_softmax")):
        found = memory.read(*memory.top(near, count), stages.rows)
        parity.check(planes(found.reshape(len(found), 2, -1), asked), case, name, STAGE)


def test_masks_from_memory(model: xmem.XMem, stages: Stages, case: parity.Case) -> None:
    known, asked = stages.frames
    near = memory.similarity(known.key, known.shrinkage, asked.key, asked.selection)
    said = memory.read(*memory.top(near, 30), stages.rows).reshape(len(near), 2, -1)
    alone, sensory = model.segment_frame(asked, said, stages.deep[0])
    parity.check(np.log(alone / (1 - alone))[None], case, "decoder_logits", STAGE)
    parity.check(sensory[None], case, "hidden_normal", STAGE)
    together = memory.aggregated(alone)
    parity.check(together[None], case, "probability", STAGE)
    golden = parity.golden_rule.unpack_mask(case, "labels_fg")
    assert ((together.argmax(axis=0) > 0) != golden).sum() <= 1


# Sequences.


def steps(
    model: xmem.XMem, case: parity.Case
) -> Iterator[tuple[int, MemoryPropagator, np.ndarray]]:
    """The frames of a case: number, memory, probabilities in the frame's size."""
    pixels, labels = video_of(case)
    recall, active = MemoryPropagator(model), set[int]()
    for k, frame in enumerate(pixels):
        seen = see(model, frame)
        ids = [int(i) for i in case.get(f"mask_given_at_{k}", ())]
        given = {i: model.to_grid(seen, labels[k] == i) for i in ids}
        active |= given.keys()
        found = recall.step(seen, given, sorted(active), place=k, last=k == len(pixels) - 1)
        yield k, recall, model.to_view(seen, found.probabilities)


def check_memory(recall: MemoryPropagator, case: parity.Case, k: int) -> None:
    """What the objects that came first remember."""
    bank = recall.banks[0][1]
    count, known = bank.num_prototypes, bank.elements
    working, condensed, _ = case["memory_sizes"][k]
    assert (bank.size - count, count) == (working, condensed)
    if f"long_key{k:02}.sub" not in case:
        return
    for value, name in (
        (known.key[:count].T[None], "long_key"),
        (known.shrinkage[None, None, :count], "long_shrink"),
        (known.value[:count].T.ravel(), "long_value"),
        (known.usage[None, None, count:], "work_usage"),
    ):
        assert parity.golden_rule.compare(value, case, f"{name}{k:02}")["max"] < SEQUENCE
    if f"long_usage{k:02}" in case:
        assert np.abs(known.usage[:count] - case[f"long_usage{k:02}"].ravel()).max() < SEQUENCE


def labels_of(case: parity.Case, k: int) -> np.ndarray:
    unpack = parity.golden_rule.unpack_mask
    return np.asarray(unpack(case, "labels_bit0")[k] + 2 * unpack(case, "labels_bit1")[k])


@pytest.mark.parametrize("name", ["long_term", "late_object", "no_long_term"])
def test_sequences(model: xmem.XMem, name: str) -> None:
    case = parity.system("xmem").case(name)
    for k, recall, found in steps(adjusted(model, case), case):
        sensory = np.stack([recall.sensory[i] for i in sorted(recall.sensory)])[None]
        errors = parity.golden_rule.compare(sensory, case, f"hidden{k:02}")
        assert errors["max"] < SEQUENCE
        check_memory(recall, case, k)
        if (name, k) == ("late_object", 8):
            # The authors' code has by now paired what it knows of the younger object with the keys
            # of another frame; here every object keeps its own.
            continue
        assert parity.golden_rule.compare(found, case, f"prob{k:02}")["max"] < SEQUENCE
        assert (found.argmax(axis=0) != labels_of(case, k)).sum() <= 1


def test_a_session_gives_the_published_masks(model: xmem.XMem) -> None:
    case = parity.system("xmem").case("long_term")
    pixels, labels = video_of(case)
    image = limner.Image(pixels, limner.Geometry.from_spacing(labels.shape), kind="video")
    with limner.open_session(image, adjusted(model, case)) as session:
        for i in (1, 2):
            session.add(MaskPrompt(labels[0] == i), frame=0, object_id=i)
        found = list(session.propagate())
        assert len(found) == 22
        assert all(0 < p.score <= 1 for p in found)
        assert np.array_equal(session.labels[0], labels[0])
        for k in range(1, 12):
            assert (session.labels[k] != labels_of(case, k)).sum() <= 3


# The adapter.


def test_frames_are_scaled_and_padded_as_published() -> None:
    assert xmem.scale_shape((1080, 1920), 480) == (480, 853)
    assert xmem.scale_shape((300, 200), 480) == (720, 480)
    assert xmem.scale_shape((480, 640), 480) == (480, 640)
    assert xmem.scale_shape((99, 50), None) == (99, 50)
    whole, before = xmem.pad_to_stride(np.ones((3, 100, 141), np.float32))
    assert whole.shape == (3, 112, 144)
    assert before == (6, 1)
    assert whole[:, 6:106, 1:142].all()
    assert whole.sum() == 3 * 100 * 141


def test_small_frames_are_enlarged_and_masks_come_back(weights: Path, model: xmem.XMem) -> None:
    larger = model.adjusted(side=64)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (30, 41), np.uint8)
    frame = see(larger, pixels)
    assert frame.features.inside == (64, 87)
    assert frame.grid == (4, 6)
    mask = pixels > 100
    there = larger.to_grid(frame, mask)
    assert there.shape == (64, 96)
    back = larger.to_view(frame, there[None])[0]
    assert ((back > 0.5) == mask).mean() > 0.9
    assert str(model.adjusted().card.runtime).endswith("fp32")
    assert str(model.adjusted(side=64, every=3).card.runtime).endswith("fp32; every=3; side=64")
    with pytest.raises(ValueError, match="shorter side of 8"):
        model.adjusted(side=8)
    with pytest.raises(TypeError):
        model.adjusted(memory=3)


def test_tiny_objects_are_not_lost(model: xmem.XMem) -> None:
    frame = see(model.adjusted(side=32), np.zeros((97, 130, 3), np.uint8))
    for at in ((0, 0), (96, 129), (50, 61)):
        mask = np.zeros((97, 130), bool)
        mask[at] = True
        assert model.to_grid(frame, mask).sum() == 1
    assert not model.to_grid(frame, np.zeros((97, 130), bool)).any()


def test_many_objects_are_as_few(model: xmem.XMem, stages: Stages) -> None:
    frame, rng = stages.frames[0], np.random.default_rng(5)
    readout = rng.normal(size=(len(frame.key), 6, 512)).astype(np.float32)
    sensory = rng.normal(size=(6, 64, *frame.grid)).astype(np.float32)
    together, after = model.segment_frame(frame, readout, sensory)
    alone, own = model.segment_frame(frame, readout[:, 5:], sensory[5:])
    assert np.allclose(together[5:], alone, atol=1e-5)
    assert np.allclose(after[5:], own, atol=1e-5)


def test_slices_of_ct(model: xmem.XMem) -> None:
    rng = np.random.default_rng(6)
    array = rng.normal(-400, 300, (4, 40, 56)).astype(np.int16)
    truth = np.zeros((40, 56), bool)
    truth[10:25, 12:30] = True
    array[:, truth] += 700
    image = limner.Image(array, limner.Geometry.from_spacing(array.shape), modality="CT")
    with limner.open_session(image, model, window="abdomen", zoom=True) as session:
        session.add(MaskPrompt(truth), frame=1)
        assert np.array_equal(session.predict(frame=1).mask, truth)
        assert [p.frame for p in session.propagate()] == [2, 3, 0]
        assert np.array_equal(session.labels[1], truth)


def test_only_what_is_drawn_is_understood(model: xmem.XMem) -> None:
    session = limner.open_session(np.zeros((3, 32, 32), np.uint8), model)
    with session, pytest.raises(PromptError, match=r"lasso, mask, scribble, not box"):
        session.add(Box((1, 1), (5, 5)), frame=0)


def test_others_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"xmem/base needs.*limner models fetch"):
        create_model("xmem/base")
    with pytest.raises(CheckpointError, match=r"--model xmem/base takes"):
        create_model("scribbleprompt/unet", weights=weights, exact=True)
    other = parity.system("scribbleprompt_unet").checkpoint()
    with pytest.raises(CheckpointError, match="of another network"):
        create_model("xmem/base", weights=other, exact=True)


def test_the_variant_without_sensory_memory_and_with_one_plane(
    weights: Path, tmp_path: Path
) -> None:
    state = parity.system("xmem").weights()
    less = {k: v for k, v in state.items() if "hidden" not in k}
    for part in ("block1.conv1", "block1.downsample"):
        name = f"decoder.fuser.{part}.weight"
        less[name] = np.ascontiguousarray(less[name][:, :1536])
    first = "value_encoder.conv1.weight"
    less[first] = np.ascontiguousarray(less[first][:, :4])
    path = tmp_path / "less.safetensors"
    parity.golden_rule.write_checkpoint(path, {}, less)
    model = create_model("xmem/base", weights=path, exact=True).adjusted(side=None)
    case = parity.system("xmem").case("no_long_term")
    pixels, labels = video_of(case)
    recall = MemoryPropagator(model)
    for k in range(3):
        frame = see(model, pixels[k])
        given = {1: model.to_grid(frame, labels[0] == 1)} if k == 0 else {}
        found = recall.step(frame, given, [1], place=k)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)
    assert not recall.sensory[1].any()


def test_adapters_begin_as_nothing_and_are_read_from_the_file(
    weights: Path, model: xmem.XMem, stages: Stages, case: parity.Case, tmp_path: Path
) -> None:
    plain = xmem.network_of(weights)
    adapted = type(plain)(adapters=8)
    missing = adapted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 13 * 5
    assert all(".adapter." in name for name in missing)
    adapted.freeze_encoder()
    learnt = [n for n, p in adapted.key_encoder.named_parameters() if p.requires_grad]
    assert sorted(f"key_encoder.{name}" for name in learnt) == sorted(missing)
    path, pixels = tmp_path / "imos.pth", video_of(case)[0][0]
    torch.save({"model": adapted.state_dict()}, path)
    same = create_model("imos/base", weights=path, exact=True)
    assert isinstance(same, xmem.XMem)
    assert same.card.name == "imos/base"
    assert np.array_equal(see(same.adjusted(side=None), pixels).key, stages.frames[0].key)
    with torch.no_grad():
        adapted.key_encoder.layer3[5].adapter.up.bias.fill_(0.2)
    torch.save(adapted.state_dict(), path)
    other = create_model("imos/base", weights=path, exact=True).adjusted(side=None)
    deep = see(other, pixels).features.deep
    assert np.allclose(deep, stages.frames[0].features.deep + 0.1, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"XMem\.pth fits.*limner models add imos/base"):
        create_model("imos/base")


# In OpenVINO.


def test_the_converted_network_agrees(weights: Path, model: xmem.XMem) -> None:
    quick = create_model("xmem/base", weights=weights, device="cpu").adjusted(side=None)
    assert str(quick.card.runtime).startswith("OpenVINO")
    case = parity.system("xmem").case("late_object")
    for k, _, found in steps(adjusted(quick, case), case):
        if k == 7:
            break
        golden, stored = found.ravel(), case[f"prob{k:02}.sub"]
        some = golden[:: parity.golden_rule.sample_step(golden.size)]
        assert np.abs(some - stored).mean() < 0.01
        assert np.abs(some - stored).max() < 0.1
        area = labels_of(case, k)
        assert (found.argmax(axis=0) == area).mean() > 0.96


# The command line.


@pytest.mark.full_size
def test_propagate_command(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = parity.system("xmem").case("no_long_term")
    pixels, labels = video_of(case)
    folder, mask, out = tmp_path / "frames", tmp_path / "mask.tif", tmp_path / "out.tif"
    folder.mkdir()
    for k, frame in enumerate(pixels[:3]):
        Picture.fromarray(frame[::2, ::2]).save(folder / f"{k:03}.png")
    drawn = np.zeros((3, 40, 48), np.uint8)
    drawn[1] = labels[1, ::2, ::2]
    limner.write(mask, drawn, like=limner.read(folder))
    arguments = ["propagate", str(folder), "--model", "xmem/base", "--weights", str(weights)]
    assert run([*arguments, "--mask", str(mask), "-o", str(out)]) == 0, capsys.readouterr().err
    assert "carried to 2 frames" in capsys.readouterr().err
    written = np.asarray(limner.read(out).array)
    assert np.array_equal(written[1], drawn[1])
