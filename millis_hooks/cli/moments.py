"""Times as people write them on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from ..exceptions import ConfigError


def read_moment(text: str | None) -> datetime | None:
    """Read a date or a time; one that names no zone is UTC. Raises `ConfigError` for neither."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is no date. Write it as 2026-11-01 or 2026-11-01T14:00."
        ) from None
