"""Training as SegVol: both stages end to end with small networks, files, resuming, prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import limner
import parity
from dicom_makers import save_series
from limner.cli.__main__ import run
from limner.datasets import volume_folders
from limner.errors import CheckpointError, FormatError, PromptError
from limner.models import segvol
from limner.models.segvol.network import SegVolNetwork
from limner.train import checkpoint
from limner.train.data.segvol_cases import prepare_cases
from limner.train.data.segvol_views import crop_view, whole_view
from limner.train.loop import read_log, train
from limner.train.parts import segvol_files
from limner.train.parts.segvol_encoder import encode
from limner.train.recipe import read_recipe, write_config
from limner.train.simulate.segvol import encode_prompts
from limner.train.task import MAIN, StepContext
from limner.train.tasks import segvol_finetune, segvol_pretrain
from limner.train.tasks.segvol_finetune import COMBINATIONS, SegVolFinetuning, mask_loss
from limner.train.tasks.segvol_pretrain import MaskedVolumes, draw_mask, fill_loss, voxels_by_token
from train_makers import labelled_scan, labelled_volumes

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
NETWORK: dict[str, Any] = {
    "size": (8, 32, 32),
    "patch": (2, 8, 8),
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 64,
    "batch_size": 2,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "log_every": 1,
}
STAGE1 = segvol_pretrain.Config(**NETWORK, steps=4, mask_patch=(4, 16, 16))
STAGE2 = segvol_finetune.Config(
    **NETWORK,
    steps=3,
    text_dim=16,
    text_depth=1,
    text_heads=2,
    text_hidden=16,
    pseudo_min_size=60,
    scale_shift_share=0.5,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_volumes(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def stage1(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    assert train(STAGE1, data, out, device="cpu").finished
    return out


@pytest.fixture(scope="module")
def stage2(data: Path, stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage2")
    start = stage1 / "vit-pretrain.ckpt"
    assert train(STAGE2, data, out, device="cpu", start=start).finished
    return out


@pytest.mark.parametrize("name", ["segvol-pretrain.yaml", "segvol-finetune.yaml"])
def test_recipes_are_those_of_the_published_network(name: str) -> None:
    config = read_recipe(RECIPES / name)
    assert isinstance(config, segvol_pretrain.Config | segvol_finetune.Config)
    assert config.plan() == type(config)().plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: segvol\nsteps: 3", "use one of .*segvol-finetune, segvol-pretrain"),
        ("method: segvol-pretrain\njitter: 2", "unknown key 'jitter'"),
        ("method: segvol-finetune\nsuffix: x", "unknown key 'suffix'"),
        ("method: segvol-finetune\ncombinations: [text, lasso]", "use some of point"),
        ("method: segvol-finetune\nsize: [32, 250, 256]", "multiples of patch"),
        ("method: segvol-pretrain\nmask_patch: [6, 32, 32]", "multiples of"),
        ("method: segvol-pretrain\nmask_ratio: 1.0", "between 0 and 1"),
        ("method: segvol-pretrain\nsteps: 0", "at least 1"),
        ("method: segvol-finetune\ncrops: 2.0", "0 to 1"),
    ],
)
def test_malformed_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_first_stage_masks_as_much_as_asked_and_learns_what_is_masked() -> None:
    rng = np.random.default_rng(0)
    mask = draw_mask(STAGE1, rng)
    assert mask.shape == (4 * 4 * 4,)
    assert mask.mean() == pytest.approx(5 / 8)  # of 8 blocks
    blocks = mask.reshape(2, 2, 2, 2, 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(8, 8)
    assert all(row.all() or not row.any() for row in blocks)
    volume = torch.rand(1, 1, 8, 32, 32)
    exact = voxels_by_token(volume, STAGE1.patch)
    masked = torch.from_numpy(mask)[None]
    wrong = exact.clone()
    wrong[~masked] += 5.0  # not asked for
    assert fill_loss(wrong, volume, masked, STAGE1.patch) == 0
    wrong[masked] += 0.5
    assert float(fill_loss(wrong, volume, masked, STAGE1.patch)) == pytest.approx(0.5, abs=1e-5)


def test_the_encoder_does_not_see_what_is_masked() -> None:
    network = MaskedVolumes(STAGE1.plan())
    masked = torch.from_numpy(draw_mask(STAGE1, np.random.default_rng(1)))[None]
    volume = torch.rand(1, 1, 8, 32, 32)
    tokens = voxels_by_token(volume, STAGE1.patch)
    other = torch.where(masked[..., None], torch.rand_like(tokens), tokens)
    back = other.reshape(1, 4, 4, 4, 2, 8, 8).permute(0, 1, 4, 2, 5, 3, 6).reshape(volume.shape)
    assert not torch.equal(back, volume)
    with torch.no_grad():
        assert torch.equal(network(volume, masked), network(back, masked))
        plain = encode(network.encoder, volume)
        assert torch.equal(plain, network.encoder(volume))
        half = encode(network.encoder, volume, bf16=True)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.1)
    twice = encode(network.encoder, volume, checkpointing=True)
    assert torch.equal(twice.detach(), plain)


def test_the_first_stage_writes_the_published_container(stage1: Path, tmp_path: Path) -> None:
    content = torch.load(stage1 / "vit-pretrain.ckpt", weights_only=True)
    encoder = {
        n.split("model.encoder.")[1]: v
        for n, v in content["state_dict"].items()
        if "model.encoder." in n
    }
    network = SegVolNetwork(STAGE1.plan())
    network.image_encoder.load_state_dict(encoder)
    assert json.loads(content["facts"])["step"] == 4
    losses = [line["loss"] for line in read_log(stage1 / "log.jsonl")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    again = MaskedVolumes(STAGE1.plan())
    segvol_files.start_pretraining(stage1 / "vit-pretrain.ckpt", again)
    assert torch.equal(again.mask_token, content["state_dict"]["model.mask_token"])


def test_volumes_are_prepared_once(data: Path, tmp_path: Path) -> None:
    train(STAGE1.changed(steps=1), data, tmp_path, device="cpu")
    path = tmp_path / "volumes" / "00000.image.npy"
    before = path.stat().st_mtime_ns
    train(STAGE1.changed(steps=1), data, tmp_path, device="cpu")
    assert path.stat().st_mtime_ns == before


def test_the_second_stage_learns_and_writes_what_the_model_loads(stage2: Path) -> None:
    path = stage2 / "segvol.pth"
    content = torch.load(path, weights_only=True)
    assert all(name.startswith("module.") for name in content["model"])
    learnt = checkpoint.load(stage2 / "checkpoint.pt").networks[MAIN]
    weights = segvol.SEGVOL.file_weights(path)
    for part in ("image_encoder", "prompt_encoder", "mask_decoder", "text_encoder"):
        loaded = segvol.make_part(STAGE2.plan(), part, weights).state_dict()
        assert loaded
        assert all(torch.equal(learnt[name], value) for name, value in loaded.items())
    lines = read_log(stage2 / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["updates"] in (1, 2) for line in lines)
    assert {f"dice_{c}" for c in COMBINATIONS} <= set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "pseudo" in lines[0]


def test_the_text_tower_stays_and_the_rest_learns(stage1: Path, stage2: Path) -> None:
    torch.manual_seed(STAGE2.seed)
    network = SegVolNetwork(STAGE2.plan())
    learnt = checkpoint.load(stage2 / "checkpoint.pt").networks[MAIN]
    begun = torch.load(stage1 / "vit-pretrain.ckpt", weights_only=True)["state_dict"]
    frozen = {n: v for n, v in network.state_dict().items() if n.startswith("text_encoder.")}
    assert all(torch.equal(learnt[n], v) for n, v in frozen.items())
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(learnt[f"image_encoder.{name}"], begun[f"model.encoder.{name}"])
    matrix = learnt["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert 0.5 < float(matrix.std()) < 1.5


def test_the_published_sizes_give_the_published_names() -> None:
    keys = parity.system("segvol").spec["keys"]
    with torch.device("meta"):
        network = SegVolNetwork(segvol_finetune.Config().plan())
    written: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
        patched.setattr(
            segvol_files, "_save", lambda path, content: written.update(content["model"])
        )
        segvol_files.write_network(Path("x.pth"), network, {})
    shapes = {name.removeprefix("module."): list(v.shape) for name, v in written.items()}
    assert shapes == {name: fact["shape"] for name, fact in keys.items()}


def test_gradients_do_not_depend_on_how_a_batch_is_cut(data: Path, tmp_path: Path) -> None:
    # Prompts are drawn per part, so only boxes are alike however the batch is cut.
    config = STAGE2.changed(crops=0.0, batch_size=2, pseudo=False, combinations=("box", "box+text"))
    config = config.changed(most_positive=0, most_negative=0)
    cases, digest = prepare_cases(volume_folders.labelled(data, named=True), tmp_path / "v")
    found = []
    for change in ({}, {"micro_batch": 1}, {"micro_batch": 1, "checkpointing": True}):
        torch.manual_seed(0)
        task = SegVolFinetuning(config.changed(**change), cases, digest, torch.device("cpu"))
        networks = task.networks()
        rng, generator = np.random.default_rng(0), torch.Generator()
        context = StepContext(1, 10, networks, networks, rng, generator)
        norms = []
        for batch in task.draw(context):
            context.weight = batch.weight
            task.step(batch, context)
            if batch.last:
                grads = [p.grad for p in networks[MAIN].parameters() if p.grad is not None]
                norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])))
                networks[MAIN].zero_grad()
        found.append(norms)
    assert len(found[0]) == 2
    for norms in found[1:]:
        torch.testing.assert_close(norms, found[0], rtol=1e-4, atol=1e-6)


def test_the_layer_after_the_text_tower_learns_if_asked(data: Path, tmp_path: Path) -> None:
    config = STAGE2.changed(
        steps=1, combinations=("text",), train_dim_align=True, pseudo=False, most_objects=1
    )
    states = []
    for name, learns in (("a", True), ("b", False)):
        config = config.changed(train_dim_align=learns)
        train(config, data, tmp_path / name, device="cpu")
        states.append(checkpoint.load(tmp_path / name / "checkpoint.pt").networks[MAIN])
        (line,) = read_log(tmp_path / name / "log.jsonl")
        assert line["updates"] == 1
    changed = {n for n in states[0] if not torch.equal(states[0][n], states[1][n])}
    assert changed == {"text_encoder.dim_align.weight", "text_encoder.dim_align.bias"}


def test_unknown_words_are_refused_before_anything_is_learnt(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        dataclasses.replace(s, label_names={"glorbish spleen": (2,)})
        for s in volume_folders.labelled(data, named=True)
    ]
    cases, digest = prepare_cases(found, tmp_path / "v")
    monkeypatch.setattr("limner.models.segvol.tokens.merges_file", lambda beside: None)
    with pytest.raises(PromptError, match="glorbish spleen"):
        SegVolFinetuning(STAGE2, cases, digest, torch.device("cpu"))
    silent = STAGE2.changed(combinations=("box", "point"))
    assert SegVolFinetuning(silent, cases, digest, torch.device("cpu")).networks()


def test_loss_is_that_of_dice_and_entropy() -> None:
    target = torch.zeros(1, 1, 8, 16, 16)
    target[..., :8] = 1
    right, found = mask_loss(torch.where(target > 0, 30.0, -30.0), target)
    number = float(target.sum())
    assert float(found) == 1
    assert float(right) == pytest.approx(1 - 2 * number / (2 * number + 1), abs=1e-4)
    unsure, _ = mask_loss(torch.zeros(1, 1, 8, 4, 4), target)
    soft = 1 - 2 * 0.5 * number / (number + number + 1)
    assert float(unsure) == pytest.approx(soft + np.log(2), abs=1e-4)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_prompts_of_every_combination_are_about_the_object(combination: str) -> None:
    mask = np.zeros((8, 32, 32), dtype=bool)
    mask[2:5, 10:20, 3:9] = True
    numbers = set()
    for seed in range(20):
        told = encode_prompts(mask, np.random.default_rng(seed))
        points, labels = told.tokens(combination)
        assert len(points) == len(labels)
        kinds = combination.split("+")
        expected = ("point" in kinds) * 21 + ("box" in kinds) * 2
        expected += "point" in kinds and "box" not in kinds
        assert len(points) == expected
        for point, label in zip(points.astype(int), labels, strict=True):
            if label in (0, 1):
                assert mask[tuple(point)] == (label == 1)
        if "point" in kinds:
            assert 1 <= (labels == 1).sum() <= 11
            assert (labels == 0).sum() <= 10
            numbers.add(((labels == 1).sum(), (labels == 0).sum()))
        if "box" in kinds:
            assert points[labels == 2].tolist() == [[2, 10, 3]]
            assert points[labels == 3].tolist() == [[4, 19, 8]]
    assert len(numbers) > 5 or "point" not in combination


def test_small_objects_and_jittered_boxes_give_valid_prompts() -> None:
    mask = np.zeros((4, 8, 8), dtype=bool)
    mask[3, 7, 0] = True
    for seed in range(30):
        told = encode_prompts(mask, np.random.default_rng(seed), jitter=3)
        assert (told.labels == 1).sum() == 1
        assert (told.box[0] <= told.box[1]).all()
        assert (told.box >= 0).all()
        assert (told.box < np.array(mask.shape)).all()


def test_views_are_of_the_volume_as_the_model_sees_it(data: Path, tmp_path: Path) -> None:
    found = volume_folders.labelled(data, named=True)
    cases, _ = prepare_cases(found, tmp_path / "v", STAGE2.pseudo_labels())
    case = cases[0]
    assert case.names == {"liver": (1,), "spleen": (2,)}
    assert case.image.shape == (12, 35, 32)  # without the air
    seen = whole_view(case, (8, 32, 32))
    assert seen.image.min() == 0
    assert 0.9 < seen.image.max() <= 1
    assert seen.image[seen.mask("spleen")].mean() > seen.image[seen.mask("liver")].mean() + 0.2
    # Axes run to the head, to the front, to the right; the file's to the head, back, and left.
    liver = np.argwhere(seen.mask("liver")).mean(0)
    spleen = np.argwhere(seen.mask("spleen")).mean(0)
    assert liver[1] > spleen[1]
    assert liver[2] > spleen[2]
    assert seen.pseudo is not None
    common = np.unique(seen.pseudo[seen.mask("liver")])
    assert len(common) == 1  # pasted over
    near = crop_view(case, (8, 32, 32), (6, 20, 18))
    assert near.pseudo is not None
    inner = near.mask("liver")[:, 1:-1, 1:-1]
    assert (near.pseudo[:, 1:-1, 1:-1][inner] == common[0]).mean() > 0.8
    wide = crop_view(case, (16, 32, 64), (0, 0, 0))
    assert wide.labels is not None
    assert wide.pseudo is not None
    assert (wide.image[:2] == 0).all()
    assert (wide.pseudo[:2] == -1).all()
    assert wide.labels[2:14].any()


def test_layouts_and_names(data: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    nnunet = top / "Dataset1"
    for part in ("imagesTr", "labelsTr"):
        (nnunet / part).mkdir(parents=True)
    image, labels = labelled_scan(0)
    limner.io.write_image(nnunet / "imagesTr" / "a_0000.nii.gz", image)
    limner.write(nnunet / "labelsTr" / "a.nii.gz", labels, like=image)
    (nnunet / "dataset.json").write_text(
        '{"labels": {"background": 0, "both": [1, 2], "spleen": 2, "absent": 9}}'
    )
    (found,) = volume_folders.labelled(top, named=True)
    assert found.name == "Dataset1/a"
    (case,), _ = prepare_cases([found], tmp_path / "v")
    assert case.names == {"both": (1, 2), "spleen": (2,)}
    (nnunet / "dataset.json").write_text('{"labels": {"0": "background", "1": "liver"}}')
    assert volume_folders.labelled(nnunet, named=True)[0].label_names == {"liver": (1,)}
    assert [s.name for s in volume_folders.unlabelled(top)] == ["Dataset1/imagesTr/a_0000"]
    (nnunet / "dataset.json").unlink()
    (case,), _ = prepare_cases(volume_folders.labelled(top, named=False), tmp_path / "v")
    assert case.names == {"object 1": (1,), "object 2": (2,)}
    with pytest.raises(FormatError, match="names no labels"):
        volume_folders.labelled(top, named=True)


def test_useless_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no folder"):
        volume_folders.unlabelled(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="holds no volumes"):
        volume_folders.unlabelled(tmp_path)
    with pytest.raises(FormatError, match="holds no labelled volumes"):
        volume_folders.labelled(tmp_path, named=True)
    image, labels = labelled_scan(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    limner.write(tmp_path / "labels" / "a.nii.gz", labels, like=image)
    (tmp_path / "dataset.json").write_text('{"labels": {"liver": 7}}')
    with pytest.raises(FormatError, match="holds no labelled volumes"):
        volume_folders.labelled(tmp_path, named=True)
    limner.io.write_image(tmp_path / "images" / "a.nii.gz", image)
    with pytest.raises(FormatError, match="No object occurs"):
        prepare_cases(volume_folders.labelled(tmp_path, named=True), tmp_path / "v")
    (tmp_path / "dataset.json").write_text('{"labels": {"liver": {"x": 1}}}')
    with pytest.raises(FormatError, match="does not name labels"):
        volume_folders.labelled(tmp_path, named=True)


def test_wrong_files_to_start_from_are_refused(stage1: Path, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    network = SegVolNetwork(STAGE2.plan())
    with pytest.raises(CheckpointError, match="holds no encoder of SegVol"):
        segvol_files.start_finetuning(tmp_path / "other.pth", network)
    with pytest.raises(CheckpointError, match="no text tower"):
        segvol_files.fill_text_tower(tmp_path / "other.pth", network)
    larger = SegVolNetwork(STAGE2.changed(dim=64).plan())
    with pytest.raises(CheckpointError, match="another shape"):
        segvol_files.start_finetuning(stage1 / "vit-pretrain.ckpt", larger)
    tower = network.text_encoder.clip_text_model.state_dict()
    named = {f"text_model.{name}": value + 1.0 for name, value in tower.items()}
    torch.save(named, tmp_path / "clip.pth")
    segvol_files.fill_text_tower(tmp_path / "clip.pth", network)
    name = "final_layer_norm.weight"
    filled = network.text_encoder.clip_text_model.state_dict()[name]
    assert torch.equal(filled, named[f"text_model.{name}"])


def test_the_command_runs_a_recipe(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    write_config(recipe, STAGE1)
    command = ["train", str(recipe), "--data", str(data), "--out", str(tmp_path / "run")]
    assert run([*command, "--steps", "1", "--device", "cpu"]) == 0
    assert "step 1 of 1, finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "vit-pretrain.ckpt").is_file()


def test_series_and_pictures_among_volumes(data: Path, tmp_path: Path) -> None:
    image, _ = labelled_scan(3)
    pixels = np.asarray(image.array)
    save_series(tmp_path / "patient" / "one", pixels)
    save_series(tmp_path / "patient" / "two", pixels[:, :20])
    for path in sorted((tmp_path / "patient" / "two").iterdir()):
        path.rename(tmp_path / "patient" / "one" / f"two-{path.name}")
    limner.io.write_image(tmp_path / "more.nrrd", image)
    found = volume_folders.unlabelled(tmp_path)
    assert len(found) == 3
    assert found[0].name == "more"
    cases, _ = prepare_cases(found, tmp_path / "v")
    heights = [case.image.shape[1] for case in cases]
    assert sorted(heights) == [15, 35, 35]
    (tmp_path / "v" / "00001.image.npy").unlink()
    again, _ = prepare_cases(found, tmp_path / "v")
    assert again == cases
    assert again[1].image.shape[1] == heights[1]
