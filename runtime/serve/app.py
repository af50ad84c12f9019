"""The application: routes behind their guards, and the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from runtime.findings import schema as findings_schema
from runtime.serve.guard import LastResort, SmallBodies, TokenGuard
from runtime.serve.options import Listen
from runtime.serve.refusal import RefusedRequestError
from runtime.serve.routes import FINDINGS_SCHEMA, UPLOAD_PATH, router
from runtime.serve.service import Service
from runtime.serve.uploads import described
from runtime.version import software_version

_SWEEP_S = 30.0
_SCHEMAS = "#/components/schemas/"
_ABOUT = """Finds every vertebra in a CT scan, segments it and grades its fracture. Submit a scan, follow the job, get
its results. **The models that ship are not for clinical use**; show the `notice` of `GET /v1/info` beside results.

Every route but `/health` needs the server's token: `Authorization: Bearer TOKEN`. Whatever is refused is answered with
`{"detail": "one line"}`."""


def create_app(service: Service, listen: Listen, token: str) -> FastAPI:
    """The application.

    Args:
        service: what the routes need.
        listen: by which names it may be called, and from which web pages.
        token: that clients must show.
    """
    app = FastAPI(
        title="vertscan",
        version=software_version(),
        summary="Vertebral fractures on CT, over HTTP.",
        description=_ABOUT,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        telemetry=dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False),  # type: ignore[arg-type]
        lifespan=_sweeping(service),
        middleware=[
            Middleware(LastResort),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(listen.hosts), www_redirect=False),
            *_cors(listen),
            Middleware(TokenGuard, token=token),
            Middleware(SmallBodies, but_for=UPLOAD_PATH),
        ],
    )
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(RefusedRequestError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.openapi = lambda: _openapi(app, FastAPI.openapi(app))  # type: ignore[method-assign]
    return app


def _cors(listen: Listen) -> list[Middleware]:
    if not listen.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=listen.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization",),
            expose_headers=("Location", "Retry-After", "Content-Disposition"),
            allow_private_network=True,
        )
    ]


def _sweeping(service: Service) -> Any:
    """The application's lifespan: jobs whose time is over go though nobody asks for them."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await to_thread.run_sync(service.jobs.sweep)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return lifespan


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedRequestError)
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return JSONResponse({"detail": error.detail}, error.status, headers)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _not_valid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": described(error.errors())}, 422)


def _openapi(app: FastAPI, document: dict[str, Any]) -> dict[str, Any]:
    """The document with the findings' own schema and the token in it."""
    parts = document["components"]
    if FINDINGS_SCHEMA not in parts["schemas"]:
        parts["schemas"] |= _findings_schemas()
        options = parts["schemas"]["JobOptions"]["properties"] if "JobOptions" in parts["schemas"] else {}
        form = document["paths"]["/v1/jobs/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        given = options or {k: v for k, v in parts["schemas"]["PathRequest"]["properties"].items() if k != "path"}
        form["properties"] = {**form["properties"], **deepcopy(given)}
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _findings_schemas() -> dict[str, Any]:
    """The schema of ``findings.json``, with what it defines as schemas of their own."""

    def moved(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: _at(value) if key == "$ref" else moved(value) for key, value in part.items()}
        return [moved(one) for one in part] if isinstance(part, list) else part

    whole = moved({key: value for key, value in findings_schema().items() if key != "$schema"})
    defined = whole.pop("$defs", {})
    return {FINDINGS_SCHEMA: whole, **{f"{FINDINGS_SCHEMA}.{name}": part for name, part in defined.items()}}


def _at(reference: str) -> str:
    return reference.replace("#/$defs/", f"{_SCHEMAS}{FINDINGS_SCHEMA}.")
