from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from millis_hooks import MillisHooks
from millis_hooks.cli.commands import app
from millis_hooks.environment.private_files import keep_private, make_private
from millis_hooks.settings import Settings
from support.app import SECRET, MakeHooks, serving
from support.waiting import eventually


@pytest.fixture(autouse=True)
def _no_umask() -> Iterator[None]:
    """As under a service manager that takes no rights away."""
    usual = os.umask(0)
    yield
    os.umask(usual)


def modes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}


def test_every_file_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{tmp_path}/calls.db")
    hooks = MillisHooks(secrets=SECRET, sandbox=True)
    with serving(hooks, base_url="http://localhost", client=("127.0.0.1", 1)) as client:
        assert client.post("/millis/end-of-call", json={"session_id": "a"}).status_code == 200
        client.get("/sandbox/api/agents", headers={"Authorization": "any"})
        eventually(lambda: "calls.db-runner" in modes(tmp_path))
        while_it_runs = modes(tmp_path)
    for command in (["export", "calls.csv"], ["backup", "copy.db"], ["copy", "--from"]):
        more = ["sqlite:///calls.db", "--to", "sqlite:///other.db"] if "copy" in command else []
        CliRunner().invoke(app, [*command, *more])
    left = modes(tmp_path)
    assert {"calls.db", "calls.db-wal", "calls.db-shm", "calls.db-runner"} <= while_it_runs.keys()
    assert {"calls-sandbox.db", "calls.csv", "copy.db", "other.db"} <= left.keys()
    assert set((while_it_runs | left).values()) == {0o600}


def test_a_new_application_has_private_settings_and_code(
    tmp_path: Path,
) -> None:
    assert CliRunner().invoke(app, ["new", "shop"]).exit_code == 0
    found = modes(tmp_path / "shop")
    assert found.pop(".env") == 0o600
    assert set(found.values()) == {0o644}


def test_a_call_log_that_others_could_read_is_closed_to_them_and_that_is_said(
    tmp_path: Path, make_hooks: MakeHooks, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "old.db"
    with serving(make_hooks(database_url=f"sqlite:///{file}")):
        pass
    file.chmod(0o644)
    with serving(make_hooks(database_url=f"sqlite:///{file}")):
        assert modes(tmp_path)["old.db"] == 0o600
    assert f"others could read {file} (mode 0644)" in caplog.text


def test_a_file_of_another_user_stays_as_it_is_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    file = tmp_path / "theirs"
    file.touch(0o640)
    monkeypatch.setattr(os, "chmod", refuse)
    keep_private(file)
    assert "belongs to another user" in caplog.text


def test_a_file_that_has_to_be_new_is_not_taken_over(tmp_path: Path) -> None:
    make_private(tmp_path / "file", must_be_new=True)
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "file", must_be_new=True)


def test_settings_that_others_may_read_are_said_at_each_start(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"MILLIS_HOOKS_SECRETS={SECRET}\n")
    file.chmod(0o640)
    assert [f"others may read {file}: chmod 600 .env"] == list(Settings.load().warnings())
    file.chmod(0o600)
    assert list(Settings.load().warnings()) == []
