"""Exported networks: the same answers as PyTorch's, small, always the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from limner import runtime
from limner.checkpoints.load import read_weights
from limner.cli.__main__ import run
from limner.errors import CheckpointError, FormatError
from limner.export.built_in import export, export_onnx
from limner.networks.lite_unet2d import PromptableLiteUNet2d
from limner.networks.unet2d import PromptableUNet2d
from limner.networks.unet3d import PromptableUNet3d
from limner.train import checkpoint

SHIPPED = {"widths": (32, 64, 128, 192, 256), "depths": (1, 2, 2, 2, 2)}
CONFIG = {"name": "small", "widths": [8, 16, 24], "depths": [1, 2, 1]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))


def _network(*, seed: int = 0, **sizes: tuple[int, ...]) -> PromptableUNet2d:
    """Random weights, none of them the zeros that a new network has, and so rounded nowhere."""
    torch.manual_seed(seed)
    network = PromptableUNet2d(**sizes).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def _rounded(network: PromptableUNet2d) -> PromptableUNet2d:
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    return network


def _write_run(folder: Path, network: PromptableUNet2d, step: int = 7) -> Path:
    folder.mkdir()
    facts = {"step": step, "pack": "abc", "config": CONFIG}
    return checkpoint.write_weights(folder / "small.safetensors", network.state_dict(), facts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [SHIPPED, {"widths": (8, 16), "depths": (1, 1)}, {"widths": (16, 8, 24), "depths": (2, 1, 3)}],
)
def test_answers_are_those_of_pytorch(sizes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    network = _network(**sizes)
    path = export_onnx(network, tmp_path / "n.onnx")
    exported = runtime.compile(path, precision="fp32")
    _rounded(network)
    rng = np.random.default_rng(0)
    unit = network.stride
    for batch, rows, columns in ((1, 2, 2), (1, 1, 5), (3, 4, 1), (1, 8, 8)):
        shape = (batch, 7, rows * unit, columns * unit)
        fused = rng.standard_normal(shape).astype(np.float32)
        with torch.inference_mode():
            logits, quality = network(torch.from_numpy(fused))
        answer = exported(fused)
        assert logits.abs().max() > 0.5, "answers this small would agree by themselves"
        assert np.abs(answer[0] - logits.numpy()).max() < 1e-3
        assert np.abs(answer[1] - quality.numpy()).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [SHIPPED, {"widths": (8, 16), "depths": (1, 1)}, {"widths": (16, 8, 24), "depths": (2, 1, 3)}],
)
def test_answers_on_volumes_are_those_of_pytorch(
    sizes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = PromptableUNet3d(**sizes).eval()
    for parameter in network.parameters():  # the convolutions across slices begin as zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    exported = runtime.compile(export_onnx(network, tmp_path / "n.onnx"), precision="fp32")
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    rng = np.random.default_rng(0)
    for batch, *counts in ((1, 1, 2, 2), (2, 2, 1, 3)):
        shape = (batch, 7, *(n * s for n, s in zip(counts, network.stride, strict=True)))
        fused = rng.standard_normal(shape).astype(np.float32)
        with torch.inference_mode():
            logits, quality = network(torch.from_numpy(fused))
        answer = exported(fused)
        assert logits.abs().max() > 0.5, "answers this small would agree by themselves"
        assert np.abs(answer[0] - logits.numpy()).max() < 1e-3
        assert np.abs(answer[1] - quality.numpy()).max() < 1e-3


@pytest.mark.slow
def test_answers_of_the_pretrained_kind_are_those_of_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = PromptableLiteUNet2d().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_((value + 0.1 * torch.randn_like(value).abs()).half().float())
            if name.endswith("running_var"):
                value.mul_(4)
    exported = runtime.compile(export_onnx(network, tmp_path / "n.onnx"), precision="fp32")
    rng = np.random.default_rng(0)
    for shape in ((1, 7, 64, 32), (2, 7, 96, 64)):
        fused = rng.standard_normal(shape).astype(np.float32)
        with torch.inference_mode():
            logits, quality = network(torch.from_numpy(fused))
        answer = exported(fused)
        assert logits.abs().max() > 0.5, "answers this small would agree by themselves"
        scale = float(logits.abs().max())
        assert np.abs(answer[0] - logits.numpy()).max() < 1e-4 * scale
        assert np.abs(answer[1] - quality.numpy()).max() < 1e-3 * max(1, float(quality.abs().max()))


def test_weights_are_kept_once_beside_the_graph(tmp_path: Path) -> None:
    """The graph holds no weights of its own; those beside it are what is run, or nothing is."""
    network = _network(widths=(8, 16, 24), depths=(1, 2, 1))
    found = export(_write_run(tmp_path / "run", network), tmp_path / "out")
    (graph,) = found.graphs
    count = sum(p.numel() for p in network.parameters())
    assert found.weights.stat().st_size > 2 * count > graph.stat().st_size
    outside = [c for c in onnx.load(graph, load_external_data=False).graph.initializer
               if c.data_location == onnx.TensorProto.EXTERNAL]  # fmt: skip
    assert {c.name for c in outside} == set(network.state_dict())
    onnx.checker.check_model(str(graph))
    fused = np.random.default_rng(1).standard_normal((1, 7, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        logits, _ = _rounded(network)(torch.from_numpy(fused))
    first = runtime.compile(graph, precision="fp32")(fused)[0]
    assert np.abs(first - logits.numpy()).max() < 1e-3
    content = bytearray(found.weights.read_bytes())
    content[-400:] = bytes(400)
    found.weights.write_bytes(content)
    assert not np.array_equal(runtime.compile(graph, precision="fp32")(fused)[0], first)
    found.weights.unlink()
    with pytest.raises(CheckpointError, match=r"small\.safetensors, which holds the weights of"):
        runtime.compile(graph, precision="fp32")


def test_an_answer_of_nothing_or_everything_is_judged_alike(tmp_path: Path) -> None:
    network = _rounded(_network(widths=(8, 16), depths=(1, 1)))
    fused = np.random.default_rng(1).standard_normal((1, 7, 32, 32)).astype(np.float32)
    for bias in (-40.0, 40.0):
        network.to_logits.bias.data.fill_(bias)
        compiled = runtime.compile(export_onnx(network, tmp_path / "n.onnx"), precision="fp32")
        with torch.inference_mode():
            _, quality = network(torch.from_numpy(fused))
        assert np.abs(compiled(fused)[1] - quality.numpy()).max() < 1e-3


def test_weights_are_kept_in_half_and_the_file_is_small(tmp_path: Path) -> None:
    network = _network(**SHIPPED)
    count = sum(p.numel() for p in network.parameters())
    path = export_onnx(network, tmp_path / "n.onnx")
    assert 2 * count < path.stat().st_size < 2 * count + 170_000
    kept = {c.name: onnx.numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer}
    for name, value in network.state_dict().items():
        wanted = value.half().numpy()
        assert kept[name].dtype == np.float16
        assert np.array_equal(kept[name], wanted.reshape(kept[name].shape)), name


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name, seed, order in (("a", 0, 1), ("b", 0, -1), ("c", 1, 1)):
        facts = dict(list({"step": 3, "note": "x", "config": CONFIG}.items())[::order])
        network = _network(seed=seed, widths=(8, 16), depths=(1, 1))
        files.append(export_onnx(network, tmp_path / name, facts=facts).read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_the_graph_uses_plain_operations(tmp_path: Path) -> None:
    """No GroupNormalization, which crashes OpenVINO 2026.4 where sizes are fixed; weights alone are
    put in another order.
    """
    model = onnx.load(export_onnx(_network(**SHIPPED), tmp_path / "n.onnx"))
    fixed, operations = {c.name for c in model.graph.initializer}, set()
    for node in model.graph.node:
        if set(node.input) <= fixed:
            fixed |= set(node.output)
        else:
            operations.add(node.op_type)
    assert not operations & {"GroupNormalization", "InstanceNormalization", "Reshape", "Transpose"}
    assert [port.name for port in model.graph.input] == ["fused"]
    assert [port.name for port in model.graph.output] == ["logits", "quality"]


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    network = _network(widths=(8, 16), depths=(1, 1))
    for bad in (7e4, float("nan"), float("inf")):
        network.lift[0].weight.data[0, 0, 0, 0] = bad
        with pytest.raises(CheckpointError, match=r"lift\.0\.weight is not finite"):
            export_onnx(network, tmp_path / "n.onnx")
    assert list(tmp_path.glob("*.onnx")) == []


def test_a_run_is_exported_with_its_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = _network(widths=(8, 16, 24), depths=(1, 2, 1))
    source = _write_run(tmp_path / "run", network)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not looked at")
    assert run(["train", "export", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    names = ["small.json", "small.onnx", "small.safetensors"]
    assert all(name in said for name in names)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    facts = json.loads((tmp_path / "out" / "small.json").read_text())
    hashes = {
        name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        for name in names[1:]
    }
    assert facts == {
        "step": 7,
        "pack": "abc",
        "config": CONFIG,
        "sha256": hashes,
        "agreement": {},
    }
    inside = {p.key: p.value for p in onnx.load(tmp_path / "out" / "small.onnx").metadata_props}
    assert inside["weights_sha256"] == hashes["small.safetensors"]
    assert json.loads(inside["config"]) == CONFIG
    before, after = (read_weights(p) for p in (source, tmp_path / "out" / "small.safetensors"))
    assert before[1] == after[1]
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0] | after[0])


def test_both_exported_files_answer_alike_and_exporting_again_changes_nothing(
    tmp_path: Path,
) -> None:
    _write_run(tmp_path / "run", _network(widths=(8, 16, 24), depths=(1, 2, 1)))
    first = export(tmp_path / "run", tmp_path / "one")
    again = export(first.weights, tmp_path / "two")
    for a, b in zip(
        (first.weights, *first.graphs, first.facts),
        (again.weights, *again.graphs, again.facts),
        strict=True,
    ):
        assert a.read_bytes() == b.read_bytes()
    eager = PromptableUNet2d((8, 16, 24), (1, 2, 1))
    checkpoint.load_weights(first.weights, eager)
    fused = np.random.default_rng(2).standard_normal((2, 7, 40, 56)).astype(np.float32)
    answers = [
        runtime.compile(source, device="cpu", precision="fp32")(fused)
        for source in (first.graphs[0], eager)
    ]
    assert np.abs(answers[0][0] - answers[1][0]).max() < 1e-3


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    network = _network(widths=(8, 16), depths=(1, 1))
    with pytest.raises(CheckpointError, match="There is no run"):
        export(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds 0 weights files"):
        export(tmp_path / "empty", tmp_path / "out")
    _write_run(tmp_path / "other", network)  # its facts tell of three levels
    with pytest.raises(CheckpointError, match="of another network"):
        export(tmp_path / "other", tmp_path / "out")
    bare = checkpoint.write_weights(tmp_path / "bare.safetensors", network.state_dict(), {})
    with pytest.raises(CheckpointError, match="does not say what network"):
        export(bare, tmp_path / "out")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        export(tmp_path / "bad.safetensors", tmp_path / "out")
    right = _write_run(tmp_path / "right", _network(widths=(8, 16, 24), depths=(1, 2, 1)))
    with pytest.raises(FormatError, match="Cannot make the folder"):
        export(right, right / "below_a_file")
    assert not (tmp_path / "out").exists()
