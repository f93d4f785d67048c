"""``limner bench cvpr``: files of the CVPR 2025 challenge answered, and scored where truth is."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli._messages import show_progress

if TYPE_CHECKING:
    from limner.bench.challenge import CaseScores

SCORES = "scores.csv"


def cvpr(
    cases: Annotated[Path, typer.Argument(help="CASE.npz, or a folder of such files.")],
    model: Annotated[str, typer.Option(help="See limner models.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for label maps of the same names.")
    ],
    truth: Annotated[
        Path | None, typer.Option(help="Folder (or file) with gts, where the cases have none.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="The model's weights file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Answer files of the CVPR 2025 challenge (interactive segmentation of volumes).

    Boxes and clicks of a file are answered, and OUTPUT/CASE.npz gets segs. With gts, in the file or
    by --truth, a simulated user says a box and five clicks per class, and the challenge's scores
    are printed and written to OUTPUT/scores.csv.
    """
    from limner.bench.challenge import CaseScores, answer_all
    from limner.bench.protocol import check_dimensions
    from limner.models import create_promptable

    created = create_promptable(model, weights=weights, device=device)
    check_dimensions(created.card, 3)
    show_progress("limner.bench", "limner.datasets")
    found: list[CaseScores] = []
    for result in answer_all(created, cases, output, truth=truth):
        if isinstance(result, CaseScores):
            found.append(result)
            print(_line(result), file=sys.stderr)
            _write(found, output / SCORES)
        else:
            print(f"Wrote {output / result}")
    if found:
        print(_table(found))


def _line(scores: CaseScores) -> str:
    steps = " → ".join(f"{x:.3f}" for x in scores.dsc)
    late = "; later than the challenge's 90 s per class" if scores.is_late else ""
    failed = f"; failed in {'; '.join(scores.failures)}" if scores.failures else ""
    return f"{scores.name}: DSC {steps}, {scores.seconds:.1f} s{late}{failed}"


def _table(found: Sequence[CaseScores]) -> str:
    names = list(found[0].summary)
    lines = [
        f"| case | classes | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
    ]
    for scores in found:
        cells = " | ".join(f"{value:.4f}" for value in scores.summary.values())
        lines.append(f"| {scores.name} | {scores.num_classes} | {cells} |")
    if len(found) > 1:
        means = (sum(s.summary[n] for s in found) / len(found) for n in names)
        cells = " | ".join(f"{value:.4f}" for value in means)
        lines.append(f"| mean of {len(found)} | | {cells} |")
    return "\n".join(lines)


def _write(found: Sequence[CaseScores], path: Path) -> None:
    """One line per case: the summary, then DSC and NSD after the box and each click."""
    from limner.atomic import atomic_bytes

    buffer = io.StringIO(newline="")
    rounds = range(len(found[0].dsc))
    heads = [f"{name}_{k}" for name in ("DSC", "NSD") for k in rounds]
    writer = csv.writer(buffer)
    writer.writerow(["case", "classes", *found[0].summary, "seconds", *heads])
    for s in found:
        numbers = [*s.summary.values(), s.seconds, *s.dsc, *s.nsd]
        writer.writerow([s.name, s.num_classes, *(round(x, 6) for x in numbers)])
    atomic_bytes(path, buffer.getvalue().encode())
