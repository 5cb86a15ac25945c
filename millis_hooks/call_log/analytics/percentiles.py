"""Exact percentiles of numbers that come in several sorted lists, without merging them.

A percentile is the smallest number that at least that share of all does not exceed (the nearest
rank), so it is always one that was measured.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

Sorted = Sequence[float]


def percentile(lists: Sequence[Sorted], share: float) -> float | None:
    """Return the percentile of all numbers in these sorted lists; None if there are none."""
    filled = [each for each in lists if each]
    count = sum(map(len, filled))
    return _ranked(filled, max(math.ceil(share * count), 1)) if count else None


def count_between(lists: Sequence[Sorted], edges: Sequence[float]) -> tuple[int, ...]:
    """Count the numbers under the first edge, from each edge to the next, and from the last on."""
    under = [sum(bisect_left(each, edge) for each in lists) for edge in edges]
    total = sum(map(len, lists))
    return tuple(above - below for below, above in zip([0, *under], [*under, total], strict=True))


def _ranked(lists: Sequence[Sorted], rank: int) -> float:
    """Return the number that `rank` numbers do not exceed: halve the range that it is in."""
    if len(lists) == 1:
        return lists[0][rank - 1]
    low, high = min(each[0] for each in lists), max(each[-1] for each in lists)
    while low < high:
        middle = low + (high - low) / 2
        if middle >= high:  # rounded up: there is nothing between the two
            middle = low
        places = [bisect_right(each, middle) for each in lists]
        if sum(places) >= rank:
            # From here on `high` is a number of the lists, so the range ends in one.
            high = max(each[place - 1] for each, place in zip(lists, places, strict=True) if place)
        else:
            low = min(
                each[place] for each, place in zip(lists, places, strict=True) if place < len(each)
            )
    return low
