"""`operator` adds, lists, changes and removes the accounts of the dashboard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, NoReturn

import typer
from sqlalchemy import Connection

from ..environment.secret_rules import require_strong
from ..exceptions import ConfigError
from ..operators import OPERATOR, Action, Role, accounts
from ..settings import Settings
from .common import open_log, print_json, record
from .options import AsJson
from .terminal import fail, note, print_table

#: The longest password that is read, in characters.
_PASSWORD_CHARS = 1000
_NO_NAME = "{!r} cannot be a name: up to 64 letters, digits and . _ @ + -, and no spaces."

app = typer.Typer(
    help="Manage the operators of the dashboard.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


tokens_app = typer.Typer(
    help="Manage read tokens for the JSON of the dashboard's pages.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


Name = Annotated[
    str, typer.Argument(help="Name of the operator. Upper and lower case are the same.")
]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
Generate = Annotated[
    bool, typer.Option("--generate", help="Generate a password and print it once.")
]


@app.command("add")
def add(
    name: Name,
    role: Annotated[
        Role,
        typer.Option(
            help="view can see every page; operate can also replay, reveal, export and delete."
        ),
    ] = "view",
    password_stdin: FromStdin = False,
    generate: Generate = False,
) -> None:
    """Add an operator. Asks for the password, or generates one without a terminal."""
    name = _operator(name)
    if _exists(name):
        fail(f"There is already an operator {name}.")
    password, is_generated = _password(name, from_stdin=password_stdin, generate=generate)
    password_hash, now = accounts.hash_password(password), datetime.now(UTC)
    with _change("add_operator", f"{name}, {role}") as connection:
        if not accounts.add(connection, name, role=role, password_hash=password_hash, now=now):
            fail(f"There is already an operator {name}.")
    typer.echo(f"Added {name}, who may {role}.")
    if is_generated:
        _print_password(password)


@app.command("list")
def list_operators(as_json: AsJson = False) -> None:
    """List the operators that were added."""
    settings = Settings.load()
    with open_log(settings) as database, database.reader.connect() as connection:
        operators = accounts.listed(connection)
    if as_json:
        print_json(operators)
        return
    rows = [
        (each.name, each.role, *map(_minute, (each.created_at, each.seen_at))) for each in operators
    ]
    print_table(("Name", "Role", "Added", "Last seen"), rows)
    if settings.dashboard_password is not None:
        note("There is also admin, with MILLIS_HOOKS_DASHBOARD_PASSWORD, who may operate.")
    elif not operators:
        note("Nobody can sign in. Add an operator: millis-hooks operator add NAME")


@app.command("remove")
def remove(name: Name) -> None:
    """Remove an operator, and end their sessions."""
    name = _operator(name)
    with _change("remove_operator", name) as connection:
        if not accounts.remove(connection, name):
            _fail_unknown(name)
    typer.echo(f"Removed {name}, and ended their sessions.")


@app.command("password")
def password(name: Name, password_stdin: FromStdin = False, generate: Generate = False) -> None:
    """Change an operator's password, and end their sessions."""
    name = _operator(name)
    if not _exists(name):
        _fail_unknown(name)
    password, is_generated = _password(name, from_stdin=password_stdin, generate=generate)
    password_hash = accounts.hash_password(password)
    with _change("change_password", name) as connection:
        if not accounts.set_password(connection, name, password_hash):
            _fail_unknown(name)
    typer.echo(f"Changed the password of {name}, and ended their sessions.")
    if is_generated:
        _print_password(password)


@app.command("role")
def change_role(name: Name, role: Annotated[Role, typer.Argument(help="view or operate.")]) -> None:
    """Change what an operator may do, at once."""
    name = _operator(name)
    with _change("change_role", f"{name}, {role}") as connection:
        if not accounts.set_role(connection, name, role):
            _fail_unknown(name)
    typer.echo(f"From now on {name} may {role}.")


TokenName = Annotated[
    str, typer.Argument(help="Name of the token. Upper and lower case are the same.")
]


@tokens_app.command("add")
def add_token(name: TokenName) -> None:
    """Add a read token, and print it this once: only its hash is stored."""
    name = _clean(name)
    with _change("add_token", name) as connection:
        token = accounts.add_token(connection, name, now=datetime.now(UTC))
        if token is None:
            fail(f"There is already a token {name}. Revoke it: millis-hooks token revoke {name}")
    note(f"Added {name}. Send it as Authorization: Bearer TOKEN. It is not shown again:")
    typer.echo(token)


@tokens_app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the read tokens, without the tokens themselves."""
    with open_log(Settings.load()) as database, database.reader.connect() as connection:
        listed = accounts.list_tokens(connection)
    if as_json:
        print_json(listed)
    elif not listed:
        note("There are no tokens. Add one: millis-hooks token add NAME")
    else:
        rows = [(each.name, *map(_minute, (each.created_at, each.last_used_at))) for each in listed]
        print_table(("Name", "Added", "Last used"), rows)


@tokens_app.command("revoke")
def revoke_token(name: TokenName) -> None:
    """Revoke a read token: from now on it opens nothing."""
    name = _clean(name)
    with _change("revoke_token", name) as connection:
        if not accounts.revoke_token(connection, name):
            fail(f"There is no token {name}. List them: millis-hooks token list")
    typer.echo(f"Revoked {name}.")


def _clean(text: str) -> str:
    """Return the normalized name. Raises `ConfigError`."""
    name = accounts.clean_name(text)
    if name is None:
        raise ConfigError(_NO_NAME.format(text))
    return name


def _operator(text: str) -> str:
    """Return the normalized name of an operator that may be added. Raises `ConfigError`."""
    name = _clean(text)
    if name == OPERATOR:
        raise ConfigError("The password of admin is MILLIS_HOOKS_DASHBOARD_PASSWORD.")
    return name


@contextmanager
def _change(action: Action, subject: str) -> Iterator[Connection]:
    """Change the accounts in one transaction, and record it in the audit log."""
    with open_log(Settings.load()) as database:
        with database.writer.begin() as connection:
            yield connection
        record(database, action, subject)


def _exists(name: str) -> bool:
    with open_log(Settings.load()) as database, database.reader.connect() as connection:
        return accounts.find(connection, name) is not None


def _fail_unknown(name: str) -> NoReturn:
    fail(f"There is no operator {name}. List them: millis-hooks operator list")


def _password(name: str, *, from_stdin: bool, generate: bool) -> tuple[str, bool]:
    """Return a password, and whether it was generated."""
    if from_stdin and generate:
        raise ConfigError("Choose one: --password-stdin or --generate.")
    if from_stdin:
        chosen = sys.stdin.readline(_PASSWORD_CHARS).rstrip("\r\n")
    elif generate or not _is_terminal():
        return accounts.make_password(), True
    else:
        chosen = typer.prompt("Password", hide_input=True, confirmation_prompt="Once more")
    try:
        require_strong(chosen, kind="the password", names=(name,))
    except ValueError as error:
        raise ConfigError(f"Choose another: {error}.") from None
    return chosen, False


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _print_password(password: str) -> None:
    note("The password was generated, and only its hash is stored:")
    typer.echo(password)


def _minute(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else "never"
