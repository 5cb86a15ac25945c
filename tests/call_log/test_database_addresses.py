"""What is wrong with a database's address is said by the name of the setting, without a server."""

from __future__ import annotations

import pytest

from millis_hooks.call_log.migrations import open_database
from millis_hooks.call_log.postgres import require_utf8
from millis_hooks.exceptions import ConfigError


@pytest.mark.parametrize(
    ("option", "said"),
    [("pgbouncer", "Leave it out"), ("sslmod", "Did you mean sslmode?"), ("schema", "Leave")],
)
def test_an_option_that_the_driver_does_not_have_is_named(option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^MILLIS_HOOKS_DATABASE_URL: ") as error:
        open_database(f"postgresql://me:word@db.invalid/calls?{option}=true")
    assert f"no connection option '{option}'" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_does_not_take_every_text_is_refused(encoding: str) -> None:
    require_utf8("UTF8")
    with pytest.raises(ConfigError, match=f"has the encoding {encoding}"):
        require_utf8(encoding)
