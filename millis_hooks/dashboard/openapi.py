"""`/openapi.json`: what a program can read with a token, described by the code itself.

The dataclass that a view returns is the schema of its `.json` twin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from types import NoneType
from typing import Any, Union, cast, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaWarningKind
from pydantic_core import core_schema
from starlette.responses import Response
from starlette.routing import Route

from .endpoints import Endpoints, OperatorRequest, Twin
from .pages import as_json, link

_PERIOD = {
    "range": "The period: today, 24h, 7d, 30d, 90d or all.",
    "from": "The first day or moment, in place of a period.",
    "to": "The last day, or the moment before which.",
}
_PAGES = {"before": "The cursor page.older of a page.", "after": "The cursor page.newer of one."}
_CALLS = {
    "q": "Words in any order, and phrases in quotes.",
    **{"outcome": "Such as voicemail.", "source": "real, sandbox, test or all."},
    "status": "The status as Millis sends it. May repeat.",
    "agent": "An agent's id. May repeat.",
    **{"channel": "phone, web or chat.", "direction": "inbound or outbound."},
    "number": "A phone number of either side.",
    **_PERIOD,
    **dict.fromkeys(("min", "max"), "A bound, in seconds."),
    **dict.fromkeys(("cost_min", "cost_max"), "A bound, in credits."),
    "meta": "A metadata key and its value, as key=value. May repeat.",
    "result": "A condition for a result, as score>=4, or as result.booked=true. May repeat.",
    "handler": "The state of its handler runs.",
    "function": "The name of a function that was called.",
    "provider": "A provider in the costs.",
    **dict.fromkeys(("unparsed", "duplicate"), "1: only such calls."),
}
#: The parameters of addresses, by page.
PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "calls": {
        **_CALLS,
        "columns": "Names of results, or keep.NAME, that have a column on the page.",
        "size": "Calls on a page: 25, 50 or 100.",
        **_PAGES,
    },
    "export_csv": {**_CALLS, "bom": "1: begin with a byte order mark, for Excel."},
    "export_jsonl": _CALLS,
    "deliveries": {
        **{"kind": "prefetch or end_of_call.", "session": "A session id."},
        "outcome": "What became of the request.",
        **_PERIOD,
        **_PAGES,
    },
    "analytics": {
        **_PERIOD,
        "agent": "An agent's id. May repeat.",
        "tz": "A time zone, such as Europe/Berlin.",
        **{"split": "Costs by type or by provider.", "interval": "hour, day or week."},
        "by": "A key of metadata or of keep, by whose values calls and results are compared.",
    },
}
_REFUSAL = "A refusal (401, 403, 404, 429 or 503), with `error` in words."
_BEARER = {"type": "http", "scheme": "bearer"}
_CONFIG = ConfigDict(arbitrary_types_allowed=True, json_schema_serialization_defaults_required=True)


def route(endpoints: Endpoints, version: str) -> Route:
    """Return the route of the document, which is made when it is first asked for."""
    make = cache(partial(_document, endpoints, version))

    def describe(request: OperatorRequest) -> Response:
        root = link(request.http, "home").rstrip("/")
        return as_json(make() | {"servers": [{"url": root or "/"}]})

    return endpoints.get("/openapi.json", "openapi", describe, opens_to_tokens=True)


def _document(endpoints: Endpoints, version: str) -> dict[str, Any]:
    shapes, schemas = _schemas(endpoints.twins)
    named = {twin.path: twin.name for twin in endpoints.twins} | endpoints.files
    paths = {path: _operation(name, path, shapes.get(name)) for path, name in named.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "millis_hooks", "version": version},
        "security": [{"readToken": []}],
        "paths": {re.sub(r":\w+\}", "}", path): {"get": each} for path, each in paths.items()},
        "components": {"schemas": schemas, "securitySchemes": {"readToken": _BEARER}},
    }


def _operation(name: str, path: str, shape: dict[str, Any] | None) -> dict[str, Any]:
    inside = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in re.findall(r"\{(\w+)", path)
    ]
    asked = [
        {"name": each, "in": "query", "description": meaning, "schema": {"type": "string"}}
        for each, meaning in PARAMETERS.get(name, {}).items()
    ]
    media = {"application/json": {"schema": shape}} if shape else {"application/octet-stream": {}}
    return {
        "operationId": name,
        "parameters": inside + asked,
        "responses": {
            "200": {"description": "As the page shows it.", "content": media},
            "default": {"description": _REFUSAL},
        },
    }


class _AsWritten(GenerateJsonSchema):
    """Types that pydantic does not know, as time zones are, are written as text."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012 - as pydantic has it
        "skipped-choice",
        "non-serializable-default",
    }

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> dict[str, Any]:
        return {"type": "string"}


def _schemas(twins: list[Twin]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of each twin by its name, and the schemas these refer to."""
    # In lists, as a dataclass itself takes no configuration from here.
    listed = {twin.name: cast("Any", list)[_returned(twin)] for twin in twins}
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (name, "serialization", TypeAdapter(shape, config=_CONFIG))
        for name, shape in listed.items()
    ]
    found, rest = TypeAdapter.json_schemas(
        adapters, ref_template="#/components/schemas/{model}", schema_generator=_AsWritten
    )
    for schema in rest["$defs"].values():
        if "agent_id" in schema.get("properties", {}):  # as `as_json` has it
            schema["properties"]["agent_name"] = {"type": ["string", "null"]}
    return {twin.name: found[twin.name, "serialization"]["items"] for twin in twins}, rest["$defs"]


def _returned(twin: Twin) -> Any:
    """Return the type of what a view returns where there is such a page."""
    view = twin.view.func if isinstance(twin.view, partial) else twin.view
    returned = get_type_hints(view)["return"]
    kinds = get_args(returned) if NoneType in get_args(returned) else (returned,)
    return Union[tuple(kind for kind in kinds if kind is not NoneType)]  # noqa: UP007
