"""The drift report: what Millis sent that nobody knew, how often, and since when.

Finds are kept under the delivery they were made in, so that counts stay true when deliveries are
read again or go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

from sqlalchemy import ColumnElement, Connection, and_, func, select

from ..drift_detection import Drift, DriftKind, drift_of
from ..events import EndOfCall, PrefetchRequest
from .tables import drift
from .values import clean_text

if TYPE_CHECKING:
    from ..masking import MaskPolicy

KINDS: tuple[DriftKind, ...] = get_args(DriftKind)

#: Counts stop here; a report over a million deliveries is there in an instant all the same.
COUNT_CAP = 10_000
#: So many places of each kind are listed: somebody may make up a new field with every delivery.
MOST_GROUPS = 100


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """The same find in several deliveries; `sample` and `delivery_id` are of the last of them.

    `count` is of deliveries and stops at `COUNT_CAP`. Of unknown values, each is a group.
    """

    kind: str
    path: str
    sample: str
    count: int
    first_seen: datetime
    last_seen: datetime
    delivery_id: int


@dataclass(frozen=True, slots=True)
class DriftReport:
    """All that was found, kind by kind, what was seen last first."""

    groups: tuple[DriftGroup, ...]
    #: Whether nothing was left out.
    is_complete: bool


def drift_rows(message: EndOfCall | PrefetchRequest, seen_at: datetime) -> list[dict[str, Any]]:
    """Return what is new in a message as columns of `drift`, but for the delivery's id."""
    return [
        {
            "kind": found.kind,
            "path": clean_text(_place(found)),
            "sample": clean_text(found.sample),
            "seen_at": seen_at,
        }
        for found in drift_of(message)
    ]


def drift_report(connection: Connection) -> DriftReport:
    """Add up what was found in the deliveries there are."""
    found = {kind: list(islice(_groups(connection, kind), MOST_GROUPS + 1)) for kind in KINDS}
    listed = [
        group
        for groups in found.values()
        for group in sorted(groups[:MOST_GROUPS], key=_last_seen, reverse=True)
    ]
    is_complete = all(len(groups) <= MOST_GROUPS for groups in found.values())
    return DriftReport(tuple(listed), is_complete)


def masked_report(report: DriftReport, mask: MaskPolicy) -> DriftReport:
    """Return a report as it may be seen; what stands in an unknown field may be words."""
    groups = (
        replace(
            group,
            path=mask.line(group.path),
            sample=(mask.text if group.kind == "unknown_field" else mask.line)(group.sample),
        )
        for group in report.groups
    )
    return replace(report, groups=tuple(groups))


def _last_seen(group: DriftGroup) -> datetime:
    return group.last_seen


def _place(found: Drift) -> str:
    # An unknown value is part of its place: so the index by place tells it from other values.
    if found.kind == "unknown_value":
        return f"{found.path} = {found.sample}"
    return found.path


def _groups(connection: Connection, kind: DriftKind) -> Iterator[DriftGroup]:
    """Yield the groups of a kind by place: from one to the next through the index, however many
    rows are in between."""
    place = ""
    while True:
        following = select(func.min(drift.c.path)).where(drift.c.kind == kind, drift.c.path > place)
        place = connection.scalar(following)
        if place is None:
            return
        yield _group(connection, and_(drift.c.kind == kind, drift.c.path == place))


def _group(connection: Connection, is_of_group: ColumnElement[bool]) -> DriftGroup:
    counted = select(drift.c.kind).where(is_of_group).limit(COUNT_CAP).subquery()
    last = connection.execute(
        select(
            drift,
            select(func.count()).select_from(counted).scalar_subquery().label("times"),
            select(func.min(drift.c.seen_at))
            .where(is_of_group)
            .scalar_subquery()
            .label("first_seen"),
        )
        .where(is_of_group)
        .order_by(drift.c.seen_at.desc())
        .limit(1)
    ).one()
    return DriftGroup(
        kind=last.kind,
        path=last.path.partition(" = ")[0] if last.kind == "unknown_value" else last.path,
        sample=last.sample,
        count=last.times,
        first_seen=last.first_seen,
        last_seen=last.seen_at,
        delivery_id=last.delivery_id,
    )
