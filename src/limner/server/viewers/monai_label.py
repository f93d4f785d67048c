"""MONAI Label's REST protocol: what its client class, and with it CVAT and 3D Slicer, calls to
segment by clicks and boxes.
"""

from __future__ import annotations

import hmac
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from limner.errors import FormatError, PromptError
from limner.io import Labels, write
from limner.models import ModelCard
from limner.prompts import Click
from limner.prompts.convert import fit_box
from limner.prompts.types import Prompt
from limner.server.failures import NotFound, Refused
from limner.server.multipart import Part, read_parts, write_parts
from limner.server.service import Service
from limner.server.session_store import LiveSession
from limner.server.uploads import receive_file

OPEN_PATHS = frozenset({"/auth/", "/auth/token"})  # answered without a token


class _Names:
    """Cases by the ids that clients give them, and by those of their sessions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._given: dict[str, str] = {}

    def give(self, name: str, case: str) -> None:
        """Name a case."""
        self._given[name] = case

    def forget(self, name: str) -> None:
        """Take a name back."""
        self._given.pop(name, None)

    def find(self, name: str) -> str:
        """The case of a name or id.

        Raises:
            NotFound: there is none.
        """
        return self._given.get(name) or self._service.cases.find(name).id


def add_monai_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the protocol at the root."""
    names = _Names(service)
    _add_door_routes(app, service)
    _add_case_routes(app, service, names)
    _add_infer_route(app, service, names)


def _add_door_routes(app: FastAPI, service: Service) -> None:
    token = service.settings.token

    @app.get("/auth/", tags=["MONAI Label"])
    async def auth() -> dict[str, Any]:
        """Whether a token is needed."""
        return {"enabled": token is not None, "client_id": "limner", "realm": "limner"}

    @app.post("/auth/token", tags=["MONAI Label"])
    async def log_in(request: Request) -> dict[str, Any]:
        """The server's token for itself as the password."""
        fields = parse_qs((await request.body())[:4096].decode(errors="replace"))
        shown = fields.get("password", [""])[0]
        if token is None or not hmac.compare_digest(shown.encode(), token.encode()):
            raise Refused(401, "The password is the token that limner serve printed.")
        return {"access_token": token, "token_type": "bearer"}

    @app.get("/auth/token/valid", tags=["MONAI Label"])
    async def valid() -> dict[str, Any]:
        """Reached with a token only."""
        return {"username": "limner"}

    @app.get("/info/", tags=["MONAI Label"])
    async def info() -> dict[str, Any]:
        """What the server offers."""
        cards = await service.in_thread(service.models.cards)
        cases = await service.in_thread(service.cases.list)
        return {
            "name": "limner",
            "description": "Delineate anything; research use only, not a medical device.",
            "version": "0.8.5",
            "labels": ["object"],
            "models": {card.name: _describe(card) for card in cards if "click" in card.prompts},
            "trainers": {},
            "strategies": {"first": {"description": "The first image"}},
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": len(cases), "completed": 0, "label_tags": {}},
        }

    @app.get("/train/", tags=["MONAI Label"])
    async def train_status() -> Response:
        """No training runs here."""
        raise NotFound("training", "that runs")


def _describe(card: ModelCard) -> dict[str, Any]:
    return {
        "type": "deepgrow",
        "labels": ["object"],
        "dimension": 3 if 3 in card.ndim else 2,
        "description": card.summary,
        "config": {},
    }


def _add_case_routes(app: FastAPI, service: Service, names: _Names) -> None:
    @app.put("/session/", tags=["MONAI Label"])
    async def create_session(request: Request) -> dict[str, Any]:
        """Keep an image for calls that name the session."""
        case = await _keep(service, read_parts(await request.body()).get("files"))
        number = secrets.token_urlsafe(16)
        names.give(number, case)
        return {"session_id": number, "session_info": {"name": number, "image": case}}

    @app.get("/session/{number}", tags=["MONAI Label"])
    async def show_session(number: str) -> dict[str, Any]:
        """What a session holds."""
        return {"name": number, "image": names.find(number)}

    @app.delete("/session/{number}", tags=["MONAI Label"])
    async def remove_session(number: str) -> dict[str, Any]:
        """Forget a session."""
        names.find(number)
        names.forget(number)
        return {"removed": number}

    @app.put("/datastore/", tags=["MONAI Label"])
    @app.put("/datastore/image", tags=["MONAI Label"])
    async def upload(request: Request, image: str) -> dict[str, Any]:
        """Keep an image under an id of the client's."""
        names.give(image, await _keep(service, read_parts(await request.body()).get("file")))
        return {"image": image}

    @app.get("/datastore/", tags=["MONAI Label"])
    async def datastore(output: str = "stats") -> dict[str, Any]:
        """The images."""
        found = await service.in_thread(service.cases.list)
        if output != "all":
            return {"total": len(found), "completed": 0}
        objects = {
            c.id: {"image": {"ext": "", "info": {"name": c.name}}, "labels": {}} for c in found
        }
        return {"name": "limner", "description": "", "objects": objects}

    @app.post("/activelearning/{strategy}", tags=["MONAI Label"])
    async def next_sample(strategy: str) -> dict[str, Any]:
        """The first image, or nothing."""
        found = await service.in_thread(service.cases.list)
        return {"id": found[0].id, "name": found[0].name} if found else {}


def _add_infer_route(app: FastAPI, service: Service, names: _Names) -> None:
    sessions: dict[tuple[str, str], str] = {}  # by case and model

    @app.post("/infer/{model:path}", tags=["MONAI Label"])
    async def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        output: str = "all",
    ) -> Response:
        """Clicks and a box in, a mask out. All of them are sent each time."""
        began = time.perf_counter()
        parts = read_parts(await request.body())
        params = _params(parts)
        if session_id:
            case = names.find(session_id)
        elif "file" in parts:
            case = await _keep(service, parts["file"])
        else:
            case = names.find(image)
        key = (case, model)
        if key not in sessions:
            record = await service.create(case=case, model=model, name="MONAI Label")
            sessions[key] = record.id

        def work(live: LiveSession) -> bytes:
            return _segment(live, params)

        content = await service.run(sessions[key], work, heavy=True)
        suffix = _suffix(params, content)
        facts = {
            "label_names": {"object": 1},
            "latencies": {"total": round(time.perf_counter() - began, 3)},
        }
        if output == "json":
            return JSONResponse({"params": facts})
        if output == "image":
            return Response(content, media_type="application/octet-stream")
        body, kind = write_parts(json.dumps(facts).encode(), f"label{suffix}", content)
        return Response(body, headers={"Content-Type": kind})


def read_prompts(params: dict[str, Any], shape: tuple[int, ...]) -> list[Prompt]:
    """Clicks and box of a call, x first, in index order.

    Raises:
        PromptError: none, or malformed.
    """
    found: list[Prompt] = []
    roi = params.get("roi")
    ndim = len(shape)
    try:
        if isinstance(roi, list) and len(roi) == 2 * ndim:
            numbers = [float(x) for x in roi]
            if ndim == 2:  # CVAT: x0, y0, x1, y1
                pairs = [(numbers[1], numbers[3]), (numbers[0], numbers[2])]
            else:  # 3D Slicer: a pair per axis, either way round
                pairs = [(numbers[k], numbers[k + 1]) for k in (4, 2, 0)]
            if all(a != b for a, b in pairs):
                low, high = [min(p) for p in pairs], [max(p) + 1 for p in pairs]
                found.append(fit_box(low, high, shape))
        for name, positive in (("foreground", True), ("background", False)):
            for point in params.get(name) or ():
                at = [float(x) for x in reversed(list(point)[:ndim])]
                found.append(Click(tuple(at), positive=positive))
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"foreground, background and roi are lists of numbers: {error}."
        ) from error
    if not found:
        raise PromptError("There is no click and no box: send foreground, background or roi.")
    return found


def _segment(live: LiveSession, params: dict[str, Any]) -> bytes:
    session = live.session
    prompts = read_prompts(params, session.image.geometry.shape)
    for prompt in prompts:
        session.check_prompt(prompt)
    if session.object_ids:
        session.reset()
    for prompt in prompts:
        session.add(prompt)
    found = [p.mask for p in session.predict_all()]
    mask = found[0] if found[0].ndim == session.image.geometry.ndim else session.labels > 0
    labels = Labels(session.image.geometry, masks={1: mask}, names={1: "object"})
    with tempfile.TemporaryDirectory(prefix="limner-") as folder:
        default = ".png" if session.image.kind == "image" else ".nrrd"
        extension = str(params.get("result_extension") or default)
        if extension not in (".nrrd", ".nii", ".nii.gz", ".mha", ".png", ".seg.nrrd"):
            raise FormatError(f"A result is .nrrd, .nii.gz, .mha or .png, not {extension[:20]!r}.")
        path = Path(folder) / f"label{extension}"
        write(path, labels, like=session.image)
        return path.read_bytes()


def _suffix(params: dict[str, Any], content: bytes) -> str:
    given = params.get("result_extension")
    return str(given) if given else ".png" if content.startswith(b"\x89PNG") else ".nrrd"


def _params(parts: dict[str, Part]) -> dict[str, Any]:
    try:
        found = json.loads(parts["params"].content) if "params" in parts else {}
    except (ValueError, RecursionError) as error:
        raise Refused(400, "params is no JSON.") from error
    if not isinstance(found, dict):
        raise Refused(400, "params is no JSON object.")
    return found


async def _keep(service: Service, part: Part | None) -> str:
    """Keep an uploaded file; returns its case."""
    if part is None or part.filename is None:
        raise Refused(400, "The form has no file.")

    async def body() -> AsyncIterator[bytes]:
        yield part.content

    return (await receive_file(service, part.filename, body())).id
