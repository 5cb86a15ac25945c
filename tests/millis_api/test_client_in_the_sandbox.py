"""The client of Millis' API against what stands in for Millis: both speak of the same API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from millis_hooks import EndOfCall, MillisApi, MillisHooks
from millis_hooks.exceptions import MillisNotFoundError, MillisRefusedError
from millis_hooks.millis_api import LoggedCall
from millis_hooks.protocol.reading import Json
from support.app import MakeHooks
from support.emulator import VOICE, rehearsing

OURS, THEIRS = "+14155550199", "+14155550134"
CONFIG: dict[str, Json] = {"prompt": "Confirm {appointment}.", "voice": VOICE}


@asynccontextmanager
async def asking(hooks: MillisHooks) -> AsyncIterator[MillisApi]:
    transport = httpx2.ASGITransport(app=hooks)
    base = "http://127.0.0.1/sandbox/api"
    async with hooks.running(), MillisApi("key", base_url=base, transport=transport) as api:
        yield api


async def when_over(api: MillisApi, session_id: str | None) -> LoggedCall:
    while True:
        try:
            call = await api.call_log(str(session_id))
        except MillisNotFoundError:  # it is not under way yet
            continue
        if call.is_over:
            return call


def test_a_call_is_started_and_found_in_the_call_logs(make_hooks: MakeHooks) -> None:
    ended: list[EndOfCall] = []
    hooks = rehearsing(make_hooks, ended)

    async def start_and_look() -> tuple[LoggedCall, list[str]]:
        async with asking(hooks) as api:
            started = await api.start_outbound_call(
                OURS,
                THEIRS,
                metadata={"appointment": "Tuesday"},
                include_metadata_in_prompt=True,
                agent_id="-a1",
                agent_config=CONFIG,
            )
            await api.start_outbound_call(OURS, THEIRS, agent_id="-a2")
            call = await when_over(api, started.session_id)
            lately = datetime.now(UTC) - timedelta(hours=1)
            listed = [each async for each in api.call_logs(agent_id="-a1", since=lately)]
            return call, [each.session_id for each in listed]

    call, listed = asyncio.run(start_and_look())
    assert listed == [call.session_id]
    assert call.metadata["appointment"] == "Tuesday"
    assert (call.voip and call.voip.to_phone, call.outcome) == (THEIRS, "completed")


def test_a_call_that_is_registered_has_ids_and_no_log_yet(make_hooks: MakeHooks) -> None:
    async def register() -> None:
        async with asking(rehearsing(make_hooks, [])) as api:
            registered = await api.register_call(agent_id="-a1", metadata={"tier": "gold"})
            assert registered.session_id
            assert registered.call_id
            with pytest.raises(MillisNotFoundError):
                await api.call_log("-nobody")

    asyncio.run(register())


def test_a_call_that_continues_is_terminated(make_hooks: MakeHooks) -> None:
    hooks = rehearsing(make_hooks, [], sandbox_pace=0.01)

    async def terminate() -> LoggedCall:
        async with asking(hooks) as api:
            started = await api.start_outbound_call(OURS, THEIRS, agent_id="-a1")
            while True:
                try:
                    await api.terminate(str(started.session_id), "Good bye.")
                    return await when_over(api, started.session_id)
                except MillisNotFoundError:  # it is not under way yet
                    continue

    assert asyncio.run(terminate()).call_status == "api-ended"


def test_a_refusal_of_the_sandbox_names_each_field(make_hooks: MakeHooks) -> None:
    async def refuse() -> None:
        async with asking(rehearsing(make_hooks, [])) as api:
            await api.start_outbound_call(OURS, THEIRS, agent_config={"prompt": 7})

    with pytest.raises(MillisRefusedError, match="prompt"):
        asyncio.run(refuse())
