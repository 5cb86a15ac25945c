"""Every way in which a start can fail: one form, one exit status, for each command that starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.programs import SCRIPT, run
from support.sites import free_port
from support.storage import opened

SECRETS = {
    "MILLIS_HOOKS_SECRETS": "c2b1f0a9e8d7c6b5a4f3e2d1c0b9a8f7",
    "MILLIS_HOOKS_DASHBOARD_PASSWORD": "Xw7-tt2_kQ9z-Lm4vB8",
}
HOOKS = "from millis_hooks import MillisHooks\nhooks = MillisHooks({})\n"
LIFESPAN = """
import sys
from contextlib import asynccontextmanager
from millis_hooks import MillisHooks

@asynccontextmanager
async def connect():
    {}
    yield

hooks = MillisHooks(lifespan=connect)
"""
MOUNTED = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.routing import Mount
from millis_hooks import MillisHooks

hooks = MillisHooks()

@asynccontextmanager
async def start(app):
    async with hooks.running():
        raise RuntimeError("the pool is full")
        yield

app = Starlette(routes=[Mount("/voice", hooks)], lifespan=start)
"""
TWICE = HOOKS.format("") + "@hooks.on_end_of_call\ndef f(call): ...\n" * 2
#: What is wrong with the application: its code, and what the error says.
BAD_CODE = {
    "setting": (HOOKS.format("prefetch_budget_s='soon'"), "prefetch_budget_s: expected a number"),
    "unknown setting": (HOOKS.format("prefetch_budget=1"), "Did you mean 'prefetch_budget_s'?"),
    "handler twice": (TWICE, "Two end_of_call handlers are named 'f'"),
    "syntax": ("def (", 'app.py", line 1\n'),
    "import": ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "raises": ("1 / 0", "app.py could not be imported:"),
    "exits": ("import sys\nsys.exit('no CRM_URL')", "SystemExit: no CRM_URL"),
    "no application": ("x = 1", "app.py has no MillisHooks."),
    "lifespan": (LIFESPAN.format("raise OSError('no CRM')"), 'app.py", line 8\n'),
    "lifespan exits": (LIFESPAN.format("sys.exit('no CRM')"), "called sys.exit: no CRM"),
}
#: What is wrong around it: variables, and what the error says.
BAD_VARIABLES = {
    "setting": ({"MILLIS_HOOKS_PREFETCH_BUDGET_S": "soon"}, "MILLIS_HOOKS_PREFETCH_BUDGET_S: "),
    "unknown": ({"MILLIS_HOOKS_SECRET": "a" * 40}, "MILLIS_HOOKS_SECRETS"),
    "secret": ({"MILLIS_HOOKS_SECRETS": "short"}, "MILLIS_HOOKS_SECRETS: "),
    "no database": ({"MILLIS_HOOKS_DATABASE_URL": "sqlite:////nowhere/a.db"}, "cannot be opened"),
    "other file": ({"MILLIS_HOOKS_DATABASE_URL": "sqlite:///app.py"}, "is not a call log"),
    "other database": ({"MILLIS_HOOKS_DATABASE_URL": "mysql://a/b"}, "MILLIS_HOOKS_DATABASE_URL: "),
    "no server": (
        {"MILLIS_HOOKS_DATABASE_URL": "postgresql://u:secretpw@127.0.0.1:1/b"},
        "the database cannot be reached",
    ),
}
COMMANDS = {
    "run": ("run", "--port"),
    "dev": ("dev", "--no-reload", "--port"),
    "worker": ("worker", "--port"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application that starts."""
    (tmp_path / "app.py").write_text(HOOKS.format(""))
    return tmp_path


def refusal(folder: Path, *arguments: str, **variables: str) -> str:
    """Return the error of a command that does not start: the last thing it writes."""
    done = run([SCRIPT, *arguments], folder=folder, variables=SECRETS | variables)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    _, error, told = f"\n{done.stderr}".partition("\nError: ")
    assert error
    return told


def commands(*, may_simulate: bool = True) -> Iterator[tuple[str, ...]]:
    yield from ((*words, str(free_port())) for words in COMMANDS.values())
    if may_simulate:
        yield ("simulate", "app.py", "web")


@pytest.mark.parametrize("kind", BAD_CODE)
def test_an_application_that_cannot_start(folder: Path, kind: str) -> None:
    code, told = BAD_CODE[kind]
    (folder / "app.py").write_text(code)
    errors = [refusal(folder, *command) for command in commands()]
    assert told in errors[0]
    assert errors == [errors[0]] * 4


@pytest.mark.parametrize("kind", BAD_VARIABLES)
def test_surroundings_that_a_service_cannot_start_in(folder: Path, kind: str) -> None:
    variables, told = BAD_VARIABLES[kind]
    errors = [refusal(folder, *each, **variables) for each in commands(may_simulate=False)]
    assert told in errors[0]
    assert "secretpw" not in errors[0]
    assert errors == [errors[0]] * 3


def test_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        errors = [refusal(folder, *words, port) for words in COMMANDS.values()]
    assert errors[0].startswith(f"Nothing can listen on 127.0.0.1, port {port}: ")
    assert errors == [errors[0]] * 3


def test_a_call_log_of_a_newer_version(folder: Path) -> None:
    with opened(folder) as database, database.writer.begin() as connection:
        connection.exec_driver_sql("UPDATE millis_hooks_version SET version_num = '9999'")
        url = f"sqlite:///{database.path}"
    for command in commands(may_simulate=False):
        assert "newer" in refusal(folder, *command, MILLIS_HOOKS_DATABASE_URL=url)


def test_the_application_that_ours_is_mounted_in(folder: Path) -> None:
    (folder / "app.py").write_text(MOUNTED)
    told = refusal(folder, "run", "app.py:app", "--port", str(free_port()))
    assert told.startswith("The application could not be started:\n")
    assert told.endswith("RuntimeError: the pool is full\n")


@pytest.mark.parametrize("command", ["run", "dev", "worker"])
def test_without_a_name_it_is_the_application_in_app_py(tmp_path: Path, command: str) -> None:
    assert "There is no app.py in" in refusal(tmp_path, command)
    (tmp_path / "app.py").write_text("1 / 0")
    assert "ZeroDivisionError" in refusal(tmp_path, command)


def test_a_program_without_its_templates(folder: Path) -> None:
    code = (
        "from pathlib import Path\nfrom millis_hooks import service\n"
        "service.templates_dir = lambda: Path('gone')\n"
    )
    (folder / "app.py").write_text(code + HOOKS.format(""))
    for command in commands():
        assert refusal(folder, *command) == "gone is missing. Install millis_hooks again.\n"
