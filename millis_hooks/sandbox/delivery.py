"""The end-of-call on its way: once, twice, late or never, and again where it was not taken."""

from __future__ import annotations

from collections.abc import Mapping

from .desk import Desk
from .ending import UNREACHED, EndedCall
from .prompt import Filling
from .steps import EndDelivered
from .transport import Request
from .webhooks import END_OF_CALL, Webhook, webhook_of

_JSON = ("content-type", "application/json")
_UNREACHED = "A call that never connected: Millis most likely tells nobody."
_TWICE = "The same body once more, on purpose."


async def deliver(desk: Desk, call: EndedCall, variables: Mapping[str, object]) -> None:
    """Send the end of a call as often as its specification says; `variables` fill its address."""
    webhook = webhook_of(desk.spec.agent_config.get(END_OF_CALL))
    if webhook is None:
        _withhold(desk, "The agent has no end-of-call webhook.")
    elif desk.spec.faults.end_of_call == "never":
        _withhold(desk, "It is not sent, on purpose.")
    elif call.ending.call_status in UNREACHED and not desk.spec.policy.end_of_call_if_unreached:
        _withhold(desk, _UNREACHED)
    else:
        filling = Filling(variables, desk.spec.policy)
        await _deliver(desk, filling.webhook(webhook, END_OF_CALL), call)


def _withhold(desk: Desk, note: str) -> None:
    desk.add(EndDelivered(vintage=desk.spec.vintage, notes=(note,)))


async def _deliver(desk: Desk, webhook: Webhook, call: EndedCall) -> None:
    times, late_by_s = desk.spec.faults.end_of_call, desk.spec.policy.late_by_s
    request = Request("POST", webhook.url, (*webhook.headers, _JSON), body=call.body())
    if times == "late":
        await desk.clock.pass_time(late_by_s)
        await _insist(desk, request, f"It is {late_by_s:g} s late, on purpose.")
    else:
        await _insist(desk, request)
    if times == "twice":
        await _insist(desk, request, _TWICE)


async def _insist(desk: Desk, request: Request, *notes: str) -> None:
    """Send it until it is acknowledged, as often as the policy says."""
    policy = desk.spec.policy
    for attempt in range(1, policy.end_of_call_attempts + 1):
        if attempt > 1:
            await desk.clock.pass_time(policy.end_of_call_retry_after_s)
            notes = (f"Attempt {attempt}.",)
        exchange = await desk.send(request, timeout_s=policy.end_of_call_timeout_s, marked=True)
        failure = exchange.refusal()
        fields = exchange.fields() | {"failure": failure}
        desk.add(EndDelivered(vintage=desk.spec.vintage, notes=notes, **fields))
        if failure is None:
            return
