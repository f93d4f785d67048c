"""Networks as functions of arrays: precision, agreement between runtimes, the cache of compiled
networks, and everything that may go wrong on somebody else's machine.
"""

from __future__ import annotations

import _thread
import ast
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import limner
from limner import runtime
from limner.errors import CheckpointError, MissingDependency
from limner.export.built_in import export_onnx
from limner.networks.unet2d import PromptableUNet2d
from limner.runtime import _cache, _openvino

PACKAGE = Path(limner.__file__).parent
needs_bf16 = pytest.mark.skipif(not _openvino.has_bf16(), reason="needs bf16 instructions")


@pytest.fixture(scope="module")
def network() -> PromptableUNet2d:
    """Small, with weights that half precision holds exactly, none of them zero."""
    torch.manual_seed(0)
    made = PromptableUNet2d((8, 16), (1, 1)).eval()
    for parameter in made.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).half().float()
    return made


@pytest.fixture(scope="module")
def path(network: PromptableUNet2d, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(network, tmp_path_factory.mktemp("onnx") / "small.onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own; its warnings are told anew."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    _cache._warn_once.cache_clear()
    yield tmp_path / "cache" / "compiled"
    _cache._warn_once.cache_clear()


def _fused(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    batch, rows, columns = shape
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 7, rows, columns)).astype(np.float32)


def _put(shelf: _cache.DiskCache, key: str, content: bytes) -> None:
    assert shelf.write(key, lambda file: file.write(content))


def _got(shelf: _cache.DiskCache, key: str) -> bytes | None:
    found = shelf.read(key)
    return None if found is None else found.tobytes()


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.compiled"))


# Precision


@pytest.mark.parametrize(
    ("asked", "agreement", "has_bf16", "chosen"),
    [
        ("auto", {"bf16": 0.9985}, True, "bf16"),
        ("auto", {"bf16": 0.99}, True, "bf16"),
        ("auto", {"bf16": 0.9899}, True, "fp32"),
        ("auto", {"bf16": 0.9985}, False, "fp32"),
        ("auto", {}, True, "fp32"),
        ("auto", None, True, "fp32"),
        ("fp32", {"bf16": 1.0}, True, "fp32"),
        ("bf16", None, True, "bf16"),
    ],
)
def test_bf16_needs_evidence(
    asked: str, agreement: dict[str, float] | None, has_bf16: bool, chosen: str
) -> None:
    assert runtime.choose_precision(asked, agreement, has_bf16) == chosen


def test_impossible_precisions_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="does not compute in bf16"):
        runtime.choose_precision("bf16", None, False)
    with pytest.raises(ValueError, match="'fp16'; use auto, fp32 or bf16"):
        runtime.compile(path, precision="fp16")


def test_fp32_is_the_default_and_is_really_fp32(path: Path, network: PromptableUNet2d) -> None:
    fused = _fused(1, 32, 48)
    compiled = runtime.compile(path)
    assert compiled.description.endswith("fp32")
    assert compiled.description.startswith("OpenVINO 20")
    with torch.inference_mode():
        logits, quality = network(torch.from_numpy(fused))
    answer = compiled(fused)
    assert np.abs(answer[0] - logits.numpy()).max() < 1e-4  # bf16 is off by more than 1e-2 here
    assert np.abs(answer[1] - quality.numpy()).max() < 1e-4


@needs_bf16
def test_both_precisions_stay_apart_in_the_cache(path: Path, cache: Path) -> None:
    fused = _fused(1, 32, 32)
    answers = [
        runtime.compile(path, precision=precision)(fused)[0]
        for precision in ("fp32", "bf16", "fp32", "bf16")
    ]
    assert len(_entries(cache)) == 2
    assert np.array_equal(answers[0], answers[2])
    assert np.array_equal(answers[1], answers[3])
    assert 1e-3 < np.abs(answers[0] - answers[1]).max() < 0.5


@needs_bf16
def test_agreement_turns_bf16_on(path: Path) -> None:
    assert runtime.compile(path, agreement={"bf16": 0.995}).description.endswith("bf16")
    assert runtime.compile(path, agreement={"bf16": 0.9}).description.endswith("fp32")


# Running


def test_outputs_are_the_callers_to_keep(path: Path) -> None:
    compiled = runtime.compile(path, example=[(1, 7, 32, 32)])
    first, _ = compiled(_fused(1, 32, 32))
    kept = first.copy()
    compiled(_fused(1, 32, 32, seed=1))
    assert np.array_equal(first, kept)
    assert first.flags.writeable


def test_shapes_may_change_and_strides_do_not_matter(path: Path) -> None:
    compiled = runtime.compile(path)
    for shape in ((1, 32, 64), (2, 16, 16), (1, 32, 64)):
        logits, quality = compiled(_fused(*shape))
        assert logits.shape == (shape[0], 1, *shape[1:])
        assert quality.shape == (shape[0],)
    turned = _fused(1, 64, 32).swapaxes(2, 3)
    assert np.array_equal(compiled(turned)[0], compiled(np.ascontiguousarray(turned))[0])


@pytest.mark.parametrize(
    ("fused", "message"),
    [
        ([], "0 inputs given; the network takes 1"),
        ([np.zeros((1, 7, 32, 32))], "of type float64; networks take float32"),
        ([np.zeros((1, 6, 32, 32), np.float32)], r"shape \(1, 6, 32, 32\); the network takes"),
        ([np.zeros((7, 32, 32), np.float32)], r"shape \(7, 32, 32\)"),
        ([np.zeros((1, 7, 30, 30), np.float32)], r"cannot take \(1, 7, 30, 30\)"),
    ],
)
def test_wrong_inputs_are_refused_and_do_no_harm(
    path: Path, fused: list[NDArray[np.float32]], message: str
) -> None:
    compiled = runtime.compile(path)
    right = compiled(_fused(1, 32, 32))[0]
    with pytest.raises(ValueError, match=message):
        compiled(*fused)
    assert np.array_equal(compiled(_fused(1, 32, 32))[0], right)


def test_threads_may_call_at_the_same_time(path: Path) -> None:
    compiled = runtime.compile(path)
    wanted = [compiled(_fused(1, 32, 32, seed=k))[0] for k in range(4)]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(compiled(_fused(1, 32, 32, seed=number))[0], wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
def test_an_interrupt_is_heeded_in_the_middle_of_a_pass(path: Path) -> None:
    compiled = runtime.compile(path)
    right = compiled(_fused(1, 32, 32))[0]
    large = _fused(1, 1536, 1536)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    began = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(600):
            compiled(large)
    assert time.perf_counter() - began < 90  # long on a busy machine; all passes take far longer
    timer.join()
    assert np.array_equal(compiled(_fused(1, 32, 32))[0], right)


def test_pytorch_gives_the_same_through_the_same_door(
    path: Path, network: PromptableUNet2d
) -> None:
    eager = runtime.compile(network, device="cpu", example=[(1, 7, 32, 32)])
    assert eager.description == f"PyTorch {torch.__version__} on cpu, fp32"
    fused = _fused(2, 48, 32)
    for ours, theirs in zip(runtime.compile(path)(fused), eager(fused), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        assert np.abs(ours - theirs).max() < 1e-4
    with pytest.raises(ValueError, match="float64"):
        eager(fused.astype(np.float64))


@needs_bf16
def test_pytorch_in_bf16_is_near(network: PromptableUNet2d) -> None:
    fused = _fused(1, 32, 32)
    exact, near = (
        runtime.compile(network, device="cpu", precision=p)(fused)[0] for p in ("fp32", "bf16")
    )
    assert 1e-3 < np.abs(exact - near).max() < 0.5


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_unknown_devices_are_refused(path: Path, network: PromptableUNet2d, device: str) -> None:
    with pytest.raises(ValueError, match="evice"):
        runtime.compile(network, device=device)
    with pytest.raises(ValueError, match="runs on the CPU"):
        runtime.compile(path, device=device)


def test_damaged_files_are_told_in_one_line(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}
    for name, bad in damaged.items():
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{name}.onnx is damaged") as caught:
            runtime.compile(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="No such file"):
        runtime.compile(tmp_path / "none.onnx")


def test_openvinos_own_format_is_read_too(path: Path, tmp_path: Path) -> None:
    import openvino

    openvino.save_model(
        openvino.Core().read_model(path), tmp_path / "n.xml", compress_to_fp16=False
    )
    fused = _fused(1, 32, 32)
    theirs, ours = runtime.compile(tmp_path / "n.xml")(fused), runtime.compile(path)(fused)
    assert np.abs(theirs[0] - ours[0]).max() < 1e-5


def test_a_missing_package_says_how_to_get_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    cached = (_openvino.openvino, _openvino._core)
    for function in cached:
        function.cache_clear()
    with pytest.raises(MissingDependency, match="pip install"):
        runtime.compile(path)
    for function in cached:
        function.cache_clear()


# The cache


def test_the_second_start_does_not_compile(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runtime.compile(path)(_fused(1, 32, 32))[0]
    assert len(_entries(cache)) == 1

    def fail(path: Path) -> None:
        raise AssertionError("the network was read again")

    monkeypatch.setattr(_openvino, "_read", fail)
    again = runtime.compile(path)(_fused(1, 32, 32))[0]
    assert np.array_equal(first, again)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_made_anew(path: Path, cache: Path, harm: str) -> None:
    right = runtime.compile(path)(_fused(1, 32, 32))[0]
    (entry,) = _entries(cache)
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x40  # in the middle of the weights
    bad = {"cut": whole[:-100], "flipped": bytes(flipped), "empty": b"", "foreign": b"x" * 999}
    entry.write_bytes(bad[harm])
    assert np.array_equal(runtime.compile(path)(_fused(1, 32, 32))[0], right)
    assert _entries(cache) == [entry]
    assert len(entry.read_bytes()) == len(whole)


def test_an_entry_of_something_else_is_made_anew(path: Path, cache: Path) -> None:
    right = runtime.compile(path)(_fused(1, 32, 32))[0]
    (entry,) = _entries(cache)
    _openvino.DISK_CACHE.write(entry.stem, lambda file: file.write(b"whole, but no network"))
    assert np.array_equal(runtime.compile(path)(_fused(1, 32, 32))[0], right)
    assert entry.stat().st_size > 1000


def test_a_changed_file_is_another_entry(
    path: Path, cache: Path, network: PromptableUNet2d, tmp_path: Path
) -> None:
    runtime.compile(path)
    same = tmp_path / "elsewhere.onnx"
    same.write_bytes(path.read_bytes())
    runtime.compile(same)
    assert len(_entries(cache)) == 1
    runtime.compile(export_onnx(network, tmp_path / "other.onnx", facts={"step": 2}))
    assert len(_entries(cache)) == 2


def test_a_folder_that_cannot_be_written_is_told_once(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert runtime.compile(path)(_fused(1, 32, 32))[0].shape == (1, 1, 32, 32)
    assert len(caplog.messages) == 1
    assert "LIMNER_CACHE" in caplog.text


def test_a_full_disk_leaves_no_rest(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not _openvino.DISK_CACHE.write("a", lambda file: file.write(b"1234"))
    assert list(cache.iterdir()) == []
    assert "No space left" in caplog.text


def test_the_least_recently_used_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = replace(_openvino.DISK_CACHE, most_bytes=3700)
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        _put(shelf, key, key.encode() * 1000)
        if key != "c":
            stamp = time.time() - age
            os.utime(cache / f"{key}.compiled", (stamp, stamp))
    assert _got(shelf, "a") == b"a" * 1000  # used: now the youngest
    stale = cache / "killed.part"
    stale.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200,) * 2)
    _put(shelf, "d", b"d" * 1000)
    assert {p.name for p in cache.iterdir()} == {"a.compiled", "c.compiled", "d.compiled"}
    assert not shelf.write("huge", lambda file: file.write(b"x" * 4000))
    assert shelf.read("huge") is None
    assert not list(cache.glob("*.part"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runtime.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runtime.cache_folder() == tmp_path / "xdg" / "limner"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / ".cache" / "limner"


@pytest.mark.slow
def test_two_processes_share_a_cache(path: Path, cache: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from limner import runtime\n"
        "n = runtime.compile(Path(sys.argv[1]), precision='fp32')\n"
        "print(float(n(np.ones((1, 7, 32, 32), np.float32))[0].sum()))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] != ""
    assert [p.suffix for p in cache.iterdir()] == [".compiled"]


# Threads


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_is_read(
    files: dict[str, str], processors: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _openvino._quota(tmp_path) == processors


def test_fewer_threads_where_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openvino, "_quota", lambda root: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for told, threads in (("3", 3), ("64", None), ("0", None), ("many", None), ("", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert _openvino._most_threads() == threads
    monkeypatch.setattr(_openvino, "_quota", lambda root: 2)
    assert _openvino._most_threads() == 2
    assert _openvino._properties("fp32")["INFERENCE_NUM_THREADS"] == 2


# The package


def test_facts_name_version_precision_and_cache(cache: Path) -> None:
    facts = runtime.facts()
    assert facts["runtime"].startswith("OpenVINO 20")
    assert facts["precision"] in ("fp32", "fp32, bf16")
    assert facts["cache"] == str(cache.parent)


@pytest.mark.slow
def test_openvino_is_imported_in_one_place_and_its_converter_nowhere() -> None:
    """Both report to the makers over the network, unless hindered."""
    for file in PACKAGE.rglob("*.py"):
        names = _names(ast.parse(file.read_text()))
        if file.parent.name != "runtime":
            assert not {n for n in names if n.split(".")[0] == "openvino"}, file.name
        assert not {n for n in names if "convert_model" in n or "openvino.tools" in n}, file.name


def _names(tree: ast.AST) -> set[str]:
    """Everything imported, by statement or by `errors.require`, and every attribute."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(f".{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "require":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


def test_planted_imports_are_found() -> None:
    assert "openvino" in _names(ast.parse("errors.require('openvino', extra='x', purpose='y')"))
    assert ".convert_model" in _names(ast.parse("library.convert_model(module)"))


@pytest.mark.slow
def test_running_a_network_tells_nobody(path: Path, tmp_path: Path) -> None:
    """OpenVINO's own import would: see `limner.runtime._openvino.openvino`."""
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "def hook(event, _):\n"
        "    if event.startswith(('socket.', 'os.fork', 'subprocess.')): print('used', event)\n"
        "sys.addaudithook(hook)\n"
        "from limner import runtime\n"
        "print(*({'torch', 'openvino', 'scipy'} & set(sys.modules)))\n"
        "n = runtime.compile(Path(sys.argv[1]))\n"
        "print(n(np.ones((1, 7, 32, 32), np.float32))[0].shape)\n"
        "print(*({'torch', 'openvino_telemetry'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout == "\n(1, 1, 32, 32)\n\n", done.stderr
    assert done.stderr == ""
    assert list((tmp_path / "home").iterdir()) == []
