"""Who gets how many of the slots for handlers at work."""

from __future__ import annotations

import pytest

from millis_hooks.handlers.handler_call import Handler
from millis_hooks.handlers.routing import Router
from millis_hooks.runs.concurrency import Slots


def handlers(*names: str, **options: int) -> list[Handler]:
    router = Router()
    for name in names:
        router.on_end_of_call(name=name, concurrency=options.get(name))(lambda call: None)
    return list(router)


def shared_out(slots: Slots) -> dict[str, int]:
    """What everybody gets who takes all that is offered, in turn."""
    for handler in slots.fair_order():
        slots.take(handler, slots.available(handler))
    return {handler.name: slots.taken(handler) for handler in slots.fair_order()}


def test_a_handler_alone_may_have_them_all() -> None:
    assert shared_out(Slots(handlers("a"), 16)) == {"a": 16}


def test_every_handler_keeps_one() -> None:
    greedy, *others = handlers("a", "b", "c")
    slots = Slots([greedy, *others], 16)
    slots.take(greedy, slots.available(greedy))
    assert [slots.available(other) for other in others] == [1, 1]
    assert slots.available(greedy) == 0


def test_the_handler_with_the_fewest_places_comes_first() -> None:
    a, b, c = handlers("a", "b", "c")
    assert Slots([a, b, c], 4, busy=[a, a, b]).fair_order() == [c, b, a]


def test_a_handler_has_no_more_than_its_own_concurrency() -> None:
    a, b = handlers("a", "b", a=2)
    slots = Slots([a, b], 16, busy=[a])
    assert (slots.available(a), slots.available(b)) == (1, 15)


def test_a_handlers_own_concurrency_counts_what_is_late_and_what_is_elsewhere() -> None:
    (a,) = handlers("a", a=4)
    slots = Slots([a], 16, busy=[a], late=[a])
    assert slots.available(a, elsewhere=1) == 1


@pytest.mark.parametrize("total", [1, 2])
def test_with_fewer_places_than_handlers_some_wait(total: int) -> None:
    slots = Slots(handlers("a", "b", "c"), total)
    assert sum(shared_out(slots).values()) == total


def test_late_handlers_hold_no_place_until_there_are_too_many() -> None:
    a, b = handlers("a", "b")
    assert Slots([a, b], 4, late=[a, a, a]).available(a) == 3
    slots = Slots([a, b], 4, late=[a, a, a, a])
    assert (slots.available(a), slots.available(b)) == (0, 3)


def test_a_late_handler_counts_towards_its_own_concurrency() -> None:
    (a,) = handlers("a", a=2)
    assert Slots([a], 16, late=[a]).available(a) == 1


def test_what_is_at_work_beyond_the_total_takes_nothing_from_others() -> None:
    a, b = handlers("a", "b")
    assert Slots([a, b], 2, busy=[a, a]).available(b) == 0


def test_a_handler_is_hung_when_only_late_calls_have_its_places() -> None:
    a, b = handlers("a", "b", a=2)
    assert not Slots([a, b], 16, busy=[a], late=[a]).is_hung(a)
    assert Slots([a, b], 16, late=[a, a]).is_hung(a)
    many = Slots([a, b], 2, busy=[b], late=[b, b])
    assert (many.is_hung(a), many.is_hung(b)) == (False, True)
