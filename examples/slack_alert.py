"""Tells a Slack channel of each run that has failed for good, with a link to the call.

Run it with the address of an incoming webhook. Without one, it logs the message:

    SLACK_WEBHOOK_URL=https://hooks.slack.com/services/... millis-hooks dev examples/slack_alert.py
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx2

from millis_hooks import EndOfCall, FailedRun, MillisHooks, Retry

logger = logging.getLogger("slack_alert")

SLACK_WEBHOOK_URL = os.environ.get("SLACK_WEBHOOK_URL")


@asynccontextmanager
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Keep one client for all messages."""
    async with httpx2.AsyncClient(timeout=10) as made:
        yield made


hooks = MillisHooks(lifespan=client)


@hooks.on_end_of_call(max_attempts=1)
async def sync_crm(call: EndOfCall) -> None:
    """Fail, as one of your handlers might."""
    raise ConnectionError("the CRM does not answer")


@hooks.on_failed
async def tell_slack(run: FailedRun) -> None:
    """Post the message. If Slack is down, it is tried again."""
    text = message_about(run)
    if SLACK_WEBHOOK_URL is None:
        logger.error("%s", text)
        return
    slack: httpx2.AsyncClient = run.state
    response = await slack.post(SLACK_WEBHOOK_URL, json={"text": text})
    if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
        raise Retry(float(response.headers.get("retry-after", "30")))
    if not response.is_success:
        # Not `raise_for_status`: its message has the address, which is a secret.
        raise ConnectionError(f"Slack answered {response.status_code}")


def message_about(run: FailedRun) -> str:
    """Return a message with the handler, the call and the reason, without the transcript."""
    session_id = run.call.session_id
    address = f"{hooks.settings.public_url or 'http://127.0.0.1:8000'}/calls/{quote(session_id)}"
    simulated = " (simulated)" if run.call.sandbox else ""
    why = f"{run.error_type}: {run.error_message}" if run.error_type else run.reason
    return (
        f"*{_escaped(run.handler)}* gave up on <{address}|{_escaped(session_id)}>{simulated} "
        f"after {run.attempts} attempts: {_escaped(why)}"
    )


def _escaped(text: str) -> str:
    """Escape a text as in https://api.slack.com/reference/surfaces/formatting#escaping."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
