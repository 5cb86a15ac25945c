"""Records of the call log as a mask policy lets them be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...masking.policy import MaskPolicy
from ...protocol.reading import web_url
from ..search import Excerpt
from .followed import Happening
from .records import Attempt, Call, ListedCall, Run
from .runs import ListedRun


def masked_call(call: Call, mask: MaskPolicy) -> Call:
    """Return a call without what may not be seen of it, nor an address nobody should follow."""
    return replace(
        call,
        from_phone=_if_any(mask.phone, call.from_phone),
        to_phone=_if_any(mask.phone, call.to_phone),
        customer_phone=_if_any(mask.phone, call.customer_phone),
        snippet=_if_any(mask.text, call.snippet),
        error_message=_if_any(mask.line, call.error_message),
        recording_url=mask.url(web_url(call.recording_url or "")),
    )


def masked_listing(listed: ListedCall, mask: MaskPolicy) -> ListedCall:
    """Return a listed call, and the text around what was searched for, as they may be seen."""
    excerpt = masked_excerpt(listed.excerpt, mask) if listed.excerpt else None
    return replace(listed, call=masked_call(listed.call, mask), excerpt=excerpt)


def masked_excerpt(excerpt: Excerpt, mask: MaskPolicy) -> Excerpt | None:
    """Return an excerpt as it may be seen, or None; the hit may be a part of what is hidden."""
    whole = excerpt.before + excerpt.hit + excerpt.after
    if mask.words == "full":
        return None
    shown = mask.stretch(whole)
    if len(shown) != len(whole):
        return Excerpt(shown, "", "")
    begin, end = len(excerpt.before), len(excerpt.before) + len(excerpt.hit)
    return Excerpt(shown[:begin], shown[begin:end], shown[end:])


def masked_run(run: Run, mask: MaskPolicy) -> Run:
    """Return a run and its attempts: what a handler raised or gave up with may quote the call."""
    return replace(
        run,
        reason=_if_any(mask.text, run.reason),
        attempts=tuple(_attempt(each, mask) for each in run.attempts),
    )


def masked_listed_run(run: ListedRun, mask: MaskPolicy) -> ListedRun:
    """Return a run of a list, as `masked_run` does."""
    return replace(
        run,
        reason=_if_any(mask.text, run.reason),
        error_message=_if_any(mask.text, run.error_message),
    )


def masked_happening(happening: Happening, mask: MaskPolicy) -> Happening:
    """Return what happened to a call without what may not be seen of it."""
    return replace(
        happening,
        customer_phone=_if_any(mask.phone, happening.customer_phone),
        error=_if_any(mask.text, happening.error),
    )


def _attempt(attempt: Attempt, mask: MaskPolicy) -> Attempt:
    return replace(
        attempt,
        error_message=_if_any(mask.text, attempt.error_message),
        traceback=_if_any(mask.traceback, attempt.traceback),
    )


def _if_any(hide: Callable[[str], str], text: str | None) -> str | None:
    return None if text is None else hide(text)
