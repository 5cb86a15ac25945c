"""The calls of a list as a file, with what the pages hide hidden in it too."""

from __future__ import annotations

from codecs import BOM_UTF8
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias

from starlette.responses import Response, StreamingResponse

from .call_filters import read_filter
from .pages import Asked

Format: TypeAlias = Literal["csv", "jsonl"]

_MEDIA_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson"}


def export_calls(format_: Format, asked: Asked) -> Response:
    """Answer with the calls that the query string asks for, read while they are sent.

    With `bom` in the query, CSV begins with a byte order mark: Excel reads it as UTF-8 then.
    """
    from ..call_log.transfer.streaming import export

    wanted = read_filter(asked.query, asked.zone)
    policy, now = asked.settings.mask, asked.now
    pieces = asked.log.ask(partial(export, wanted=wanted, format_=format_, policy=policy, now=now))
    headers = _headers(asked, format_)
    if format_ == "csv" and asked.query.get("bom"):
        pieces = chain([BOM_UTF8], pieces)
    return StreamingResponse(pieces, media_type=_MEDIA_TYPES[format_], headers=headers)


def _headers(asked: Asked, format_: Format) -> dict[str, str]:
    day = asked.now.astimezone(asked.zone).date()
    return {
        "Content-Disposition": f'attachment; filename="calls-{day}.{format_}"',
        # Not to be packed on the way, which would take its time from the webhooks' loop.
        "Content-Encoding": "identity",
    }
