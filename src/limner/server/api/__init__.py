"""limner's own API, ``/api/v1``: cases, models, durable sessions, propagations and exports."""

from __future__ import annotations

from fastapi import FastAPI

from limner.server.api.cases import add_case_routes
from limner.server.api.exports import add_export_routes
from limner.server.api.propagations import add_propagation_routes
from limner.server.api.sessions import add_session_routes
from limner.server.service import Service

__all__ = ["add_routes"]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add all routes of the API to an application."""
    add_case_routes(app, service)
    add_session_routes(app, service)
    add_propagation_routes(app, service)
    add_export_routes(app, service)
