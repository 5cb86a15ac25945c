from __future__ import annotations

import io
from pathlib import Path

import pytest

from millis_hooks.cli.options import read_secret
from millis_hooks.exceptions import ConfigError

TOKEN = "orchid-plinth-cobalt-meadow"


@pytest.mark.parametrize("way", ["-", "env:WHERE_IT_IS", "file:secret.txt"])
def test_a_secret_is_taken_from_where_no_list_of_processes_shows_it(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\nthe next line\n"))
    monkeypatch.setenv("WHERE_IT_IS", f" {TOKEN}")
    (tmp_path / "secret.txt").write_text(f"\ufeff{TOKEN}\r\n")
    assert read_secret("--secret", way) == TOKEN


@pytest.mark.parametrize("way", ["-", "env:NOWHERE", "file:nowhere.txt", "file:odd.txt"])
def test_where_there_is_none_that_is_said(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"^--secret "):
        read_secret("--secret", way)


@pytest.mark.parametrize("text", [None, TOKEN, "postgresql://db.example/calls"])
def test_anything_else_is_the_value_itself(text: str | None) -> None:
    assert read_secret("--to", text) == text
