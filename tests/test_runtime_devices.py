"""Which processor is chosen, on machines that are not at hand: PyTorch is told what it sees."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from limner import runtime  # noqa: E402
from limner.models import create_model  # noqa: E402
from limner.runtime import _devices, _modules, _torch  # noqa: E402


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what PyTorch and the system say of this machine."""

    def pretend(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(_devices, "_has_cuda_driver", lambda: cuda > 0)
        monkeypatch.setattr(_devices, "_is_apple_silicon", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("seen", "gpu", "device"),
    [
        ({}, None, "cpu"),
        ({"cuda": 2}, "cuda", "cuda"),
        ({"mps": True}, "mps", "mps"),
        ({"cuda": 1, "mps": True}, "cuda", "cuda"),
    ],
)
def test_auto_is_what_pytorch_offers(machine: Any, seen: Any, gpu: str | None, device: str) -> None:
    machine(**seen)
    assert _devices.find_gpu() == gpu
    assert _devices.device_of("auto").type == device


def test_devices_that_are_not_here_are_refused_by_name(machine: Any) -> None:
    machine(cuda=1)
    assert _devices.device_of("cuda:0").index == 0
    with pytest.raises(ValueError, match="PyTorch sees 1 GPUs"):
        _devices.device_of("cuda:1")
    with pytest.raises(ValueError, match="cannot use Metal here"):
        _devices.device_of("mps")
    with pytest.raises(ValueError, match="use auto, cpu, mps, cuda or cuda:N"):
        _devices.device_of("gpu")
    with pytest.raises(ValueError, match="use auto, cpu, mps, cuda or cuda:N"):
        create_model("toy", device="meta")


def test_without_a_driver_pytorch_is_not_imported(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _devices.find_gpu() is None
    monkeypatch.setattr(_devices, "_has_cuda_driver", lambda: True)
    assert _devices.find_gpu() is None  # a driver, and no PyTorch


@pytest.mark.parametrize("seen", [{"cuda": 1}, {"mps": True}])
def test_a_published_network_goes_to_the_gpu_where_there_is_one_else_to_openvino(
    machine: Any, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    went: list[str] = []

    def load(module: Any, where: Any, precision: str, **_: Any) -> Any:
        went.append(f"{where.type} {precision}")
        return SimpleNamespace(description="PyTorch")

    def converted(*_: Any, **__: Any) -> Any:
        went.append("OpenVINO")
        return SimpleNamespace(description="OpenVINO")

    monkeypatch.setattr(_torch, "load", load)
    monkeypatch.setattr(_torch, "has_bf16", lambda where: where.type == "cuda")
    monkeypatch.setattr(_modules, "load", converted)
    options: dict[str, Any] = {"key": "test", "inputs": [(1, 3)]}
    for found in (seen, {}):
        machine(**found)
        runtime.compile_module(torch.nn.ReLU, **options)
    runtime.compile_module(torch.nn.ReLU, exact=True, device="cpu", **options)
    first = "cuda bf16" if "cuda" in seen else "mps fp32"
    assert went == [first, "OpenVINO", "cpu fp32"]


def test_bf16_is_not_chosen_on_metal() -> None:
    assert not _torch.has_bf16(torch.device("mps"))


def test_the_built_in_network_runs_in_pytorch_on_a_gpu_that_is_asked_for(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(mps=True)
    went: list[Any] = []

    def load(module: Any, where: Any, precision: str, **_: Any) -> Any:
        went.append((type(module).__name__, where.type))
        return SimpleNamespace(description="PyTorch on mps")

    monkeypatch.setattr(_torch, "load", load)
    assert create_model("limner-2d", device="mps").card.runtime == "PyTorch on mps"
    assert went == [("PromptableLiteUNet2d", "mps")]
