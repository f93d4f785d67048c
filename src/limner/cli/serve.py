"""``limner serve``: the annotation server for limner's clients and for viewers."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    studies: Annotated[
        Path | None, typer.Option(help="Folder of images that clients may open.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for sessions and uploads; default: the user's own.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Offer this model; repeat. Default: all that are here.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; others than loopback ask for a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8765,
    known_as: Annotated[
        list[str] | None, typer.Option(help="Host name under which clients reach it; repeat.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="LIMNER_TOKEN", help="Token of clients; default: a random one."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for none; on the loopback address only.")
    ] = False,
    dls_port: Annotated[
        int | None,
        typer.Option(help="Also serve ITK-SNAP here, e.g. 8911; no token, loopback only.", min=0),
    ] = None,
    nninteractive_port: Annotated[
        int | None,
        typer.Option(help="Also listen here, nnInteractive's port being 1527.", min=0, max=65535),
    ] = None,
    max_live: Annotated[
        int, typer.Option(help="Sessions in memory; others wait on disk.", min=1)
    ] = 32,
) -> None:
    """Serve sessions to limner's clients and to viewers; see docs/viewers.md."""
    from limner.errors import FormatError, require

    for package in ("fastapi", "uvicorn"):
        require(package, extra="serve", purpose="run a server")
    from limner.server.run import Door, run_server
    from limner.server.settings import Settings
    from limner.server.viewers.itksnap import make_itksnap_app

    if studies is not None and not studies.is_dir():
        raise FormatError(f"There is no folder {studies}; --studies names a folder of images.")
    shown = None if no_token else token or secrets.token_urlsafe(24)
    settings = Settings(
        state=_state_folder(state),
        studies=studies,
        token=shown,
        models=tuple(model or ()),
        hosts=tuple({"127.0.0.1", "localhost", "::1", host.lower(), *(known_as or ())}),
        max_live=max_live,
    )

    def show(ports: list[int]) -> None:
        address = f"http://{f'[{host}]' if ':' in host else host}:{ports[0]}"
        print(f"limner serves at {address}   (Ctrl-C stops; sessions are kept in {settings.state})")
        print(f"  token    {shown or 'none is asked'}")
        print(f"  Python   limner.connect({address!r}, {shown!r})")
        print(f"  nnInteractive (3D Slicer, napari): server {address}, API key = token")
        for text, number in zip(texts, ports[1:], strict=True):
            print(text.format(port=number))
        option = "" if shown is None else f" --token {shown}"
        print(f"  shell    limner segment IMAGE --server {address}{option} …")
        print(f"  OpenAPI  {address}/api/v1/openapi.json")
        print("Research use only; not a medical device.")
        sys.stdout.flush()

    doors, texts = [Door(host, port)], []
    if nninteractive_port is not None:
        doors.append(Door(host, nninteractive_port))
        texts.append(f"  nnInteractive also at http://{host}:{{port}}")
    if dls_port is not None:
        doors.append(Door("127.0.0.1", dls_port, make_itksnap_app, needs_token=False))
        texts.append("  ITK-SNAP: deep learning server 127.0.0.1, port {port} (no token)")
    run_server(settings, doors, show)


def _state_folder(given: Path | None) -> Path:
    from limner.errors import FormatError
    from limner.user_folders import find_data_home

    if given is not None:
        return given
    home = find_data_home()
    if home is None:
        raise FormatError("There is no folder of the user for sessions; name one by --state.")
    return home / "limner" / "server"
