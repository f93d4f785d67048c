"""Weights files as people have them: read whatever wraps them, never run, refused in one line."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner import models
from limner.checkpoints import _recognise
from limner.checkpoints._pickle import Opaque, read_pickle
from limner.checkpoints.load import fill, read_checkpoint
from limner.errors import CheckpointError

torch = pytest.importorskip("torch")


def make_weights() -> OrderedDict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return OrderedDict(
        (
            ("body.weight", torch.randn(4, 3, 3, 3, generator=generator)),
            ("body.bias", torch.randn(4, generator=generator)),
            ("norm.num_batches_tracked", torch.tensor(7)),
            ("head.weight", torch.randn(2, 4, generator=generator).t()),  # not contiguous
            ("empty", torch.zeros(0, 3)),
        )
    )


WEIGHTS = make_weights()


def prefixed(prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in WEIGHTS.items()}


def optimiser() -> Any:
    made = torch.optim.AdamW([torch.nn.Parameter(torch.ones(5, 5))], lr=1e-3)
    made.param_groups[0]["params"][0].grad = torch.ones(5, 5)
    made.step()
    return made


def same(found: dict[str, Any], expected: dict[str, Any] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in expected.items()
    )


WRAPPED: dict[str, Callable[[], Any]] = {
    "bare": lambda: WEIGHTS,
    "plain dict": lambda: dict(WEIGHTS),
    "parameters": lambda: {k: _parameter(v) for k, v in WEIGHTS.items()},
    **{
        name: lambda name=name: {"epoch": 3, name: WEIGHTS, "loss": 0.5}
        for name in ("model", "state_dict", "model_state_dict", "net", "weights", "whatever")
    },
    "nested": lambda: {"checkpoint": {"model": WEIGHTS}, "version": (1, 2)},
    "module": lambda: prefixed("module."),
    "module twice": lambda: prefixed("module.module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "both": lambda: {"model": prefixed("module._orig_mod."), "epoch": np.float64(3)},
    "optimiser state": lambda: {"model": WEIGHTS, "optimizer": optimiser().state_dict()},
    "live optimiser": lambda: {"model": WEIGHTS, "optimizer": optimiser()},
    "namespace": lambda: {"model_state_dict": WEIGHTS, "args": argparse.Namespace(lr=[1, {2}])},
    "best loss": lambda: {"best_loss": torch.tensor(0.1), "model": WEIGHTS},
    "average beside": lambda: {"ema": {k: v * 2 for k, v in WEIGHTS.items()}, "model": WEIGHTS},
    "objects among": lambda: {**WEIGHTS, "config": argparse.Namespace(a=1), "when": Path("x")},
}


def _parameter(value: Any) -> Any:
    return torch.nn.Parameter(value) if value.is_floating_point() else value


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("old", [False, True])
def test_every_wrapping_gives_the_same_weights(kind: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.anything"
    torch.save(WRAPPED[kind](), path, _use_new_zipfile_serialization=not old)
    found = read_checkpoint(path)
    assert same(found.tensors)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any("\n" in note for note in found.notes)


def test_notes_say_what_was_unwrapped(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {**prefixed("module."), "x": argparse.Namespace()}}, path)
    notes = " | ".join(read_checkpoint(path).notes)
    assert "'model'" in notes
    assert "'module.'" in notes
    assert "x (argparse.Namespace)" in notes


def test_wanted_names_choose_among_sets_and_uncover_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    teacher = {f"teacher.{n}": torch.zeros(2) for n in range(40)}
    torch.save({"model": teacher, "student": prefixed("lit.network.")}, path)
    assert same(read_checkpoint(path, wanted=WEIGHTS.keys()).tensors)
    assert list(read_checkpoint(path).tensors) == list(teacher)
    assert list(read_checkpoint(path, wanted=["none of them"]).tensors) == list(teacher)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "bool"])
@pytest.mark.parametrize("form", ["pth", "old", "safetensors"])
def test_types_are_kept(dtype: str, form: str, tmp_path: Path) -> None:
    value = {"a": torch.ones(1), "b": torch.arange(-3, 4).to(getattr(torch, dtype))}
    path = tmp_path / "w"
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(value, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "pth")
    assert same(read_checkpoint(path).tensors, value)


def test_safetensors_and_folders_of_hugging_face(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    contiguous = {k: v.contiguous() for k, v in WEIGHTS.items()}
    (tmp_path / "a").mkdir()
    save(contiguous, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "b").mkdir()
    torch.save(WEIGHTS, tmp_path / "b" / "pytorch_model.bin")
    for given in ("a", "a/model.safetensors", "b"):
        found = read_checkpoint(tmp_path / given).tensors
        assert same({k: found[k] for k in WEIGHTS})
    assert found.keys() == WEIGHTS.keys()


def test_views_of_one_storage_and_protocols(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    value = {"a": base[2:8].view(2, 3), "b": base[::2], "c": base.view(4, 6).t(), "d": base[5]}
    for protocol in (2, 3, 4, 5):
        torch.save(value, tmp_path / "w.pth", pickle_protocol=protocol)
        assert same(read_checkpoint(tmp_path / "w.pth").tensors, value)


def test_changing_a_tensor_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    before = path.read_bytes()
    read_checkpoint(path).tensors["body.bias"].zero_()
    assert path.read_bytes() == before


# ---------------------------------------------------------------- malice


class Calls:
    """Pickles as a call of a function with some arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class StateRuns:
    """Pickles as an object that hands its state to a function."""

    def __init__(self, setter: Any, state: Any) -> None:
        self.setter, self.state = setter, state

    def __reduce__(self) -> Any:
        return (list, (), self.state, None, None, self.setter)


def _attacks(mark: Path) -> dict[str, bytes]:
    """Pickles that would make `mark` if they were believed."""
    import functools
    import operator

    touch, code = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    good = b"}X\x01\x00\x00\x00kK\x01s"  # {"k": 1}, as an instruction among others
    made = {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "subprocess": Calls(subprocess.Popen, ["touch", str(mark)]),
        "open": Calls(open, str(mark), "w"),
        "partial": Calls(functools.partial(os.system, touch)),
        "reduce": Calls(functools.reduce, Calls(getattr, os, "system"), [touch]),
        "attrgetter": Calls(Calls(operator.attrgetter, "system"), os.path),
        "getattr": Calls(Calls(getattr, Calls(__import__, "os"), "system"), touch),
        "methodcaller": Calls(
            Calls(operator.methodcaller, "system", touch), Calls(__import__, "os")
        ),
        "map": Calls(list, Calls(map, os.system, [touch])),
        "nested": [{"a": (Calls(os.system, touch), [Calls(eval, code)])}],
        "as a key": {Calls(os.system, touch): 1},
        "state": StateRuns(Calls(getattr, os, "system"), touch),
        "torch.load": Calls(torch.load, str(mark), Calls(os.system, touch)),
        "torch.hub": Calls(torch.hub.load, str(mark.parent), "x"),
    }
    pickled = {}
    for name, value in made.items():
        for protocol in (0, 2, 4):
            try:
                pickled[f"{name} {protocol}"] = pickle.dumps(value, protocol=protocol)
            except (pickle.PicklingError, AttributeError, TypeError):
                continue  # such as a module, which no protocol can name
    long = touch.encode()
    text = b"X" + struct.pack("<I", len(long)) + long

    def short(word: str) -> bytes:
        return b"\x8c" + bytes([len(word)]) + word.encode()

    def named(module: str, name: str) -> bytes:
        return short(module) + short(name) + b"\x93"  # STACK_GLOBAL

    by_hand = {
        "dotted": named("torch", "serialization.os.system") + text + b"\x85R.",
        "dotted twice": named("collections", "OrderedDict.__init__.__globals__.get")
        + text
        + b"\x85R.",
        "posix": b"cposix\nsystem\n" + text + b"\x85R.",
        "inst": b"(S'" + long + b"'\nios\nsystem\n.",
        "obj": b"(" + named("os", "system") + text + b"o.",
        "newobj": named("os", "system") + text + b"\x85\x81.",
        "newobj ex": named("os", "system") + text + b"\x85}\x92.",
        "build": named("os", "system") + good + b"b" + text + b"\x85R.",
        "import": named("antigravity", "fly") + b")R.",
        "extension": b"\x82\x01" + text + b"\x85R.",
        "rebuilder": named("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + named("os", "system")
        + b"N"
        + text
        + b"\x85NtR.",
        "ordered": named("collections", "OrderedDict") + text + b"\x85R.",
        "default": named("collections", "defaultdict") + named("os", "system") + b"\x85R.",
        "storage": b"("
        + short("storage")
        + named("os", "system")
        + short("0")
        + short("cpu")
        + b"K\x01tQ.",
        "persistent": text + b"Q.",
    }
    return pickled | {name: b"\x80\x04" + content for name, content in by_hand.items()}


def _zip_of(path: Path, index: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", index)
        for name, content in members.items():
            archive.writestr(f"a/{name.replace('__', '/')}", content)
    return path


def _beside_weights(attack: bytes) -> bytes:
    """``{"model": {"w": tensor of two values}, "bad": the attack}``"""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89}tR"
    )
    body = attack.removeprefix(attack[:2]) if attack[:1] == b"\x80" else attack
    return (
        b"\x80\x02}(X\x03\x00\x00\x00bad" + body.removesuffix(b".") + b"X\x05\x00\x00\x00model"
        b"}X\x01\x00\x00\x00w" + tensor + b"su."
    )


def test_no_attack_runs_and_what_it_hides_is_not_there(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attacks = _attacks(mark)
    assert len(attacks) > 40
    before = set(sys.modules)
    for name, attack in attacks.items():
        value, _ = read_pickle(io.BytesIO(attack))
        assert isinstance(value, Opaque | list | dict), name
        if isinstance(value, Opaque):
            assert vars(value).keys() == {"name"}
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(_zip_of(tmp_path / "w.pth", attack))
        assert "\n" not in str(caught.value)
        both = _zip_of(
            tmp_path / "w.pth", _beside_weights(attack), data__0=np.ones(2, "<f4").tobytes()
        )
        found = read_checkpoint(both).tensors
        assert same(found, {"w": torch.ones(2)}), name
    assert not mark.exists()
    assert "antigravity" not in set(sys.modules) - before


def test_attacks_are_real(tmp_path: Path) -> None:
    """With Python's own reader they do harm; else the test above would prove nothing."""
    attacks = _attacks(tmp_path / "mark")
    for name in ("os.system 2", "eval 4", "posix", "inst", "partial 4", "dotted"):
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        pickle.loads(attacks[name])
        assert mark.exists(), name


@pytest.mark.slow
def test_the_interpreter_itself_saw_nothing(tmp_path: Path) -> None:
    """Reading a file full of attacks raises no event of a call, an import or a lookup."""
    for number, attack in enumerate(_attacks(tmp_path / "mark").values()):
        _zip_of(tmp_path / f"{number}.pth", _beside_weights(attack), data__0=bytes(8))
    _zip_of(tmp_path / "good.pth", _beside_weights(b"N."), data__0=bytes(8))
    script = f"""
        import sys
        from pathlib import Path
        from limner.checkpoints.load import read_checkpoint
        folder = Path({str(tmp_path)!r})
        files = sorted(folder.glob("*.pth"))
        read_checkpoint(folder / "good.pth")
        b"x".decode("raw-unicode-escape")  # a codec is imported when it is first used
        def watch(event, arguments):
            if event in ("import", "exec", "compile", "pickle.find_class", "os.system",
                         "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
                print(event, arguments)
        sys.addaudithook(watch)
        assert all(list(read_checkpoint(file).tensors) == ["w"] for file in files)
        print(len(files) > 40)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_random_damage_is_met_with_one_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": WEIGHTS, "optimizer": optimiser()}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        index = archive.read(name)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = np.frombuffer(index, np.uint8).copy()
        at = rng.integers(0, len(damaged), 3)
        damaged[at] = rng.integers(0, 256, 3)
        try:
            read_pickle(io.BytesIO(damaged.tobytes()[: rng.integers(1, 2 * len(index))]))
        except CheckpointError:
            refused += 1
    assert refused > 100


# ---------------------------------------------------------------- what is no weights file


def _saved(value: Any, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def _safe(header: Any, values: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def _declared(shape: bytes, offset: int = 0) -> bytes:
    """An index with one tensor of some shape over two values."""
    return _beside_weights(b"N.").replace(
        b"QK\x00K\x02\x85K\x01\x85", b"QK" + bytes([offset]) + shape
    )


STRANGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "page": (lambda: b"\n <!DOCTYPE html><html><title>Sign in</title>", "web page"),
    "upper page": (lambda: b"<HTML><body>", "web page"),
    "text": (lambda: b"404: Not Found", "no weights file"),
    "gzip": (lambda: gzip.compress(_saved(WEIGHTS)), "gzip"),
    "tar": (_tar, "tar archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "cut zip": (lambda: _saved(WEIGHTS)[:-200], "cut off"),
    "cut zip early": (lambda: _saved(WEIGHTS)[:90], "cut off"),
    "cut old": (lambda: _saved(WEIGHTS, old=True)[:-20], "cut off"),
    "cut old index": (lambda: _saved(WEIGHTS, old=True)[:300], "cut off"),
    "cut safe": (lambda: _safe({"a": _entry([0, 8])}, bytes(4)), "cut off"),
    "other zip": (lambda: _zipped(readme=b"hello"), "unpack it"),
    "compressed": (
        lambda: _zipped(
            zipfile.ZIP_DEFLATED, a__data_pkl=_beside_weights(b"N."), a__data__0=bytes(8)
        ),
        "compression",
    ),
    "program": (lambda: _zipped(a__data_pkl=b"N.", a__constants_pkl=b"N."), "TorchScript"),
    "big-endian": (lambda: _zipped(a__data_pkl=b"N.", a__byteorder=b"big"), "big-endian"),
    "nothing": (lambda: _saved({"epoch": 3}), "no weights by name"),
    "a tensor": (lambda: _saved(torch.zeros(3)), "no weights by name"),
    "plain pickle": (lambda: pickle.dumps({"a": np.zeros(3)}), "torch.save did not write"),
    "module": (lambda: _saved(torch.nn.Linear(2, 3)), r"Linear.*torch.save\(model.state_dict"),
    "module beside": (lambda: _saved({"model": torch.nn.Linear(2, 3)}), "Linear.*state_dict"),
    "larger than stored": (
        lambda: _zipped(a__data_pkl=_declared(b"K\x02\x85K\x09\x85"), a__data__0=bytes(8)),
        "larger than its values",
    ),
    "behind the end": (
        lambda: _zipped(a__data_pkl=_declared(b"K\x02\x85K\x01\x85", 1), a__data__0=bytes(8)),
        "larger than its values",
    ),
    "expanded hugely": (
        lambda: _zipped(
            a__data_pkl=_declared(b"\x8a\x06\0\0\0\0\0\x01\x85K\x00\x85"), a__data__0=bytes(8)
        ),
        "larger than its values",
    ),
    "negative": (
        lambda: _zipped(
            a__data_pkl=_declared(b"J\xff\xff\xff\xff\x85K\x01\x85"), a__data__0=bytes(8)
        ),
        "damaged",
    ),
    "no storage": (lambda: _zipped(a__data_pkl=_beside_weights(b"N.")), "cut off"),
    "huge header": (lambda: _safe({"a": 1}, length=2**40), "cut off"),
    "no header": (lambda: _safe({}, length=1), "damaged"),
    "no entry": (lambda: _safe({"a": 1}), "damaged"),
    "odd type": (lambda: _safe({"a": _entry([0, 1], "F8_E5M2", [1])}, b"1"), "F8_E5M2"),
    "endless index": (
        lambda: _zipped(zipfile.ZIP_DEFLATED, a__data_pkl=bytes(65 * 2**20)),
        "absurd size",
    ),
    "many instructions": (
        lambda: _zipped(zipfile.ZIP_DEFLATED, a__data_pkl=b"N0" * 2_600_000),
        "too many",
    ),
}


def _entry(offsets: list[int], dtype: str = "F32", shape: list[int] | None = None) -> Any:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": offsets}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_weights_file_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    make, words = STRANGE[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "weights.pth" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_files_and_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="several parts"):
        read_checkpoint(tmp_path)


# ---------------------------------------------------------------- filling a network


def _network() -> Any:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def test_fill_converts_and_forgives_only_the_counters() -> None:
    source = _network()
    half = {k: v.half() for k, v in source.state_dict().items() if "num_batches" not in k}
    target = _network()
    fill(target, half, Path("w.pth"))
    assert all(p.dtype == torch.float32 for p in target.parameters())
    assert torch.equal(target[0].weight, source[0].weight.half().float())
    counted = {**source.state_dict(), "1.num_batches_tracked": torch.tensor(2**24 + 1)}
    fill(target, counted, Path("w.pth"))
    assert int(target[1].num_batches_tracked) == 2**24 + 1


def test_fill_counts_and_names_the_differences_and_changes_nothing() -> None:
    target = _network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    given = {"0.weight": torch.zeros(4, 1, 3, 3), "1.weight": torch.zeros(4)}
    given |= {f"extra.{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(CheckpointError) as caught:
        fill(target, given, Path("w.pth"))
    message = str(caught.value)
    assert "4 of 7 weights are missing (0.bias, 1.bias, 1.running_mean, …)" in message
    assert "9 are unexpected (extra.0, extra.1, extra.2, …)" in message
    assert "1 have another shape (0.weight (4, 1, 3, 3), not (4, 3, 3, 3))" in message
    assert "\n" not in message
    assert len(message) < 500
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("image_encoder.pos_embed", (1, 64, 64, 768), "--model medsam/vit_b takes"),
        ("image_encoder.pos_embed", (1, 16, 16, 768), "256"),
        ("image_encoder.pos_embed", (1, 64, 64, 1280), "ViT-H"),
        ("image_encoder.pos_embed", (1, 8, 8, 8, 768), "SAM-Med3D"),
        ("image_encoder.sam_encoder.pos_embed", (1, 64, 64, 768), "--model imis/vit_b"),
        ("image_encoder.patch_embed.seq.0.c.weight", (32, 3, 1, 1), "--model medsam/lite"),
        ("image_encoder.patch_embed.seq.0.c.weight", (32, 3, 3, 3), "MobileSAM"),
        ("image_encoder.trunk.patch_embed.proj.weight", (96, 3, 7, 7), "SAM 2"),
        ("enc_blocks.0.cross.cross_conv.weight", (64, 3, 3, 3), "UniverSeg"),
        ("vision_encoder.pos_embed", (1, 64, 64, 768), "Hugging Face"),
        ("something", (1,), "that you named"),
    ],
)
def test_a_file_of_another_family_is_recognised(
    name: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(CheckpointError, match="is of another network") as caught:
        fill(_network(), {name: torch.zeros(shape)}, Path("w.pth"))
    assert words in str(caught.value)


def test_the_models_that_are_recommended_exist() -> None:
    names = {card.name for card in models.list_models()}
    assert {kind.model for kind in _recognise._KINDS if kind.model} <= names
