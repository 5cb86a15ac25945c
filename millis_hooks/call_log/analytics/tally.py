"""What is counted of a stretch of time: numbers by measure and name, and samples by measure.

Tallies of several stretches add up to that of all of them, which averages and percentiles do not:
samples are therefore kept one by one.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence

#: How calls ended, and how prefetches were answered; the name "" is for what is not known.
OUTCOME, STATUS, PREFETCH = "outcome", "status", "prefetch"
#: Credits by what they were for and by who took them; COST has one name, and none if none came.
COST, TYPE, PROVIDER = "cost", "type", "provider"
#: Of handlers, by `handler_key`.
RUNS, PARKED, ATTEMPTS, FAILED = "runs", "parked", "attempts", "failed"

#: Samples: lengths of calls in seconds, latencies of prefetches and of attempts in milliseconds.
DURATION_S, PREFETCH_MS, ATTEMPT_MS = "duration_s", "prefetch_ms", "attempt_ms"

_BYTES = 8


class Tally:
    """Numbers and samples that things are added to."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, defaultdict[str, float]] = defaultdict(_zeros)
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._packed: defaultdict[str, list[bytes]] = defaultdict(list)

    def add(self, measure: str, name: str, amount: float = 1) -> None:
        self._numbers[measure][name] += amount

    def sample(self, measure: str, value: float | None) -> None:
        if value is not None:
            self._samples[measure].append(value)

    def numbers(self, measure: str) -> dict[str, float]:
        """Return what was added, by name."""
        return dict(self._numbers.get(measure, {}))

    def total(self, measure: str) -> float:
        """Return what was added under all names together."""
        return sum(self._numbers.get(measure, {}).values())

    def take_samples(self) -> dict[str, Sequence[float]]:
        """Return the samples by measure, each sorted, and forget them: they are many."""
        # What is packed is sorted already, which leaves little to do.
        measures = sorted({*self._samples, *self._packed})
        return {measure: array("d", sorted(self._take(measure))) for measure in measures}

    def _take(self, measure: str) -> list[float]:
        packed = b"".join(self._packed.pop(measure, ()))
        values = list(struct.unpack(f"<{len(packed) // _BYTES}d", packed))
        return values + self._samples.pop(measure, [])

    def pack(self) -> tuple[str, bytes]:
        """Return the tally as JSON and bytes, for `add_packed`; its samples are taken."""
        samples = self.take_samples()
        lengths = [(measure, len(values)) for measure, values in samples.items()]
        facts = {"numbers": self._numbers, "samples": lengths}
        values = [value for each in samples.values() for value in each]
        return json.dumps(facts, separators=(",", ":")), struct.pack(f"<{len(values)}d", *values)

    def add_packed(self, facts: str, values: bytes) -> None:
        """Add all that another tally was packed from."""
        told = json.loads(facts)
        for measure, numbers in told["numbers"].items():
            own = self._numbers[measure]
            for name, amount in numbers.items():
                own[name] += amount
        start = 0
        for measure, count in told["samples"]:
            end = start + count * _BYTES
            self._packed[measure].append(values[start:end])
            start = end


def _zeros() -> defaultdict[str, float]:
    return defaultdict(int)


def handler_key(hook: str, handler: str) -> str:
    """Return one name for both; no hook has a space in it."""
    return f"{hook} {handler}"


def sum_numbers(tallies: Iterable[Tally], measure: str) -> dict[str, float]:
    """Return what was added to all of them together, by name."""
    summed = _zeros()
    for tally in tallies:
        for name, amount in tally.numbers(measure).items():
            summed[name] += amount
    return dict(summed)
