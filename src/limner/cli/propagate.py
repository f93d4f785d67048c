"""``limner propagate``: prompts on a slice or frame or a few, masks on all the others."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.cli.segment import Said
    from limner.io.image import Image
    from limner.prompts.types import Prompt
    from limner.sessions._base import BaseSession

INTERRUPTED = 130
_LEAST_SURE = 3  # frames that are named


def propagate(
    image: Annotated[Path, typer.Argument(help="Volume or video: file, DICOM folder, frames.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Mask: .nii.gz .nrrd .mha .tif .dcm .json .npz.")
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="r0,c0,r1,c1 with --slice, or s0,r0,c0,s1,r1,c1 on one slice. Repeat: on other "
            "slices the same object, on one slice one object each."
        ),
    ] = None,
    click: options.Clicks = None,
    exclude: options.Excluded = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A label image: masks on one or several slices, an object per label."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts with frames as JSON (docs/prompts.md).")
    ] = None,
    slice_: options.Slice = None,
    start: Annotated[int | None, typer.Option(help="First slice or frame to write.")] = None,
    stop: Annotated[int | None, typer.Option(help="First one not to write.")] = None,
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "both",
    how: Annotated[
        str,
        typer.Option(
            help="carry: from each mask to the next. interpolate: a box that moves evenly between "
            "marked slices."
        ),
    ] = "carry",
    partial: Annotated[
        bool, typer.Option("--partial", help="On Ctrl-C, write what is done.")
    ] = False,
    order: options.Order = None,
    world: options.World = None,
    model: options.Model = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    window: options.Window = None,
    exact: options.Exact = False,
    keep_embeddings: options.KeepEmbeddings = False,
    zoom: options.Zoom = None,
    name: options.Names = None,
    journal: options.KeepJournal = None,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    dicom_type: options.DicomType = None,
    preview: options.Preview = None,
    as_json: options.AsJson = False,
) -> None:
    """Carry masks from marked slices or frames to the others of a volume or video."""
    import limner
    from limner.cli._finish import check_output, finish
    from limner.cli.segment import Said, compare, say
    from limner.models import default_model

    began = time.perf_counter()
    picture = limner.read(image, series=series, channel=channel, strict=not lenient)
    if picture.kind == "image":
        raise PromptError(f"{image} is one picture; limner segment delineates in it.")
    file = options.PromptFile() if prompts is None else options.read_prompts(prompts, slice_)
    if weights is None and model is None and file.weights is not None:
        weights = Path(file.weights)
    check_output(output, preview, picture, journal=journal, inputs=(mask, prompts, weights))
    said = Said(
        tuple(box or ()),
        tuple(click or ()),
        tuple(exclude or ()),
        mask=mask,
        prompts=None if prompts is None else file,
    )
    entries = _placed(said, picture, slice_, order=order, world=world)
    with limner.open_session(
        picture,
        model or file.model or default_model(picture.kind, flat=True),
        weights=weights,
        device=device,
        exact=exact,
        keep_embeddings=keep_embeddings,
        journal=journal,
        zoom=file.zoom if zoom is None else zoom,
        window=file.window if window is None else options.parse_window(window),
    ) as session:
        say(session, entries, file.names, name or ())
        compare(session, file, prompts)
        walk = session.propagate(start=start, stop=stop, direction=direction, how=how)
        begin, end = start or 0, picture.geometry.shape[0] if stop is None else stop
        total = (end - begin) * len(session.object_ids)
        scores: dict[int, float] = {}
        whole = True
        try:
            from limner.cli._bar import bar

            with bar("propagating") as tell:
                for done, found in enumerate(walk, start=1):
                    assert found.frame is not None
                    scores[found.frame] = min(found.score, scores.get(found.frame, 1.0))
                    tell(done, total)
        except KeyboardInterrupt:
            if not partial:
                _say_where(journal, len(scores))
                raise
            whole = False
        finish(
            session,
            output,
            preview=preview,
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
        )
        _tell(session, scores)
    if not whole:
        raise typer.Exit(INTERRUPTED)


def _placed(
    said: Said, image: Image, frame: int | None, *, order: str | None, world: str | None
) -> list[options.Placed]:
    """All prompts as 2D prompts on their slices.

    The first boxes on each slice are object 1, the second object 2, and so on; clicks are about
    object 1.
    """
    from dataclasses import replace

    from limner.cli.segment import Said, gather

    entries: list[options.Placed] = []
    if said.boxes:
        seen: Counter[int] = Counter()
        for entry in gather(Said(said.boxes), image, frame, order=order, world=world):
            for flat in _on_planes(entry, image):
                assert flat.frame is not None
                seen[flat.frame] += 1
                entries.append(flat._replace(object_id=seen[flat.frame]))
        if max(seen.values()) > 1 and (said.clicks or said.excluded):
            raise PromptError(
                "Several boxes on one slice are several objects; say with --prompts FILE.json "
                "which of them each click is about."
            )
    rest = replace(said, boxes=())
    if rest != Said() or not entries:
        for entry in gather(rest, image, frame, order=order, world=world):
            entries += _on_planes(entry, image)
    return entries


def _on_planes(entry: options.Placed, image: Image) -> list[options.Placed]:
    """A prompt as one 2D prompt per slice that it marks."""
    from limner.prompts.types import MaskPrompt, num_axes
    from limner.sessions._planar import onto_plane

    prompt: Prompt = entry.prompt
    if num_axes(prompt) == 2 and entry.frame is not None:
        return [entry]
    if isinstance(prompt, MaskPrompt) and prompt.mask.shape == image.geometry.shape:
        drawn = [k for k, plane in enumerate(prompt.mask) if plane.any()]
        return [entry._replace(prompt=MaskPrompt(prompt.mask[k]), frame=k) for k in drawn]
    dropped = onto_plane(prompt)
    if dropped is None:
        raise PromptError(
            f"A {prompt.kind} to start from lies on one slice or frame: say which with --slice K, "
            "or give s,r,c and s0,r0,c0,s1,r1,c1 with s1 = s0 + 1."
        )
    return [entry._replace(prompt=dropped[0], frame=dropped[1])]


def _say_where(journal: Path | None, count: int) -> None:
    """After Ctrl-C: where the work is that was done."""
    if journal is None or not count:
        return
    print(
        f"limner: {count} slices or frames are in the journal; limner resume {journal} -o FILE "
        "writes them.",
        file=sys.stderr,
    )


def _tell(session: BaseSession, scores: dict[int, float]) -> None:
    """How far it went, and where to look."""
    what = "slices" if session.image.kind == "volume" else "frames"
    text = f"carried to {len(scores)} {what}"
    worst: Sequence[int] = sorted(scores, key=lambda k: (scores[k], k))[:_LEAST_SURE]
    if worst:
        text += "; least sure: " + ", ".join(f"{k} ({scores[k]:.2f})" for k in worst)
    print(text, file=sys.stderr)
