"""Training XMem's adapters: what learns and what does not, resuming, the file that comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import limner
from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.models import View, xmem
from limner.networks.blocks import memory

torch = pytest.importorskip("torch")

from limner.export.built_in import export  # noqa: E402
from limner.train import checkpoint  # noqa: E402
from limner.train.data import pack, pack3d  # noqa: E402
from limner.train.data.rng import BatchRandom  # noqa: E402
from limner.train.data.sequences import ImageSequences  # noqa: E402
from limner.train.loop import read_log, train  # noqa: E402
from limner.train.losses import aggregated, choose_hard_fraction, masks_loss  # noqa: E402
from limner.train.parts.xmem_rollout import (  # noqa: E402
    XMemRollout,
    add_second_object,
    with_one_object,
)
from limner.train.parts.xmem_weights import Adapters, read_base  # noqa: E402
from limner.train.recipe import read_recipe  # noqa: E402
from limner.train.task import MAIN, MicroBatch, Networks, StepContext  # noqa: E402
from limner.train.tasks.xmem_adapters import Config, XMemAdapters  # noqa: E402
from train_makers import one_thread, small_xmem, volume_packs  # noqa: E402

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {
    "name": "imos",
    "adapter_width": 8,
    "frames": 3,
    "references": 2,
    "sizes": (64,),
    "batch_size": 2,
    "steps": 3,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "log_every": 1,
    "validate_every": 1000,
    "validate_targets": 1,
    "synthetic_fraction": 0.4,
    "moved_image_fraction": 0.5,
    "precision": "fp32",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_packs(tmp_path_factory)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_xmem(tmp_path_factory.mktemp("base") / "XMem.pth")


def _config(**values: object) -> Config:
    return Config(**(SMALL | values))  # type: ignore[arg-type]


def _train(folder: Path, out: Path, base: Path | None, **options: object) -> bool:
    return train(_config(**options), folder, out, device="cpu", start=base).finished


def _task(folder: Path, base: Path, **values: object) -> XMemAdapters:
    volumes, pictures = pack3d.open_volumes(folder), pack.open_pack(folder, slices=False)
    return XMemAdapters(_config(**values), volumes, pictures, torch.device("cpu"), base)


@pytest.fixture(scope="module")
def trained(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert _train(folder, out, base, steps=4, checkpoint_every=2)
    return out


# Recipes and losses.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames: 1", "trained on sequences; frames=1 is below 3"),
        ("adapter_width: 0", "at least 1"),
        ("sizes: [72]", "multiples of 16"),
        ("references: 0", "at least 1"),
    ],
)
def test_impossible_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: xmem-adapters\n{text}")
    with pytest.raises(FormatError, match=message):
        read_recipe(path)


def test_only_the_hardest_pixels_count_in_the_end() -> None:
    assert choose_hard_fraction(0.0) == choose_hard_fraction(0.18) == 1
    assert choose_hard_fraction(0.41) == pytest.approx(1 - 0.85 / 2)
    assert choose_hard_fraction(0.64) == choose_hard_fraction(1.0) == pytest.approx(0.15)
    target = torch.zeros(1, 1, 4, 5)
    target[..., :2, :] = 1
    inside, there = torch.ones(1, 1, 4, 5), torch.ones(1, 1)
    sure = torch.where(target > 0, 0.999, 0.001)
    wrong = sure.clone()
    wrong[0, 0, 3, 2:] = 0.9  # three pixels of twenty
    own = -np.log(1 - 0.9)
    few = masks_loss(aggregated(wrong), target, inside, there, 0.15)
    every = masks_loss(aggregated(wrong), target, inside, there, 1.0)
    # Of one object, the aggregation squares the odds.
    odds = (0.9 / 0.1) ** 2
    shares = torch.where(wrong > 0.5, 1.0, 0.0)
    assert shares.sum() == 13
    assert float(few - every) == pytest.approx(np.log1p(odds) * (1 - 3 / 20), rel=0.02)
    assert np.log1p(odds) > own
    beside = inside.clone()
    beside[0, 0, 3, 2:] = 0
    assert masks_loss(aggregated(wrong), target, beside, there, 1.0) < 0.01


def test_objects_exclude_one_another_as_in_sessions() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(2, 3, 4, 5, generator=generator)
    found = aggregated(own).softmax(dim=1).numpy()
    for k in range(2):
        assert np.allclose(found[k], memory.aggregated(own[k].numpy()), atol=1e-6)


# The walk over frames.


def _clips(seed: int = 0, number: int = 2, frames: int = 3) -> ImageSequences:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(number, frames, 3, 64, 64, generator=generator) * 0.3
    target = torch.zeros(number, frames, 1, 64, 64)
    for b in range(number):
        for t in range(frames):
            target[b, t, 0, 10 + 20 * b : 30 + 20 * b, 8 + 5 * t : 28 + 5 * t] = 1
    return ImageSequences(image + 0.5 * target, target, torch.ones_like(target))


def test_another_object_may_move_about_in_front() -> None:
    clips = _clips(number=16)
    shown = add_second_object(clips, BatchRandom(16, torch.Generator().manual_seed(1)))
    assert shown.target.shape == (16, 3, 2, 64, 64)
    assert shown.target.sum(dim=2).max() == 1
    assert 2 <= shown.there[:, 1].sum() <= 12
    assert shown.there[:, 0].all()
    both, one = (int((shown.there[:, 1] == n).nonzero()[0]) for n in (1, 0))
    second = shown.target[both, :, 1:]
    assert torch.equal(second, clips.target[both - 1])
    assert torch.equal(shown.image[both] * second, clips.image[both - 1] * second)
    assert torch.equal(shown.image[one], clips.image[one])
    assert not shown.target[one, :, 1].any()


def test_the_walk_is_what_a_session_does(base: Path) -> None:
    """Two frames, all of the memory read: the numbers of `MemoryPropagator`."""
    network = read_base(base).network()
    clips = _clips(number=1)
    levels = clips.image[0].permute(0, 2, 3, 1).mul(255).round().numpy()
    clips = replace(clips, image=torch.from_numpy(levels / 255).permute(0, 3, 1, 2)[None])
    shown = with_one_object(clips)
    with torch.no_grad():
        walk = XMemRollout(network, shown, "fp32")
        found = walk.step(1, [0]).softmax(dim=1)[:, 1:]
        walk.remember(1, found, deep=True)
        after = walk.step(2, [0, 1]).softmax(dim=1)[:, 1:]
    model = limner.create_model("xmem/base", weights=base, exact=True)
    assert isinstance(model, xmem.XMem)
    from limner.sessions.propagation.memory_propagator import MemoryPropagator

    recall = MemoryPropagator(model.adjusted(side=None, top=None, every=1, deep_every=1))
    own = shown.target[0, 0, 0].numpy() > 0
    for t, wanted in ((0, None), (1, found), (2, after)):
        frame = recall._model.encode_frame(View(levels[t], (1.0, 1.0), (0.0, 255.0)))
        given = {1: recall._model.to_grid(frame, own)} if t == 0 else {}
        answer = recall.step(frame, given, [1], place=t)
        if wanted is not None:
            assert np.abs(answer.probabilities[1] - wanted[0, 0].numpy()).max() < 1e-4


# Runs.


def _context(networks: Networks, seed: int, progress: float = 0.0) -> StepContext:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    return StepContext(round(10 * progress), 10, networks, networks, rng, generator)


def test_adapters_learn_and_nothing_else_changes(folder: Path, base: Path) -> None:
    task = _task(folder, base)
    torch.manual_seed(0)
    networks = task.networks()
    network = networks[MAIN]
    frozen = {k: v.clone() for k, v in task._frozen.state_dict().items()}
    batch = MicroBatch(with_one_object(_clips()), 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(2):
        task.step(batch, _context(networks, 7))["loss"].backward()
        if step == 0:
            assert all(p.grad is not None for p in network.parameters())
            ups = [p.grad for n, p in network.named_parameters() if n.endswith("up.weight")]
            assert all(g.abs().sum() > 0 for g in ups)
        optimiser.step()
        optimiser.zero_grad()
    alphas = [p for n, p in network.named_parameters() if n.endswith("alpha")]
    assert all(float(a.detach()) != 0.5 for a in alphas)
    after = task._frozen.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    assert not any(
        p.requires_grad for n, p in task._frozen.named_parameters() if "adapter" not in n
    )


def test_a_run_keeps_adapters_alone(trained: Path, base: Path) -> None:
    state = checkpoint.load(trained / "checkpoint.pt")
    names = set(Adapters(8).state_dict())
    network, averaged = state.networks[MAIN], state.averaged[MAIN]
    assert set(network) == set(averaged) == names
    assert all(".adapter." in n for n in names)
    assert (trained / "checkpoint.pt").stat().st_size < 8e6
    assert float(network["key_encoder.layer3.5.adapter.up.weight"].abs().max()) > 0
    lines = read_log(trained / "log.jsonl")
    assert [line["step"] for line in lines if "loss1" in line] == [1, 2, 3, 4]
    judged = [line["validation"] for line in lines if "validation" in line]
    assert 0 < judged[-1]["mean"]["copied"] <= 1
    from safetensors import safe_open

    with safe_open(trained / "imos-adapters.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["limner"])
        assert set(file.keys()) == names
        assert file.get_tensor("key_encoder.res2.0.adapter.down.weight").dtype == torch.float32
    assert facts["base"] == read_base(base).facts
    assert facts["base"]["file"] == "XMem.pth"


def test_a_run_does_not_go_on_with_another_file(
    folder: Path, trained: Path, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    with pytest.raises(CheckpointError, match=r"also when a run goes on: --start XMem\.pth"):
        _train(folder, out, None, steps=4, checkpoint_every=2)
    other = tmp_path / "other.pth"
    weights = torch.load(base, weights_only=True)
    weights["decoder.pred.bias"] += 1
    torch.save(weights, other)
    with pytest.raises(FormatError, match="adapters for other weights"):
        _train(folder, out, other, steps=4, checkpoint_every=2)
    with pytest.raises(CheckpointError, match=r"other\.pth is not what .* XMem\.pth, SHA-256"):
        export(trained, tmp_path, base=other)


@pytest.mark.full_size
def test_the_whole_file_opens_and_answers_differently(
    trained: Path, folder: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"adapters alone; .*--base XMem\.pth"):
        export(trained, tmp_path)
    arguments = ["train", "export", str(trained), "-o", str(tmp_path), "--base", str(base)]
    assert run(arguments) == 0
    path = tmp_path / "imos.safetensors"
    facts = json.loads((tmp_path / "imos.json").read_text())
    assert set(facts["sha256"]) == {path.name}
    network = xmem.network_of(path)
    plain = torch.load(base, weights_only=True)
    whole = network.state_dict()
    assert all(torch.equal(whole[k], v) for k, v in plain.items())
    view = View(np.float32(200 * np.random.default_rng(0).random((64, 64, 3))), (1, 1), (0, 255))
    answers = []
    for name, file in (("xmem/base", base), ("imos/base", path)):
        model = limner.create_model(name, weights=file, exact=True)
        assert isinstance(model, xmem.XMem)
        answers.append(model.adjusted(side=None).encode_frame(view).features.deep)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    # Stage 2 begins with it.
    task = _task(folder, path)
    assert task.digest == _task(folder, base).digest
    fresh = task.networks()
    task.start(path, fresh)
    averaged = checkpoint.load(trained / "checkpoint.pt").averaged[MAIN]
    assert all(torch.equal(averaged[k], v) for k, v in fresh[MAIN].state_dict().items())
    with pytest.raises(CheckpointError, match="another shape"):
        _task(folder, path, adapter_width=16).start(path, {MAIN: Adapters(16)})
    with pytest.raises(CheckpointError, match="holds adapters alone; join them"):
        read_base(trained / "imos-adapters.safetensors")


def test_half_precision_on_the_way(folder: Path, base: Path) -> None:
    task = _task(folder, base, precision="bf16", batch_size=1)
    networks = task.networks()
    context = _context(networks, 0, progress=1.0)
    (batch,) = task.draw(context)
    measured = task.step(batch, context)
    measured["loss"].backward()
    assert batch.samples == 1
    assert torch.isfinite(measured["loss2"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in networks[MAIN].parameters())
