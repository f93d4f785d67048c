"""``limner models``: which models there are and what they understand."""

from __future__ import annotations

import json
import shutil
import textwrap
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
    width = shutil.get_terminal_size().columns
    for card in chosen:
        print(card.name)
        axes = " ".join(f"{n}D" for n in card.ndim)
        for line in (
            card.summary,
            f"axes: {axes}; licence: {card.licence}",
            f"prompts: {' '.join(sorted(card.prompts))}",
        ):
            print(
                textwrap.fill(
                    line,
                    width,
                    initial_indent="    ",
                    subsequent_indent="      ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
