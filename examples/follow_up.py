"""Calls people again that your agent did not reach, once, unless they asked not to be called.

It uses the list of `do_not_call.py` beside it. In the sandbox it runs without a phone:

    export MILLIS_HOOKS_API_URL=http://127.0.0.1:8000/sandbox/api MILLIS_HOOKS_API_KEY=any
    MILLIS_HOOKS_OWN_NUMBERS=+14155550199 FOLLOW_UP_AFTER_S=5 millis-hooks dev examples/follow_up.py
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta

from do_not_call import consent, people

from millis_hooks import ConfigError, EndOfCall, GiveUp, MillisApiError, MillisHooks, Retry

logger = logging.getLogger("follow_up")

WAIT = timedelta(seconds=float(os.environ.get("FOLLOW_UP_AFTER_S", "7200")))
#: In the metadata of a follow-up: the call that it follows.
FOLLOWS = "follows"


class Claims:
    """The calls that have had their follow-up: each is claimed before the phone rings.

    The claim is on disk first, so that no crash leads to a second call.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def claim(self, session_id: str) -> bool:
        """Claim a call; False if it is claimed already."""
        return self._change("INSERT OR IGNORE INTO claims VALUES (?)", session_id)

    def release(self, session_id: str) -> None:
        """Release the claim, because there was no call."""
        self._change("DELETE FROM claims WHERE session_id = ?", session_id)

    def _change(self, sql: str, session_id: str) -> bool:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS claims (session_id TEXT PRIMARY KEY)")
            return connection.execute(sql, (session_id,)).rowcount == 1


claims = Claims(os.environ.get("FOLLOW_UP_FILE", "follow_ups.db"))


@asynccontextmanager
async def require_settings() -> AsyncIterator[None]:
    """Refuse to start without the settings that calls need."""
    if not hooks.settings.own_numbers:
        raise ConfigError("Which numbers do you call from? Set MILLIS_HOOKS_OWN_NUMBERS.")
    # Without an API key this raises `ConfigError` too.
    logger.info("calls go out by way of %s", hooks.millis.base_url)
    yield


hooks = MillisHooks(consent, lifespan=require_settings)


def is_first_try(call: EndOfCall) -> bool:
    """Tell whether this is an outbound call, and not a follow-up."""
    return call.direction == "outbound" and FOLLOWS not in call.metadata


@hooks.on_end_of_call(outcome={"voicemail", "unreached"}, when=is_first_try, repeatable=False)
def follow_up(call: EndOfCall) -> None:
    """Call again, a while later."""
    if call.customer_phone is None:
        raise GiveUp("there is no number to call")
    _wait(call)
    if people.forbids(call.customer_phone):
        logger.info("%s: not followed up, as the customer asked", call.session_id)
    elif call.dry_run:
        logger.info("%s: a dry run, so nothing is done", call.session_id)
    else:
        _call_once(call)


def _wait(call: EndOfCall) -> None:
    """Raise `Retry` until it is time."""
    if call.started_at is None:
        return
    due = call.started_at + timedelta(seconds=call.duration_s or 0) + WAIT
    left_s = (due - datetime.now(UTC)).total_seconds()
    if left_s > 0:
        raise Retry(left_s, "not yet")


def _call_once(call: EndOfCall) -> None:
    if not claims.claim(call.session_id):
        raise GiveUp("a follow-up was started before, and its result is unknown")
    try:
        asyncio.run(_call(call))
    except MillisApiError as error:
        # One that is a `GiveUp` means that the phone may have rung.
        if not isinstance(error, GiveUp):
            claims.release(call.session_id)
        raise


async def _call(call: EndOfCall) -> None:
    await hooks.millis.start_outbound_call(
        call.voip.from_phone if call.voip else None,
        call.customer_phone,
        agent_id=call.agent_id,
        metadata={**call.metadata, FOLLOWS: call.session_id},
    )
