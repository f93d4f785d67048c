"""The residual-encoder U-Net: shapes, planning, names of weights, the family built from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import parity

torch = pytest.importorskip("torch")

from limner.adapters.network_plan import NetworkPlan, Normalization  # noqa: E402
from limner.errors import CheckpointError, FormatError  # noqa: E402
from limner.models import SlabModel, View, create_model  # noqa: E402
from limner.models.resenc_unet import network_of  # noqa: E402
from limner.networks.resenc_unet import ResEncUNet, plan_stages  # noqa: E402
from limner.train.checkpoint import write_weights  # noqa: E402

PLAN = NetworkPlan(
    labels={1: "front", 4: "back"},
    normalization=(Normalization(),),
    spacing=(2.0, 1.0, 1.0),
    patch=(4, 8, 8),
    widths=(4, 8),
    blocks=(1, 1),
    strides=((1, 1, 1), (1, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3)),
)


def weights_file(path: Path, plan: NetworkPlan = PLAN) -> Path:
    torch.manual_seed(0)
    return write_weights(path, network_of(plan).state_dict(), {"plan": plan.to_json()})


@pytest.mark.parametrize(
    ("shape", "strides", "kernels"),
    [
        ((16, 24), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
        ((6, 16, 16), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
    ],
)
def test_logits_have_the_size_of_the_image_and_deep_ones_that_of_their_stage(
    shape: tuple[int, ...], strides: list, kernels: list
) -> None:
    network = ResEncUNet(2, 3, widths=(4, 6, 6), blocks=(1, 2, 1), strides=strides, kernels=kernels)
    image = torch.randn(2, 2, *shape)
    assert network(image).shape == (2, 3, *shape)
    network.deep_supervision = True
    full, half = network(image)
    torch.testing.assert_close(full, network.eval()(image)[0])
    assert half.shape[2:] == tuple(n // s for n, s in zip(shape, strides[1], strict=True))


def test_every_weight_takes_part() -> None:
    network = network_of(PLAN)
    network.deep_supervision = True
    sum(logits.square().sum() for logits in network(torch.randn(1, 1, 4, 8, 8))).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_stages_follow_patch_and_spacing() -> None:
    assert plan_stages((32, 32), (1.0, 1.0), 6)[0] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    strides, kernels = plan_stages((16, 64, 64), (5.0, 1.0, 1.0), 5)
    assert strides == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert kernels == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    with pytest.raises(ValueError, match="cannot be halved"):
        plan_stages((5, 7), (1.0, 1.0), 3)


def test_names_of_weights_are_those_of_dynamic_network_architectures() -> None:
    names = set(network_of(PLAN).state_dict())
    assert {
        "encoder.stem.convs.0.conv.weight",
        "encoder.stages.0.blocks.0.conv1.norm.bias",
        "encoder.stages.1.blocks.0.skip.1.conv.weight",
        "decoder.transpconvs.0.weight",
        "decoder.stages.0.convs.0.conv.bias",
        "decoder.seg_layers.0.weight",
    } <= names


def test_the_keys_of_a_published_network_are_these() -> None:
    keys = parity.System("nninteractive").spec["keys"]
    published = {
        name: tuple(facts["shape"])
        for name, facts in keys.items()
        if "all_modules" not in name and not name.startswith("decoder.encoder.")
    }
    strides = [(1, 1, 1)] + [(2, 2, 2)] * 5
    with torch.device("meta"):
        network = ResEncUNet(
            8,
            2,
            widths=(32, 64, 128, 256, 320, 320),
            blocks=(1, 3, 4, 6, 6, 6),
            strides=strides,
            kernels=[(3, 3, 3)] * 6,
        )
    assert {n: tuple(v.shape) for n, v in network.state_dict().items()} == published


def test_a_plan_is_the_same_after_json(tmp_path: Path) -> None:
    text = json.dumps(PLAN.to_json())
    assert NetworkPlan.from_json(json.loads(text), tmp_path) == PLAN
    with pytest.raises(CheckpointError, match="limner train"):
        NetworkPlan.from_json({"labels": {}}, tmp_path)
    with pytest.raises(CheckpointError, match="limner train"):
        NetworkPlan.from_json(None, tmp_path)


def test_normalisation_by_image_and_by_fixed_facts() -> None:
    pixels = np.array([[0.0, 10.0], [20.0, np.nan]])
    found = Normalization()(pixels)
    np.testing.assert_allclose(found, [[-1.2247, 0.0], [1.2247, 0.0]], atol=1e-3)
    fixed = Normalization("fixed", low=0, high=15, mean=5, std=5)(pixels)
    np.testing.assert_allclose(fixed, [[-1.0, 1.0], [2.0, 0.0]], atol=1e-6)
    assert not Normalization()(np.full((2, 2), 7)).any()


def test_the_family_is_built_from_a_file_and_has_its_facts(tmp_path: Path) -> None:
    model = create_model("resenc-unet", weights=weights_file(tmp_path / "w.safetensors"))
    assert isinstance(model, SlabModel)
    assert model.card.labels == {1: "front", 4: "back"}
    assert model.card.spacing == (2.0, 1.0, 1.0)
    assert model.card.limits(3) == (4, 8, 8)
    assert model.card.weights_sha256 is not None
    view = View(np.random.default_rng(0).normal(size=(5, 13, 9)), (2.0, 1.0, 1.0), (0.0, 1.0))
    logits = model.predict(view)
    assert logits.shape == (3, 5, 13, 9)
    exact = create_model("resenc-unet", weights=tmp_path / "w.safetensors", exact=True)
    np.testing.assert_allclose(exact.predict(view), logits, atol=1e-3)
    with pytest.raises(FormatError, match="1 channel"):
        model.predict(View(np.zeros((4, 8, 8, 2)), (2.0, 1.0, 1.0), (0.0, 1.0)))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "other.safetensors", {"a": torch.zeros(3)}, {})
    with pytest.raises(CheckpointError, match="limner train"):
        create_model("resenc-unet", weights=path)
    with pytest.raises(CheckpointError, match="limner train"):
        create_model("resenc-unet")
