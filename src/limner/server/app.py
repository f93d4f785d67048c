"""The ASGI application: own API and viewers' protocols before one service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from limner._version import __version__
from limner.models import PromptableModel
from limner.server import api
from limner.server.failures import Refused, describe_failure
from limner.server.guard import Application, Guard
from limner.server.service import Service
from limner.server.settings import Settings
from limner.server.viewers.monai_label import OPEN_PATHS, add_monai_routes
from limner.server.viewers.nninteractive import add_nninteractive_routes

_ABOUT = "Delineate anything in a medical image. Research use only; not a medical device."


def create_app(
    settings: Settings, models: Mapping[str, PromptableModel] | None = None
) -> Application:
    """The application of a server.

    Args:
        settings: folders, token and limits.
        models: of your own, by name, besides those that `limner models` lists.
    """
    service = Service(settings, models)
    return Guard(make_app(service), settings, service.counters, open_paths=OPEN_PATHS)


def make_app(service: Service, *, closes: bool = True) -> FastAPI:
    """All protocols before a service, unguarded.

    Args:
        service: that answers.
        closes: whether the service ends with the application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if closes:
            await service.close()

    app = new_app("limner", lifespan=lifespan)
    api.add_routes(app, service)
    add_nninteractive_routes(app, service)
    add_monai_routes(app, service)

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(service.counters.to_text(service.gauges()))

    return app


def new_app(title: str, **options: Any) -> FastAPI:
    """An application whose failures are one line of JSON, with ``/healthz`` and its document.

    Args:
        title: of the document.
        options: of FastAPI.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        description=_ABOUT,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        **options,
    )
    app.router.route_class = _OneLineRoute
    app.add_exception_handler(HTTPException, _answer_http)

    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, Any]:
        """Whether the server runs."""
        return {"ok": True, "status": "ok", "server": "limner", "version": __version__}

    return app


class _OneLineRoute(APIRoute):
    """A route whose failures are one line of JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, watched."""
        handle = super().get_route_handler()

        async def watched(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                places = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
                text = "; ".join(f"{place}: {message}" for place, message in places)
                refused: Exception = Refused(422, text[:1000])
            except HTTPException as error:
                refused = Refused(error.status_code, f"{error.detail}.")
            except Exception as error:
                refused = error
            return failure_response(refused)

        return watched


def failure_response(error: Exception) -> Response:
    """A failure as a response."""
    status, body, headers = describe_failure(error)
    return JSONResponse(body, status, headers)


async def _answer_http(_: Request, error: Exception) -> Response:
    """What no route answers."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return failure_response(Refused(error.status_code, f"{error.detail}.", headers))
