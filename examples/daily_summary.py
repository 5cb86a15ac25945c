"""Sums up a day's calls in a few lines. It reads an export, so cron can run it:

    millis-hooks export --since 2026-11-20 --until 2026-11-21 | python examples/daily_summary.py

With SLACK_WEBHOOK_URL set, it posts the lines to Slack too. It is a script and serves nothing.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping

import httpx2


def summary_of(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the lines about the calls of a CSV export, without samples and sandbox calls."""
    calls = [row for row in rows if row["source"] in {"", "millis_api"}]
    ended = [call for call in calls if call["ended_at"]]
    outcomes = Counter(call["outcome"] for call in ended)
    minutes = sum(float(call["duration_s"] or 0) for call in ended) / 60
    cost = sum(float(call["cost_total"] or 0) for call in ended)
    opted_out = sum(call["opted_out"] == "true" for call in ended)
    lines = [
        f"Calls: {len(calls)}, {minutes:.0f} minutes, {cost:.2f} dollars",
        *(f"- {outcome}: {count}" for outcome, count in outcomes.most_common()),
        *([f"- no end received yet: {len(calls) - len(ended)}"] if len(calls) > len(ended) else []),
        *([f"Asked not to be called again: {opted_out}"] if opted_out else []),
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the export from the standard input, print the summary, and post it."""
    text = summary_of(csv.DictReader(sys.stdin))
    print(text)
    address = os.environ.get("SLACK_WEBHOOK_URL")
    if address and not httpx2.post(address, json={"text": text}, timeout=10).is_success:
        sys.exit("Slack did not accept the summary.")


if __name__ == "__main__":
    main()
