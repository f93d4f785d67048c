"""A trained promptable network as an ONNX file (`limner.train.graph`).

Weights are kept in half precision, exactly those of the safetensors file, and widened by the graph:
half the size, and the computation is still in single precision where nothing else is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import errors
from limner.checkpoints.load import fill, read_weights
from limner.errors import CheckpointError, FormatError
from limner.io._atomic import atomic_bytes
from limner.layers.fusion2d import NUM_CHANNELS
from limner.layers.unet2d import PromptableUNet2d
from limner.layers.unet3d import PromptableUNet3d
from limner.train import checkpoint
from limner.train.graph import INPUT, OUTPUTS, Graph, write_network_2d, write_network_3d

_OPSET, _IR_VERSION = 18, 8  # of 2022: every runtime in use reads them


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        weights: safetensors in half precision.
        graph: the ONNX file.
        facts: JSON: ``step``, ``pack`` and ``config`` of the run, ``sha256`` of both files, and
            ``agreement``, which is empty until it is measured (benchmarks/precision.py).
    """

    weights: Path
    graph: Path
    facts: Path


def export(source: Path, folder: Path) -> Exported:
    """Write a run's result as ``NAME.safetensors``, ``NAME.onnx`` and ``NAME.json``.

    The same source gives the same bytes.

    Args:
        source: folder of a run, finished or not, or its weights file.
        folder: made if needed; older files of the name are replaced.

    Raises:
        CheckpointError: no weights there, damaged ones, or of another network.
        FormatError: the folder cannot be written.
        MissingDependency: onnx or safetensors is not installed.
    """
    for package in ("onnx", "safetensors"):
        errors.require(package, extra="train", purpose="export a network")
    path = _weights_file(source)
    weights, facts = read_weights(path)
    try:
        config = facts["config"]
        made = PromptableUNet3d if config.get("dimensions", 2) == 3 else PromptableUNet2d
        network = made(config["widths"], config["depths"])
        name = str(config["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say what network it is of ({error}).") from error
    fill(network, weights, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"Cannot make the folder {folder}: {error.strerror}.") from error
    written = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".onnx", ".json")]
    checkpoint.write_weights(written[0], network.state_dict(), facts)
    hashes = {written[0].name: hashlib.sha256(written[0].read_bytes()).hexdigest()}
    inside = {**facts, "weights_sha256": hashes[written[0].name]}
    export_onnx(network, written[1], facts=inside)
    hashes[written[1].name] = hashlib.sha256(written[1].read_bytes()).hexdigest()
    told = {**facts, "sha256": hashes, "agreement": {}}
    atomic_bytes(written[2], (json.dumps(told, indent=2, sort_keys=True) + "\n").encode())
    return Exported(*written)


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
    onnx = errors.require("onnx", extra="train", purpose="export a network")
    graph = Graph(network.state_dict())
    sizes = ["height", "width"]
    if isinstance(network, PromptableUNet3d):
        write_network_3d(graph, network)
        sizes = ["slices", *sizes]
    else:
        write_network_2d(graph, network)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            f"promptable_unet{len(sizes)}d",
            [_port(INPUT, ["n", NUM_CHANNELS, *sizes])],
            [_port(OUTPUTS[0], ["n", 1, *sizes]), _port(OUTPUTS[1], ["n"])],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="limner",
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (facts or {}).items()}
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    onnx.checker.check_model(model, full_check=True)
    atomic_bytes(path, model.SerializeToString(deterministic=True))
    return path


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
