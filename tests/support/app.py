"""An application, what it is asked, and what it logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from millis_hooks import MillisHooks
from support.paths import SAMPLES

SECRET = "a-secret-for-tests-only-0001"
AUTHORIZED = {"Authorization": f"Bearer {SECRET}"}
PREFETCH = "/millis/prefetch?" + (SAMPLES / "prefetch_phone.txt").read_text().strip()
END_OF_CALL = "/millis/end-of-call"

MakeHooks = Callable[..., MillisHooks]
Rows = Callable[..., list[dict[str, Any]]]


def serving(hooks: MillisHooks, **options: Any) -> TestClient:
    """A client that brings the secret; as a context manager it starts and stops the application.

    Once stopped, everything that was recorded is in the database.
    """
    return TestClient(hooks, **({"headers": AUTHORIZED} | options))


def our_log(caplog: pytest.LogCaptureFixture) -> str:
    """What we have logged, as it is written: clients log their requests too."""
    ours = [record for record in caplog.records if record.name.startswith("millis_hooks")]
    return "\n".join(caplog.handler.format(record) for record in ours)
