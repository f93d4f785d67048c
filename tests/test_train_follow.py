"""Learning to follow: sequences, reading memory, runs, the exported parts, the built-in model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limner import runtime
from limner.adapters.shipped_tracker import TrackerParts
from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.models import PreviousFrame, TrackerModel, View, limner_seq
from limner.networks.blocks import memory

torch = pytest.importorskip("torch")

from limner.export.built_in import export  # noqa: E402
from limner.networks.fusion2d import LOGIT_SCALE, MASK_LOGIT  # noqa: E402
from limner.networks.tracker2d import (  # noqa: E402
    MemoryReader,
    TrackerNetwork,
    places,
    read,
)
from limner.networks.tracker_facts import KEY, PLACE_AXES, STRIDE, VALUE, VALUE_LEARNT  # noqa: E402
from limner.networks.unet2d import PromptableUNet2d, fuse  # noqa: E402
from limner.train import checkpoint  # noqa: E402
from limner.train.data import motion, pack, pack3d  # noqa: E402
from limner.train.data.rng import BatchRandom  # noqa: E402
from limner.train.data.sequences import ImageSequences, SequenceSampler  # noqa: E402
from limner.train.loop import read_log, train  # noqa: E402
from limner.train.losses import iou  # noqa: E402
from limner.train.parts.tracker_rollout import TrackerRollout, track_clips  # noqa: E402
from limner.train.recipe import read_recipe  # noqa: E402
from limner.train.tasks.tracking import Config  # noqa: E402
from train_makers import are_equal, one_thread, volume_packs  # noqa: E402

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
WIDTHS, DEPTHS = (8, 16, 16, 16), (1, 1, 1, 1)
SMALL = {
    "name": "limner-seq",
    "widths": WIDTHS,
    "depths": DEPTHS,
    "frames": 4,
    "sizes": (32,),
    "batch_size": 2,
    "warmup_steps": 2,
    "log_every": 1,
    "validate_every": 1000,
    "validate_targets": 2,
    "precision": "fp32",
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_packs(tmp_path_factory)


def _config(**values: object) -> Config:
    return Config(**(SMALL | values))  # type: ignore[arg-type]


def _batch_rng(number: int, seed: int = 0) -> BatchRandom:
    return BatchRandom(number, torch.Generator().manual_seed(seed))


def _network(seed: int = 0) -> TrackerNetwork:
    """Random weights, none of them the zeros that a new network has."""
    torch.manual_seed(seed)
    network = TrackerNetwork(WIDTHS, DEPTHS).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data = parameter.data.half().float()  # as files keep them
    return network


# Recipes.


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("limner-seq*.yaml")))
def test_recipes_fit_the_network(name: str) -> None:
    config = read_recipe(RECIPES / name)
    assert isinstance(config, Config)
    network = TrackerNetwork(config.widths, config.depths)
    assert not any(size % network.stride for size in config.sizes)


def test_two_frames_teach_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: tracking\nframes: 2")
    with pytest.raises(FormatError, match="has 3 or more"):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match="3 levels; a network that follows has 4 or more"):
        TrackerNetwork((8, 16, 16), (1, 1, 1))


# Sequences.


@pytest.fixture(scope="module")
def packs(folder: Path) -> tuple[pack3d.PackedVolumes, pack.PackedImages]:
    return pack3d.open_volumes(folder), pack.open_pack(folder, slices=False)


def _draw(
    packs: tuple[pack3d.PackedVolumes, pack.PackedImages], number: int, seed: int, **values: object
) -> ImageSequences:
    config = _config(frames=5, **values)
    maker = SequenceSampler(config, *packs, CPU)
    return maker.draw(number, 64, np.random.default_rng(seed), _batch_rng(number, seed))


@pytest.mark.parametrize(
    "kinds",
    [
        {"moved_image_fraction": 1.0},
        {"moved_image_fraction": 0.0, "synthetic_fraction": 0.0},
        {"moved_image_fraction": 0.0, "synthetic_fraction": 1.0},
        {"moved_image_fraction": 0.5, "synthetic_fraction": 0.3},
    ],
)
def test_sequences_show_their_object_first(
    packs: tuple[pack3d.PackedVolumes, pack.PackedImages], kinds: dict[str, float]
) -> None:
    for seed in range(2):
        clips = _draw(packs, 4, seed, **kinds)
        assert clips.image.shape == (4, 5, 3, 64, 64)
        assert clips.target.shape == clips.inside.shape == (4, 5, 1, 64, 64)
        assert clips.image.dtype == clips.target.dtype == torch.float32
        for part in (clips.target, clips.inside):
            assert torch.equal(part, part.round())
            assert part.min() >= 0
            assert part.max() == 1
        assert clips.image.min() >= 0
        assert clips.image.max() <= 1
        assert not (clips.target * (1 - clips.inside)).any()
        assert not (clips.image * (1 - clips.inside)).any()
        assert (clips.target[:, 0].sum(dim=(1, 2, 3)) > 0).all()


def test_the_same_seed_gives_the_same_sequences(
    packs: tuple[pack3d.PackedVolumes, pack.PackedImages],
) -> None:
    first, again, other = (_draw(packs, 3, seed, synthetic_fraction=0.3) for seed in (1, 1, 2))
    for name in ("image", "target", "inside"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize(
    "kinds",
    [{"moved_image_fraction": 1.0}, {"moved_image_fraction": 0.0, "synthetic_fraction": 0.0}],
)
def test_neighbours_are_more_alike_than_frames_far_apart(
    packs: tuple[pack3d.PackedVolumes, pack.PackedImages], kinds: dict[str, float]
) -> None:
    near, far = [], []
    for seed in range(3):
        clips = _draw(packs, 8, seed, **kinds)
        whole = clips.target
        near.append(torch.stack([iou(whole[:, t], whole[:, t + 1]) for t in range(4)]).mean())
        far.append(iou(whole[:, 0], whole[:, 4]).mean())
    assert float(np.mean(near)) > float(np.mean(far)) + 0.1
    assert float(np.mean(near)) > 0.4


def test_paths_begin_where_the_picture_is() -> None:
    grids = motion.motion_paths(6, 16, _batch_rng(32))
    assert grids.shape == (32, 6, 16, 16, 2)
    along = (torch.arange(16) + 0.5) / 8 - 1
    still = torch.stack([along.expand(16, 16), along[:, None].expand(16, 16)], dim=-1)
    assert torch.allclose(grids[:, 0], still.expand(32, -1, -1, -1), atol=1e-6)
    steps = (grids[:, 1:] - grids[:, :-1]).abs().amax(dim=(2, 3, 4))
    assert (steps.amax(dim=1) > 1e-3).float().mean() > 0.5
    assert (steps.amax(dim=1) == 0).any(), "some sequences stand still"
    picture = torch.rand(32, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    carried = motion.warp(picture, grids)
    assert torch.allclose(carried[:, 0], picture, atol=1e-5)


def test_moved_and_pasted_objects_stay_masks() -> None:
    image, target = torch.rand(4, 3, 32, 32), torch.zeros(4, 1, 32, 32)
    target[:, :, 8:20, 10:22] = 1
    inside = torch.ones_like(target)
    for parts in (
        motion.animate(image, target, inside, 4, _batch_rng(4)),
        motion.animate_object(image, target, 4, _batch_rng(4)),
    ):
        assert [p.shape[:3] for p in parts] == [(4, 4, 3), (4, 4, 1), (4, 4, 1)]
        assert torch.equal(parts[1][:, 0], target)
        assert set(parts[1].unique().tolist()) <= {0.0, 1.0}
    pasted = motion.animate_object(image, target, 4, _batch_rng(4))[0][:, 0]
    assert torch.allclose(pasted * target, image * target, atol=1e-5)
    assert torch.allclose(pasted * (1 - target), image.roll(1, 0) * (1 - target), atol=1e-5)


def test_flicker_changes_light_not_places() -> None:
    image = torch.full((64, 5, 3, 8, 8), 0.5)
    seen = motion.flicker(image, _batch_rng(64))
    changed = (seen - image).abs().amax(dim=(1, 2, 3, 4))
    assert 0.2 < (changed == 0).float().mean() < 0.8
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert seen.mean() == pytest.approx(0.5, abs=0.05)


# Reading memory.


def _terms(number: int, asked: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    channels = KEY + PLACE_AXES
    keys, queries = (np.float32(rng.normal(0, 1, (n, channels))) for n in (number, asked))
    keys[:, KEY:], queries[:, KEY:] = (
        np.float32(rng.integers(0, 20, (n, PLACE_AXES))) for n in (number, asked)
    )
    shrinkage = np.float32(1 + rng.random(number))
    selection = np.float32(rng.random((asked, channels)))
    selection[:, KEY:] *= 4
    return keys, shrinkage, queries, selection, np.float32(rng.normal(0, 1, (number, VALUE)))


def test_training_reads_memory_as_sessions_do() -> None:
    keys, shrinkage, queries, selection, values = _terms(50, 30)
    near = memory.similarity(keys, shrinkage, queries, selection)
    wanted = memory.read(*memory.top(near, None), values)
    asked = (torch.from_numpy(a.T.copy())[None] for a in (queries, selection))
    key, value = (torch.from_numpy(a.T.copy())[None] for a in (keys, values))
    found = read(key, torch.from_numpy(shrinkage)[None], value, *asked)
    assert found.shape == (1, VALUE, 30)
    assert np.abs(found[0].numpy().T - wanted).max() < 1e-5 * np.abs(near).max()
    product = memory.query_terms(queries, selection) @ memory.memory_terms(keys, shrinkage).T
    assert np.abs(product - near).max() < 1e-5 * np.abs(near).max()
    with torch.no_grad():
        said = MemoryReader()(
            torch.from_numpy(memory.query_terms(queries, selection)),
            torch.from_numpy(memory.memory_terms(keys, shrinkage).T.copy()),
            torch.from_numpy(values),
        )
    assert np.abs(said.numpy() - wanted).max() < 1e-5 * np.abs(near).max()


def test_what_is_remembered_keeps_the_mask() -> None:
    network = _network()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :8, :12] = 1
    features = torch.rand(1, WIDTHS[2], 4, 4)
    with torch.no_grad():
        value = network.memory(features, mask, torch.ones(1, 1, 1, 1))
        other = network.memory(features, mask, torch.zeros(1, 1, 1, 1))
    assert value.shape == (1, VALUE, 4, 4)
    label = torch.nn.functional.pixel_shuffle(value[:, VALUE_LEARNT:], 2)
    assert torch.equal(label, torch.nn.functional.avg_pool2d(mask, STRIDE // 2))
    assert not torch.equal(value[:, :VALUE_LEARNT], other[:, :VALUE_LEARNT])
    where = places((2, 3), CPU)
    assert where.tolist() == [[[0, 0, 0], [1, 1, 1]], [[0, 1, 2], [0, 1, 2]]]


# The network for pictures as a beginning.


def test_it_begins_as_the_network_for_pictures_shown_a_rough_mask() -> None:
    torch.manual_seed(1)
    picture = PromptableUNet2d(WIDTHS, DEPTHS).eval()
    for parameter in picture.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network = TrackerNetwork(WIDTHS, DEPTHS).eval()
    network.start_from(picture.state_dict())
    image = torch.rand(2, 3, 32, 32)
    before = torch.zeros(2, 1, 32, 32)
    before[:, :, 5:20, 8:24] = 1
    nothing = torch.zeros_like(before)
    readout = torch.rand(2, VALUE, 4, 4)
    with torch.no_grad():
        rough = MASK_LOGIT * (2 * before - 1)
        wanted = picture(fuse(image, rough, nothing, nothing, nothing))
        shown = (image - 0.5) * 2
        past = torch.rand(2, 3, 32, 32)
        found = network.decoder(shown, 2 * before - 1, past, readout)
        empty = network.decoder(shown, nothing, past, readout)
        unasked = picture(fuse(image, nothing, nothing, nothing, nothing))
    assert wanted[0].std() > 0.1
    for mine, theirs in ((found, wanted), (empty, unasked)):
        assert torch.allclose(mine[0], theirs[0], atol=1e-5)
        assert torch.allclose(mine[1], theirs[1], atol=1e-5)
    assert np.tanh(MASK_LOGIT / LOGIT_SCALE) == pytest.approx(0.4621, abs=1e-4)
    trunk = network.frame.state_dict()["down.1.0.conv1.weight"]
    assert torch.equal(trunk, picture.state_dict()["down.1.0.conv1.weight"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.start_from(PromptableUNet2d((8, 16, 16, 24), DEPTHS).state_dict())


def test_the_mask_of_the_frame_before_is_moved_to_where_things_are() -> None:
    wide = np.random.default_rng(0).random((1, 80, 80)).astype(np.float32)
    wide = torch.nn.functional.avg_pool2d(torch.from_numpy(wide), 5, 1).numpy()[0]
    image = np.stack([wide[4:68, 4 + 3 * t : 68 + 3 * t] for t in range(3)])  # 3 to the left
    target = torch.zeros(1, 3, 1, 64, 64)
    for t in range(3):
        target[:, t, :, 20:40, 26 - 3 * t : 46 - 3 * t] = 1
    shown = torch.from_numpy(image)[None, :, None].expand(-1, -1, 3, -1, -1)
    walk = TrackerRollout(
        _network(), ImageSequences(shown, target, torch.ones_like(target)), "fp32"
    )
    past, mask = walk._moved(1)
    assert past.shape == (1, 3, 64, 64)
    assert float(iou((mask > 0.5).float(), target[:, 1])) > 0.9
    assert float(iou(target[:, 0], target[:, 1])) < 0.8
    still = (walk._image[:, 0] - walk._image[:, 1]).abs().mean()
    assert (past - walk._image[:, 1]).abs().mean() < 0.3 * still


# Runs.


def _train(folder: Path, out: Path, start: Path | None = None, **values: object) -> None:
    train(_config(**values), folder, out, device="cpu", start=start)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    _train(folder, out, steps=6, checkpoint_every=2)
    return out


def test_another_seed_gives_other_weights(folder: Path, trained: Path, tmp_path: Path) -> None:
    _train(folder, tmp_path, steps=6, checkpoint_every=2, seed=1)
    assert not are_equal(trained, tmp_path)


def test_it_begins_with_files_and_validates(folder: Path, trained: Path, tmp_path: Path) -> None:
    lines = read_log(trained / "log.jsonl")
    told = next(line for line in lines if line["step"] == 6 and "loss3" in line)
    assert all(np.isfinite(told[f"{kind}{t}"]) for kind in ("loss", "dice") for t in (1, 2, 3))
    found = [line["validation"] for line in lines if "validation" in line][-1]
    assert set(found) == {"3d/balls", "mean"}
    assert 0.3 < found["mean"]["copied"] <= 1
    assert 0 <= found["mean"]["followed"] <= 1
    # Of a run of its own kind: all of it.
    path = trained / "limner-seq.safetensors"
    _train(folder, tmp_path / "again", path, steps=1, learning_rate=1e-12, ema_decay=0.0)
    mine = checkpoint.load(tmp_path / "again" / "checkpoint.pt").networks["network"]
    from limner.checkpoints.load import read_weights

    for name, value in read_weights(path)[0].items():
        assert torch.allclose(mine[name], value.float(), atol=1e-6), name
    # Of another: refused.
    other = checkpoint.write_weights(
        tmp_path / "o.safetensors", {"frame.stem.weight": mine[name]}, {}
    )
    with pytest.raises(CheckpointError, match="another network"):
        _train(folder, tmp_path / "no", other, steps=1)


def test_it_learns_to_follow(folder: Path) -> None:
    """One sequence by heart: better than copying the first mask, and as good frame by frame."""
    torch.manual_seed(0)
    network = TrackerNetwork(WIDTHS, DEPTHS)
    image = torch.full((1, 4, 3, 32, 32), 0.2)
    target = torch.zeros(1, 4, 1, 32, 32)
    for t in range(4):
        target[:, t, :, 8:20, 2 + 5 * t : 14 + 5 * t] = 1
    clips = ImageSequences(image + 0.6 * target, target, torch.ones_like(target))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    from limner.train.losses import answer_loss

    for _ in range(25):
        walk = TrackerRollout(network, clips, "fp32")
        total = torch.zeros(())
        for t in range(1, 4):
            logits, _ = walk.step(t, torch.ones(1, 1, 1, 1))
            none = torch.zeros_like(clips.target[:, t])
            total = total + answer_loss(logits, clips.target[:, t], clips.inside[:, t], none)
            walk.remember(t, keep=True)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    with torch.no_grad():
        answers = track_clips(network.eval(), clips, "fp32")
    assert answers.shape == (1, 3, 1, 32, 32)
    assert float(iou(answers.flatten(0, 1), target[:, 1:].flatten(0, 1)).mean()) > 0.9


# The exported parts.


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackerNetwork, Path]:
    """A network, and the folder of its exported files."""
    network, folder = _network(), tmp_path_factory.mktemp("export")
    config = _config().to_json()
    facts = {"step": 1, "pack": "abc", "config": config}
    (folder / "run").mkdir()
    checkpoint.write_weights(folder / "run" / "limner-seq.safetensors", network.state_dict(), facts)
    arguments = ["train", "export", str(folder / "run"), "-o", str(folder)]
    assert run(arguments) == 0
    return network, folder


def _graph(folder: Path, part: str) -> runtime.Network:
    return runtime.compile(folder / f"limner-seq-{part}.onnx", precision="fp32")


def test_exported_parts_answer_as_pytorch(parts: tuple[TrackerNetwork, Path]) -> None:
    network, folder = parts
    rng = np.random.default_rng(0)
    image = np.float32(rng.uniform(-1, 1, (1, 3, 64, 32)))
    past = np.float32(rng.uniform(-1, 1, (1, 3, 64, 32)))
    mask = np.float32(rng.random((1, 1, 64, 32)) > 0.5)
    given = np.ones((1, 1, 1, 1), np.float32)
    readout = np.float32(rng.random((1, VALUE, 8, 4)))
    keys, shrinkage, queries, selection, values = _terms(40, 32)
    asked = memory.query_terms(queries, selection)
    known = np.ascontiguousarray(memory.memory_terms(keys, shrinkage).T)
    with torch.no_grad():
        seen = network.frame(torch.from_numpy(image))
        features = seen[3].numpy()
        for part, module, inputs in (
            ("frame", network.frame, (image,)),
            ("memory", network.memory, (features, mask, given)),
            ("reader", MemoryReader(), (asked, known, values)),
            ("decoder", network.decoder, (image, 2 * mask - 1, past, readout)),
        ):
            wanted = module(*(torch.from_numpy(i) for i in inputs))
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            answers = _graph(folder, part)(*inputs)
            assert len(answers) == len(wanted)
            for mine, theirs in zip(answers, wanted, strict=True):
                assert mine.shape == tuple(theirs.shape), part
                assert np.ptp(theirs.numpy()) > 1e-2 or theirs.numel() == 1, part
                assert np.abs(mine - theirs.numpy()).max() < 1e-3, part


def test_the_same_weights_give_the_same_files(
    parts: tuple[TrackerNetwork, Path], tmp_path: Path
) -> None:
    _, folder = parts
    written = export(folder / "run", tmp_path)
    assert [p.name for p in written.graphs] == [
        f"limner-seq-{part}.onnx" for part in ("frame", "memory", "reader", "decoder")
    ]
    for path in (written.weights, *written.graphs, written.facts):
        assert path.read_bytes() == (folder / path.name).read_bytes()


# The built-in model.


@pytest.fixture(scope="module")
def model(parts: tuple[TrackerNetwork, Path]) -> limner_seq.LimnerSeq:
    network, _ = parts
    modules = (network.frame, network.memory, MemoryReader(), network.decoder)
    made = (runtime.compile(m, device="cpu", precision="fp32") for m in modules)
    built = limner_seq.LimnerSeq(limner_seq.CARD, TrackerParts(*made))
    assert isinstance(built, TrackerModel)
    return built


def _view(seed: int, shape: tuple[int, int] = (40, 56)) -> View:
    rng = np.random.default_rng(seed)
    return View(np.uint8(rng.integers(0, 255, shape)), (1.0, 1.0), (0.0, 255.0))


def _drawn(shape: tuple[int, int] = (40, 56)) -> np.ndarray:
    logits = np.full(shape, -10, np.float32)
    logits[10:30, 12:40] = 10
    return logits


def test_files_and_graphs_follow_alike(
    parts: tuple[TrackerNetwork, Path], model: limner_seq.LimnerSeq
) -> None:
    _, folder = parts
    of_file = limner_seq.build(weights=folder / "limner-seq.safetensors", device="cpu")
    assert of_file.card.weights_sha256 is not None
    graphs = TrackerParts(
        *(_graph(folder, part) for part in ("frame", "memory", "reader", "decoder"))
    )
    answers = []
    for one in (model, of_file, limner_seq.LimnerSeq(limner_seq.CARD, graphs)):
        known = one.remember(
            None, one.encode_window(_view(0), (0, 0)), _drawn(), place=0, given=True
        )
        answers.append(
            one.track_object(
                known, one.encode_window(_view(1), (0, 0)), PreviousFrame(_view(0), _drawn())
            )
        )
    for other in answers[1:]:
        assert other.logits.shape == (40, 56)
        assert np.abs(other.logits - answers[0].logits).max() < 1e-3
        assert other.score == pytest.approx(answers[0].score, abs=1e-3)
    unlike = model.track_object(
        known, model.encode_window(_view(1), (0, 0)), PreviousFrame(_view(2), _drawn())
    )
    assert np.abs(unlike.logits - answers[0].logits).max() > 1e-3
    blind = model.track_object(known, model.encode_window(_view(1), (0, 0)), None)
    assert np.abs(blind.logits - answers[0].logits).max() > 1e-3


def test_memory_is_bounded(model: limner_seq.LimnerSeq) -> None:
    looked = model.encode_window(_view(0), (0, 0))
    known = None
    for place in range(limner_seq.MOST_GIVEN + 3):
        known = model.remember(known, looked, _drawn(), place=place, given=True)
    for place in range(100, 100 + limner_seq.MOST_RECENT + 4):
        known = model.remember(known, looked, _drawn(), place=place, given=False)
    assert known is not None
    given = known["given"]
    assert known["place"][given].tolist() == list(range(3, 3 + limner_seq.MOST_GIVEN))
    assert known["place"][~given].tolist() == list(range(104, 104 + limner_seq.MOST_RECENT))
    pixels = int(known["count"].sum())
    assert pixels == len(looked.key) * (limner_seq.MOST_GIVEN + limner_seq.MOST_RECENT)
    assert known["value"].shape == (pixels, VALUE)
    assert known["terms"].shape == (2 * (KEY + PLACE_AXES) + 1, pixels)
    assert all(isinstance(part, np.ndarray) for part in known.values())


def test_a_frame_that_comes_again_is_replaced(model: limner_seq.LimnerSeq) -> None:
    first, second = (model.encode_window(_view(k), (0, 0)) for k in (0, 1))
    once = model.remember(None, first, _drawn(), place=4, given=False)
    both = model.remember(once, second, _drawn(), place=7, given=False)
    assert both["place"].tolist() == [4, 7]
    again = model.remember(both, second, -_drawn(), place=4, given=True)
    assert again["place"].tolist() == [7, 4]
    assert again["given"].tolist() == [False, True]
    half = len(again["value"]) // 2
    assert np.array_equal(again["value"][:half], both["value"][half:])
    assert np.array_equal(again["terms"][:, :half], both["terms"][:, half:])
    assert once["place"].tolist() == [4], "what was remembered before stays as it was"


def test_positions_are_those_of_the_frame_not_of_the_window(model: limner_seq.LimnerSeq) -> None:
    here, there = (model.encode_window(_view(0), origin) for origin in ((0.0, 0.0), (16.0, 24.0)))
    times = here.times[0]
    assert times == 160 // 56
    moved = there.key[:, KEY:] - here.key[:, KEY:]
    steps = times / STRIDE
    assert np.allclose(moved, (16 * steps, 24 * steps))
    assert np.array_equal(there.key[:, :KEY], here.key[:, :KEY])
    rows, columns = here.features.shape[2:]
    assert here.key[0, KEY:].tolist() == [0, 0]
    assert here.key[-1, KEY:].tolist() == [rows - 1, columns - 1]
    # The same shift of memory and window changes nothing; of the window alone it does.
    asked = [model.encode_window(_view(1), origin) for origin in ((0.0, 0.0), (16.0, 24.0))]
    known = [
        model.remember(None, looked, _drawn(), place=0, given=True) for looked in (here, there)
    ]
    found = [[model.track_object(k, a, None).logits for a in asked] for k in known]
    assert np.abs(found[0][0] - found[1][1]).max() < 2e-3
    assert np.abs(found[0][0] - found[0][1]).max() > 2e-3


def test_prompts_on_a_frame_are_answered_as_by_the_model_for_pictures(
    model: limner_seq.LimnerSeq,
) -> None:
    from limner.models import create_model
    from limner.prompts import Click

    pictures = create_model("limner-2d")
    view = replace(_view(0, (64, 64)))
    prompts = [Click((30, 30))]
    mine = model.segment(model.embed(view), prompts)
    theirs = pictures.segment(pictures.embed(view), prompts)
    assert np.array_equal(mine.logits, theirs.logits)
    assert mine.score == theirs.score
