"""The two webhooks as Millis calls them, in the words of OpenAPI.

Source: docs.millis.ai, core-concepts/webhooks. A receiver takes more than is described here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..settings import Settings

SECRET_SCHEME = "webhookSecret"
#: The schemas this description refers to, by what they describe.
PREFETCH_ANSWER, END_OF_CALL = "PrefetchResponse", "EndOfCall"

_SECRET_IN_PATH = {
    "name": "secret",
    "in": "path",
    "required": True,
    "description": "The secret, for places that take only an address.",
    "schema": {"type": "string"},
}
_ACKNOWLEDGED = {
    "type": "object",
    "properties": {"received": {"const": True}},
    "required": ["received"],
}


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Where the two webhooks are and how a delivery proves that it is from Millis."""

    prefix: str = "/millis"
    secret_header: str = "Authorization"
    secret_in_path: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what is set."""
        return cls(settings.prefix, settings.secret_header, settings.secret_in_path)

    def paths(self) -> dict[str, Any]:
        """Return the path items of the webhooks."""
        operations = {"prefetch": _PREFETCH, "end-of-call": _END_OF_CALL}
        paths: dict[str, Any] = {}
        for name, (method, operation) in operations.items():
            by_header = operation | {"security": [{SECRET_SCHEME: []}]}
            paths[f"{self.prefix}/{name}"] = {method: by_header}
            if self.secret_in_path:
                paths[f"{self.prefix}/{{secret}}/{name}"] = {method: _with_secret(operation)}
        return paths

    def security_scheme(self) -> dict[str, str]:
        """Return how the secret is carried in a header."""
        if self.secret_header.lower() == "authorization":
            return {"type": "http", "scheme": "bearer"}
        return {"type": "apiKey", "in": "header", "name": self.secret_header}


USUAL_WEBHOOKS = Webhooks()


def _with_secret(operation: dict[str, Any]) -> dict[str, Any]:
    return operation | {
        "operationId": f"{operation['operationId']}_secret_in_path",
        "parameters": [_SECRET_IN_PATH, *operation["parameters"]],
        "security": [],
    }


def in_json(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a body that is JSON of this schema."""
    return {"content": {"application/json": {"schema": schema}}}


def _field(name: str, meaning: str, *, required: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": meaning,
        "schema": {"type": "string"},
    }


def refused(meaning: str) -> dict[str, Any]:
    """Return the response that says why there is none."""
    return {"description": meaning, **in_json({"$ref": "#/components/schemas/Error"})}


_UNAUTHORIZED = {"401": refused("The secret is missing or wrong.")}

_PREFETCH: tuple[str, dict[str, Any]] = (
    "get",
    {
        "operationId": "prefetch",
        "tags": ["webhooks"],
        "summary": "Asked by Millis before the first word of a call.",
        "parameters": [
            _field("session_id", "The session the call will have.", required=True),
            _field("agent_id", "Whose call it is."),
            _field("from", "The caller's number; none on the web."),
            _field("to", "The number that was called; none on the web."),
            {
                "name": "metadata",
                "in": "query",
                "style": "form",
                "explode": True,
                "description": "Every other name is metadata the session was started with.",
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        ],
        "responses": {
            "200": {
                "description": "What the handlers made of it in time, or the fallback.",
                **in_json({"$ref": f"#/components/schemas/{PREFETCH_ANSWER}"}),
            },
            **_UNAUTHORIZED,
        },
    },
)

_END_OF_CALL: tuple[str, dict[str, Any]] = (
    "post",
    {
        "operationId": "end_of_call",
        "tags": ["webhooks"],
        "summary": "Told by Millis after the last word of a call.",
        "parameters": [],
        "requestBody": {
            "required": True,
            "description": "A body of any other shape is kept and acknowledged too.",
            **in_json({"$ref": f"#/components/schemas/{END_OF_CALL}"}),
        },
        "responses": {
            "200": {"description": "The bytes are on disk.", **in_json(_ACKNOWLEDGED)},
            **_UNAUTHORIZED,
            "413": refused("Larger than MILLIS_HOOKS_MAX_BODY_BYTES."),
            "503": refused("Nothing can be stored now, and nothing was. Try again."),
        },
    },
)
