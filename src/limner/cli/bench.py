"""``limner bench``: ask models about real objects (run), their scores (report), challenge files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from limner.cli._groups import expand_groups
from limner.cli._messages import check_folder, show_progress
from limner.cli.bench_cvpr import cvpr

if TYPE_CHECKING:
    from limner.bench.config import BenchConfig
    from limner.bench.run import Outcome

app = typer.Typer(
    help="Measure models with a simulated user: limner bench run, then limner bench report.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command("cvpr")(cvpr)


@dataclass(frozen=True)
class ProtocolOptions:
    """How models are asked."""

    PANEL: ClassVar[str] = "Protocol"

    protocol: Annotated[
        str,
        typer.Option(
            help="box, clicks, mixed, scribbles or examples; slices in 3D; propagation in volumes "
            "and videos."
        ),
    ] = "box"
    rounds: Annotated[int, typer.Option(help="Prompts per object, the first included.")] = 6
    examples: Annotated[
        int, typer.Option(help="With --protocol examples: pictures shown first, 1 to 64.")
    ] = 16
    by_slices: Annotated[
        bool, typer.Option("--by-slices", help="Volumes slice by slice to 3D models, too.")
    ] = False
    slices: Annotated[int, typer.Option(help="With --protocol slices: slices marked first.")] = 3
    mark: Annotated[str, typer.Option(help="With --protocol slices: box or click.")] = "box"
    between: Annotated[
        str, typer.Option(help="With --protocol slices, 2D models: interpolate or carry.")
    ] = "interpolate"
    annotated: Annotated[
        int, typer.Option(help="With --protocol propagation: slices or frames that are given.")
    ] = 1
    start: Annotated[str, typer.Option(help="How they are given: mask, box or click.")] = "mask"
    together: Annotated[
        bool, typer.Option("--together", help="All objects of an image in one session.")
    ] = False
    margin: Annotated[
        int, typer.Option(help="Slices or frames beyond the object that are asked about, too.")
    ] = 3
    seed: Annotated[int, typer.Option(help="Of the simulated user.")] = 0
    disturb: Annotated[
        str,
        typer.Option(
            help="none, click_off_5, box_large_20, negative_first, shuffled, sixteen_bit, rgb, "
            "grey or inverted."
        ),
    ] = "none"


@dataclass(frozen=True)
class CaseOptions:
    """What models are asked about."""

    PANEL: ClassVar[str] = "Cases"

    dimensions: Annotated[
        int | None,
        typer.Option(help="2: images, 3: volumes; default: 3 where only volumes are named."),
    ] = None
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test"
    sets: Annotated[
        list[str] | None, typer.Option(help="Only sets like this, such as 'scribble_*'. Repeat.")
    ] = None
    limit: Annotated[int | None, typer.Option(help="Images per set, spread over it.")] = None
    objects: Annotated[int | None, typer.Option(help="Objects per image, likewise.")] = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of names of sets; one option may hold several."""
        return tuple(part for text in self.sets or () for part in text.split(","))


@app.command("run")
@expand_groups
def run(
    data: Annotated[
        Path,
        typer.Option(
            help="Data root with splits.json, a set (images/ and masks/, or labels/), or sets."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            help="See limner models. Repeat to compare. With --protocol propagation also A+B: A "
            "answers prompts, B carries masks."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; unfinished ones go on.")
    ],
    how: ProtocolOptions,
    cases: CaseOptions,
    weights: Annotated[
        list[str] | None, typer.Option(help="FILE, or MODEL=FILE where several are asked.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Ask models about every object and keep what they answered."""
    from limner.bench.run import run as run_bench

    config = _configure(data, model, how, cases, weights or (), device)
    check_folder(out, "--output")
    show_progress("limner.bench", "limner.datasets")
    try:
        outcome = run_bench(config, out)
    except KeyboardInterrupt:
        typer.echo(f"limner: {out} keeps what was held; the same command goes on.", err=True)
        raise
    print(f"{out}: {_describe_outcome(outcome)}")


def _configure(
    data: Path,
    models: Sequence[str],
    how: ProtocolOptions,
    cases: CaseOptions,
    weights: Sequence[str],
    device: str,
) -> BenchConfig:
    """The options as a configuration of a run."""
    from limner.bench.config import BenchConfig, parse_weights
    from limner.datasets.selection import guess_dimensions

    names, dimensions = list(models), cases.dimensions
    if how.protocol == "propagation":
        dimensions = dimensions or 3
        names = [part for name in models for part in name.split("+")]
    chosen = {field.name: getattr(cases, field.name) for field in fields(cases)}
    facts = chosen | {field.name: getattr(how, field.name) for field in fields(how)}
    return BenchConfig(
        **facts
        | {
            "data": str(data.resolve()),
            "models": tuple(models),
            "sets": cases.patterns,
            "dimensions": dimensions or guess_dimensions(data, cases.patterns),
            "weights": parse_weights(weights, names),
            "device": device,
        }
    )


@app.command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of limner bench run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="One HTML page with charts.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Tables as Markdown; - for the terminal.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="All rounds as .parquet.")] = None,
    no_figures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave out the worst cases, which show images.")
    ] = False,
) -> None:
    """Put runs together; prints the tables if no file is asked for."""
    from limner.atomic import atomic_bytes
    from limner.bench import report as reports
    from limner.bench.report_data import NUM_WORST_CASES

    num_cases = 0 if no_figures or output is None else NUM_WORST_CASES
    found = reports.build_report(runs, num_cases=num_cases)
    if output is not None:
        reports.write_html(found, output)
    if table is not None:
        reports.write_table(found, table)
    if markdown is not None and str(markdown) != "-":
        atomic_bytes(markdown, reports.to_markdown(found).encode())
    elif markdown is not None or (output is None and table is None):
        print(reports.to_markdown(found), end="")
    for path in (output, table, markdown if str(markdown) != "-" else None):
        if path is not None:
            print(f"Wrote {path}", file=sys.stderr)


def _describe_outcome(outcome: Outcome) -> str:
    lonely = outcome.num_objects_left_out
    return (
        f"{outcome.num_rows} conversations ({outcome.num_new} new in {outcome.seconds:.0f} s), "
        f"{outcome.num_failed} failed, {outcome.num_left_out} pictures left out"
        + (f", {lonely} objects that nothing else shows." if lonely else ".")
    )
