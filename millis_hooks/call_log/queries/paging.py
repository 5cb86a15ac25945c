"""Keyset paging, the same for every list: newest first, keyed by (received time, id).

Rows that arrive do not shift an open page, and page 10,000 costs as much as the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, literal, not_, tuple_

T = TypeVar("T")


class Place(NamedTuple):
    """The place of a row in a list."""

    received_at: datetime
    id: int

    @property
    def cursor(self) -> str:
        """What names the place in addresses; there is no + in it."""
        at = self.received_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return f"{at},{self.id}"

    @classmethod
    def read(cls, cursor: str | None) -> Place | None:
        """Return the place of a cursor, or None for one that cannot be read."""
        received_at, _, id_ = (cursor or "").partition(",")
        if not (id_.isascii() and id_.removeprefix("-").isdigit() and len(id_) < 19):
            return None
        try:
            return cls(datetime.fromisoformat(received_at).astimezone(UTC), int(id_))
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a list, and the direction it is read in.

    It was received from `since` (inclusive) to `until` (exclusive), begins next to `after`, which
    was read before, and ends with `last`.
    """

    since: datetime | None = None
    until: datetime | None = None
    after: Place | None = None
    last: Place | None = None
    newest_first: bool = True

    def holds(self, at: ColumnElement[Any], id_: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        """Return the conditions for a row received `at`, of this id, to be in it."""
        inside = [at >= literal(self.since, at.type)] if self.since else []
        if self.until:
            inside.append(at < literal(self.until, at.type))
        if self.after:
            inside.append(self._is_beyond(self.after, at, id_))
        if self.last:
            inside.append(not_(self._is_beyond(self.last, at, id_)))
        return inside

    def order(self, *key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Return the order in which rows are read."""
        return [each.desc() if self.newest_first else each.asc() for each in key]

    def _is_beyond(self, place: Place, at: ColumnElement[Any], id_: Any) -> ColumnElement[bool]:
        here = tuple_(at, id_)
        there = tuple_(literal(place.received_at, at.type), literal(place.id, id_.type))
        return here < there if self.newest_first else here > there


@dataclass(frozen=True, slots=True)
class Paged(Generic[T]):
    """The rows of a page, newest first; a cursor is None where there is no further page."""

    rows: tuple[T, ...]
    newer: str | None
    older: str | None


def read_page(
    read: Callable[[Window, int], Sequence[T]],
    place_of: Callable[[T], Place],
    *,
    window: Window,
    before: str | None,
    after: str | None,
    size: int,
) -> Paged[T]:
    """Read the page next to a cursor; one that cannot be read is ignored.

    `read` returns the first rows of a window, up to a number.
    """
    if (place := Place.read(after)) is not None:
        newer = read(replace(window, after=place, newest_first=False), size + 1)
        if len(newer) > size:
            rows = newer[:size][::-1]
            return Paged(tuple(rows), place_of(rows[0]).cursor, place_of(rows[-1]).cursor)
        # Fewer than a page are newer: this is the first page.
    place = Place.read(before) if after is None else None
    rows = read(replace(window, after=place), size + 1)
    more, rows = len(rows) > size, rows[:size]
    newer_cursor = place_of(rows[0]).cursor if place is not None and rows else None
    return Paged(tuple(rows), newer_cursor, place_of(rows[-1]).cursor if more else None)
