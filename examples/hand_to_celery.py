"""Hands each call that has ended to Celery, whose workers do the long work on other machines.

pip install celery redis
export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
millis-hooks dev examples/hand_to_celery.py
"""

from __future__ import annotations

import os

from celery import Celery

from millis_hooks import EndOfCall, MillisHooks

#: A task by its name, so that this service need not import the code of the workers.
TASK = "calls.summarize"

queue = Celery(broker=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0"))
#: Without these, a broker that is away holds the handler up until its own time limit.
queue.conf.broker_transport_options = {"socket_connect_timeout": 5, "socket_timeout": 5}

hooks = MillisHooks()


@hooks.on_end_of_call(timeout_s=20)
def hand_over(call: EndOfCall) -> None:
    """Put the call into the queue; a plain function, because Celery's client blocks."""
    if call.dry_run:
        return
    task = {
        "key": call.idempotency_key,
        "session_id": call.session_id,
        "customer_phone": call.customer_phone,
        "chat": [{"role": each.role, "content": each.content} for each in call.chat],
    }
    # The broker's own retries would wait inside the handler. A run that fails is tried again.
    queue.send_task(TASK, [task], task_id=call.idempotency_key, retry=False)
