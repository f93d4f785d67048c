"""The network starts as the probe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from network import CandidateUNet2d, load_weights

PROBE = Path(os.environ.get("PROBE", "../shared/probe2d"))


@pytest.mark.skipif(not PROBE.is_dir(), reason="the probe is not here")
def test_starts_as_the_probe() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("probe_network", PROBE / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = load_file(str(PROBE / "weights.safetensors"))
    probe, network = module.LitePrompt().eval(), CandidateUNet2d().eval()
    probe.load_state_dict({k: v.float() for k, v in weights.items()})
    load_weights(network, weights)
    assert sum(p.numel() for p in network.parameters()) < 8e6
    fused = torch.rand(2, 8, 96, 128) * 2 - 1
    with torch.no_grad():
        wanted, judged = probe(fused[:, :7])
        logits, quality = network(fused)
    assert torch.allclose(logits[:, :1], wanted, atol=1e-3)
    assert torch.allclose(quality[:, 0], judged, atol=1e-3)
    assert torch.allclose(logits[:, 1:2], wanted, atol=1e-3)
    assert logits[:, 2].mean() > logits[:, 3].mean()
