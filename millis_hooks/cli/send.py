"""`send` sends a sample webhook over HTTP, through everything that one from Millis passes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx2
import typer

from ..environment.addresses import is_loopback
from ..exceptions import PayloadError, PayloadTooLargeError
from ..masking.error_report import printable
from ..protocol.events import identify
from ..protocol.phones import as_sent
from ..protocol.samples import (
    AGENT_ID,
    CUSTOMER_PHONE,
    OWN_PHONE,
    Vintage,
    end_of_call_body,
    prefetch_query,
    push_id,
)
from ..settings import Hook, Settings
from ..webhooks import Marker, given_url, secret_for, secret_header
from ..webhooks.bodies import decode
from ..webhooks.responses import OUTCOME_HEADER, REASON_HEADER
from .options import Secret, read_pair, read_secret
from .terminal import fail, note

_TIMEOUT_S = 30.0
#: The session of a larger file, when decompressed, is not looked for.
_MAX_BODY_BYTES = 64 * 1024 * 1024

app = typer.Typer(
    help="Send a sample webhook to a running service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _phone(number: str) -> str | None:
    try:
        return as_sent(number) if number.strip() else None
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from error


Url = Annotated[str, typer.Option(help="URL of the service or of the webhook.")]
PayloadFormat = Annotated[
    Vintage,
    typer.Option(
        "--format",
        "--vintage",
        help="Payload format: v1a, v1b, v2, v2-extras, or hostile (malformed, for tests).",
    ),
]
SessionId = Annotated[str | None, typer.Option(help="Session ID; a new one by default.")]
AgentId = Annotated[str | None, typer.Option(help="Agent ID; a sample one by default.")]
FromPhone = Annotated[
    str | None,
    typer.Option("--from", parser=_phone, help="Number of the caller; '' for a web call."),
]
ToPhone = Annotated[
    str | None, typer.Option("--to", parser=_phone, help="Called number; '' for a web call.")
]
Metadata = Annotated[
    list[Any] | None,
    typer.Option(parser=read_pair, help="Metadata. Repeat it for several.", metavar="KEY=VALUE"),
]
AsReal = Annotated[
    bool,
    typer.Option(
        "--as-real",
        help="Send without the mark of a test request, so that it counts as a real call.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Sample:
    """What is sent: a prefetch has a `query`, an end-of-call a `body`."""

    hook: Hook
    session_id: str | None
    agent_id: str | None
    query: str | None = None
    body: bytes | None = None


@app.command("prefetch")
def send_prefetch(
    url: Url = "http://127.0.0.1:8000",
    secret: Secret = None,
    payload_format: PayloadFormat = "v2",
    session_id: SessionId = None,
    agent_id: AgentId = None,
    from_phone: FromPhone = CUSTOMER_PHONE,
    to_phone: ToPhone = OWN_PHONE,
    metadata: Metadata = None,
    as_real: AsReal = False,
) -> None:
    """Send a prefetch and show the answer."""
    session_id, agent_id = session_id or push_id(datetime.now(UTC)), agent_id or AGENT_ID
    query = prefetch_query(
        payload_format,
        session_id=session_id,
        agent_id=agent_id,
        from_phone=from_phone,
        to_phone=to_phone,
        metadata=dict(metadata or ()),
    )
    typer.echo(f"session {session_id}")
    _send(_Sample("prefetch", session_id, agent_id, query=query), url, secret, as_real=as_real)


@app.command("end-of-call")
def send_end_of_call(
    url: Url = "http://127.0.0.1:8000",
    secret: Secret = None,
    payload_format: PayloadFormat = "v2",
    session_id: SessionId = None,
    agent_id: AgentId = None,
    from_phone: FromPhone = CUSTOMER_PHONE,
    to_phone: ToPhone = OWN_PHONE,
    metadata: Metadata = None,
    call_status: Annotated[str, typer.Option(help="Call status.")] = "user-ended",
    file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(metavar="FILE", help="Send this file unchanged instead of a sample."),
    ] = None,
    as_real: AsReal = False,
) -> None:
    """Send an end-of-call and show the answer."""
    if file is not None:
        body = file.read()
        sample = _Sample("end_of_call", _session_in(body), agent_id, body=body)
        _send(sample, url, secret, as_real=as_real)
        return
    session_id, agent_id = session_id or push_id(datetime.now(UTC)), agent_id or AGENT_ID
    body = end_of_call_body(
        payload_format,
        session_id=session_id,
        agent_id=agent_id,
        from_phone=from_phone,
        to_phone=to_phone,
        metadata=dict(metadata or ()),
        call_status=call_status,
    )
    typer.echo(f"session {session_id}")
    _send(_Sample("end_of_call", session_id, agent_id, body=body), url, secret, as_real=as_real)


def _session_in(body: bytes) -> str | None:
    """Return the session id of a body, which may be compressed; None if it cannot be read."""
    try:
        return identify(decode(body, "", max_bytes=_MAX_BODY_BYTES).body).session_id
    except (PayloadError, PayloadTooLargeError):
        return None


def _send(sample: _Sample, url: str, secret: str | None, *, as_real: bool) -> None:
    """Send a webhook and show the answer; ends the command with an error unless it is 200."""
    settings = Settings.load()
    address = given_url(settings, sample.hook, url)
    headers = _headers(settings, sample, address, read_secret("--secret", secret), as_real=as_real)
    try:
        response, latency_ms = _request(sample, address, headers)
    except httpx2.ConnectError as error:
        start = "Start the service: millis-hooks dev app.py"
        fail(f"Nothing answers at {address}. {start} ({error})")
    except httpx2.TimeoutException:
        fail(f"{address} gave no answer within {_TIMEOUT_S:g} s.")
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        fail(f"{address}: {error}")
    typer.echo(f"{response.request.method} {response.request.url.copy_with(query=None)}")
    typer.echo(f"{response.status_code} {response.reason_phrase} in {latency_ms:.1f} ms")
    _print_outcome(response)
    if response.status_code == 401:
        fail(
            "The service does not accept this secret. Pass its secret with --secret, or set "
            "MILLIS_HOOKS_SECRETS as for the service."
        )
    if response.status_code == 404:
        fail(
            f"{response.request.url.host} has no webhook at this path. If the application has a "
            "prefix of its own, or is mounted below a path, pass the whole address with --url."
        )
    if response.status_code != 200:
        fail("The webhook was not accepted.")
    if as_real:
        note("Sent without a mark: it counts as a call of Millis'.")
    else:
        note(
            "Marked as a test: it counts nowhere, and handlers see call.sandbox. With --as-real it "
            "counts as a real call."
        )


def _print_outcome(response: httpx2.Response) -> None:
    """Print the answer, and for a prefetch what became of it and why."""
    is_json = response.headers.get("content-type", "").startswith("application/json")
    typer.echo(printable(response.text if is_json else response.text.partition("\n")[0]))
    if outcome := response.headers.get(OUTCOME_HEADER.decode()):
        reason = response.headers.get(REASON_HEADER.decode())
        typer.echo(printable(f"outcome: {outcome}" + (f": {reason}" if reason else "")))


def _headers(
    settings: Settings, sample: _Sample, url: str, secret: str | None, *, as_real: bool
) -> dict[str, str]:
    """Return the headers: the secret, and unless it goes as a real call the mark of a test."""
    secret = secret or secret_for(settings, sample.hook, sample.agent_id)
    headers = secret_header(settings, secret)
    if not as_real:
        headers |= Marker(settings, "test")(sample.session_id, url, headers.items())
    return headers | ({} if sample.body is None else {"content-type": "application/json"})


def _request(
    sample: _Sample, address: str, headers: dict[str, str]
) -> tuple[httpx2.Response, float]:
    """Send the sample; return the answer and how long it took, in milliseconds."""
    # As bytes, because hostile text must not be repaired on the way.
    query = sample.query.encode() if sample.query is not None else None
    url = httpx2.URL(address, query=query)
    # A proxy for the outside cannot reach a service on this machine.
    with httpx2.Client(timeout=_TIMEOUT_S, trust_env=not is_loopback(url.host)) as client:
        method = "GET" if sample.body is None else "POST"
        began = time.perf_counter()
        response = client.request(method, url, headers=headers, content=sample.body)
        return response, (time.perf_counter() - began) * 1000
