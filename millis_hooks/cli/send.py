"""`send`: a sample webhook through the real door, so that all of it is tried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from httpx2 import Response

from ..environment.addresses import is_loopback
from ..exceptions import ConfigError, PayloadError, PayloadTooLargeError
from ..masking.error_report import printable
from ..protocol.events import identify
from ..protocol.phones import as_sent
from ..protocol.samples import (
    AGENT_ID,
    CUSTOMER_PHONE,
    OWN_PHONE,
    VINTAGES,
    Vintage,
    end_of_call_body,
    prefetch_query,
    push_id,
)
from ..settings import Hook, Settings
from ..webhooks import Marker, given_url, secret_for, secret_header
from ..webhooks.bodies import decode
from . import options
from .options import read_secret
from .terminal import fail, note

_TIMEOUT_S = 30.0
#: A file that becomes longer when it is decompressed is not read for its session.
_MAX_BODY_BYTES = 64 * 1024 * 1024
_NOTHING = "Nothing answers at {}. Start the service: millis-hooks dev app.py"
_REFUSED = (
    "The service does not accept this secret. Pass the one it has with --secret, or set "
    "MILLIS_HOOKS_SECRETS as it is set there."
)
_AS_TEST = (
    "Marked as a test: it counts nowhere, and handlers see call.sandbox. With --as-real it goes as "
    "a call of Millis'."
)
_AS_REAL = "Sent without a mark: it counts as a call of Millis'."

app = typer.Typer(
    help="Send a sample webhook to a running service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Url = Annotated[
    str, typer.Option(help="The service, or the whole address of the webhook.", show_default=True)
]
VintageName = Annotated[
    str,
    typer.Option(help="The format: v1a, v1b, v2, v2-extras, or hostile for whatever may come."),
]
SessionId = Annotated[str | None, typer.Option(help="The session; a new one by default.")]
AgentId = Annotated[str | None, typer.Option(help="The agent; a sample one by default.")]
FromPhone = Annotated[str | None, typer.Option("--from", help="Who calls; '' on the web.")]
ToPhone = Annotated[str | None, typer.Option("--to", help="Who is called; '' on the web.")]
Metadata = Annotated[
    list[str] | None, typer.Option(help="key=value, as often as needed.", metavar="KEY=VALUE")
]
AsReal = Annotated[
    bool,
    typer.Option("--as-real", help="Without the mark of a test: as a call of Millis', it counts."),
]


@app.command("prefetch")
def send_prefetch(
    url: Url = "http://127.0.0.1:8000",
    secret: options.Secret = None,
    vintage: VintageName = "v2",
    session_id: SessionId = None,
    agent_id: AgentId = None,
    from_phone: FromPhone = None,
    to_phone: ToPhone = None,
    metadata: Metadata = None,
    as_real: AsReal = False,
) -> None:
    """Ask as Millis does before a call begins, and show the answer."""
    session_id = session_id or _new_session()
    query = prefetch_query(
        _vintage(vintage),
        session_id=session_id,
        agent_id=agent_id or AGENT_ID,
        from_phone=_phone("--from", from_phone, CUSTOMER_PHONE),
        to_phone=_phone("--to", to_phone, OWN_PHONE),
        metadata=_read_metadata(metadata),
    )
    typer.echo(f"session {session_id}")
    sample = _Sample("prefetch", session_id, agent_id or AGENT_ID, as_real, query=query)
    _send(sample, url, secret)


@app.command("end-of-call")
def send_end_of_call(
    url: Url = "http://127.0.0.1:8000",
    secret: options.Secret = None,
    vintage: VintageName = "v2",
    session_id: SessionId = None,
    agent_id: AgentId = None,
    from_phone: FromPhone = None,
    to_phone: ToPhone = None,
    metadata: Metadata = None,
    call_status: Annotated[str, typer.Option(help="How the call ended.")] = "user-ended",
    file: Annotated[
        Path | None,
        typer.Option(help="Send this file as it is, instead of a sample.", dir_okay=False),
    ] = None,
    as_real: AsReal = False,
) -> None:
    """Send what Millis sends when a call has ended, and show the answer."""
    if file is not None:
        body = _read_file(file)
        _send(_Sample("end_of_call", _session_in(body), agent_id, as_real, body=body), url, secret)
        return
    session_id = session_id or _new_session()
    body = end_of_call_body(
        _vintage(vintage),
        session_id=session_id,
        agent_id=agent_id or AGENT_ID,
        from_phone=_phone("--from", from_phone, CUSTOMER_PHONE),
        to_phone=_phone("--to", to_phone, OWN_PHONE),
        metadata=_read_metadata(metadata),
        call_status=call_status,
    )
    typer.echo(f"session {session_id}")
    sample = _Sample("end_of_call", session_id, agent_id or AGENT_ID, as_real, body=body)
    _send(sample, url, secret)


@dataclass(frozen=True, slots=True)
class _Sample:
    """What is sent; a prefetch has a `query`, an end-of-call a `body`."""

    hook: Hook
    session_id: str | None
    agent_id: str | None
    is_as_real: bool
    query: str | None = None
    body: bytes | None = None


def _session_in(body: bytes) -> str | None:
    """Return the session that a body is about, if it can be read; it may be compressed."""
    try:
        return identify(decode(body, "", max_bytes=_MAX_BODY_BYTES).body).session_id
    except (PayloadError, PayloadTooLargeError):
        return None


def _headers(settings: Settings, sample: _Sample, url: str, secret: str | None) -> dict[str, str]:
    """Return what it carries: the secret, and the mark of a test unless it goes as a real one."""
    chosen = secret or secret_for(settings, sample.hook, sample.agent_id)
    headers = secret_header(settings, chosen)
    if not sample.is_as_real:
        headers |= Marker(settings, "test")(sample.session_id, url, headers.items())
    return headers | ({} if sample.body is None else {"content-type": "application/json"})


def _send(sample: _Sample, url: str, secret: str | None) -> None:
    """Send one webhook; end the command with an error unless it is accepted."""
    settings = Settings.load()
    address = given_url(settings, sample.hook, url)
    headers, query, body = (
        _headers(settings, sample, address, read_secret("--secret", secret)),
        sample.query,
        sample.body,
    )
    try:
        # As bytes, because what is hostile must not be repaired on the way.
        target = httpx2.URL(address, query=query.encode() if query is not None else None)
        # A proxy for the outside cannot reach a service on this machine.
        outside = not is_loopback(target.host)
        with httpx2.Client(timeout=_TIMEOUT_S, trust_env=outside) as client:
            started = time.perf_counter()
            method = "GET" if body is None else "POST"
            response = client.request(method, target, headers=headers, content=body)
            latency_ms = (time.perf_counter() - started) * 1000
    except httpx2.ConnectError as error:
        fail(f"{_NOTHING.format(address)} ({error})")
    except httpx2.TimeoutException:
        fail(f"{address} gave no answer within {_TIMEOUT_S:g} s.")
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        fail(f"{address}: {error}")
    _show(response, latency_ms)
    note(_AS_REAL if sample.is_as_real else _AS_TEST)


def _show(response: Response, latency_ms: float) -> None:
    typer.echo(f"{response.request.method} {response.request.url.copy_with(query=None)}")
    typer.echo(f"{response.status_code} {response.reason_phrase} in {latency_ms:.1f} ms")
    typer.echo(printable(response.text))
    if response.status_code == 401:
        fail(_REFUSED)
    if response.status_code != 200:
        fail("The webhook was not accepted.")


def _vintage(name: str) -> Vintage:
    for vintage in VINTAGES:
        if vintage == name:
            return vintage
    raise ConfigError(f"There is no vintage {name!r}. Known: {', '.join(VINTAGES)}.")


def _new_session() -> str:
    return push_id(datetime.now(UTC))


def _phone(option: str, given: str | None, default: str) -> str | None:
    try:
        return default if given is None else as_sent(given) if given.strip() else None
    except ValueError as error:
        raise ConfigError(f"{option}: {error}.") from error


def _read_metadata(pairs: Sequence[str] | None) -> dict[str, str]:
    metadata = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--metadata takes key=value, not {pair!r}.")
        metadata[key] = value
    return metadata


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error
