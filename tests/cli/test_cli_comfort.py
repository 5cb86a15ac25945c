"""What makes the command line pleasant: it answers at once, completes, and reads `.env`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from millis_hooks.cli.commands import app
from support.databases import url_in
from support.programs import SCRIPT, run
from support.storage import opened

HEAVY = (
    *("sqlalchemy", "pydantic", "starlette", "uvicorn", "jinja2"),
    *("alembic", "httpx2", "prometheus_client", "rich"),
)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom millis_hooks.cli import main\nsys.argv = ['millis-hooks', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nprint('IMPORTED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    imported = done.stdout.rpartition("IMPORTED")[2].split()
    assert "millis_hooks.cli.commands" in imported
    assert not {*HEAVY} & {*imported}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_are_completed(shell: str) -> None:
    words = {"COMP_WORDS": "millis-hooks re", "COMP_CWORD": "1"}
    asked = {
        "_MILLIS_HOOKS_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "millis-hooks re",
    }
    done = run([SCRIPT], variables=words | asked | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    for command in ("replay", "reparse", "reconcile"):
        assert command in done.stdout
    assert "simulate" not in done.stdout


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    with opened(tmp_path):
        (tmp_path / ".env").write_text(f"MILLIS_HOOKS_DATABASE_URL={url_in(tmp_path)}\n")
        done = run([SCRIPT, "calls"], folder=tmp_path)
    assert "No calls yet." in done.stdout


@pytest.mark.parametrize("command", ["calls", "runs", "drift", "operator list"])
def test_every_listing_may_be_json(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    with opened(tmp_path):
        done = CliRunner().invoke(app, [*command.split(), "--json"])
    assert done.exit_code == 0
    json.loads(done.stdout)


def test_operators_are_listed_as_json_without_their_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    with opened(tmp_path):
        CliRunner().invoke(app, ["operator", "add", "ada", "--generate"])
        [listed] = json.loads(CliRunner().invoke(app, ["operator", "list", "--json"]).stdout)
    assert (listed["name"], listed["role"]) == ("ada", "view")
    assert "hash" not in json.dumps(listed)
