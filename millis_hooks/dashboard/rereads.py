"""The form that has a delivery read again, once what could not read it is fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..call_log.rereading import Reread
from ..operators import Operator
from .forms import read_number
from .pages import link

#: Reads a delivery again, and has its handlers called if it can be read at last.
RereadDelivery: TypeAlias = Callable[[int], Reread | None]


class RereadForm:
    """Takes which delivery to read again, and shows it with what came of it."""

    def __init__(self, reread: RereadDelivery) -> None:
        self._reread = reread

    def submit(self, request: Request, _: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /reread`; raises HTTPException for what is not there, and StorageError."""
        number = read_number(fields.get("delivery_id", ""))
        if number is None or self._reread(number) is None:
            raise HTTPException(404)
        shown = link(request, "delivery", {"reread": 1}, delivery_id=number)
        return RedirectResponse(shown, 303)


def subject_of(request: Request, fields: Mapping[str, str]) -> str | None:
    """Name the delivery, for the record."""
    return f"delivery {fields.get('delivery_id')}"
