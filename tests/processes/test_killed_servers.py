"""Real servers, killed at random moments: whatever was acknowledged is there and gets processed."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from millis_hooks.call_log.tables import attempts, calls, deliveries, handler_runs, inbox
from support.sites import Site, session_of
from support.storage import opened, rows
from support.waiting import eventually

HANDLERS = """
from millis_hooks.call_log.processing import Processor

@hooks.on_end_of_call
def notify(call):
    pass

if "unprocessed" in arguments:
    Processor.process_chunk = lambda self: 0
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, HANDLERS)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(1200)
def test_no_acknowledged_call_is_lost_when_servers_are_killed(site: Site, times: int) -> None:
    for _ in range(times):
        goal = len(site.acknowledged) + random.randint(1, 200)
        with site.serving() as server, server.under_fire(clients=4):
            eventually(partial(site.has_acknowledged, goal))
            server.kill()
    site.finish()
    with opened(site.folder) as database:
        kept = [row.body for row in rows(database, deliveries)]
        assert len(kept) == len(set(kept))
        assert set(site.acknowledged) <= set(kept)
        assert {row.session_id for row in rows(database, calls)} == set(map(session_of, kept))
        assert len(rows(database, handler_runs)) == len(kept)


def test_what_was_acknowledged_but_not_processed_is_processed_at_the_next_start(site: Site) -> None:
    with site.serving("unprocessed") as server, server.under_fire(clients=2):
        eventually(lambda: site.has_acknowledged(60))
        server.kill()
    with opened(site.folder) as database:
        assert len(rows(database, inbox)) >= 60
        assert rows(database, calls) == []
    site.finish()
    with opened(site.folder) as database:
        assert len(rows(database, calls)) == len(rows(database, deliveries)) >= 60
        assert {run.state for run in rows(database, handler_runs)} == {"succeeded"}
        assert len(rows(database, attempts)) == len(rows(database, deliveries))
