"""Export of built-in networks as safetensors and ONNX files (`limner.export.onnx_graph`).

Weights are kept in half precision, exactly those of the safetensors file, and widened by the graph:
half the size, and the computation is still in single precision where nothing else is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import errors
from limner.atomic import atomic_bytes
from limner.checkpoints.load import fill, read_weights
from limner.errors import CheckpointError, FormatError
from limner.export import onnx_tracker
from limner.export.onnx_graph import INPUT, OUTPUTS, Graph, write_network_2d, write_network_3d
from limner.networks.fusion2d import NUM_CHANNELS
from limner.networks.tracker2d import TrackerNetwork
from limner.networks.unet2d import PromptableUNet2d
from limner.networks.unet3d import PromptableUNet3d
from limner.train import checkpoint
from limner.train.recipe import infer_method

_OPSET, _IR_VERSION = 18, 8  # of 2022: every runtime in use reads them


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        weights: safetensors in half precision; of a whole XMem as they were.
        graphs: the ONNX file, or that of each part of a network that follows; none of a whole XMem.
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
        export_parts(network, graphs, facts=inside)
    else:
        graphs = (folder / f"{name}.onnx",)
        export_onnx(network, graphs[0], facts=inside)
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


def _network_of(config: dict[str, Any]) -> PromptableUNet2d | PromptableUNet3d | TrackerNetwork:
    method = config.get("method") or infer_method(config)
    networks: dict[str, type[PromptableUNet2d | PromptableUNet3d | TrackerNetwork]] = {
        "prompted-2d": PromptableUNet2d,
        "prompted-3d": PromptableUNet3d,
        "tracking": TrackerNetwork,
    }
    if method not in networks:
        raise ValueError(f"method {method!r} is none of {', '.join(networks)}")
    return networks[method](config["widths"], config["depths"])


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export_onnx(
    network: PromptableUNet2d | PromptableUNet3d,
    path: Path,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as ONNX; the same weights and facts give the same bytes.

    The input ``fused`` is (N, 7, H, W) or (N, 7, D, H, W) of the network's `fuse`, sizes multiples
    of `network.stride`; the outputs are ``logits`` with one channel and ``quality`` (N,), the logit
    of the predicted IoU. All float32.

    Args:
        network: its weights are rounded to half precision in the file.
        path: ends in ``.onnx``.
        facts: JSON values by name, kept inside.

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
    else:
        write_network_2d(graph, network)
    ports: dict[str, Sequence[int | str]] = {
        INPUT: ["n", NUM_CHANNELS, *sizes],
        OUTPUTS[0]: ["n", 1, *sizes],
        OUTPUTS[1]: ["n"],
    }
    _save(graph, f"promptable_unet{len(sizes)}d", ((INPUT,), OUTPUTS), ports, path, facts)
    return path


def export_parts(
    network: TrackerNetwork, paths: Sequence[Path], *, facts: Mapping[str, Any] | None = None
) -> None:
    """Write the parts of a network that follows as ONNX, as `export_onnx` does.

    Inputs and outputs are named in `limner.export.onnx_tracker`; sizes are multiples of
    `network.stride`.

    Args:
        network: its weights are rounded to half precision in the files.
        paths: of the parts, in the order of `limner.export.onnx_tracker.PARTS`.
        facts: JSON values by name, kept inside.
    """
    errors.require("onnx", extra="train", purpose="export a network")
    ports = onnx_tracker.ports(network)
    for path, (graph, ends) in zip(paths, onnx_tracker.written(network), strict=True):
        _save(graph, path.stem.replace("-", "_"), ends, ports, path, facts)


def _save(
    graph: Graph,
    name: str,
    ends: tuple[tuple[str, ...], tuple[str, ...]],
    ports: Mapping[str, Sequence[int | str]],
    path: Path,
    facts: Mapping[str, Any] | None,
) -> None:
    """Check a graph and write it."""
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
    atomic_bytes(path, model.SerializeToString(deterministic=True))


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
