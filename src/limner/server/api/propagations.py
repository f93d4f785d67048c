"""Routes of propagations: frame by frame as a client calls for them, or to the end with progress as
server-sent events.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from limner.server.api.bodies import NewPropagation
from limner.server.api.sessions import PREFIX, Form, write_prediction
from limner.server.failures import NotFound, describe_failure
from limner.server.service import Service
from limner.server.session_store import LiveSession
from limner.sessions import Prediction

_MOST = 64  # propagations of one session that are not at their end


def add_propagation_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of propagations."""
    prefix = f"{PREFIX}/{{session}}/propagations"

    @app.post(prefix, tags=["propagations"], status_code=201)
    async def begin(session: str, body: NewPropagation) -> Response:
        """Begin a propagation; nothing is run until its frames are asked for."""
        arguments = body.model_dump()
        resumes = arguments.pop("resume")

        def work(live: LiveSession) -> str:
            found = (
                live.session.resume_propagation()
                if resumes
                else live.session.propagate(**arguments)
            )
            while len(live.propagations) >= _MOST:
                _stop(live, next(iter(live.propagations)))
            number = secrets.token_urlsafe(8)
            live.propagations[number] = found
            return number

        return JSONResponse({"id": await service.run(session, work)}, 201)

    @app.post(f"{prefix}/{{number}}/next", tags=["propagations"])
    async def following(session: str, number: str, form: Form = "changes") -> dict[str, Any]:
        """Run one frame and answer it; ``null`` at the end."""
        return {"prediction": await _run_next(service, session, number, form)}

    @app.get(f"{prefix}/{{number}}/events", tags=["propagations"], response_class=Response)
    async def events(session: str, number: str, form: Form = "changes") -> Response:
        """Run to the end: an event ``frame`` for each, then ``end``, ``stopped`` or ``error``."""
        await service.run(session, lambda live: _find(live, number))
        stream = _stream(service, session, number, form)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @app.delete(f"{prefix}/{{number}}", tags=["propagations"])
    async def stop(session: str, number: str) -> dict[str, Any]:
        """Stop; what was written stays."""
        await service.run(session, lambda live: _stop(live, number))
        return {"stopped": number}


async def _run_next(
    service: Service, session: str, number: str, form: str
) -> dict[str, Any] | None:
    def work(live: LiveSession) -> dict[str, Any] | None:
        try:
            found = next(_find(live, number), None)
        except BaseException:
            _stop(live, number)
            raise
        if found is None:
            _stop(live, number)
            return None
        return write_prediction(found, live, form)

    return await service.run(session, work, heavy=True)


async def _stream(service: Service, session: str, number: str, form: str) -> AsyncIterator[str]:
    count = 0
    try:
        while (found := await _run_next(service, session, number, form)) is not None:
            count += 1
            yield _event("frame", {"done": count, **found})
        yield _event("end", {"done": count})
    except NotFound:
        yield _event("stopped", {"done": count})
    except Exception as error:
        yield _event("error", describe_failure(error)[1])


def _event(name: str, value: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


def _find(live: LiveSession, number: str) -> Iterator[Prediction]:
    if number not in live.propagations:
        raise NotFound("propagation under way", number)
    return live.propagations[number]


def _stop(live: LiveSession, number: str) -> None:
    found = live.propagations.pop(number, None)
    close = getattr(found, "close", None)
    if close is not None:
        close()
