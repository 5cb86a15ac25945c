"""Writes calls in one of the formats, with what the masking policy hides hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, Protocol, TypeAlias

from ...masking import MaskPolicy
from ..masked_delivery import masked_delivery
from .chosen import COLUMNS, Told
from .hiding import shown_columns
from .lines import call_line
from .parquet import ParquetRows
from .spreadsheet import CsvRows

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]


class _Export(Protocol):
    def write(self, told: Told) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


@contextmanager
def writing(to: BinaryIO, format_: Format, policy: MaskPolicy | None) -> Iterator[_Export]:
    """Write calls into a file, which is complete at the end of the block unless it raises.

    JSON lines need deliveries, and hide nothing where there is no policy. Raises `ConfigError`
    where Parquet is asked for and pyarrow is not installed.
    """
    export = _Lines(to, policy) if format_ == "jsonl" else _Table(to, format_, policy)
    try:
        yield export
    except BaseException:
        export.abandon()
        raise
    export.close()


class _Table:
    def __init__(self, to: BinaryIO, format_: Format, policy: MaskPolicy | None) -> None:
        rows = CsvRows(to, COLUMNS) if format_ == "csv" else ParquetRows(to, COLUMNS)
        self._rows = rows
        self._policy = policy or MaskPolicy()
        self.close, self.abandon = rows.close, rows.abandon

    def write(self, told: Told) -> None:
        self._rows.write(shown_columns(told.columns, self._policy).values())


class _Lines:
    def __init__(self, to: BinaryIO, policy: MaskPolicy | None) -> None:
        self._to = to
        self._policy = policy

    def write(self, told: Told) -> None:
        columns, deliveries = told
        if (policy := self._policy) is not None:
            columns = shown_columns(columns, policy)
            deliveries = [masked_delivery(delivery, policy) for delivery in deliveries]
        for piece in call_line(columns, deliveries, masked=policy is not None):
            self._to.write(piece)

    def close(self) -> None:
        self._to.flush()

    def abandon(self) -> None:
        pass
