"""A CRM that is down now and then: calls are handled anyway, and your team learns of the rest.

Run it with `millis-hooks dev examples/unsteady_crm.py`, send a sample, and look at the call's page:
two attempts fail, the third succeeds.
"""

from __future__ import annotations

import logging
from collections import Counter

from millis_hooks import Backoff, EndOfCall, FailedRun, GiveUp, MillisHooks, Retry

logger = logging.getLogger("unsteady_crm")

hooks = MillisHooks()
tries: Counter[str] = Counter()


@hooks.on_end_of_call(max_attempts=4, retry_backoff=Backoff(first_s=3, factor=2))
async def sync_crm(call: EndOfCall) -> None:
    """Write the call to the CRM, which fails twice.

    The key is the same in every attempt, so that the CRM can recognize it.
    """
    tries[call.idempotency_key] += 1
    if tries[call.idempotency_key] < 3:
        raise ConnectionError("the CRM does not answer")
    logger.info("stored under %s", call.idempotency_key)


@hooks.on_end_of_call(call_status={"busy", "no-answer"}, repeatable=False)
async def call_back(call: EndOfCall) -> None:
    """Arrange to call again. Not repeatable, because the phone would ring twice."""
    if call.customer_phone is None:
        raise GiveUp("there is no number to call back")
    if call.duration_s is None:
        raise Retry(after_s=60)
    logger.info("calling back")


@hooks.on_failed
def tell_the_team(run: FailedRun) -> None:
    """Post to the team's chat that a call needs a person."""
    logger.error("%s gave up on %s: %s", run.handler, run.call.session_id, run.reason)
