"""Who gets how many of the places for handlers at work."""

from __future__ import annotations

import pytest

from millis_hooks.handlers.routing import Handler, Router
from millis_hooks.runs.concurrency import Places


def handlers(*names: str, **options: int) -> list[Handler]:
    router = Router()
    for name in names:
        router.on_end_of_call(name=name, concurrency=options.get(name))(lambda call: None)
    return list(router)


def shared_out(places: Places) -> dict[str, int]:
    """What everybody gets who takes all that is offered, in turn."""
    for handler in places.in_turn():
        places.take(handler, places.room(handler))
    return {handler.name: places.taken(handler) for handler in places.in_turn()}


def test_a_handler_alone_may_have_them_all() -> None:
    assert shared_out(Places(handlers("a"), 16)) == {"a": 16}


def test_every_handler_keeps_one() -> None:
    greedy, *others = handlers("a", "b", "c")
    places = Places([greedy, *others], 16)
    places.take(greedy, places.room(greedy))
    assert [places.room(other) for other in others] == [1, 1]
    assert places.room(greedy) == 0


def test_the_handler_with_the_fewest_places_comes_first() -> None:
    a, b, c = handlers("a", "b", "c")
    assert Places([a, b, c], 4, busy=[a, a, b]).in_turn() == [c, b, a]


def test_a_handler_has_no_more_than_its_own_concurrency() -> None:
    a, b = handlers("a", "b", a=2)
    places = Places([a, b], 16, busy=[a])
    assert (places.room(a), places.room(b)) == (1, 15)


def test_a_handlers_own_concurrency_counts_what_is_late_and_what_is_elsewhere() -> None:
    (a,) = handlers("a", a=4)
    places = Places([a], 16, busy=[a], late=[a])
    assert places.room(a, elsewhere=1) == 1


@pytest.mark.parametrize("total", [1, 2])
def test_with_fewer_places_than_handlers_some_wait(total: int) -> None:
    places = Places(handlers("a", "b", "c"), total)
    assert sum(shared_out(places).values()) == total


def test_late_handlers_hold_no_place_until_there_are_too_many() -> None:
    a, b = handlers("a", "b")
    assert Places([a, b], 4, late=[a, a, a]).room(a) == 3
    places = Places([a, b], 4, late=[a, a, a, a])
    assert (places.room(a), places.room(b)) == (0, 3)


def test_a_late_handler_counts_towards_its_own_concurrency() -> None:
    (a,) = handlers("a", a=2)
    assert Places([a], 16, late=[a]).room(a) == 1


def test_what_is_at_work_beyond_the_total_takes_nothing_from_others() -> None:
    a, b = handlers("a", "b")
    assert Places([a, b], 2, busy=[a, a]).room(b) == 0


def test_a_handler_is_hung_when_only_late_calls_have_its_places() -> None:
    a, b = handlers("a", "b", a=2)
    assert not Places([a, b], 16, busy=[a], late=[a]).is_hung(a)
    assert Places([a, b], 16, late=[a, a]).is_hung(a)
    many = Places([a, b], 2, busy=[b], late=[b, b])
    assert (many.is_hung(a), many.is_hung(b)) == (False, True)
