"""Training XMem's adapters: what learns and what does not, resuming, the file that comes out."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limner
from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.models import View, xmem
from limner.networks.blocks import memory

torch = pytest.importorskip("torch")

from limner.export.built_in import export  # noqa: E402
from limner.models.xmem.network import XMemNetwork  # noqa: E402
from limner.train import checkpoint  # noqa: E402
from limner.train.config import TrainConfig, read_config, write_config  # noqa: E402
from limner.train.data import pack, pack3d  # noqa: E402
from limner.train.data.rng import BatchRandom  # noqa: E402
from limner.train.data.sequences import ImageSequences  # noqa: E402
from limner.train.loop import read_log, train  # noqa: E402
from limner.train.tasks.xmem_adapters import Adapters, Adapting, read_base  # noqa: E402
from limner.train.tasks.xmem_losses import aggregated, hard_share, masks_loss  # noqa: E402
from limner.train.tasks.xmem_sequence import XMemRollout, add_second_object, with_one_object  # noqa: E402
from train_makers import one_thread, volume_packs  # noqa: E402

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {
    "name": "imos",
    "adapters": 8,
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
    "synthetic": 0.4,
    "piles": 0.5,
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
    """A file as the authors publish theirs, with random weights that keep signals alive."""
    torch.manual_seed(0)
    network = XMemNetwork(key=16, value=64, hidden=16)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.weight.data.fill_(0.5)
    for head in (network.key_proj.key_proj, network.decoder.pred):
        head.weight.data.mul_(0.1)
    path = tmp_path_factory.mktemp("base") / "XMem.pth"
    torch.save(network.state_dict(), path)
    return path


def _config(**values: object) -> TrainConfig:
    return TrainConfig(**(SMALL | values))  # type: ignore[arg-type]


def _train(folder: Path, out: Path, base: Path | None, **options: object) -> bool:
    return train(
        _config(**options),
        pack.open_pack(folder, slices=False),
        out,
        device="cpu",
        start=base,
        volumes=pack3d.open_volumes(folder),
    ).finished


def _work(folder: Path, base: Path, **values: object) -> Adapting:
    volumes, pictures = pack3d.open_volumes(folder), pack.open_pack(folder, slices=False)
    return Adapting(_config(**values), volumes, pictures, torch.device("cpu"), base)


@pytest.fixture(scope="module")
def trained(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert _train(folder, out, base, steps=4, checkpoint_every=2)
    return out


# Recipes and losses.


@pytest.mark.parametrize("name", ["imos-stage1.yaml", "imos-stage2.yaml"])
def test_recipes_are_readable_and_survive_saving(name: str, tmp_path: Path) -> None:
    config = read_config(RECIPES / name)
    assert config.adapters
    assert config.of_volumes
    assert config.result == "imos-adapters"
    write_config(tmp_path / "saved.yaml", config)
    assert read_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapters: 8", "trained on sequences; frames=1 is below 3"),
        ("adapters: -1\nframes: 3", "not below 0"),
        ("adapters: 8\nframes: 3\nsizes: [72]", "multiples of 16"),
        ("adapters: 8\nframes: 3\nreferences: 0", "at least 1"),
    ],
)
def test_impossible_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_config(path)


def test_only_the_hardest_pixels_count_in_the_end() -> None:
    assert hard_share(0.0) == hard_share(0.18) == 1
    assert hard_share(0.41) == pytest.approx(1 - 0.85 / 2)
    assert hard_share(0.64) == hard_share(1.0) == pytest.approx(0.15)
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
    sequences = _clips(number=16)
    shown = add_second_object(sequences, BatchRandom(16, torch.Generator().manual_seed(1)))
    assert shown.target.shape == (16, 3, 2, 64, 64)
    assert shown.target.sum(dim=2).max() == 1
    assert 2 <= shown.there[:, 1].sum() <= 12
    assert shown.there[:, 0].all()
    both, one = (int((shown.there[:, 1] == n).nonzero()[0]) for n in (1, 0))
    second = shown.target[both, :, 1:]
    assert torch.equal(second, sequences.target[both - 1])
    assert torch.equal(shown.image[both] * second, sequences.image[both - 1] * second)
    assert torch.equal(shown.image[one], sequences.image[one])
    assert not shown.target[one, :, 1].any()


def test_the_walk_is_what_a_session_does(base: Path) -> None:
    """Two frames, all of the memory read: the numbers of `MemoryPropagator`."""
    network = read_base(base).network()
    sequences = _clips(number=1)
    levels = sequences.image[0].permute(0, 2, 3, 1).mul(255).round().numpy()
    sequences = replace(sequences, image=torch.from_numpy(levels / 255).permute(0, 3, 1, 2)[None])
    shown = with_one_object(sequences)
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


def test_it_learns_one_sequence_by_heart_and_nothing_else_changes(folder: Path, base: Path) -> None:
    work = _work(folder, base)
    torch.manual_seed(0)
    network = work.network()
    frozen = {k: v.clone() for k, v in work._frozen.state_dict().items()}
    sequences = _clips()
    work._maker.draw = lambda *_: sequences  # type: ignore[method-assign]
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for step in range(8):
        generator = torch.Generator().manual_seed(7)
        _, told = work.learn(network, np.random.default_rng(7), generator, 0.0)
        losses.append(float(told["loss1"] + told["loss2"]))
        if step == 0:
            assert all(p.grad is not None for p in network.parameters())
            ups = [p.grad for n, p in network.named_parameters() if n.endswith("up.weight")]
            assert all(g.abs().sum() > 0 for g in ups)
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    alphas = [p for n, p in network.named_parameters() if n.endswith("alpha")]
    assert all(float(a.detach()) != 0.5 for a in alphas)
    after = work._frozen.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    assert not any(
        p.requires_grad for n, p in work._frozen.named_parameters() if "adapter" not in n
    )


def test_a_run_keeps_adapters_alone(trained: Path, base: Path) -> None:
    state = checkpoint.load(trained / "checkpoint.pt")
    names = set(Adapters(8).state_dict())
    assert set(state.network) == set(state.averaged) == names
    assert all(".adapter." in n for n in names)
    assert (trained / "checkpoint.pt").stat().st_size < 8e6
    assert float(state.network["key_encoder.layer3.5.adapter.up.weight"].abs().max()) > 0
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a kill closes no files
def test_a_killed_run_goes_on_to_the_same_weights(
    folder: Path, trained: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parts"
    learn, seen = Adapting.learn, []

    def killed(*values: Any) -> Any:
        seen.append(values[-1])
        if len(seen) == 4:  # the checkpoint is of step 2
            raise KeyboardInterrupt
        return learn(*values)

    monkeypatch.setattr(Adapting, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        _train(folder, out, base, steps=4, checkpoint_every=2)
    gc.collect()
    assert _train(folder, out, base, steps=4, checkpoint_every=2)
    assert seen == [0.0, 0.25, 0.5, 0.75, 0.5, 0.75]
    whole, parts = (checkpoint.load(p / "checkpoint.pt") for p in (trained, out))
    assert all(torch.equal(whole.network[k], v) for k, v in parts.network.items())
    assert all(torch.equal(whole.averaged[k], v) for k, v in parts.averaged.items())
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
    work = _work(folder, path)
    assert work.digest == _work(folder, base).digest
    fresh = work.network()
    work.start(path, fresh)
    averaged = checkpoint.load(trained / "checkpoint.pt").averaged
    assert all(torch.equal(averaged[k], v) for k, v in fresh.state_dict().items())
    with pytest.raises(CheckpointError, match="another shape"):
        _work(folder, path, adapters=16).start(path, Adapters(16))
    with pytest.raises(CheckpointError, match="holds adapters alone; join them"):
        read_base(trained / "imos-adapters.safetensors")


def test_half_precision_on_the_way(folder: Path, base: Path) -> None:
    work = _work(folder, base, precision="bf16", batch_size=1)
    network = work.network()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    number, told = work.learn(network, rng, generator, 1.0)
    assert number == 1
    assert torch.isfinite(told["loss2"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
