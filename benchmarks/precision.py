"""Whether the fast ways to run a network give the masks of the exact way, on real pictures.

Run: python benchmarks/precision.py [--data ../shared/data] [--exported RUN_EXPORT] [--objects 2].

Sessions hear the same simulated user, a box and then clicks that correct the exact answer (OpenVINO
in fp32): with OpenVINO in bf16, whatever the card says, and with PyTorch in fp32 from the
safetensors file. "Dice to exact" is between the masks of two sessions; Dice to truth is shown for
scale. Logits are compared on what the exact session showed its network. The last lines are what
belongs into ``agreement`` of the weights' JSON file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import limner
from limner import runtime
from limner.datasets.objects import TargetObject, find_objects
from limner.datasets.selection import find_sets, open_image, pick_evenly
from limner.models import PromptableModel
from limner.prompts import simulate
from limner.runtime import Network

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(limner.__file__).parent / "weights"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass
class Tally:
    """All answers about one data set, by what the model is called.

    Attributes:
        to_exact: Dice of the mask against that of the model ``exact``.
        to_truth: Dice against the target.
        gaps: largest differences of logits, by pass of the network.
    """

    to_exact: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    to_truth: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Watched:
    """A network that has others answer the same, and notes how far they are off."""

    def __init__(self, network: Network, others: dict[str, Network]) -> None:
        self.description = network.description
        self.gaps: dict[str, list[float]] = defaultdict(list)
        self._network, self._others = network, others

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """The network's own answer."""
        answer = self._network(*inputs)
        for name, other in self._others.items():
            self.gaps[name].append(float(np.abs(other(*inputs)[0] - answer[0]).max()))
        return answer


def compare(
    models: dict[str, PromptableModel], image: Any, case: TargetObject, clicks: int, tally: Tally
) -> None:
    """Let all models hear one conversation, led by the answers of the model ``exact``."""
    rng = np.random.default_rng(0)
    sessions = {name: limner.open_session(image, model) for name, model in models.items()}
    prompt = simulate.box(case.target, rng)
    for _ in range(1 + clicks):
        answers = {}
        for name, session in sessions.items():
            session.add(prompt)
            answers[name] = session.predict()
        exact = answers["exact"]
        for name, answer in answers.items():
            tally.to_truth[name].append(limner.metrics.dice(answer.mask, case.target))
            tally.to_exact[name].append(limner.metrics.dice(answer.mask, exact.mask))
        wrong = simulate.corrective_click(case.target, exact.mask, rng)
        if wrong is None:
            break
        prompt = wrong
    for session in sessions.values():
        session.close()


def tallies(
    models: dict[str, PromptableModel], watched: Watched, options: argparse.Namespace
) -> Iterator[tuple[str, Tally]]:
    """Name and tally of every data set."""
    dimensions = max(models["exact"].card.ndim)
    for data_set in find_sets(options.data, "test", options.sets or (), dimensions=dimensions):
        tally = Tally()
        watched.gaps = tally.gaps
        for stem in pick_evenly(sorted(data_set.cases), options.images):
            image = open_image(data_set, stem)
            for case in find_objects(data_set, stem, image, most=options.objects):
                compare(models, image, case, options.clicks, tally)
        if tally.to_exact:
            yield data_set.name, tally


def networks(name: str, folder: Path) -> dict[str, Network]:
    """The same network, run in different ways.

    Args:
        name: of the files.
        folder: of ``limner train export``.
    """
    from limner.checkpoints.load import fill, read_weights
    from limner.networks.promptable2d import make_network_2d
    from limner.networks.unet3d import PromptableUNet3d

    graph, path = folder / f"{name}.onnx", folder / f"{name}.safetensors"
    found = {"exact": runtime.compile(graph, precision="fp32")}
    if "bf16" in runtime.facts()["precision"]:
        found["bf16"] = runtime.compile(graph, precision="bf16")
    weights, facts = read_weights(path)
    solid = facts["config"].get("dimensions", 2) == 3
    config = facts["config"]
    module: torch.nn.Module
    if solid:
        module = PromptableUNet3d(config["widths"], config["depths"])
    else:
        module = make_network_2d(config)
    fill(module, weights, path)
    found["PyTorch"] = runtime.compile(module, device="cpu", precision="fp32")
    return found


def main() -> None:
    """Print a row per data set and the mean over them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="limner-2d")
    parser.add_argument(
        "--exported", type=Path, default=WEIGHTS, help="folder of limner train export"
    )
    parser.add_argument("--images", type=int, default=4, help="pictures per set")
    parser.add_argument("--objects", type=int, default=2, help="per picture")
    parser.add_argument("--clicks", type=int, default=4, help="after the box")
    parser.add_argument("--sets", action="append", help="only sets like this; repeat")
    options = parser.parse_args()
    ways = networks(options.model, options.exported)
    watched = Watched(ways["exact"], {k: v for k, v in ways.items() if k != "exact"})
    template: Any = limner.create_model(
        options.model, weights=options.exported / f"{options.model}.onnx", device="cpu"
    )
    models = {name: template.on(watched if name == "exact" else way) for name, way in ways.items()}
    others = [name for name in models if name != "exact"]
    print(*(f"- {name}: {way.description}" for name, way in ways.items()), sep="\n")
    columns = ["set", "answers", "exact: Dice to truth"]
    for name in others:
        columns += [f"{name}: Dice to truth", "Dice to exact", "least", "logits off by at most"]
    print("\n| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|", flush=True)
    means: dict[str, list[float]] = defaultdict(list)
    for set_name, tally in tallies(models, watched, options):
        cells = [set_name, str(len(tally.to_exact["exact"]))]
        cells.append(f"{fmean(tally.to_truth['exact']):.4f}")
        for name in others:
            same = tally.to_exact[name]
            means[name].append(fmean(same))
            cells += [f"{fmean(tally.to_truth[name]):.4f}", f"{fmean(same):.5f}"]
            cells += [f"{min(same):.4f}", f"{max(tally.gaps[name]):.2g}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    for name, values in means.items():
        print(f"\nMean over {len(values)} sets, {name} against exact: {fmean(values):.5f}")


if __name__ == "__main__":
    main()
