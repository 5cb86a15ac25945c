"""A year of realistic calls for screenshots of the dashboard, always the same."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from benchmarks.generate import OWN_NUMBERS, make
from millis_hooks.call_log.call_rows import write
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.projection import digest_delivery
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import calls, inbox
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from support.stored_calls import NOW, StoredCalls

#: The call to look at: booked, and then not saved.
SESSION = "-P6xkTq2vBvYk0mWcZ1d"
#: The calls that have begun, by their ids and how many seconds ago.
LIVE = {"-P6xm0aKq7": 47, "-P6xm0aKq8": 131, "-P6xm0aKq9": 258}

_AGENT = "front-desk"
_CALLER, _OWN = "+14155550134", "+14155550190"
_ASKED = {"customer_id": "c-20417", "tier": "basic", "campaign": "autumn-2"}
_ANSWER = {
    "metadata": {"customer_name": "Ada Moreno", "tier": "gold", "last_visit": "2026-10-30"},
    "extra_prompt": "Ada is a gold customer. Offer the window table first; she dislikes waiting.",
}
_SAID = (
    ("assistant", "Good morning Ada, nice to hear from you. How may I help?"),
    ("user", "Hi! Do you have a table for two on Tuesday evening?"),
    ("assistant", "Let me look. There is the window table at half past seven. Shall I book it?"),
    ("user", "Yes please, and could you note that one of us is allergic to nuts?"),
    ("assistant", "It is noted. The window table, Tuesday at half past seven, for two."),
    ("user", "Perfect, thank you. See you on Tuesday!"),
)
_COSTS: tuple[tuple[str, str, float, dict[str, int]], ...] = (
    ("millis", "millis", 0.0447, {}),
    ("llm", "openai", 0.0093, {"prompt_tokens": 5120, "completion_tokens": 214}),
    ("tts", "elevenlabs", 0.0361, {}),
    ("stt", "deepgram", 0.0096, {}),
)
_TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/app.py", line 41, in sync_crm
    crm.save_booking(call.session_id, call.function_result("book_table"))
  File "/srv/shop/crm.py", line 88, in save_booking
    response.raise_for_status()
httpx.HTTPStatusError: Server error '503 Service Unavailable' for url 'https://crm.example/bookings'"""


def tell(folder: Path, *, count: int) -> None:
    """Make the call log of a folder: `count` calls, the one to look at, and those going on."""
    make(folder / "log.db", count)
    stored = StoredCalls(folder)
    stored.write(_receive)
    call_id = stored.write(_call_id)
    for name in ("send_receipt", "sync_crm"):
        stored.add_handler(name)
    _run(stored, call_id, "send_receipt", "succeeded", tries=1)
    _run(stored, call_id, "sync_crm", "failed", tries=3)
    stored.database.close()


def _receive(connection: Connection) -> None:
    asked_at = NOW - timedelta(minutes=9)
    ended_at = asked_at + timedelta(seconds=142)
    begun = [
        _asked(session_id, NOW - timedelta(seconds=ago_s), from_phone=f"+1415555{4100 + ago_s}")
        for session_id, ago_s in LIVE.items()
    ]
    ended = Delivery(
        kind="end_of_call",
        received_at=ended_at,
        outcome="stored",
        status_code=200,
        session_id=SESSION,
        latency_ms=1.8,
        content_type="application/json",
        answer=b'{"received":true}',
        body=_body(asked_at + timedelta(seconds=1)),
    )
    insert_deliveries(connection, [_asked(SESSION, asked_at), ended, *begun])
    ids = connection.scalars(select(inbox.c.delivery_id)).all()
    to_digest = partial(digest_delivery, own_numbers=OWN_NUMBERS | {_OWN})
    batch = SessionReader(to_digest, lambda _: []).read(connection, ids)
    write(connection, batch, hears_of_changes=lambda name: False)


def _asked(session_id: str, at: datetime, *, from_phone: str = _CALLER) -> Delivery:
    return Delivery(
        kind="prefetch",
        received_at=at,
        outcome="fresh",
        status_code=200,
        session_id=session_id,
        latency_ms=38.4,
        query=prefetch_query(
            session_id=session_id,
            agent_id=_AGENT,
            from_phone=from_phone,
            to_phone=_OWN,
            metadata=_ASKED,
        ),
        answer=json.dumps(_ANSWER).encode(),
    )


def _body(started_at: datetime) -> bytes:
    ordinary: dict[str, Any] = json.loads(
        end_of_call_body(
            "v2-extras",
            session_id=SESSION,
            agent_id=_AGENT,
            from_phone=_CALLER,
            to_phone=_OWN,
            metadata=_ASKED | _ANSWER["metadata"],  # type: ignore[operator]
            started_at=started_at,
            duration_s=139,
        )
    )
    told = {
        "chat": json.dumps([{"role": role, "content": text} for role, text in _SAID]),
        "function_calls": [
            {
                "name": "book_table",
                "params": {"day": "tuesday", "time": "19:30", "guests": 2, "note": "nuts"},
                "result": {"booked": True, "table": 12},
            }
        ],
        "cost_breakdown": [
            {"type": type_, "provider": provider, "credit": credit, **tokens}
            for type_, provider, credit, tokens in _COSTS
        ],
    }
    return json.dumps(ordinary | told).encode()


def _call_id(connection: Connection) -> int:
    found = connection.scalar(select(calls.c.id).where(calls.c.session_id == SESSION))
    assert found is not None
    return int(found)


def _run(stored: StoredCalls, call_id: int, handler: str, state: str, *, tries: int) -> None:
    first = NOW - timedelta(minutes=6)
    run_id = stored.add_run(call_id, handler, state, spent=tries, created_at=first)
    for number in range(1, tries + 1):
        at = first + timedelta(seconds=20 * (number - 1))
        failed = (
            {}
            if state == "succeeded"
            else {
                "outcome": "failed",
                "error_type": "HTTPStatusError",
                "error_message": _TRACEBACK.splitlines()[-1].partition(": ")[2],
                "traceback": _TRACEBACK,
            }
        )
        took_ms = 212.0 + 31 * number
        ended = {"ended_at": at + timedelta(milliseconds=took_ms), "duration_ms": took_ms}
        stored.add_attempt(
            run_id, number, **({"started_at": at, "outcome": "succeeded"} | ended | failed)
        )
