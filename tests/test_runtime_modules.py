"""PyTorch modules converted for OpenVINO: the same answers, open sizes, the cache, and recording
without computing.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from limner import runtime
from limner.errors import MissingDependency
from limner.runtime import _embeddings, _modules, _openvino, _tracing

pytestmark = pytest.mark.slow

needs_bf16 = pytest.mark.skipif(not _openvino.has_bf16(), reason="needs bf16 instructions")

SHAPES = [(1, 8, 4, 4), (None, None, 2), (None,)]


class Small(nn.Module):
    """A picture, any number of prompts with any number of points, and a flag per prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 8, 2, 2))
        self.points = nn.Linear(2, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.mix = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, picture: Tensor, points: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
        places = functional.interpolate(self.table, (4, 4), mode="bilinear")
        keys = (picture + places).flatten(2).transpose(1, 2)
        tokens = self.norm(self.points(points))
        weights = (tokens @ keys.transpose(1, 2)).softmax(dim=1)
        seen = keys + weights.transpose(1, 2) @ tokens
        seen = torch.where(flag[:, None, None] > 0, seen, keys)
        maps = self.up(seen.transpose(1, 2).reshape(-1, 8, 4, 4))
        return functional.gelu(self.mix(maps)), tokens.mean(dim=1)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def _asked(prompts: int, points: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(prompts * 10 + points)
    shapes = (1, 8, 4, 4), (prompts, points, 2), (prompts,)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _compiled(make: Callable[[], nn.Module] = build, **named: Any) -> runtime.Network:
    given = {"key": "small", "inputs": SHAPES, "precision": "fp32", "device": "cpu"} | named
    return runtime.compile_module(make, **given)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def _never() -> nn.Module:
    raise AssertionError("the module was built again")


# Answers


@pytest.mark.parametrize(("prompts", "points"), [(1, 1), (2, 3), (1, 5), (7, 2)])
def test_answers_are_those_of_the_module_at_all_sizes(prompts: int, points: int) -> None:
    converted, exact = _compiled(), _compiled(exact=True)
    assert converted.description.startswith("OpenVINO")
    assert converted.description.endswith("fp32")
    assert exact.description == f"PyTorch {torch.__version__} on cpu, fp32"
    asked = _asked(prompts, points)
    with torch.inference_mode():
        right = build()(*(torch.from_numpy(a) for a in asked))
    for network, tolerance in ((converted, 1e-5), (exact, 1e-6)):
        for ours, wanted in zip(network(*asked), right, strict=True):
            assert ours.dtype == np.float32
            assert ours.shape == wanted.shape
            assert np.abs(ours - wanted.numpy()).max() < tolerance


@needs_bf16
def test_bf16_is_said_and_is_near() -> None:
    asked = _asked(2, 3)
    near, right = _compiled(precision="auto"), _compiled(exact=True)
    assert near.description.endswith("bf16")
    assert 1e-4 < np.abs(near(*asked)[0] - right(*asked)[0]).max() < 0.1


@needs_bf16
def test_weights_in_bf16_halve_the_file_and_change_no_answer(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 64, 4, 4)
            self.table = nn.Parameter(torch.randn(64, 8, 8))
            self.linear = nn.Linear(64, 1024)
            self.last = nn.Linear(1024, 512)
            self.up = nn.ConvTranspose2d(512, 16, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = (self.first(x) + self.table).flatten(2).transpose(1, 2)
            tokens = self.last(functional.gelu(self.linear(tokens)))
            return self.up(tokens.transpose(1, 2).reshape(-1, 512, 8, 8))

    picture = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    given: dict[str, Any] = {"inputs": [(1, 3, 32, 32)], "precision": "bf16"}
    small = _compiled(Wide, **given)(picture)[0]
    monkeypatch.setattr(_modules, "_round_weights", lambda model: None)
    assert np.array_equal(_compiled(Wide, key="large", **given)(picture)[0], small)
    sizes = sorted(path.stat().st_size for path in cache.iterdir())
    assert sizes[0] < 0.55 * sizes[1]


def test_without_bf16_instructions_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openvino, "has_bf16", lambda: False)
    assert _compiled(precision="auto").description.endswith("fp32")
    with pytest.raises(ValueError, match="does not compute in bf16"):
        _compiled(precision="bf16")


def test_contradictions_and_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="exact means float32"):
        _compiled(exact=True, precision="bf16")
    with pytest.raises(ValueError, match="'fp16'; use auto, fp32 or bf16"):
        _compiled(precision="fp16")
    with pytest.raises(ValueError, match="evice"):
        _compiled(device="gpu")
    network = _compiled()
    asked = _asked(2, 3)
    with pytest.raises(ValueError, match="2 inputs given; the network takes 3"):
        network(*asked[:2])
    with pytest.raises(ValueError, match=r"shape \(1, 8, 4, 5\)"):
        network(np.zeros((1, 8, 4, 5), np.float32), *asked[1:])
    assert network(*asked)[0].shape == (2, 2, 8, 8)


def test_a_network_that_takes_views_of_its_tensors_runs_exactly() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 6, -1)  # which fails where channels come last

    picture = np.arange(96, dtype=np.float32).reshape(1, 6, 4, 4)
    network = _compiled(Views, exact=True)
    assert np.array_equal(network(picture)[0], picture.reshape(1, 6, 16))


# The cache


def test_the_second_start_needs_neither_the_module_nor_pytorch(cache: Path) -> None:
    asked = _asked(2, 3)
    right = _compiled()(*asked)
    assert len(list(cache.iterdir())) == 1
    for ours, wanted in zip(_compiled(_never)(*asked), right, strict=True):
        assert np.array_equal(ours, wanted)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from limner import runtime\n"
        f"n = runtime.compile_module(None, key='small', inputs={SHAPES!r}, precision='fp32')\n"
        "import numpy as np\n"
        "o = n(*(np.ones(s, np.float32) for s in ((1, 8, 4, 4), (5, 2, 2), (5,))))\n"
        "print(o[0].shape, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "(5, 2, 8, 8) False\n", done.stderr


@pytest.mark.parametrize(
    "change", [{"key": "other"}, {"inputs": [(1, 8, 4, 4), (None, 3, 2), (None,)]}]
)
def test_another_key_or_shape_is_another_network(change: dict[str, Any]) -> None:
    _compiled()
    with pytest.raises(AssertionError, match="built again"):
        _compiled(_never, **change)


def test_changed_code_is_converted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _compiled()
    monkeypatch.setattr(_modules, "code", lambda: "changed")
    with pytest.raises(AssertionError, match="built again"):
        _compiled(_never)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_converted_again(cache: Path, harm: str) -> None:
    asked = _asked(1, 2)
    right = _compiled()(*asked)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    entry.write_bytes({"cut": whole[:-1], "flipped": bytes(flipped), "empty": b""}[harm])
    assert np.array_equal(_compiled()(*asked)[0], right[0])
    assert len(entry.read_bytes()) > 0.9 * len(whole)


def test_without_a_cache_it_runs_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    asked = _asked(3, 2)
    right = _compiled(exact=True)(*asked)
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        network = _compiled()
    assert np.abs(network(*asked)[0] - right[0]).max() < 1e-5
    for _ in range(3):  # the weights, which belong to the module, are still there
        network(*_asked(9, 9))
    assert np.abs(network(*asked)[0] - right[0]).max() < 1e-5


def test_pytorch_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for exact in (False, True):
        with pytest.raises(MissingDependency, match=r"pip install 'limner\[torch\]'"):
            _compiled(_never, exact=exact)


def test_two_processes_may_convert_at_the_same_time(cache: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_runtime_modules as t\n"
        "print(float(t._compiled()(*t._asked(2, 3))[0].sum()))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] != ""
    assert [path.suffix for path in cache.iterdir()] == [".compiled"]


# Recording


def test_recording_does_not_compute(caplog: pytest.LogCaptureFixture) -> None:
    class Heavy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(50):
                x = (x @ x).softmax(-1)
            return x

    began = time.perf_counter()
    with caplog.at_level(logging.INFO):
        _tracing.trace(Heavy(), [(4, 8192, 8192)])  # 220 TFLOP, 1 GB per step
    assert time.perf_counter() - began < 20
    assert not caplog.messages


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolutions_of_all_kinds_are_recorded(
    ndim: int, caplog: pytest.LogCaptureFixture
) -> None:
    def of(name: str) -> Any:
        return getattr(nn, f"{name}{ndim}d")

    torch.manual_seed(0)
    module = nn.Sequential(
        of("Conv")(4, 8, 3, stride=2, padding=1),
        of("Conv")(8, 8, 3, padding="same", groups=4, bias=False),
        of("BatchNorm")(8),
        of("Conv")(8, 8, 3, padding=2, dilation=2),
        nn.ReLU(inplace=True),
        of("ConvTranspose")(8, 4, 3, stride=2, output_padding=1, groups=2),
    ).eval()
    shape = (2, 4, *(9, 11, 13)[:ndim])
    with caplog.at_level(logging.INFO):
        recorded = _tracing.trace(module, [shape])
    x = torch.randn(1, 4, *(12, 9, 8)[:ndim])
    with torch.no_grad():
        assert torch.equal(recorded(x), module(x))


class ByValue(nn.Module):
    """Asks for a value while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) == 0.0 else x


class Hidden(nn.Module):
    """Calls a convolution past the functions that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight)


class InPlace(nn.Module):
    """Writes into a table of its own making."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.zeros(2, 3, 4, 4)
        table[:, :, 1:3] = x[:, :, 1:3]
        return (table + 1) * 2


@pytest.mark.parametrize(("kind", "computed"), [(ByValue, True), (Hidden, True), (InPlace, False)])
def test_what_cannot_be_left_out_is_computed(
    kind: type[nn.Module], computed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = kind()
    with caplog.at_level(logging.INFO):
        recorded = _tracing.trace(module, [(2, 3, 4, 4)])
    assert bool(caplog.messages) == computed
    x = torch.zeros(2, 3, 4, 4) if kind is ByValue else torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(recorded(x), module(x))


def test_errors_of_the_module_are_its_own() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("as it is")

    with pytest.raises(ArithmeticError, match="as it is"):
        _compiled(Broken, inputs=[(1, 2)])
    assert functional.conv2d.__module__ != _tracing.__name__  # what was put in its place is gone


# Embeddings on disk


def test_an_embedding_comes_back_as_it_was(cache: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal((1, 8, 4, 4)).astype(np.float32),
        rng.standard_normal(5).astype(np.float32) * 1e6,
    ]
    key = _embeddings.key_of(arrays, "weights", "runtime")
    assert _embeddings.load(key) is None
    assert _embeddings.save(key, arrays)
    found = _embeddings.load(key)
    assert found is not None
    assert [a.dtype for a in found] == [np.float32, np.float32]
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))
    found[0][:] = 0  # the caller's own
    assert {p.parent.name for p in cache.parent.rglob("*.embedding")} == {"embeddings"}


def test_keys_tell_pictures_and_models_apart() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    other = pixels.copy()
    other[2, 3] += 1
    keys = [
        _embeddings.key_of([pixels], "a", "b"),
        _embeddings.key_of([other], "a", "b"),
        _embeddings.key_of([pixels.reshape(4, 3)], "a", "b"),
        _embeddings.key_of([pixels.astype(np.int8)], "a", "b"),
        _embeddings.key_of([pixels], "ab"),
        _embeddings.key_of([pixels], "ab", ""),
    ]
    assert len(set(keys)) == len(keys)
    assert _embeddings.key_of([np.asfortranarray(pixels)], "a", "b") == keys[0]


@pytest.mark.parametrize("harm", ["flipped", "foreign"])
def test_a_damaged_embedding_is_none(tmp_path: Path, harm: str) -> None:
    _embeddings.save("key", [np.ones((4, 4), np.float32)])
    (entry,) = tmp_path.rglob("*.embedding")
    if harm == "flipped":
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.write_bytes(content)
    else:
        assert _embeddings.DISK_CACHE.write("key", lambda file: file.write(b"\x02whole, but other"))
    assert _embeddings.load("key") is None
    assert not list(tmp_path.rglob("*.embedding"))


def test_a_remembering_encoder_encodes_once() -> None:
    calls = []

    class Encoder:
        description = "of the test"

        def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            calls.append(1)
            return (inputs[0] * 2,)

    x = np.arange(6, dtype=np.float32)[None]
    for _ in range(3):
        encoder = _embeddings.CachedEncoder(Encoder(), "weights")
        assert np.array_equal(encoder(x)[0], x * 2)
    assert len(calls) == 1
    _embeddings.CachedEncoder(Encoder(), "other weights")(x)
    encoder(x + 1)
    assert len(calls) == 3


def test_of_several_pictures_only_new_ones_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Encoder:
        description = "of the test"
        at_once = 4

        def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            sizes.append(len(inputs[0]))
            return inputs[0] * 2, inputs[0].sum(axis=1)

    encoder = _embeddings.CachedEncoder(Encoder(), "weights")
    assert encoder.at_once == 4
    pictures = np.arange(15, dtype=np.float32).reshape(5, 3)
    encoder(pictures[1:2])
    encoder(pictures[3:4])
    double, total = encoder(pictures)
    assert np.array_equal(double, pictures * 2)
    assert np.array_equal(total, pictures.sum(axis=1))
    encoder(pictures[[4, 2]])
    assert sizes == [1, 1, 3]
    monkeypatch.setattr(_modules, "code", lambda: "changed")
    encoder(pictures[:1])
    assert sizes == [1, 1, 3, 1]


def test_what_is_remembered_needs_no_network(cache: Path) -> None:
    asked = _asked(1, 2)  # one picture, one prompt: all begin with 1
    right = _compiled(remember=True)(*asked)
    assert len(list(cache.iterdir())) == 1
    for entry in cache.iterdir():
        entry.unlink()
    again = _compiled(_never, remember=True)  # not built for being there
    for ours, wanted in zip(again(*asked), right, strict=True):
        assert np.array_equal(ours, wanted)
    with pytest.raises(AssertionError, match="built again"):
        again(asked[0] + 1, *asked[1:])
    kept = runtime.facts()["kept"].split(", ")
    assert kept == ["0 of 6,442 MB networks", "0 of 2,147 MB embeddings"]
    assert _embeddings.DISK_CACHE.size() > 256


def test_the_hash_of_the_code_covers_what_says_how_large_networks_are() -> None:
    package = Path(_modules.__file__).parents[1]
    families = [p for p in (package / "models").rglob("*.py") if "Published(" in p.read_text()]
    assert len(families) > 5
    for path in (*families, package / "models/segvol/sizes.py", package / "adapters/published.py"):
        assert _modules._DEFINES.search(path.read_bytes()), path
