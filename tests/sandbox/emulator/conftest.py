"""An application with a sandbox, a client of it, and the calls that reached its handler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from starlette.testclient import TestClient

from millis_hooks import EndOfCall, MillisHooks
from support.app import SECRET, MakeHooks
from support.databases import Kind, made_in
from support.emulator import client_of, rehearsing


@pytest.fixture
def ended() -> list[EndOfCall]:
    return []


@pytest.fixture
def client(make_hooks: MakeHooks, ended: list[EndOfCall]) -> Iterator[TestClient]:
    with client_of(rehearsing(make_hooks, ended, own_numbers="+14155550199")) as client:
        yield client


@pytest.fixture(scope="module")
def shared_client(
    database_kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A client for requests that leave nothing behind; all tests of a module share it."""
    url = made_in(tmp_path_factory.mktemp("shared"))
    with client_of(
        rehearsing(partial(MillisHooks, secrets=SECRET, database_url=url), [])
    ) as client:
        yield client
