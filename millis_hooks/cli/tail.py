"""`tail`: follows calls as they begin, end, and are handled."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..printable import printable
from .opened_log import opened
from .terminal import console, print_json_line

if TYPE_CHECKING:
    from rich.text import Text

    from ..call_log.database import Database
    from ..call_log.following import Happening

#: How often the call log is looked at.
EVERY_S = 0.5
#: What is good news and what is bad; anything else is in between.
_STYLES = {
    **dict.fromkeys(("fresh", "stored", "succeeded"), "green"),
    **dict.fromkeys(("late", "failed", "timed_out", "gave_up", "unparsed", "rejected"), "red"),
}


def tail(
    last: Annotated[
        int,
        typer.Option("--last", "-n", min=0, max=500, help="Begin so many requests before now."),
    ] = 10,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object in each line.")
    ] = False,
    follow: Annotated[
        bool, typer.Option(help="Go on until you press Ctrl-C; or end with what is there.")
    ] = True,
) -> None:
    """Follow calls live: what came in, what we answered, and how handlers did."""
    from ..call_log.masked_records import masked_happening
    from ..masking import MaskPolicy
    from ..settings import Settings

    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    with opened(settings) as database, _noted(_Interruption(not follow)) as interruption:
        for happening in _happenings(database, interruption, last=last):
            if session in (None, happening.session_id) and agent in (None, happening.agent_id):
                _print(masked_happening(happening, mask), as_json=as_json)


@dataclass(slots=True)
class _Interruption:
    """Whether it is time to end. An event would do no better: its lock may be held just then."""

    is_wanted: bool


@contextmanager
def _noted(interruption: _Interruption) -> Iterator[_Interruption]:
    """Have Ctrl-C only noted: a query that it broke off would be an error. The second one ends."""

    def note(*_: object) -> None:
        interruption.is_wanted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def _happenings(
    database: Database, interruption: _Interruption, *, last: int
) -> Iterator[Happening]:
    """Yield what happens, and once interrupted what has happened until then."""
    from ..call_log.following import MOST_AT_ONCE, Follower

    with database.reader.connect() as connection:
        follower = Follower(connection, last=last)
    while True:
        was_wanted = interruption.is_wanted
        # Closed between looks: a snapshot that is kept open would keep the file growing.
        with database.reader.connect() as connection:
            happened = follower.look(connection)
        yield from happened
        if was_wanted and len(happened) < MOST_AT_ONCE:  # there may always be something new
            return
        if not happened and not interruption.is_wanted:
            time.sleep(EVERY_S)


def _print(happening: Happening, *, as_json: bool) -> None:
    if as_json:
        print_json_line(happening)
    else:
        console().print(_line(happening), soft_wrap=True)


def _line(happening: Happening) -> Text:
    from rich.text import Text

    return Text.assemble(
        (f"{happening.at:%H:%M:%S}  ", "dim"),
        f"{printable(happening.session_id or '-', one_line=True)[:40]:<22}",
        f"{happening.kind.replace('_', ' '):<12}",
        (f"{happening.outcome.replace('_', ' '):<12}", _STYLES.get(happening.outcome, "yellow")),
        printable("  ".join(filter(None, _details(happening))), one_line=True),
    )


def _details(happening: Happening) -> Iterator[str | None]:
    """Yield what else is known: who called and how it ended, or which handler did what."""
    from ..dashboard.formats import clock, status_label

    if happening.handler is not None:
        yield f"{happening.handler}, attempt {happening.attempt}: run {happening.run_state}"
    else:
        yield happening.customer_phone
    if happening.call_status is not None:
        yield status_label(happening.call_status)
    if happening.duration_s is not None:
        yield clock(happening.duration_s)
    if happening.duration_ms is not None:
        yield f"{happening.duration_ms:.1f} ms"
    yield happening.error
