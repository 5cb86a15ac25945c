"""Makes a call log of realistic calls, quickly, by the code that processes real ones.

The calls of a log of any size are spread evenly over the year before `NEWEST`, and the same size
gives the same log. `RARE` of them, however large it is, have each of the traits in `Trait`, and no
others do: what is found by a trait should take the same time in every log.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from sqlalchemy import Connection, bindparam, func, insert, select, update

from millis_hooks.call_log.call_rows import write
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.migrations import migrate, open_database
from millis_hooks.call_log.projection import digest_delivery
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import IS_OPEN, attempts, calls, handler_runs, inbox
from millis_hooks.call_log.upkeep.file import pack_older
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import push_id

from .conversations import agent_config, language, line, name

T = TypeVar("T")

NEWEST = datetime(2026, 11, 21, 14, tzinfo=UTC)
SPAN = timedelta(days=365)
#: How many calls have a rare trait.
RARE = 20

OWN_NUMBERS = frozenset(f"+1415555019{digit}" for digit in range(5))
AGENTS = [f"-Ox1agent{number:011d}" for number in range(12)]
RARE_AGENT, RARE_NUMBER, RARE_STATUS = "-Ox1rareAgent0000001", "+4930901820", "api-ended"
RARE_WORD, RARE_CAMPAIGN = "zugzwang", "winter-7"

#: Calls that go into one transaction.
_BATCH = 500
_STATUSES = {
    "user-ended": 46, "agent-ended": 28, "voicemail-hangup": 6, "voicemail-message": 5, "busy": 4,
    "no-answer": 4, "timeout": 3, "error": 2, "failed": 1, "canceled": 1,
}  # fmt: skip
#: Type and provider of each cost, and credits per minute.
_RATES = (
    ("millis", "millis", 0.02),
    ("stt", "deepgram", 0.0043),
    ("tts", "elevenlabs", 0.04),
    ("llm", "openai", 0.01),
)


class Trait(IntEnum):
    """What few calls have; the number is where among its neighbours such a call stands."""

    AGENT = 1
    STATUS = 4
    CHAT = 7
    NUMBER = 10
    LONG = 13
    EXPENSIVE = 16
    CAMPAIGN = 19
    PARKED = 22
    UNHANDLED = 25
    REDELIVERED = 28
    UNPARSED = 31
    WORD = 34
    LOST = 37


class Generator:
    """Makes the calls of one log of `count`; those after them have no rare trait."""

    def __init__(self, count: int, *, seed: int = 4) -> None:
        self._count = count
        self._chance = random.Random(seed)
        self._configs = {agent: agent_config(self._chance) for agent in AGENTS}
        self._step = max(count // RARE, max(Trait) + 1)

    def trait(self, number: int) -> Trait | None:
        """Return what is rare about the call of this number, counted from 0."""
        place = number % self._step
        is_rare = place in set(Trait) and number < RARE * self._step
        return Trait(place) if is_rare else None

    def received_at(self, number: int) -> datetime:
        return NEWEST - SPAN * ((self._count - number) / self._count)

    def call(self, number: int) -> list[Delivery]:
        """Return the deliveries of a call, oldest first."""
        trait = self.trait(number)
        at = self.received_at(number)
        told = {"session_id": push_id(at)} | self._told(trait)
        prefetch = self._prefetch(at, told)
        if trait == Trait.LOST:
            return [prefetch]
        end = self._end_of_call(at, told, trait)
        if trait == Trait.REDELIVERED:
            return [prefetch, end, end]
        if trait == Trait.UNPARSED:
            return [prefetch, end, end._replace(outcome="unparsed", body=b"{broken")]
        return [prefetch, end]

    def _told(self, trait: Trait | None) -> dict[str, Any]:
        """Return what both webhooks tell."""
        chance = self._chance
        customer = f"+1{chance.randrange(200, 990)}555{chance.randrange(10_000):04d}"
        own = chance.choice(sorted(OWN_NUMBERS))
        sides: tuple[str | None, str | None]
        sides = (RARE_NUMBER if trait == Trait.NUMBER else customer, own)
        if trait == Trait.CHAT or (trait != Trait.NUMBER and chance.random() < 0.18):
            sides = (None, None)
        from_phone, to_phone = sides if chance.random() < 0.75 else sides[::-1]
        campaign = f"{chance.choice(('spring', 'autumn'))}-{chance.randrange(1, 5)}"
        return {
            "agent_id": RARE_AGENT if trait == Trait.AGENT else chance.choice(AGENTS),
            "from": from_phone,
            "to": to_phone,
            "metadata": {
                "customer_id": f"c-{chance.randrange(10**8):08d}",
                "tier": chance.choices(("gold", "silver", "basic"), (2, 3, 5))[0],
                "campaign": RARE_CAMPAIGN if trait == Trait.CAMPAIGN else campaign,
            },
        }

    def _prefetch(self, at: datetime, told: dict[str, Any]) -> Delivery:
        fields = {**told, **told["metadata"], "metadata": None}
        answer = {"metadata": {"name": name(self._chance)}, "extra_prompt": "Here since 2019."}
        return Delivery(
            kind="prefetch",
            received_at=at,
            outcome="fresh",
            status_code=200,
            session_id=told["session_id"],
            latency_ms=min(self._chance.lognormvariate(3.5, 0.8), 900.0),
            query=urlencode({k: v for k, v in fields.items() if v}, quote_via=quote),
            answer=json.dumps(answer).encode(),
        )

    def _end_of_call(self, at: datetime, told: dict[str, Any], trait: Trait | None) -> Delivery:
        turns = self._turns()
        duration_s = 4000.0 if trait == Trait.LONG else round(3 + turns * 6.5, 1)
        payload = told | {
            "call_id": push_id(at),
            "chat": json.dumps(self._chat(turns, trait), ensure_ascii=False),
            "function_calls": [],
            "ts": at.timestamp() + 1,
            "duration": duration_s,
            "chars_used": turns * 40,
            "agent_config": self._configs.get(told["agent_id"], {"prompt": "Be rare."}),
            "cost_breakdown": _costs(duration_s, trait),
            "voip": {"provider": "twilio", "from": told["from"], "to": told["to"]},
            "recording": {"recording_url": f"https://files.example/{told['session_id']}.wav"},
            "call_status": self._status(trait),
            "error_message": None,
        }
        if told["from"] is None:
            payload["voip"] = None
        del payload["from"], payload["to"]
        return Delivery(
            kind="end_of_call",
            received_at=at + timedelta(seconds=min(duration_s, 3000) + 2),
            outcome="stored",
            status_code=200,
            session_id=told["session_id"],
            latency_ms=1.5,
            content_type="application/json",
            answer=b'{"ok":true}',
            body=json.dumps(payload, ensure_ascii=False).encode(),
        )

    def _turns(self) -> int:
        nobody_spoke = self._chance.random() < 0.08
        return 0 if nobody_spoke else min(int(self._chance.expovariate(1 / 11)), 40)

    def _chat(self, turns: int, trait: Trait | None) -> list[dict[str, str]]:
        spoken = language(self._chance)
        said = [line(self._chance, spoken) for _ in range(turns)]
        if trait == Trait.WORD:
            said.append(f"It feels like {RARE_WORD} to me.")
        roles = ("assistant", "user")
        return [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]

    def _status(self, trait: Trait | None) -> str:
        rare = {Trait.STATUS: RARE_STATUS, Trait.CHAT: "chat_completion"}
        common = self._chance.choices(tuple(_STATUSES), tuple(_STATUSES.values()))[0]
        return rare.get(trait, common) if trait else common


def _costs(duration_s: float, trait: Trait | None) -> list[dict[str, Any]]:
    rates = [(*rate[:2], rate[2] * duration_s / 60) for rate in _RATES]
    if trait == Trait.EXPENSIVE:
        rates.append(("llm", "openai", 99.0))
    return [
        {"type": type_, "provider": provider, "credit": round(credit, 6)}
        for type_, provider, credit in rates
    ]


def fill(database: Database, count: int, *, first: int = 0, of: int | None = None) -> Iterator[int]:
    """Add `count` calls of a log of `of`, from the one numbered `first` on.

    Yields how many were added after each transaction.
    """
    generator = Generator(of or count)
    end = first + count
    for begin in range(first, end, _BATCH):
        numbers = range(begin, min(begin + _BATCH, end))
        with database.writer.begin() as connection:
            _add(connection, generator, numbers)
        _keep_house(database, generator.received_at(begin) - timedelta(days=1))
        yield numbers.stop - first


def _keep_house(database: Database, before: datetime) -> None:
    """Pack what is old, as the service does."""

    def write(work: Callable[[Connection], T]) -> T:
        with database.writer.begin() as connection:
            return work(connection)

    for _ in pack_older(database.reader, write, before=before):
        pass


def _add(connection: Connection, generator: Generator, numbers: Sequence[int]) -> None:
    made = {number: generator.call(number) for number in numbers}
    traits = {made[number][0].session_id: generator.trait(number) for number in numbers}
    insert_deliveries(connection, list(chain.from_iterable(made.values())))
    _process(connection, traits)
    _finish_runs(connection, traits)


def _process(connection: Connection, traits: dict[str | None, Trait | None]) -> None:
    """Do what the service does, with one handler."""

    def wanted_by(call: EndOfCall) -> list[str]:
        return [] if traits[call.session_id] == Trait.UNHANDLED else ["save"]

    ids = connection.scalars(select(inbox.c.delivery_id).order_by(inbox.c.delivery_id)).all()
    to_digest = partial(digest_delivery, own_numbers=OWN_NUMBERS)
    batch = SessionReader(to_digest, wanted_by).read(connection, ids)
    write(connection, batch, hears_of_changes=lambda name: False)


def _finish_runs(connection: Connection, traits: dict[str | None, Trait | None]) -> None:
    """Let every pending run have been tried once, and succeed unless its call is to be failed."""
    r = handler_runs.c
    of_call = select(calls.c.session_id).where(calls.c.id == r.call_id).scalar_subquery()
    pending = select(r.id, r.created_at, of_call.label("session_id"))
    pending = pending.where(IS_OPEN, r.state == "pending")
    runs, tried = [], []
    for run in connection.execute(pending).all():
        is_failed = traits[run.session_id] == Trait.PARKED
        runs.append({"of": run.id, "to": "failed" if is_failed else "succeeded"})
        at = {"run_id": run.id, "started_at": run.created_at, "ended_at": run.created_at}
        outcome = "failed" if is_failed else "succeeded"
        tried.append(at | {"number": 1, "duration_ms": 12.5, "outcome": outcome})
    if runs:
        over = update(handler_runs).where(r.id == bindparam("of"))
        connection.execute(over.values(state=bindparam("to"), spent=1), runs)
        connection.execute(insert(attempts), tried)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where to make the call log; it must not exist")
    parser.add_argument("--calls", type=int, default=10_000, help="default 10,000")
    chosen = parser.parse_args()
    if chosen.file.exists():
        parser.error(f"{chosen.file} is there already")
    make(chosen.file, chosen.calls)


def made(folder: Path, count: int) -> Path:
    """Return the call log of so many calls in this folder; what is missing of it is made."""
    file = folder / f"{count}.db"
    make(file, count)
    return file


def make(file: Path, count: int) -> None:
    """Make a call log of `count` calls in a file, and tell on stderr how far it is."""
    fill_once(f"sqlite:///{file}", count)


def fill_once(url: str, count: int) -> None:
    """Fill the call log at `url` up to `count` calls, and tell on stderr how far it is."""
    database = open_database(url)
    migrate(database)
    with database.reader.connect() as connection:
        there = connection.scalar(select(func.count()).select_from(calls)) or 0
    for done in fill(database, count - there, first=there, of=count):
        if done % 10_000 == 0:
            print(f"{count:,} calls: {there + done:,} are made", file=sys.stderr, flush=True)
    database.close()


if __name__ == "__main__":
    main()
