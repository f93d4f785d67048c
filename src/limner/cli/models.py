"""``limner models``: which models there are and what they understand."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from limner.cli import _options as options


def models(
    prompt: Annotated[
        str | None, typer.Option(help="Only models that understand this kind of prompt.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the models: dimensions, prompts, licence."""
    from limner.models import cards
    from limner.prompts.types import KINDS

    if prompt is not None and prompt not in KINDS:
        raise typer.BadParameter(f"{prompt!r} is no kind of prompt; they are {', '.join(KINDS)}.")
    chosen = [card for card in cards() if prompt is None or prompt in card.prompts]
    if as_json:
        print(json.dumps([card.to_json() for card in chosen], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)  # a cut name cannot be typed
    for heading in ("axes", "prompts", "licence", "what it is"):
        table.add_column(heading, overflow="fold")
    for card in chosen:
        axes = " ".join(f"{n}D" for n in card.ndim)
        table.add_row(card.name, axes, " ".join(sorted(card.prompts)), card.licence, card.summary)
    Console().print(table)
