"""Fills the memory of last good answers from the call log: with what other replicas answered, and
with what was answered before the last start.

On a thread of its own, every few seconds: whoever falls back looks into memory and waits for
nobody. So an answer of another replica may be missing for as long.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from .answers import LastGood
from .call_log.good_answers import GoodAnswers
from .events import PrefetchRequest
from .failures import describe_failure

logger = logging.getLogger("millis_hooks.prefetch")

EVERY_S = 5.0


class SharedAnswers:
    """Remembers what others have answered."""

    def __init__(
        self,
        answers: GoodAnswers,
        last_good: LastGood,
        *,
        max_age_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._answers = answers
        self._last_good = last_good
        self._max_age = timedelta(seconds=max_age_s)
        self._now = now
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-shared-answers", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Remember what is new in the call log."""
        now = self._now()
        for row in self._answers.read(now - self._max_age):
            call = PrefetchRequest.parse((row.query or "").encode())
            age_s = max((now - row.received_at).total_seconds(), 0.0)
            self._last_good.keep(call, row.answer, age_s=age_s)

    def _run(self) -> None:
        wait_s, is_cut_off = 0.0, False
        while not self._closing.wait(wait_s):
            wait_s = EVERY_S
            try:
                self.look()
                is_cut_off = False
            except Exception as error:  # whatever it is: the thread must live
                if not is_cut_off:
                    logger.warning("answers are not shared for now: %s", describe_failure(error))
                is_cut_off = True
