"""Values of a team's own in an answer: each goes out in its plain form, or is left out alone."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import count
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, RootModel

from millis_hooks import PrefetchRequest, PrefetchResponse
from millis_hooks.protocol.results import as_object
from support.app import PREFETCH, MakeHooks, serving


class Tier(enum.Enum):
    GOLD = "gold"
    LOST = object()


class Level(enum.StrEnum):
    HIGH = "high"


class Point(NamedTuple):
    x: int
    y: int


class Row(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    since: date
    lock: object = None


@dataclass
class Customer:
    name: str
    tier: Tier


def row_that_closed() -> Iterator[int]:
    yield 1
    raise ConnectionError("closed")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (datetime(2026, 3, 4, 5, 6, tzinfo=UTC), "2026-03-04T05:06:00Z"),
        (datetime(2026, 3, 4, 5, 6), "2026-03-04T05:06:00"),
        (date(2026, 3, 4), "2026-03-04"),
        (time(5, 6), "05:06:00"),
        (Decimal("19.90"), "19.90"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Tier.GOLD, "gold"),
        (Level.HIGH, "high"),
        (PurePosixPath("/a/b"), "/a/b"),
        (b"caf\xc3\xa9", "café"),
        ((1, Tier.GOLD), [1, "gold"]),
        (Point(1, 2), [1, 2]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({Decimal(1)}), ["1"]),
        (deque([1, 2]), [1, 2]),
        ((n * n for n in (1, 2)), [1, 4]),
        ({"k": 1}.keys(), ["k"]),
        (Row(since=date(2026, 3, 4)), {"since": "2026-03-04", "lock": None}),
        (Row(since=date(2026, 3, 4), lock=object()), {"since": "2026-03-04"}),
        (RootModel[list[int]]([1]), [1]),
        (Customer("Ada", Tier.GOLD), {"name": "Ada", "tier": "gold"}),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": {1}}), {"a": [1]}),
        (float("nan"), None),
        (float("-inf"), None),
        ("half \ud800", "half \ufffd"),
        (True, True),
        (2**70, 2**70),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_sent_in_its_plain_form(value: object, plain: object) -> None:
    left_out: list[str] = []
    assert as_object({"x": {"y": value}}, "metadata", left_out)["x"] == {"y": plain}
    assert [each for each in left_out if "lock" not in each] == []


@pytest.mark.parametrize(
    "value",
    [object(), len, Tier, Tier.LOST, b"\xff", count(), row_that_closed(), -(10**5000)],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_one_is_left_out_alone_and_told(value: object) -> None:
    left_out: list[str] = []
    plain = as_object({"a": 1, "x": [{"bad": value, "good": 2}], "z": 3}, "metadata", left_out)
    assert plain == {"a": 1, "x": [{"good": 2}], "z": 3}
    [told] = left_out
    assert told.startswith("metadata.x[0].bad: ")


def test_an_odd_key_is_a_name_or_left_out_alone() -> None:
    left_out: list[str] = []
    keys: dict[Any, str] = {7: "a", None: "b", False: "c", (1, 2): "d", Tier.GOLD: "e", 1.5: "f"}
    keys |= {date(2026, 1, 2): "g", object(): "h", "7": "the text", "\ud800": "i"}
    assert as_object(keys, "", left_out) == {
        "7": "the text", "null": "b", "false": "c", "1,2": "d", "gold": "e", "1.5": "f",
        "2026-01-02": "g", "\ufffd": "i",
    }  # fmt: skip
    assert len(left_out) == 1


def test_a_list_that_holds_another_twice_and_so_on_has_an_end() -> None:
    doubled: Any = 1
    for _ in range(40):
        doubled = [doubled, doubled]
    left_out: list[str] = []
    sent = as_object({"doubled": doubled, "name": "Ada"}, "metadata", left_out)
    assert (sent["name"], len(str(sent)) < 100_000) == ("Ada", True)
    assert "beyond the first 20,000 values" in left_out[0]


def test_the_number_of_reasons_is_bounded() -> None:
    left_out: list[str] = []
    as_object({str(n): object() for n in range(500)}, "metadata", left_out)
    assert len(left_out) == 21
    assert left_out[-1] == "what else cannot be sent"


@pytest.mark.parametrize(
    "made", [PrefetchResponse, lambda **fields: fields, lambda **f: f["metadata"]]
)
def test_a_row_of_a_database_goes_out_and_its_page_says_what_did_not(
    make_hooks: MakeHooks, made: Any
) -> None:
    hooks = make_hooks()

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> Any:
        return made(metadata={"since": datetime(2026, 1, 2, tzinfo=UTC), "lock": object()})

    with serving(hooks) as client:
        answer = json.loads(client.get(PREFETCH).content)
    assert answer.get("metadata", answer) == {"since": "2026-01-02T00:00:00Z"}
