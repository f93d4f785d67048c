"""``limner resume``: continue a session from its journal, after a crash or to correct it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.errors import PromptError, SessionError

if TYPE_CHECKING:
    from limner.cli._prompts import CommandPrompts
    from limner.sessions import Session

_LEAST_SURE = 3  # frames that are named


def resume(
    journal: Annotated[Path, typer.Argument(help="The file given as --journal.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the mask here.")
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="One more box: r0,c0,r1,c1 or s0,r0,c0,s1,r1,c1.")
    ] = None,
    click: options.Clicks = None,
    exclude: options.Excluded = None,
    slice_: options.Slice = None,
    axis: options.Axis = None,
    object_id: Annotated[
        int, typer.Option("--object", help="Which object the new prompts are about.", min=1)
    ] = 1,
    undo: Annotated[
        int,
        typer.Option(
            "--undo", count=True, help="First take back the last prompt or reset. May be repeated."
        ),
    ] = 0,
    redo: Annotated[
        int, typer.Option("--redo", count=True, help="First bring back what was undone last.")
    ] = 0,
    lock: options.Lock = None,
    unlock: Annotated[
        list[int] | None,
        typer.Option(metavar="OBJECT", help="Inverse of --lock. May be repeated.", min=1),
    ] = None,
    priority: options.Priority = None,
    image: Annotated[Path | None, typer.Option(help="The image, if it has moved.")] = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue", help="Go on with the propagation that was cut short or corrected."
        ),
    ] = False,
    preview: options.Preview = None,
    dicom_type: options.DicomType = None,
    as_json: options.AsJson = False,
) -> None:
    """Rebuild a session from its journal, correct it, show its prompts or write the mask."""
    import limner
    from limner.cli._progress import waiting
    from limner.cli._prompt_files import parse_axis
    from limner.cli._prompts import CommandPrompts, set_precedence
    from limner.cli._result import check_output, write_result

    began = time.perf_counter()
    given = CommandPrompts(tuple(box or ()), tuple(click or ()), tuple(exclude or ()))
    with waiting("checking that the image is the same"):
        resumed = limner.resume(journal, image=image)
    with resumed as session:
        if output is not None:
            check_output(output, preview, session.image, journal=journal, dicom_type=dicom_type)
        for object_id in unlock or ():
            session.unlock(object_id)
        _undo(session, undo, redo)
        if given != CommandPrompts():
            place = options.PlaceOptions(slice_=slice_)
            _add(session, given, place, object_id, parse_axis(axis, session.image, slice_))
        set_precedence(session, options.ObjectOptions(lock=lock, priority=priority))
        if go_on:
            _resume_propagation(session, journal)
        if output is None:
            _print_prompts(session, as_json=as_json)
            return
        write_result(
            session,
            output,
            preview=preview,
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
        )


def _undo(session: Session, undo: int, redo: int) -> None:
    """Take back and bring back, the whole of both or nothing: a journal forgets nothing."""
    for verb, back, count in (
        (session.undo, session.redo, undo),
        (session.redo, session.undo, redo),
    ):
        for done in range(count):
            try:
                verb()
            except SessionError:
                for _ in range(done):
                    back()
                raise


def _add(
    session: Session,
    given: CommandPrompts,
    place: options.PlaceOptions,
    object_id: int,
    axis: int,
) -> None:
    """Add all new prompts, or none where one is refused: a journal forgets nothing."""
    from limner.cli._prompts import collect_prompts

    if len(given.boxes) > 1:
        raise PromptError("--object is one object, so give one --box; more in further calls.")
    entries = collect_prompts(given, session.image, place, object_id=object_id, axis=axis)
    for change in (session.check_prompt, session.add):
        for e in entries:
            change(e.prompt, object_id=e.object_id, frame=e.frame, axis=e.axis)


def _resume_propagation(session: Session, journal: Path) -> None:
    """Run what is missing of the propagation that was asked for last."""
    from limner.cli._propagation_report import PropagationReport, count_expected

    what = "slices" if session.image.kind == "volume" else "frames"
    request = session.requested
    predictions, report = session.resume_propagation(), PropagationReport(range(session.num_frames))
    try:
        report.collect(
            predictions, "going on", 0 if request is None else count_expected(session, request)
        )
    except KeyboardInterrupt:
        print(
            f"limner: stopped; {report.num_run} {what} more are in the journal. The same command "
            f"goes on: limner resume {journal} --continue",
            file=sys.stderr,
        )
        raise
    count = report.num_run
    text = f"carried to {count} more {what}" if count else "nothing was missing"
    worst = ", ".join(f"{d.frame} ({d.score:.2f})" for d in session.frames_to_review(_LEAST_SURE))
    print(text + (f"; least sure: {worst}" if worst else ""), file=sys.stderr)


def _print_prompts(session: Session, *, as_json: bool) -> None:
    from limner.prompts import to_json

    entries = [
        {"object": e.object_id, "frame": e.frame, **to_json(e.prompt)} for e in session.entries
    ]
    if as_json:
        facts = {
            "image": None if session.image.path is None else str(session.image.path),
            "model": session.card.name,
            "names": dict(session.names),
            "locked": list(session.locked),
            "priority": list(session.priority),
            "can_undo": session.can_undo,
            "can_redo": session.can_redo,
            "prompts": entries,
        }
        print(json.dumps(facts, indent=2))
        return
    print(f"{session.image.path} with {session.card.name}: {len(entries)} prompts")
    for line in entries:
        where = "" if line["frame"] is None else f" on {line['frame']}"
        kind, number = line["kind"], line["object"]
        details = {k: v for k, v in line.items() if k not in ("object", "frame", "kind")}
        print(f"  object {number}{where}: {kind} {_shorten(json.dumps(details))}")
    print("Write the mask with -o FILE; correct it with --click, --not or --box.")


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
