"""Real servers whose handlers are killed, stopped and poisoned: every call is handled."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from millis_hooks.call_log.tables import attempts, calls, handler_runs
from support.sites import Site, session_of
from support.storage import opened, rows
from support.waiting import eventually

MAX_ATTEMPTS = 3

#: Takes a moment, and fails now and then.
UNSTEADY = f"""
@hooks.on_end_of_call(max_attempts={MAX_ATTEMPTS}, retry_backoff=Backoff(first_s=0.01, factor=1))
def work(call):
    note(call, "began")
    time.sleep(random.random() / 50)
    if random.random() < 0.2:
        raise ConnectionError
    note(call, "ended")
"""

#: Works until the file `go-on` is there.
PATIENT = """
@hooks.on_end_of_call
def work(call):
    note(call, "began")
    while not os.path.exists("go-on"):
        time.sleep(0.005)
    note(call, "ended")
"""

UNCLAIMED = """
from millis_hooks.runs import store

if "unclaimed" in arguments:
    store.claim = lambda *_, **__: []
"""

POISONED = """
@hooks.on_end_of_call
def work(call):
    note(call, "began")
    if call.session_id == "-poison":
        os._exit(1)

@hooks.on_parked
def alert(failed):
    note(failed.call, "failed")
"""


def runs_of(site: Site) -> dict[str, Row[Any]]:
    with opened(site.folder) as database:
        found = rows(database, handler_runs)  # first: calls that come in meanwhile have none here
        sessions = {call.id: call.session_id for call in rows(database, calls)}
        return {sessions[run.call_id]: run for run in found}


def outcomes(site: Site) -> list[str | None]:
    with opened(site.folder) as database:
        return [attempt.outcome for attempt in rows(database, attempts)]


def kill_at_random(site: Site, times: int) -> None:
    """Kill servers while handlers are at work."""
    for cycle in range(times):
        before, count = site.noted("began").total(), random.randint(5, 40)
        with site.serving() as server:
            for number in range(count):
                server.deliver(f"-{cycle}-{number}")
            goal = before + random.randint(1, count)
            eventually(partial(has_begun, site, goal))
            server.kill()


def has_begun(site: Site, goal: int) -> bool:
    return site.noted("began").total() >= goal


def check(site: Site) -> None:
    began, ended = site.noted("began"), site.noted("ended")
    runs = runs_of(site)
    assert set(map(session_of, site.acknowledged)) <= set(runs) == set(began)
    assert max(began.values()) <= MAX_ATTEMPTS + 1
    succeeded = {session for session, run in runs.items() if run.state == "succeeded"}
    assert succeeded <= set(ended)
    assert {run.state for run in runs.values()} <= {"succeeded", "failed"}


@pytest.mark.parametrize("times", [3, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.timeout(3600)
def test_every_call_is_handled_when_servers_are_killed(tmp_path: Path, times: int) -> None:
    site = Site(tmp_path, UNSTEADY)
    kill_at_random(site, times)
    site.finish()
    check(site)


def test_runs_that_were_written_but_not_begun_are_done_at_the_next_start(tmp_path: Path) -> None:
    site = Site(tmp_path, UNSTEADY + UNCLAIMED)
    with site.serving("unclaimed") as server:
        server.deliver("-s1")
        eventually(lambda: site.states() == {"pending"})
        server.kill()
    assert not site.noted("began")
    site.finish()
    assert site.noted("began").keys() == {"-s1"}


def test_a_handler_that_is_at_work_at_a_stop_is_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path, PATIENT)
    with site.serving() as server:
        server.deliver("-s1")
        eventually(lambda: site.noted("began"))
        server.stop()
    assert (site.states(), outcomes(site)) == ({"pending"}, ["handed_back"])
    (tmp_path / "go-on").touch()
    site.finish()
    assert (site.noted("ended"), outcomes(site)) == (Counter(["-s1"]), ["handed_back", "succeeded"])
    assert runs_of(site)["-s1"].spent == 1


def test_a_call_that_kills_the_process_is_failed_and_the_others_are_handled(tmp_path: Path) -> None:
    site = Site(tmp_path, POISONED)
    with site.serving() as server:
        server.deliver("-poison")
        server.process.wait(20)
    while not site.noted("failed"):
        with site.serving() as server:
            eventually(lambda: server.process.poll() is not None or site.noted("failed"))
            if site.noted("failed"):
                server.stop()
    with site.serving() as server:
        server.deliver("-good")
        eventually(lambda: runs_of(site).get("-good") and site.noted("began")["-good"])
        server.stop()
    assert outcomes(site).count("interrupted") == site.noted("began")["-poison"] == 5
    assert site.noted("failed") == Counter(["-poison"])


def test_two_processes_on_one_log_handle_each_call_once(tmp_path: Path) -> None:
    site = Site(tmp_path, UNSTEADY.replace("0.2", "0"))
    sessions = [f"-{number}" for number in range(100)]
    with site.serving() as one, site.serving() as other:
        for number, session_id in enumerate(sessions):
            deliver_to = one if number % 2 else other
            deliver_to.deliver(session_id)
        eventually(lambda: len(site.noted("ended")) == 100)
        one.stop()
        other.stop()
    assert site.noted("began") == site.noted("ended") == Counter(sessions)


def test_another_process_takes_over_when_the_one_that_works_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path, PATIENT)
    with site.serving() as one, site.serving() as other:
        one.deliver("-s1")
        eventually(lambda: site.noted("began"))
        one.kill()
        (tmp_path / "go-on").touch()
        eventually(lambda: site.noted("ended"))
        eventually(lambda: site.states() == {"succeeded"})
        other.stop()
    assert outcomes(site) == ["interrupted", "succeeded"]
