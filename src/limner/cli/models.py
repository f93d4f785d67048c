"""``limner models``: which models there are, what they understand, and where their weights are."""

from __future__ import annotations

import json
import logging
import shutil
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import _options as options
from limner.cli._bundle import add_bundle, bundle
from limner.cli._messages import show_progress

if TYPE_CHECKING:
    from limner.checkpoints.cards import WeightsCard
    from limner.models import Variant

Name = Annotated[str, typer.Argument(help="A model, or a weights file of its card.")]

_EVERY_S = 2.0  # between two lines of progress

app = typer.Typer(
    help="List the models; get, keep and check their weights.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def models(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Option(help="Only models that understand this kind of prompt.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the models: dimensions, prompts, licence, weights. Or get and keep weights."""
    if context.invoked_subcommand is not None:
        return
    from limner.models import variants
    from limner.prompts.types import KINDS

    if prompt is not None and prompt not in KINDS:
        raise typer.BadParameter(f"{prompt!r} is no kind of prompt; they are {', '.join(KINDS)}.")
    chosen = [v for v in variants() if prompt is None or prompt in v.card.prompts]
    if as_json:
        print(json.dumps([_facts(v) for v in chosen], indent=2))
        return
    for variant in chosen:
        card = variant.card
        print(card.name)
        axes = " ".join(f"{n}D" for n in card.ndim)
        _indented(card.summary)
        _indented(f"axes: {axes}; licence: {card.licence}")
        if card.prompts:
            _indented(f"prompts: {' '.join(sorted(card.prompts))}")
        else:
            names = ", ".join(card.labels.values()) or "as its weights say"
            _indented(f"no prompts (limner auto); labels: {names}")
        if variant.weights:
            _indented(_weights_line(variant))


@app.command("fetch")
def fetch(
    name: Name,
    source: Annotated[
        str | None,
        typer.Option("--from", help="https://…, file://… or hf:owner/repository/file instead."),
    ] = None,
) -> None:
    """Download the weights of a model, check and keep them; goes on where it stopped."""
    from limner.checkpoints import store
    from limner.checkpoints.fetch import fetch as download

    variant, card = _find(name)
    kept = store.locate(card.name)
    if kept is not None:
        print(f"{kept} is here already; limner models remove {name} makes room for another.")
        return
    show_progress("limner.checkpoints")
    print(f"{card.name}, licence of the weights: {card.licence}")
    try:
        path = download(
            card,
            store.weights_folder(),
            source=source,
            progress=_Meter(card.name),
            known_as=variant.card.name,
        )
    except KeyboardInterrupt:
        typer.echo("limner: the part that came is kept; the same command goes on.", err=True)
        raise
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, SHA-256 {_digest(path)}")


app.command("bundle")(bundle)


@app.command("add")
def add(
    name: Annotated[
        str | None, typer.Argument(help="A model, or a weights file of its card.")
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(help="Weights, or a folder with model.safetensors.")
    ] = None,
    from_bundle: Annotated[
        Path | None,
        typer.Option("--from", help="A bundle (limner models bundle): all of it, or NAME only."),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not build the model with them first.")
    ] = False,
) -> None:
    """Keep a copy of a weights file that you have, after seeing that it fits the model."""
    from importlib import util

    from limner import models
    from limner.checkpoints import store
    from limner.checkpoints.archive import open_archive, weights_file

    if from_bundle is not None and file is None:
        add_bundle(from_bundle, [] if name is None else [name])
        return
    if name is None or file is None or from_bundle is not None:
        raise typer.BadParameter("give NAME and FILE, or --from BUNDLE with or without NAME.")
    variant, card = _find(name)
    file = weights_file(file)
    open_archive(file)  # before the long work
    digest = _digest(file)
    for other in variant.weights:
        card = other if digest == other.sha256 or file.name == other.name else card
    if no_check or util.find_spec("torch") is None:
        print("Not checked that they fit the model.")
    else:
        models.create_model(variant.card.name, weights=file)
    path = store.add(card, file)
    known = [c.sha256 for c in variant.weights if c.sha256 is not None]
    if known and digest not in known:
        print("They are other weights than the published ones, by their hash.")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, SHA-256 {digest}")


@app.command("remove")
def remove(name: Name) -> None:
    """Delete the kept weights of a model, and what is left of an unfinished download."""
    from limner.checkpoints import store

    variant, card = _find(name)
    cards = variant.weights if name == variant.card.name else (card,)
    removed = [one.name for one in cards if store.remove(one.name)]
    if not removed:
        print(f"There are no weights of {name} in {store.weights_folder()}.")


@app.command("where")
def where(name: Name) -> None:
    """Print the path of the kept weights of a model."""
    from limner.checkpoints import store
    from limner.errors import CheckpointError
    from limner.models import how_to_get

    variant, card = _find(name)
    cards = variant.weights if name == variant.card.name else (card,)
    found = [path for path in (store.locate(one.name) for one in cards) if path is not None]
    if not found:
        raise CheckpointError(
            f"There are no weights of {name} in {store.weights_folder()}: {how_to_get(variant)}."
        )
    print(found[0])


@app.command("optimize")
def optimize(
    name: Annotated[str, typer.Argument(help="A model.")],
    weights: Annotated[Path | None, typer.Option(help="Instead of the kept ones.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    exact: Annotated[bool, typer.Option("--exact", help="The float32 form.")] = False,
) -> None:
    """Compile a model for this machine and keep the result, so that later starts are quick."""
    import limner
    from limner import phantoms
    from limner.models import create_promptable

    began = time.perf_counter()
    model = create_promptable(name, weights=weights, device=device, exact=exact)
    built = time.perf_counter()
    phantom = phantoms.image(0) if 2 in model.card.ndim else phantoms.volume(0)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        with limner.open_session(phantom.image, model=model) as session:
            session.add(_prompt(model.card.prompts, phantom))
            session.predict()
        seconds.append(time.perf_counter() - start)
    print(
        f"{model.card.name}: {model.card.runtime or 'NumPy'}; built in {built - began:.1f} s, "
        f"first answer {seconds[0]:.2f} s, the next {seconds[1]:.2f} s."
    )


def _prompt(kinds: frozenset[str], phantom: Any) -> Any:
    """Something to ask about the largest object of a phantom."""
    import numpy as np

    from limner import prompts

    sizes = np.bincount(phantom.truth.ravel())
    truth = phantom.truth == 1 + int(np.argmax(sizes[1:]))
    found = np.nonzero(truth)
    if "box" in kinds:
        return prompts.Box(
            tuple(int(f.min()) for f in found), tuple(int(f.max()) + 1 for f in found)
        )
    inside = tuple(int(f[len(f) // 2]) for f in found)
    if "click" in kinds:
        return prompts.Click(inside)
    if "scribble" in kinds:
        return prompts.Scribble((inside, inside))
    if "mask" in kinds:
        return prompts.MaskPrompt(truth)
    if "text" in kinds:
        return prompts.TextPrompt("liver")
    return prompts.Example(np.asarray(phantom.image.array), truth)


def _find(name: str) -> tuple[Variant, WeightsCard]:
    """A model by its name or by the name of one of its files, and that file's card.

    Raises:
        ValueError: there is no such model.
        CheckpointError: it needs no file.
    """
    from limner import models
    from limner.errors import CheckpointError

    for variant in models.variants():
        for card in variant.weights:
            if card.name == name:
                return variant, card
    variant = models.variant(name)
    if not variant.weights:
        raise CheckpointError(f"{name} needs no weights file; it works as it is.")
    return variant, variant.weights[0]


def _facts(variant: Variant) -> dict[str, Any]:
    """A card as JSON values, with its weights and where they are."""
    from dataclasses import asdict

    from limner.models import kept_weights

    kept = kept_weights(variant)
    state = "not needed" if not variant.weights else "missing" if kept is None else "here"
    return {
        **variant.card.to_json(),
        "weights": state,
        "weights_path": None if kept is None else str(kept),
        "weights_files": [asdict(card) for card in variant.weights],
    }


def _weights_line(variant: Variant) -> str:
    """Where the weights are or how to get them, under which licence."""
    from limner.models import how_to_get, kept_weights

    kept = kept_weights(variant)
    licences = " or ".join(dict.fromkeys(card.licence for card in variant.weights))
    if kept is not None:
        return f"weights: {kept} ({licences})"
    size = variant.weights[0].size
    large = f"{size / 1e6:,.0f} MB, " if size else ""
    return f"weights: not here ({large}{licences}); {how_to_get(variant)}"


def _digest(path: Path) -> str:
    from limner.checkpoints.digest import sha256_of

    return sha256_of(path)


def _indented(line: str) -> None:
    print(
        textwrap.fill(
            line,
            shutil.get_terminal_size().columns,
            initial_indent="    ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


class _Meter:
    """Says now and then how far a download is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._last < _EVERY_S and done != total:
            return
        self._last = now
        speed = (done - self._first) / max(now - self._began, 1e-3)
        text = f"{self._name}: {done / 1e6:,.0f}"
        if total is not None:
            text += f" of {total / 1e6:,.0f}"
        text += f" MB, {speed / 1e6:,.1f} MB/s"
        if total is not None and speed > 0:
            text += f", {(total - done) / speed:,.0f} s left"
        logging.getLogger("limner.checkpoints").info(text)
