"""`/openapi.json`: the JSON twins of the pages, and the two webhooks, described by the code itself.

The dataclass that a view returns is the schema of its twin. What nothing says here of a page, its
twin does not tell either: both are made from the same object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, Union, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaWarningKind
from pydantic_core import core_schema

from ..protocol.events import EndOfCall, PrefetchResponse
from .call_filters import Parameter
from .pages import View
from .webhook_api import END_OF_CALL, PREFETCH_ANSWER, SECRET_SCHEME, Webhooks, in_json, refused

_COOKIE_SCHEME = "operatorSession"
_REFERENCE = "#/components/schemas/{model}"
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_CONFIG = ConfigDict(arbitrary_types_allowed=True, json_schema_serialization_defaults_required=True)


@dataclass(frozen=True, slots=True)
class Twin:
    """The JSON twin of a page: the page's path as the router has it, and what it may be asked."""

    path: str
    name: str
    view: View
    query: Sequence[Parameter] = ()

    @property
    def shown(self) -> Any:
        """The type of what the view returns, where there is such a page."""
        return Union[tuple(kind for kind in self._returned if kind is not NoneType)]  # noqa: UP007

    @property
    def may_be_missing(self) -> bool:
        """Whether there is not always such a page."""
        return NoneType in self._returned

    @property
    def _returned(self) -> tuple[Any, ...]:
        returned = get_type_hints(self.view)["return"]
        return get_args(returned) or (returned,)

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in the path."""
        return re.findall(r"\{(\w+)", self.path)


class Description:
    """The whole document, made when it is first asked for."""

    def __init__(self, twins: Sequence[Twin], webhooks: Webhooks, version: str) -> None:
        self._twins = twins
        self._webhooks = webhooks
        self._version = version

    def of(self, root: str, cookie: str) -> dict[str, Any]:
        """Return the document for a dashboard at `root`, whose sessions have this cookie."""
        paths, schemas = self._made
        schemes = {
            SECRET_SCHEME: self._webhooks.security_scheme(),
            _COOKIE_SCHEME: {"type": "apiKey", "in": "cookie", "name": cookie},
        }
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "millis_hooks",
                "version": self._version,
                "description": "The dashboard's pages as JSON, and the webhooks Millis calls.",
            },
            "servers": [{"url": root or "/"}],
            "paths": paths,
            "components": {"schemas": schemas, "securitySchemes": schemes},
        }

    @cached_property
    def _made(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shapes, schemas = _schemas(self._twins)
        twins = {
            re.sub(r":\w+", "", twin.path) + ".json": {"get": _operation(twin, shapes[twin.name])}
            for twin in self._twins
        }
        return self._webhooks.paths() | twins, schemas | {"Error": _ERROR}


class _AsWritten(GenerateJsonSchema):
    """Time zones, which pydantic does not know, are written by their names."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012 -- as pydantic has it
        "skipped-choice",
        "non-serializable-default",
    }

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> dict[str, Any]:
        return {"type": "string"}


def _schemas(twins: Sequence[Twin]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of each twin's answer, by its name, and the schemas these refer to."""
    # In a list, as a dataclass itself takes no configuration from here.
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (twin.name, "serialization", TypeAdapter(list[twin.shown], config=_CONFIG))  # type: ignore[name-defined]
        for twin in twins
    ]
    adapters.append((END_OF_CALL, "validation", TypeAdapter(EndOfCall)))
    adapters.append((PREFETCH_ANSWER, "serialization", TypeAdapter(PrefetchResponse)))
    found, rest = TypeAdapter.json_schemas(
        adapters, ref_template=_REFERENCE, schema_generator=_AsWritten
    )
    shapes = {twin.name: found[twin.name, "serialization"]["items"] for twin in twins}
    return shapes, rest["$defs"]


def _operation(twin: Twin, shape: dict[str, Any]) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in twin.parameters
    ]
    return {
        "operationId": twin.name,
        "tags": ["pages"],
        "parameters": in_path + [parameter.described() for parameter in twin.query],
        "responses": {
            "200": {"description": "What the page shows.", **in_json(shape)},
            "401": refused("Nobody is signed in."),
            "403": refused("The operator's role does not allow it."),
            **({"404": refused("There is no such page.")} if twin.may_be_missing else {}),
            "503": refused("The call log cannot be read now."),
        },
        "security": [{_COOKIE_SCHEME: []}],
    }
