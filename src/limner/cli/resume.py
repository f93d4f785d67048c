"""``limner resume``: continue a conversation from its journal after a crash."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from limner.cli import _options as options


def resume(
    journal: Annotated[Path, typer.Argument(help="The file given as --journal.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the mask here.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The image, if it has moved.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Also write a picture: .png.")] = None,
    dicom_type: options.DicomType = None,
    as_json: options.AsJson = False,
) -> None:
    """Rebuild a session from its journal: show what was said, and write the mask if asked."""
    import limner
    from limner.cli._finish import check_output, finish
    from limner.prompts import to_json

    began = time.perf_counter()
    with limner.resume(journal, image=image) as session:
        if output is not None:
            check_output(output, preview, session.image, journal=journal)
            finish(
                session,
                output,
                preview=preview,
                window=session.options.window,
                dicom_type=dicom_type,
                as_json=as_json,
                began=began,
            )
            return
        said = [
            {"object": e.object_id, "frame": e.frame, **to_json(e.prompt)} for e in session.entries
        ]
        if as_json:
            facts = {
                "image": None if session.image.path is None else str(session.image.path),
                "model": session.model.card.name,
                "names": session.names,
                "can_undo": session.can_undo,
                "can_redo": session.can_redo,
                "prompts": said,
            }
            print(json.dumps(facts, indent=2))
            return
        print(f"{session.image.path} with {session.model.card.name}: {len(said)} prompts")
        for line in said:
            where = "" if line["frame"] is None else f" on {line['frame']}"
            kind, object_id = line["kind"], line["object"]
            details = {k: v for k, v in line.items() if k not in ("object", "frame", "kind")}
            print(f"  object {object_id}{where}: {kind} {_short(json.dumps(details))}")
        print("Write the mask with -o FILE.")


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
