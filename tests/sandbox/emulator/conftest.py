"""An application with a sandbox, a client of it, and the calls that reached its handler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from millis_hooks import EndOfCall
from support.app import MakeHooks
from support.emulator import client_of, rehearsing


@pytest.fixture
def ended() -> list[EndOfCall]:
    return []


@pytest.fixture
def client(make_hooks: MakeHooks, ended: list[EndOfCall]) -> Iterator[TestClient]:
    with client_of(rehearsing(make_hooks, ended, own_numbers="+14155550199")) as client:
        yield client
