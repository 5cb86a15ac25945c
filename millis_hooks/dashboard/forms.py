"""Reads what the forms and addresses of these pages bring: a few short fields, whole numbers."""

from __future__ import annotations

from starlette.requests import Request

#: The largest form here, in bytes.
MAX_FORM_BYTES = 16 * 1024

_ROW_NUMBER_DIGITS = 18


async def read_form(request: Request, *, max_fields: int = 10) -> dict[str, str]:
    """Read the text fields of a form."""
    async with request.form(max_files=0, max_fields=max_fields) as form:
        # Browsers send every line break as CRLF, whatever it was on the page.
        return {
            name: value.replace("\r\n", "\n")
            for name, value in form.items()
            if isinstance(value, str)
        }


def read_number(text: str, *, digits: int = _ROW_NUMBER_DIGITS) -> int | None:
    """Read a number of at most so many digits; None for everything else."""
    is_number = text.isascii() and text.isdigit() and len(text) <= digits
    return int(text) if is_number else None
