"""Export of built-in networks as safetensors and ONNX files (`limner.export.onnx_graph`).

Weights lie in the safetensors file alone, in half precision; the graphs beside it point into it
(ONNX's external data) and widen them: one copy for OpenVINO and PyTorch, half the size, and the
computation is still in single precision where nothing else is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import errors
from limner.atomic import atomic_bytes
from limner.checkpoints.load import fill, read_weights
from limner.errors import CheckpointError, FormatError
from limner.export import onnx_tracker
from limner.export.onnx_graph import INPUT, OUTPUTS, Graph, write_network_2d, write_network_3d
from limner.export.onnx_lite import write_network_lite
from limner.networks.fusion2d import NUM_CHANNELS
from limner.networks.lite_unet2d import PromptableLiteUNet2d
from limner.networks.promptable2d import make_network_2d
from limner.networks.tracker2d import TrackerNetwork
from limner.networks.unet2d import PromptableUNet2d
from limner.networks.unet3d import PromptableUNet3d
from limner.train import checkpoint
from limner.train.recipe import infer_method

if TYPE_CHECKING:
    from torch import nn

_LENGTH = 8  # bytes of a safetensors file that say how long its head is
_OPSET, _IR_VERSION = 18, 8  # of 2022: every runtime in use reads them


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        weights: safetensors in half precision; of a whole XMem as they were.
        graphs: the ONNX file, or that of each part of a network that follows; none of a whole XMem.
            They need `weights` beside them.
        facts: JSON: ``step``, ``pack`` and ``config`` of the run, ``sha256`` of all files, and
            ``agreement``, which is empty until it is measured (benchmarks/precision.py).
    """

    weights: Path
    graphs: tuple[Path, ...]
    facts: Path


def export(source: Path, folder: Path, *, base: Path | None = None) -> Exported:
    """Write a run's result as ``NAME.safetensors``, ``NAME.onnx`` and ``NAME.json``; a network that
    follows is written in parts, ``NAME-frame.onnx`` and so on. Adapters are joined with what they
    were trained on, as one ``NAME.safetensors`` with the authors' names.

    The same source gives the same bytes.

    Args:
        source: folder of a run, finished or not, or its weights file.
        folder: made if needed; older files of the name are replaced.
        base: of adapters: the file that they were trained on, or one with the same weights.

    Raises:
        CheckpointError: no weights there, damaged ones, or of another network; or another `base`.
        FormatError: the folder cannot be written.
        MissingDependency: onnx or safetensors is not installed.
    """
    for package in ("onnx", "safetensors"):
        errors.require(package, extra="train", purpose="export a network")
    path = _weights_file(source)
    weights, facts = read_weights(path)
    if "base" in facts:
        return _export_joined(path, weights, facts, folder, base)
    if "plan" in facts:
        raise CheckpointError(
            f"{path} needs no export: limner auto --weights takes it as it is (docs/automatic.md)."
        )
    try:
        network = _network_of(facts["config"])
        name = str(facts["config"]["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say what network it is of ({error}).") from error
    fill(network, weights, path)
    _make_folder(folder)
    plain, summary = folder / f"{name}.safetensors", folder / f"{name}.json"
    checkpoint.write_weights(plain, network.state_dict(), facts)
    inside = {**facts, "weights_sha256": _hash_file(plain)}
    if isinstance(network, TrackerNetwork):
        graphs = tuple(folder / f"{name}-{part}.onnx" for part in onnx_tracker.PARTS)
        export_parts(network, graphs, facts=inside, weights=plain)
    else:
        graphs = (folder / f"{name}.onnx",)
        export_onnx(network, graphs[0], facts=inside, weights=plain)
    hashes = {p.name: _hash_file(p) for p in (plain, *graphs)}
    _write_facts(summary, {**facts, "sha256": hashes, "agreement": {}})
    return Exported(plain, graphs, summary)


def _export_joined(
    path: Path, weights: dict[str, Any], facts: dict[str, Any], folder: Path, base: Path | None
) -> Exported:
    """Adapters with the network that they were trained for."""
    from limner.train.parts.xmem_weights import join_adapters, write_whole

    if base is None:
        raise CheckpointError(
            f"{path} holds adapters alone; name the file that they were trained on: "
            f"--base {facts['base']['file']} (SHA-256 {facts['base']['sha256']})."
        )
    whole = join_adapters(base, weights, facts)
    _make_folder(folder)
    name = str(facts["config"]["name"])
    plain, summary = folder / f"{name}.safetensors", folder / f"{name}.json"
    write_whole(plain, whole, facts)
    _write_facts(summary, {**facts, "sha256": {plain.name: _hash_file(plain)}})
    return Exported(plain, (), summary)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"Cannot make the folder {folder}: {error.strerror}.") from error


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    atomic_bytes(path, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())


def _network_of(config: dict[str, Any]) -> nn.Module:
    method = config.get("method") or infer_method(config)
    if method == "prompted-2d":
        return make_network_2d(config)
    networks: dict[str, type[PromptableUNet3d | TrackerNetwork]] = {
        "prompted-3d": PromptableUNet3d,
        "tracking": TrackerNetwork,
    }
    if method not in networks:
        raise ValueError(f"method {method!r} is none of prompted-2d, {', '.join(networks)}")
    return networks[method](config["widths"], config["depths"])


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export_onnx(
    network: nn.Module,
    path: Path,
    *,
    facts: Mapping[str, Any] | None = None,
    weights: Path | None = None,
) -> Path:
    """Write a network as ONNX; the same weights and facts give the same bytes.

    The input ``fused`` is (N, 7, H, W) or (N, 7, D, H, W) of the network's `fuse`, sizes multiples
    of `network.stride`; the outputs are ``logits`` with one channel and ``quality`` (N,), the logit
    of the predicted IoU. All float32.

    Args:
        network: a promptable one of the built-in families; its weights are rounded to half
            precision in the file.
        path: ends in ``.onnx``.
        facts: JSON values by name, kept inside.
        weights: safetensors file in the same folder with the network's weights in half precision;
            the graph points into it. None keeps them in the graph.

    Raises:
        CheckpointError: a weight is not finite in half precision.
        MissingDependency: onnx is not installed.
    """
    errors.require("onnx", extra="train", purpose="export a network")
    graph = Graph(network.state_dict())
    sizes: list[int | str] = ["height", "width"]
    if isinstance(network, PromptableUNet3d):
        write_network_3d(graph, network)
        sizes = ["slices", *sizes]
    elif isinstance(network, PromptableLiteUNet2d):
        write_network_lite(graph, network)
    else:
        assert isinstance(network, PromptableUNet2d)
        write_network_2d(graph, network)
    ports: dict[str, Sequence[int | str]] = {
        INPUT: ["n", NUM_CHANNELS, *sizes],
        OUTPUTS[0]: ["n", 1, *sizes],
        OUTPUTS[1]: ["n"],
    }
    kept = None if weights is None else Kept.of(weights)
    _save(graph, f"promptable_unet{len(sizes)}d", ((INPUT,), OUTPUTS), ports, path, facts, kept)
    return path


def export_parts(
    network: TrackerNetwork,
    paths: Sequence[Path],
    *,
    facts: Mapping[str, Any] | None = None,
    weights: Path | None = None,
) -> None:
    """Write the parts of a network that follows as ONNX, as `export_onnx` does.

    Inputs and outputs are named in `limner.export.onnx_tracker`; sizes are multiples of
    `network.stride`.

    Args:
        network: its weights are rounded to half precision in the files.
        paths: of the parts, in the order of `limner.export.onnx_tracker.PARTS`.
        facts: JSON values by name, kept inside.
        weights: as for `export_onnx`.
    """
    errors.require("onnx", extra="train", purpose="export a network")
    ports = onnx_tracker.ports(network)
    names = zip(onnx_tracker.PARTS, paths, onnx_tracker.written(network), strict=True)
    for part, path, (graph, ends) in names:
        kept = None if weights is None else Kept.of(weights, f"{part}.")
        _save(graph, path.stem.replace("-", "_"), ends, ports, path, facts, kept)


def _save(
    graph: Graph,
    name: str,
    ends: tuple[tuple[str, ...], tuple[str, ...]],
    ports: Mapping[str, Sequence[int | str]],
    path: Path,
    facts: Mapping[str, Any] | None,
    kept: Kept | None = None,
) -> None:
    """Check a graph and write it, with its weights or pointing at them."""
    import onnx

    taken, given = ([_port(port, ports[port]) for port in side] for side in ends)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, name, taken, given, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="limner",
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (facts or {}).items()}
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    onnx.checker.check_model(model, full_check=True)
    if kept is not None:
        for constant in model.graph.initializer:
            kept.point_at(constant)
    atomic_bytes(path, model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class Kept:
    """Where the weights of a graph lie in a safetensors file.

    Attributes:
        file: its name; it is in the folder of the graph.
        places: first byte and length by name.
        content: of the file.
    """

    file: str
    places: Mapping[str, tuple[int, int]]
    content: bytes

    @classmethod
    def of(cls, path: Path, prefix: str = "") -> Kept:
        """The weights in a file whose names begin with a prefix, without it."""
        content = path.read_bytes()
        size = int.from_bytes(content[:_LENGTH], "little")
        head = json.loads(content[_LENGTH : _LENGTH + size])
        places = {}
        for name, entry in head.items():
            if name.startswith(prefix) and name != "__metadata__":
                first, end = entry["data_offsets"]
                places[name.removeprefix(prefix)] = (_LENGTH + size + first, end - first)
        return cls(path.name, places, content)

    def point_at(self, constant: Any) -> None:
        """Let a tensor of a graph point into the file, in place, if its values are there."""
        from onnx.external_data_helper import set_external_data

        if constant.name not in self.places:
            return
        first, length = self.places[constant.name]
        if self.content[first : first + length] != constant.raw_data:
            raise CheckpointError(f"{self.file} holds other values of {constant.name}.")
        set_external_data(constant, self.file, first, length)
        constant.ClearField("raw_data")


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        if not source.exists():
            raise CheckpointError(f"There is no run or weights file {source}.")
        return source
    found = sorted(source.glob("*.safetensors")) or [
        p for p in sorted(source.glob("*.pt")) if p.name != "checkpoint.pt"
    ]
    if len(found) != 1:
        raise CheckpointError(f"{source} holds {len(found)} weights files; name the one to export.")
    return found[0]


def _port(name: str, shape: Sequence[int | str]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
