"""``limner train``: train a model by a recipe; ``pack``: its images; ``export``: its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from limner.cli._messages import check_folder, show_progress


class _RecipeFirst(TyperGroup):
    """``limner train RECIPE`` is ``limner train run RECIPE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=_RecipeFirst,
    help="Train a built-in model: limner train RECIPE --data DIR --out RUN.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("run")
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML, such as recipes/limner-2d.yaml.")],
    data: Annotated[Path, typer.Option(help="Folder of data sets, or of a pack made from one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished one is continued.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin with: of an earlier run, or XMem's.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; resumable.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.", min=0)] = None,
) -> None:
    """Train, or go on training, as a recipe says."""
    from limner import errors

    torch = errors.require("torch", extra="train", purpose="train")
    errors.require("pydantic", extra="train", purpose="read recipes")
    from limner.train.loop import train
    from limner.train.recipe import read_recipe

    check_folder(out, "--out")
    show_progress("limner.train", "limner.datasets")
    if threads is not None:
        torch.set_num_threads(threads)
    config = read_recipe(recipe, steps=steps, seed=seed)
    outcome = train(config, data, out, device=device, minutes=minutes, start=start)
    state = "finished" if outcome.finished else "stopped; the same command goes on"
    print(f"{out}: step {outcome.step} of {config.steps}, {state} ({outcome.seconds:.0f} s).")
    print(outcome.result)


@app.command("pack")
def pack(
    data: Annotated[
        Path,
        typer.Argument(
            help="Data sets: images/ with masks/ or labels/, nnU-Net raw, MSD, a folder of such "
            "folders, or a data root with splits.json."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pack.")],
    dimensions: Annotated[
        int, typer.Option(help="2: images and slices; 3: images and volumes.", min=2, max=3)
    ] = 2,
    slices: Annotated[int, typer.Option(help="Of each volume and direction, at most.", min=1)] = 8,
    slices_of: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=N: likewise, of data sets with such a name. Repeat."),
    ] = None,
    volumes: Annotated[int, typer.Option(help="Of each data set, at most.", min=1)] = 80,
) -> None:
    """Gather what may be trained on into one small folder that travels."""
    from limner.train.data.pack_settings import PackSettings, parse_slices
    from limner.train.data.prepare import write_packs

    check_folder(output, "--output")
    show_progress("limner.train", "limner.datasets")
    settings = PackSettings(slices=slices, slices_of=parse_slices(slices_of or ()), volumes=volumes)
    summaries = write_packs(data, output, with_volumes=dimensions == 3, settings=settings)
    sets = [fact for summary in summaries for fact in summary["sets"].values()]
    size = sum(fact["bytes"] for fact in sets)
    print(f"{output}: {len(sets)} sets, {size / 1e6:.1f} MB.")


@app.command("export")
def export(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or its weights file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")],
    base: Annotated[
        Path | None, typer.Option(help="Of adapters: the file that they were trained on.")
    ] = None,
) -> None:
    """Write a run's result as safetensors and as ONNX, with their hashes."""
    from limner import errors

    errors.require("torch", extra="train", purpose="export a network")
    from limner.export.built_in import export as write

    written = write(source, output, base=base)
    for path in (written.weights, *written.graphs, written.facts):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB.")
