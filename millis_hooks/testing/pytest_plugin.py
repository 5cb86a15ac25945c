"""Fixtures for tests of handlers: `hooks_client` and `simulate_call`. See `millis_hooks.testing`.

pytest loads this module wherever the package is installed, so it imports next to nothing;
`-p no:millis_hooks` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..handlers.made_up_calls import note_pytest

if TYPE_CHECKING:
    from ..app import MillisHooks
    from ..sandbox.simulator import Simulation
    from .client import HooksClient, SimulateCall

_OPTION = "millis_hooks_app"
_NO_APP = (
    'Which application is tested? Write `millis_hooks_app = "app.py"` into '
    "[tool.pytest.ini_options] of pyproject.toml, or define a fixture `millis_hooks_app` that "
    "returns the MillisHooks."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the application's place from the configuration."""
    parser.addini(_OPTION, "The MillisHooks that `hooks_client` tests: app.py, package.app:hooks.")


def pytest_configure() -> None:
    """Send no request to Millis from now on: a test would make real calls."""
    note_pytest()


@pytest.fixture(scope="session")
def millis_hooks_app(pytestconfig: pytest.Config) -> MillisHooks:
    """The application that is tested: the one configured as `millis_hooks_app`."""
    named = pytestconfig.getini(_OPTION)
    if not named:
        pytest.fail(_NO_APP, pytrace=False)
    from ..server.app_loader import load_target

    place, colon, attribute = named.rpartition(":")
    file = pytestconfig.rootpath / (place or named)
    target = load_target(f"{file}{colon}{attribute if place else ''}" if file.is_file() else named)
    return target.require_hooks()


@pytest.fixture
def hooks_client(millis_hooks_app: MillisHooks) -> Iterator[HooksClient]:
    """A client of the application, which runs on a call log of its own."""
    from .client import HooksClient

    with HooksClient(millis_hooks_app) as client:
        yield client


@pytest.fixture
def simulate_call(hooks_client: HooksClient, request: pytest.FixtureRequest) -> SimulateCall:
    """Runs a scenario: a file, looked for beside the test first, or the name of a shipped one."""

    def simulate(scenario: str | Path, **changes: Any) -> Simulation:
        beside = request.path.parent / scenario
        return hooks_client.simulate(beside if beside.is_file() else scenario, **changes)

    return simulate
