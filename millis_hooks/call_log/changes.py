"""Deliveries of a kind that the call has already: a second end, a second prefetch.

What is known of the call is derived anew from all its deliveries, so that it comes out the same
whatever order they came in; and who has asked for it is called again where an end has changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from ..exceptions import StorageOutageError
from .database import Database
from .derived import refuse
from .digest import Digest, of_session
from .ends import End, ids_of, put_together
from .new_runs import pending_run
from .rederived import Rederived, Scratch, bring_up
from .tables import IS_OF_CALL, calls, deliveries, handler_runs, inbox
from .writer import Writer

#: How often it begins anew because something of the session was processed elsewhere meanwhile.
_TRIES = 5
_KEY_CHARS = 12


class Changes:
    """Brings calls up to what later deliveries say of them."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        digest: Callable[[Row[Any]], Digest | None],
        hears_of_changes: Callable[[str], bool],
    ) -> None:
        """`hears_of_changes` tells whether the handler of a name is called again on a change."""
        self._database = database
        self._writer = writer
        self._digest = digest
        self._hears_of_changes = hears_of_changes

    def among(self, read: Sequence[tuple[Row[Any], Digest | None]]) -> set[int]:
        """Return which of these deliveries are not the first of their kind in their session.

        An exact repetition that came later changes nothing, and is not among them.
        """
        told = [(row, digest) for row, digest in read if digest is not None and digest.call]
        d = deliveries.c
        columns = (d.session_id, d.kind, d.content_hash)
        chosen = select(*columns, func.min(d.received_at).label("at")).where(
            d.session_id.in_([digest.call["session_id"] for _, digest in told]),
            d.id.not_in([row.id for row, _ in read]),
            d.outcome.not_in(["rejected", "unparsed"]),
            ~select(inbox.c.delivery_id).where(inbox.c.delivery_id == d.id).exists(),
        )
        if not told:
            return set()
        with self._database.reader.connect() as connection:
            found = connection.execute(chosen.group_by(*columns)).all()
        there = {(each.session_id, each.kind): each.at for each in found}
        same = {(each.session_id, each.kind, each.content_hash): each.at for each in found}
        return {
            row.id
            for row, digest in told
            if (key := (digest.call["session_id"], row.kind)) in there
            and not _repeats(row, same.get((*key, row.content_hash)))
        }

    def take(self, row: Row[Any], session_id: str) -> tuple[int, list[str]]:
        """Take in one of them. Return 1, or 0 if another process has, and who is called for it.

        Raises `StorageOutageError` if others are at the same session all the time.
        """
        scratch = Scratch()
        try:
            for _ in range(_TRIES):
                with self._database.reader.connect() as connection:
                    ids = ids_of(connection, session_id, row.id)
                    told = self._read(connection, ids)
                fresh = scratch.derive([of_session(told)])
                change = _change_by(row.id, told)
                about = {"session_id": session_id, "delivery_id": row.id, "ids": ids}
                save = partial(self._save, **about, fresh=fresh, change=change)
                if (taken := self._writer.run(save)) is not None:
                    return taken
        finally:
            scratch.close()
        raise StorageOutageError("other processes change the same call all the time")

    def _read(self, connection: Connection, ids: Sequence[int]) -> list[Digest]:
        chosen = select(deliveries).where(deliveries.c.id.in_(ids)).order_by(deliveries.c.id)
        rows = connection.execution_options(yield_per=1).execute(chosen)
        return [digest for row in rows if (digest := self._digest(row)) is not None]

    def _save(
        self,
        connection: Connection,
        *,
        session_id: str,
        delivery_id: int,
        ids: Sequence[int],
        fresh: Rederived,
        change: tuple[str, list[str]] | None,
    ) -> tuple[int, list[str]] | None:
        """Write what has changed; None if the deliveries are not those any more that were read."""
        is_it = inbox.c.delivery_id == delivery_id
        waiting = select(inbox.c.delivery_id).where(is_it).with_for_update(skip_locked=True)
        if connection.execute(waiting).first() is None:
            return 0, []
        # Who processes another delivery of the call waits here, and then finds what has changed.
        its_call = select(calls.c.id).where(calls.c.session_id == session_id)
        call_id = connection.scalar(its_call.with_for_update())
        if ids_of(connection, session_id, delivery_id) != ids:
            return None
        bring_up(connection, fresh, ids)
        refuse(connection, fresh.refused)
        connection.execute(delete(inbox).where(is_it))
        if change is None or call_id is None or delivery_id in fresh.refused:
            return 1, []
        return 1, self._write_runs(connection, call_id, *change, fresh)

    def _write_runs(
        self, connection: Connection, call_id: int, key: str, wanted_by: list[str], fresh: Rederived
    ) -> list[str]:
        """Have handlers called that want the call as it is now: who never was, and who is again."""
        latest = select(handler_runs).where(IS_OF_CALL, handler_runs.c.call_id == call_id)
        runs = {run.handler: run for run in connection.execute(latest)}
        again = [
            name
            for name in wanted_by
            if name in runs and self._hears_of_changes(name) and _has_begun(runs[name])
        ]
        ids = [runs[name].id for name in again]
        replaced = update(handler_runs).where(handler_runs.c.id.in_(ids))
        connection.execute(replaced.values(is_latest=False))
        (at,) = {call.columns["ended_at"] for call in fresh.calls}
        new = [pending_run(call_id, name, at) for name in wanted_by if name not in runs]
        new += [pending_run(call_id, name, at, change=key) for name in again]
        if new:
            connection.execute(insert(handler_runs), new)
            handled = update(calls).where(calls.c.id == call_id, calls.c.unhandled)
            connection.execute(handled.values(unhandled=False))
        return [run["handler"] for run in new]


def _repeats(row: Row[Any], before: Any) -> bool:
    return row.kind == "end_of_call" and before is not None and before <= row.received_at


def _change_by(delivery_id: int, told: Sequence[Digest]) -> tuple[str, list[str]] | None:
    """Return the key of the change that an end has made, and the handlers that want the call now;
    None if it changed nothing."""
    ends = [digest.end for digest in told if digest.end is not None]
    own = [end for end in ends if end.delivery_id == delivery_id]
    before = [end for end in ends if end.delivery_id != delivery_id]
    if not own or not before:
        return None
    whole = put_together(ends).call
    if whole.raw == put_together(before).call.raw:
        return None
    return _key_of(own[0]), list(own[0].runs_for(whole))


def _key_of(end: End) -> str:
    return end.content_hash.hex()[:_KEY_CHARS]


def _has_begun(run: Row[Any]) -> bool:
    """Tell whether its handler may have seen the call as it was before; one that waits will not."""
    return run.state in ("running", "succeeded", "parked")
