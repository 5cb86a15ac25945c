"""Old bodies take less room, and whoever reads them sees no difference."""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError

from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.raw_body import MARK, pack, storable, unpack
from millis_hooks.call_log.tables import calls, deliveries, rereads
from millis_hooks.call_log.transfer.export import Selection, read_calls
from millis_hooks.call_log.upkeep.file import pack_older
from millis_hooks.call_log.upkeep.retention import Housekeeper
from millis_hooks.protocol.samples import end_of_call_body
from support.storage import writing
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases

BODY = end_of_call_body(session_id="-a")
OLD = NOW - timedelta(days=2)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path)
    yield log
    log.database.close()


def pack_all(stored: StoredCalls, *, batches: int = 1000) -> int:
    steps = pack_older(stored.database.reader, stored.write, before=NOW - timedelta(days=1))
    return sum(saved for _, saved in zip(range(batches), steps, strict=False))


def bytes_on_disk(stored: StoredCalls, delivery_id: int) -> int:
    with stored.database.reader.connect() as connection:
        length = text("SELECT length(body) FROM deliveries WHERE id = :id")
        return int(connection.execute(length, {"id": delivery_id}).scalar_one())


@given(st.binary() | st.binary().map(lambda body: MARK + body) | st.binary().map(lambda b: b * 99))
def test_a_body_comes_back_as_it_was(body: bytes) -> None:
    assert unpack(storable(body)) == body
    packed = pack(body)
    assert packed is None or (unpack(packed) == body and len(packed) < len(body))


def test_what_was_packed_once_can_always_be_unpacked() -> None:
    packed = b"\0zlib0000000073x\xbb>[^S\xc3\xac\xf2\x13\x950-'\xc2 \x00}\xfb\x18\xb4"
    assert json.loads(unpack(packed)) == {
        "session_id": "-Oa",
        "call_status": "user-ended",
        "error_message": None,
    }
    plain = BODY * 2
    assert unpack(MARK + b"%010d" % len(plain) + zlib.compress(plain)) == plain


def test_an_old_body_is_packed_and_reads_as_before(stored: StoredCalls) -> None:
    id_ = stored.add_delivery(session_id="-a", body=BODY, received_at=OLD)
    saved = pack_all(stored)
    assert bytes_on_disk(stored, id_) == len(BODY) - saved < len(BODY)
    delivery = stored.queries.delivery(id_)
    assert delivery is not None
    assert (delivery.body, delivery.body_bytes) == (BODY, len(BODY))


def test_an_export_reads_at_once_what_fits_into_memory_unpacked(
    stored: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.transfer.export._BYTES", len(BODY) * 300)
    ids = [stored.add_call(session_id) for session_id in ("-a", "-b")]
    for session_id in ("-a", "-b"):
        stored.add_delivery(session_id=session_id, body=BODY * 200, received_at=OLD)
    pack_all(stored)
    reads: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        reads.append(statement)

    event.listen(stored.database.reader, "before_cursor_execute", note)
    selection = Selection(array("q", ids), array("q"))
    exported = list(read_calls(stored.database.reader, selection, with_deliveries=True))
    assert [len(delivery.body) for call in exported for delivery in call.deliveries] == [
        len(BODY) * 200
    ] * 2
    assert sum("deliveries.answer" in statement for statement in reads) == 2


@pytest.mark.parametrize(("days", "is_packed"), [(1, True), (7, False), (0, False)])
def test_the_service_packs_what_is_older_than_the_setting_says(
    stored: StoredCalls, days: int, is_packed: bool
) -> None:
    stored.add_delivery(session_id="-a", body=BODY, received_at=OLD)
    with writing(stored.database) as writer:
        keeper = Housekeeper(
            stored.database.reader,
            writer,
            retention_days=0,
            pack_after_days=days,
            is_ours=lambda: True,
            now=lambda: NOW,
        )
        assert (keeper.pack() > 0) == is_packed


def test_new_bodies_and_those_that_would_not_shrink_stay(stored: StoredCalls) -> None:
    new = stored.add_delivery(body=BODY)
    assert pack_all(stored) == 0
    short = stored.add_delivery(body=b"{broken", received_at=OLD)
    assert pack_all(stored) == 0
    assert [bytes_on_disk(stored, id_) for id_ in (new, short)] == [len(BODY), 7]


def test_packing_continues_where_it_was(stored: StoredCalls) -> None:
    ids = [stored.add_delivery(body=BODY * 200, received_at=OLD) for _ in range(5)]
    pack_all(stored, batches=2)
    packed = [bytes_on_disk(stored, id_) < len(BODY * 200) for id_ in ids]
    assert packed == [True, True, False, False, False]
    pack_all(stored)
    assert all(bytes_on_disk(stored, id_) < len(BODY * 200) for id_ in ids)
    assert pack_all(stored) == 0


def test_what_looks_packed_when_it_is_received_is_kept_as_it_is(stored: StoredCalls) -> None:
    bomb = MARK + b"%010d" % 10**9 + zlib.compress(bytes(10**6))
    received = Delivery("end_of_call", NOW, "unparsed", 200, body=bomb)
    stored.write(lambda connection: insert_deliveries(connection, [received]))
    delivery = stored.queries.delivery(1)
    assert delivery is not None
    assert (delivery.body, delivery.body_bytes) == (bomb, len(bomb))


def test_packed_rows_follow_one_another_closely_and_keep_what_refers_to_them(
    stored: StoredCalls,
) -> None:
    if not stored.database.is_file:
        pytest.skip("PostgreSQL finds room by itself")
    with stored.at_once():
        for number in range(200):
            body = end_of_call_body(session_id=f"-{number}", metadata={"note": "long " * 900})
            end = stored.add_delivery(session_id=f"-{number}", body=body, received_at=OLD)
            stored.add_call(f"-{number}", delivery_id=end)
            stored._insert(rereads, {"delivery_id": end})
    before = referring(stored)
    with stored.at_once():
        pack_all(stored)
        with pytest.raises(IntegrityError):
            stored._insert(rereads, {"delivery_id": 1_000})
    assert referring(stored) == before
    with stored.database.reader.connect() as connection:
        sizes = "SELECT sum(pgsize), sum(unused) FROM dbstat WHERE name = 'deliveries'"
        size, unused = connection.execute(text(sizes)).one()
        assert unused < size / 3
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]


def referring(stored: StoredCalls) -> list[object]:
    """Return the deliveries, and what refers to them."""
    with stored.database.reader.connect() as connection:
        return [
            connection.execute(each).all()
            for each in (
                select(deliveries.c.id, deliveries.c.session_id, deliveries.c.body),
                select(calls.c.delivery_id, calls.c.session_id),
                select(rereads),
            )
        ]
