"""Routes of sessions: open, prompts, predictions, undo and redo, names, what a session holds."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, Response

from limner.prompts import from_json
from limner.server.api.bodies import (
    Description,
    Lock,
    NewPrompt,
    NewSession,
    ObjectName,
    OneOrAll,
    Place,
    Priority,
    Target,
)
from limner.server.service import Service
from limner.server.session_store import LiveSession
from limner.sessions import Prediction
from limner.sessions.wire import (
    changes_to_json,
    entries_to_json,
    prediction_to_json,
    state_to_json,
)

Form = Annotated[
    str, Query(description="changes: box and its voxels; logits: what limner's client reads.")
]
PREFIX = "/api/v1/sessions"


def write_prediction(prediction: Prediction, live: LiveSession, form: str) -> dict[str, Any]:
    """An answer as a client wants it.

    Raises:
        ValueError: an unknown form.
    """
    if form not in ("changes", "logits"):
        raise ValueError(f"A form is changes or logits, not {form!r}.")
    write = changes_to_json if form == "changes" else prediction_to_json
    return {**write(prediction), "loaded": live.loaded}


def add_session_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of sessions."""
    _add_life(app, service)
    _add_prompts(app, service)
    _add_predictions(app, service)


def _add_life(app: FastAPI, service: Service) -> None:
    @app.post(PREFIX, tags=["sessions"], status_code=201)
    async def create(body: NewSession) -> Response:
        """Open a session; it is on disk before this is answered."""
        record = await service.create(**body.model_dump())
        state = await service.run(record.id, lambda live: state_to_json(live.session))
        return JSONResponse({**record.to_json(), **state}, 201)

    @app.get(PREFIX, tags=["sessions"])
    async def list_sessions() -> dict[str, Any]:
        """All sessions, oldest first: the work list."""
        found = await service.in_thread(service.sessions.records)
        return {"sessions": [record.to_json() for record in found]}

    @app.get(f"{PREFIX}/{{session}}", tags=["sessions"])
    async def show(session: str) -> dict[str, Any]:
        """What a session holds, but for its prompts. Loads it where it is on disk."""
        state = await service.run(session, lambda live: state_to_json(live.session))
        return {**service.sessions.record(session).to_json(), **state}

    @app.patch(f"{PREFIX}/{{session}}", tags=["sessions"])
    async def describe(session: str, body: Description) -> dict[str, Any]:
        """Name a session, or set its status."""
        change = body.model_dump()
        return await service.run(
            session, lambda live: service.sessions.describe(session, **change).to_json()
        )

    @app.post(f"{PREFIX}/{{session}}/close", tags=["sessions"])
    async def close(session: str) -> dict[str, Any]:
        """Put a session to disk; the next call brings it back."""
        await service.release(session)
        return {"closed": session}

    @app.delete(f"{PREFIX}/{{session}}", tags=["sessions"])
    async def discard(session: str) -> dict[str, Any]:
        """Remove a session with its journal."""
        await service.discard(session)
        return {"discarded": session}


def _add_prompts(app: FastAPI, service: Service) -> None:
    @app.get(f"{PREFIX}/{{session}}/prompts", tags=["prompts"])
    async def list_prompts(session: str) -> dict[str, Any]:
        """The prompts that count, oldest first."""
        found = await service.run(session, lambda live: entries_to_json(live.session.entries))
        return {"prompts": found}

    @app.post(f"{PREFIX}/{{session}}/prompts", tags=["prompts"])
    async def add(session: str, body: NewPrompt) -> dict[str, Any]:
        """Add a prompt, or only check it; it is on disk before this is answered."""
        prompt = from_json(body.prompt)
        where = {"object_id": body.object_id, "frame": body.frame, "axis": body.axis}

        def work(live: LiveSession) -> None:
            verb = live.session.check_prompt if body.check_only else live.session.add
            verb(prompt, **where)

        _, warnings = await service.run_with_warnings(session, work)
        return {"warnings": warnings}

    @app.post(f"{PREFIX}/{{session}}/undo", tags=["prompts"])
    async def undo(session: str, body: OneOrAll) -> dict[str, Any]:
        """Take back the last step of an object, or of the session."""
        return await _step(service, session, "undo", body.object_id)

    @app.post(f"{PREFIX}/{{session}}/redo", tags=["prompts"])
    async def redo(session: str, body: OneOrAll) -> dict[str, Any]:
        """Bring back what was undone last."""
        return await _step(service, session, "redo", body.object_id)

    @app.post(f"{PREFIX}/{{session}}/reset", tags=["prompts"])
    async def reset(session: str, body: OneOrAll) -> dict[str, Any]:
        """Drop all prompts of an object, or of all; can be undone."""
        return await _step(service, session, "reset", body.object_id)

    @app.put(f"{PREFIX}/{{session}}/objects/{{object_id}}", tags=["objects"])
    async def name(session: str, object_id: int, body: ObjectName) -> dict[str, Any]:
        """Name an object."""
        await service.run(session, lambda live: live.session.name(object_id, body.name))
        return {"object_id": object_id, "name": body.name}

    @app.put(f"{PREFIX}/{{session}}/objects/{{object_id}}/lock", tags=["objects"])
    async def lock(session: str, object_id: int, body: Lock) -> dict[str, Any]:
        """Lock an object, so that it stays as it is and others are kept off it, or unlock it."""

        def work(live: LiveSession) -> list[int]:
            (live.session.lock if body.locked else live.session.unlock)(object_id)
            return list(live.session.locked)

        return {"locked": await service.run(session, work)}

    @app.put(f"{PREFIX}/{{session}}/priority", tags=["objects"])
    async def set_priority(session: str, body: Priority) -> dict[str, Any]:
        """Say which objects keep shared pixels in a label map, the uppermost first."""
        await service.run(session, lambda live: live.session.set_priority(body.object_ids))
        return {"priority": body.object_ids}

    @app.delete(f"{PREFIX}/{{session}}/objects/{{object_id}}", tags=["objects"])
    async def remove(session: str, object_id: int) -> dict[str, Any]:
        """Remove an object; can be undone."""
        return await _step(service, session, "reset", object_id)


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post(f"{PREFIX}/{{session}}/predict", tags=["predictions"])
    async def predict(session: str, body: Target, form: Form = "changes") -> dict[str, Any]:
        """Answer all prompts about an object. A newer call for the same object supersedes one that
        still waits; both get the newer answer.
        """
        where = {"object_id": body.object_id, "frame": body.frame}
        return await service.run(
            session,
            lambda live: write_prediction(live.session.predict(**where), live, form),
            heavy=True,
            same=("predict", repr(where), form),
        )

    @app.post(f"{PREFIX}/{{session}}/predict-all", tags=["predictions"])
    async def predict_all(session: str, body: Place, form: Form = "changes") -> dict[str, Any]:
        """Answer all objects wherever they have prompts."""

        def work(live: LiveSession) -> list[dict[str, Any]]:
            found = live.session.predict_all(frame=body.frame)
            return [write_prediction(p, live, form) for p in found]

        same = ("all", repr(body.frame), form)
        return {"predictions": await service.run(session, work, heavy=True, same=same)}

    @app.post(f"{PREFIX}/{{session}}/cancel", tags=["predictions"])
    async def cancel(session: str) -> dict[str, Any]:
        """Drop predictions that still wait, and stop propagations."""
        service.sessions.record(session)
        dropped = service.scheduler.cancel(session)
        await service.run(session, lambda live: live.propagations.clear())
        return {"cancelled": dropped}

    @app.get(f"{PREFIX}/{{session}}/review", tags=["predictions"])
    async def review(
        session: str, count: Annotated[int, Query(ge=1, le=1000)] = 5, object_id: int | None = None
    ) -> dict[str, Any]:
        """The propagated frames that most need a look, the worst first."""
        found = await service.run(
            session, lambda live: live.session.frames_to_review(count, object_id=object_id)
        )
        return {"frames": [f._asdict() for f in found]}


async def _step(service: Service, session: str, verb: str, object_id: Any) -> dict[str, Any]:
    def work(live: LiveSession) -> dict[str, Any]:
        getattr(live.session, verb)(object_id=object_id)
        return {"can_undo": live.session.can_undo, "can_redo": live.session.can_redo}

    return await service.run(session, work)
