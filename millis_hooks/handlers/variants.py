"""Variants of a call: one of several names, stable by session, for comparing prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest
from ..protocol.prefetch import PrefetchRequest

#: The name under which a choice is kept, where no other is given.
_NAME = "variant"
_BITS = 64


def variant(
    call: PrefetchRequest[Any, Any] | FunctionRequest[Any] | EndOfCall[Any, Any],
    *names: str,
    weights: Sequence[float] | None = None,
    name: str = _NAME,
) -> str:
    """Return one of `names`, the same for a session in every handler and process.

        variant(call, "short", "friendly", weights=[3, 1])

    The names are equally likely, or as `weights` says. What a prefetch handler that answers has
    chosen is kept under `name` (`call.prefetch.keep["variant"]`); in an end-of-call handler it
    counts before names and weights of today. Without a session the first name is chosen. Several
    comparisons at once each need a `name` of their own. Raises `ValueError` for fewer than two
    names, and weights that do not fit them, and `TypeError` for what is no call.
    """
    if not isinstance(call, PrefetchRequest | FunctionRequest | EndOfCall):
        raise TypeError(f"variant takes a call and names, not {type(call).__name__} as a call")
    _check(names, name)
    shares = _shares(names, weights)
    if isinstance(call, EndOfCall) and call.prefetch and call.prefetch.keep.get(name) in names:
        return str(call.prefetch.keep[name])
    chosen = _chosen(call.session_id, names, shares, name)
    if isinstance(call, PrefetchRequest):
        call._variants[name] = chosen
    return chosen


def _check(names: Sequence[str], name: str) -> None:
    texts: tuple[object, ...] = (*names, name)
    if not all(isinstance(each, str) and each for each in texts):
        raise ValueError("variant takes names that are texts")
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"variant takes two different names or more, not {', '.join(names)!r}")


def _shares(names: Sequence[str], weights: Sequence[float] | None) -> Sequence[float]:
    """Return how much of the calls each name gets, in any unit."""
    if weights is None:
        return [1.0] * len(names)
    try:
        listed = () if isinstance(weights, Mapping | Set) else weights
        shares = [float(each) for each in listed if not isinstance(each, str | bool)]
    except (TypeError, ValueError, OverflowError):
        shares = []
    total = sum(shares)
    is_fit = len(shares) == len(names) and min(shares) >= 0 and 0 < total < math.inf
    if not is_fit:
        raise ValueError(
            f"variant takes a weight for each of its {len(names)} names, numbers from 0 on and not "
            f"all 0, not weights={weights!r}"
        )
    return shares


def _chosen(
    session_id: str | None, names: Sequence[str], shares: Sequence[float], name: str
) -> str:
    if not session_id:
        return names[0]
    key = to_json([session_id.encode("utf-8", "replace").decode(), name, *names])
    number = int.from_bytes(blake2b(key, digest_size=_BITS // 8).digest()) / 2**_BITS
    limits = list(accumulate(shares))
    place = number * limits[-1]
    below = (each for each, limit in zip(names, limits, strict=True) if place < limit)
    return next(below, names[-1])
