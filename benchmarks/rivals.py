"""The prefetch webhook as three frameworks do it, with nothing around it: no deadline, no record.

Each checks the secret, parses the query, awaits the same handler and answers its JSON.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, FastAPI, Header, HTTPException, Query
from fastapi import Request as FastAPIRequest
from litestar import Litestar, get
from litestar import Request as LitestarRequest
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SECRET = "bench-secret-0123456789"
AUTHORIZATION = f"Bearer {SECRET}".encode()

Answer: TypeAlias = dict[str, Any]

KNOWN = frozenset({"session_id", "agent_id", "from", "to"})


async def greet(session_id: str, customer: str | None, metadata: Mapping[str, str]) -> Answer:
    """Stand in for the team's own code, which would look the customer up."""
    tier = metadata.get("plan", "basic")
    found = {"customer_tier": tier, "customer_phone": customer or "", "session": session_id}
    return {"metadata": found, "extra_prompt": f"A {tier} customer. Be brief."}


def is_authorized(header: str | None) -> bool:
    return hmac.compare_digest((header or "").encode(), AUTHORIZATION)


async def _starlette_prefetch(request: Request) -> Response:
    if not is_authorized(request.headers.get("authorization")):
        return JSONResponse({"detail": "unauthorized"}, status_code=401)
    query = request.query_params
    metadata = {key: value for key, value in query.items() if key not in KNOWN}
    return JSONResponse(await greet(query["session_id"], query.get("from"), metadata))


async def find_table(people: int) -> Answer:
    """Stand in for the team's own function of an agent."""
    return {"table": "round" if people > 2 else "window", "people": people}


async def _starlette_function(request: Request) -> Response:
    if not is_authorized(request.headers.get("authorization")):
        return JSONResponse({"detail": "unauthorized"}, status_code=401)
    return JSONResponse(await find_table(int(request.query_params["people"])))


bare_starlette = Starlette(
    routes=[
        Route("/millis/prefetch", _starlette_prefetch),
        Route("/millis/functions/find_table", _starlette_function),
    ]
)


class Reply(BaseModel):
    """What Millis reads of the answer, checked on its way out."""

    metadata: dict[str, Any]
    extra_prompt: str | None = None


async def check_secret(authorization: Annotated[str | None, Header()] = None) -> None:
    if not is_authorized(authorization):
        raise HTTPException(401)


fastapi_app = FastAPI()


@fastapi_app.get("/millis/prefetch", response_model=Reply, dependencies=[Depends(check_secret)])
async def _fastapi_prefetch(
    request: FastAPIRequest,
    session_id: str,
    agent_id: str | None = None,
    from_phone: Annotated[str | None, Query(alias="from")] = None,
    to_phone: Annotated[str | None, Query(alias="to")] = None,
) -> Answer:
    metadata = {key: value for key, value in request.query_params.items() if key not in KNOWN}
    return await greet(session_id, from_phone, metadata)


def _litestar_guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    if not is_authorized(connection.headers.get("authorization")):
        raise NotAuthorizedException


@get("/millis/prefetch", guards=[_litestar_guard])
async def _litestar_prefetch(
    request: LitestarRequest[Any, Any, Any],
    session_id: str,
    agent_id: str | None = None,
    from_phone: Annotated[str | None, Parameter(query="from")] = None,
    to_phone: Annotated[str | None, Parameter(query="to")] = None,
) -> Answer:
    metadata = {key: value for key, value in request.query_params.items() if key not in KNOWN}
    return await greet(session_id, from_phone, metadata)


# Litestar would set up logging for the whole process, which the others should not pay for.
litestar_app = Litestar([_litestar_prefetch], openapi_config=None, logging_config=None)
