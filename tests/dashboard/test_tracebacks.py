"""Tracebacks as a page shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

import millis_hooks
from millis_hooks.dashboard.runs import read_traceback

OURS = Path(millis_hooks.__file__).parent / "handlers" / "executor.py"
FAILED = f"""Traceback (most recent call last):
  File "{OURS}", line 10, in run
    handler(call)
    ~~~~~~~^^^^^^
  File "{OURS}", line 20, in call
    return handler(call)
  File "/srv/shop/app.py", line 41, in sync_crm
    crm.save(call)
  File "/srv/shop/lib/crm.py", line 88, in save
    response.raise_for_status()
  File "/srv/env/lib/python3.12/site-packages/httpx/_models.py", line 8, in raise_for_status
    raise HTTPStatusError(message)
httpx.HTTPStatusError: 503
and a second line"""


def test_it_begins_with_the_message_and_the_newest_frame_of_the_team() -> None:
    trace = read_traceback(FAILED)
    assert trace.message == "httpx.HTTPStatusError: 503\nand a second line"
    assert [(part.library, len(part.frames)) for part in trace.parts] == [
        ("httpx", 1),
        (None, 2),
        ("millis_hooks", 2),
    ]
    assert trace.parts[-1].title == "2 frames of millis_hooks"
    newest = trace.own_frames[0]
    assert newest.text == 'File "lib/crm.py", line 88, in save\n    response.raise_for_status()'


def test_an_exception_before_it_stays_as_it_is() -> None:
    before = "Traceback (most recent call last):\nKeyError: 1\n\nDuring handling of it:\n\n"
    trace = read_traceback(before + FAILED)
    assert trace.message.startswith("httpx")
    assert trace.rest == before.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no traceback",
        "Traceback (most recent call last):\nKeyError",
        FAILED.replace("\n", "\n  | "),
        FAILED[60:],
    ],
)
def test_what_is_no_traceback_stays_as_it_is(text: str) -> None:
    assert read_traceback(text).rest == text
