"""The ASGI application: routes, refusals, framing and measurement put together."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, FastAPI

from serving.head import HeadIsGet
from serving.health import Measured
from serving.limits import FramingGuard
from serving.refusals import HANDLERS
from serving.routes import Parts, router


def build_app(parts: Parts, live: APIRouter | None = None) -> FastAPI:
    """The application over its parts. `live` is the router of the page at `/`."""
    app = FastAPI(
        title="Adloop", version=_version(), docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.parts = parts
    app.include_router(router)
    if live is not None:
        app.include_router(live)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(HeadIsGet)
    app.add_middleware(Measured, metrics=parts.metrics)
    app.add_middleware(FramingGuard)
    return app


def _version() -> str:
    """The installed package's. Set-up and the image install it; a bare checkout may be run without that."""
    try:
        return metadata.version("adloop")
    except metadata.PackageNotFoundError:
        return "unknown"
