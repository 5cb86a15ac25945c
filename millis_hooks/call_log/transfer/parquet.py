"""Calls as Parquet, each column with its type; needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, BinaryIO

from sqlalchemy import Boolean, Column, Float, Integer, Text

from ...exceptions import ConfigError
from ..tables import Key, UtcDateTime

#: Rows that are compressed together, and are in memory until then.
_GROUP = 10_000


class ParquetRows:
    """Writes rows of Parquet. Raises `ConfigError` where pyarrow is not installed."""

    def __init__(self, to: BinaryIO, columns: Sequence[Column[Any]]) -> None:
        try:
            self._arrow = import_module("pyarrow")
            parquet = import_module("pyarrow.parquet")
        except ImportError:
            raise ConfigError(
                'Parquet needs pyarrow: pip install "millis-hooks[parquet]"'
            ) from None
        fields = [(column.name, _type(self._arrow, column)) for column in columns]
        self._schema = self._arrow.schema(fields)
        self._file = parquet.ParquetWriter(to, self._schema, compression="zstd")
        self._rows: list[Sequence[object]] = []

    def write(self, values: Iterable[object]) -> None:
        self._rows.append(tuple(values))
        if len(self._rows) == _GROUP:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._file.close()

    def abandon(self) -> None:
        # It would be closed when it is forgotten, and look as if nothing were missing.
        self._file.is_open = False

    def _write_group(self) -> None:
        by_column = [
            self._arrow.array(values, type=field.type)
            for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._file.write_table(self._arrow.Table.from_arrays(by_column, schema=self._schema))
        self._rows.clear()


def _type(arrow: Any, column: Column[Any]) -> Any:
    match column.type:
        case UtcDateTime():
            return arrow.timestamp("us", tz="UTC")
        case Boolean():
            return arrow.bool_()
        case Integer():
            return arrow.int64()
        case Float():
            return arrow.float64()
        case Text() | Key():
            return arrow.string()
    raise TypeError(f"{column} has no type in Parquet")
