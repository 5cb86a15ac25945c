"""The prefetch as Millis asks for it, and what it takes from the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..exceptions import PayloadError
from ..samples import prefetch_query
from ..typed_metadata import as_text
from ..wire import Json, describe, read_json
from .policy import Policy
from .spec import SessionSpec
from .transport import Answer, Request
from .webhooks import Webhook

#: Names of the query that are Millis' own.
RESERVED = frozenset({"session_id", "agent_id", "from", "to"})


@dataclass(frozen=True, slots=True)
class Taken:
    """What a call gets from the answer to its prefetch."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompt: str | None = None
    #: Why it gets nothing.
    failure: str | None = None
    notes: tuple[str, ...] = ()


def prefetch_request(spec: SessionSpec, webhook: Webhook, session_id: str) -> Request:
    """Return the request that asks about a call that is about to begin."""
    query = prefetch_query(
        spec.vintage,
        session_id=session_id,
        agent_id=spec.agent_id,
        from_phone=spec.from_phone,
        to_phone=spec.to_phone,
        metadata={key: as_text(value) for key, value in spec.metadata.items()},
    )
    return Request("GET", webhook.url, webhook.headers, query.encode())


def notes_on_request(spec: SessionSpec) -> tuple[str, ...]:
    """Return what Millis does not document about the metadata of this call."""
    notes = [
        f"Metadata named {key!r} meets a field of Millis' own; which of the two counts is not "
        "documented."
        for key in spec.metadata
        if key in RESERVED
    ]
    nested = [key for key, value in spec.metadata.items() if not isinstance(value, str)]
    if nested:
        notes.append(f"Sent as JSON, because Millis does not say how: {', '.join(nested)}.")
    return tuple(notes)


def read_answer(answer: Answer, policy: Policy) -> Taken:
    """Return what the call gets from `answer`, or why it gets nothing."""
    if answer.status_code != 200:
        return Taken(failure=f"answered with status {answer.status_code}")
    try:
        value = read_json(answer.body)
    except PayloadError as error:
        return Taken(failure=f"no JSON: {error}")
    if not isinstance(value, dict):
        return Taken(failure=f"not a JSON object but {describe(value)}")
    return _read_object(value, answer, policy)


def _read_object(value: Mapping[str, Json], answer: Answer, policy: Policy) -> Taken:
    notes: list[str] = []
    if "application/json" not in (answer.content_type or ""):
        notes.append("The content type is not application/json, which Millis asks for.")
    metadata: dict[str, Json] = {}
    flat = {key: item for key, item in value.items() if key not in {"metadata", "extra_prompt"}}
    if flat:
        notes.append(f"Flat keys, the form of 2024, are {policy.flat_keys}: {', '.join(flat)}.")
        metadata |= flat if policy.flat_keys == "merged" else {}
    given = value.get("metadata")
    if isinstance(given, dict):
        metadata |= given
    elif given is not None:
        notes.append(f"metadata is not an object but {describe(given)}, and is left out.")
    extra_prompt = value.get("extra_prompt")
    if extra_prompt is not None and not isinstance(extra_prompt, str):
        notes.append(f"extra_prompt is not text but {describe(extra_prompt)}, and is left out.")
        extra_prompt = None
    return Taken(metadata, extra_prompt or None, notes=tuple(notes))
