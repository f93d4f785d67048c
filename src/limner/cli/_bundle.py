"""``limner models bundle`` and ``limner models add --from``: weights without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from limner.checkpoints.bundle import BundledFile
    from limner.checkpoints.cards import WeightsCard
    from limner.models import Variant


def bundle(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The archive, such as models.zip.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models; all that are here.")
    ] = None,
) -> None:
    """Put kept weights, cards and hashes into one archive, for a machine without a network."""
    from limner import models
    from limner.checkpoints.bundle import write_bundle
    from limner.errors import CheckpointError

    chosen = [models.variant(name) for name in names] if names else models.variants()
    files = _find_kept(chosen)
    users = {model for _, _, models_of in files for model in models_of}
    for variant in chosen if names else ():
        if variant.weights and variant.card.name not in users:
            raise CheckpointError(
                f"The weights of {variant.card.name} are not here: {models.how_to_get(variant)}."
            )
    if not files:
        raise CheckpointError(
            "There are no weights to put into a bundle: get some with limner models fetch NAME or "
            "limner models add NAME FILE. Models that come with limner need none."
        )
    cards = {v.card.name: v.card.to_json() for v in chosen if v.card.name in users}
    _print_files(write_bundle(output, files, cards))
    print(f"{output}: {output.stat().st_size / 1e6:,.1f} MB; there: limner models add --from FILE")


def add_bundle(path: Path, names: Sequence[str] = ()) -> None:
    """Check a bundle and keep its weights.

    Args:
        path: of the archive.
        names: of models; all of the bundle if empty.
    """
    from limner import models
    from limner.checkpoints.bundle import read_bundle, unpack_bundle

    known = {card.name: card for variant in models.variants() for card in variant.weights}
    kept = {place.name for place in unpack_bundle(path, known, names)}
    _print_files([entry for entry in read_bundle(path) if entry.name in kept])


def _find_kept(variants: Sequence[Variant]) -> list[tuple[WeightsCard, Path, list[str]]]:
    """Find the kept weights files of some models, each once, with the models that use it."""
    from limner.checkpoints import store

    found: dict[str, tuple[WeightsCard, Path, list[str]]] = {}
    for variant in variants:
        for card in variant.weights:
            place = store.locate(card.name)
            if place is not None:
                found.setdefault(card.name, (card, place, []))[2].append(variant.card.name)
    return list(found.values())


def _print_files(files: Sequence[BundledFile]) -> None:
    for file in files:
        size = f"{file.size / 1e6:,.1f} MB"
        print(f"{', '.join(file.models)}: {file.name}, {size}, licence {file.licence}")
        print(f"    SHA-256 {file.sha256}")
