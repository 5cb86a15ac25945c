"""A minute of end-of-calls at 64 connections, with parsing, search and handlers going on behind.

Afterwards every acknowledged call has to be found parsed and its handler run: the backlog drains,
and nothing is missing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .bystanders import Bystanders
from .client import Answers, ask_all
from .contenders import HANDWRITTEN, OURS, Contest, started
from .load import END_OF_CALL, end_of_call_body
from .report import Row, median, median_ratio, options, print_report, progress, sync_ms

CONNECTIONS = 64
BODY = end_of_call_body(2_000)
MIN_RATIO = 6
#: A backlog that takes longer than this many times the load counts as one that does not drain.
MAX_DRAIN = 20


@dataclass(frozen=True)
class Sustained:
    """What became of one load of ours."""

    answers: Answers
    parsed_meanwhile: int
    drained_in_s: float  # infinite if it was not waited for any longer
    missing: int  # acknowledged, and not stored, not parsed or not handled once; or the reverse


def main() -> None:
    chosen = options(__doc__, seconds=60, rounds=3)
    bystanders = Bystanders()
    ours: list[Sustained] = []
    handwritten: list[float] = []
    for _ in range(chosen.rounds):
        with started(OURS) as contest:
            ours.append(_sustain(contest, chosen.seconds))
        with started(HANDWRITTEN) as contest:
            handwritten.append(_rate(_load(contest, chosen.seconds)))
        progress(f"handwritten: {handwritten[-1]:.0f}/s")
    title = f"Sustained end-of-call: 2 kB, {chosen.rounds} rounds of {chosen.seconds} s"
    print_report(
        f"{title}; this disk syncs in {sync_ms():.2f} ms",
        _rows(ours, handwritten, chosen.seconds),
        bystanders,
    )


def _load(contest: Contest, seconds: float) -> Answers:
    url = contest.server.url + END_OF_CALL
    return ask_all(url, connections=CONNECTIONS, seconds=seconds, body=BODY)


def _rate(answers: Answers) -> float:
    return answers.ok / answers.took_s


def _sustain(contest: Contest, seconds: int) -> Sustained:
    answers = _load(contest, seconds)
    call_log = contest.call_log
    parsed = call_log.ended_calls()
    progress(f"ours: {_rate(answers):.0f}/s, {parsed} of {answers.ok} parsed meanwhile")
    drained_in_s = call_log.drain(timeout_s=MAX_DRAIN * seconds)
    found = (
        call_log.deliveries("end_of_call"),
        call_log.ended_calls(),
        call_log.succeeded_runs(),
    )
    progress(f"ours: stored, parsed, handled {found} after {drained_in_s:.1f} s more")
    missing = sum(abs(answers.ok - each) for each in found)
    return Sustained(answers, parsed, drained_in_s, missing)


def _rows(ours: list[Sustained], handwritten: list[float], seconds: int) -> list[Row]:
    rates = [_rate(each.answers) for each in ours]
    parsed = [100 * each.parsed_meanwhile / max(each.answers.ok, 1) for each in ours]
    slowest_s = max(each.drained_in_s for each in ours)
    return [
        Row(
            "acknowledgements/s, handwritten",
            median_ratio(rates, handwritten),
            ours=median(rates, "/s"),
            other=median(handwritten, "/s"),
            at_least=MIN_RATIO,
        ),
        Row("answers other than 200", sum(each.answers.failed for each in ours), "", at_most=0),
        Row("parsed while the load went on", statistics.median(parsed), "%"),
        Row("time to drain the rest, longest", slowest_s, "s", at_most=MAX_DRAIN * seconds),
        Row("missing after that", sum(each.missing for each in ours), "", at_most=0),
    ]


if __name__ == "__main__":
    main()
