"""`operator`: who may sign in to the dashboard, and what they may do there."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from ..environment.secret_rules import require_strong
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..operators import OPERATOR, Account, accounts
from ..operators.accounts import hash_password, make_password
from ..settings import Settings
from .common import open_log, print_json, record
from .terminal import add_row, console, fail, note, table

#: The longest password that is read, in characters.
_PASSWORD_CHARS = 1000

app = typer.Typer(
    help="Add, list, change and remove operators of the dashboard.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


class Role(StrEnum):
    """What an operator may do."""

    VIEW = "view"
    OPERATE = "operate"


Name = Annotated[str, typer.Argument(help="The operator's name; capital letters do not matter.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the standard input.")
]
Generated = Annotated[
    bool, typer.Option("--generate", help="Make a password, and print it this once.")
]


@app.command("add")
def add(
    name: Name,
    role: Annotated[
        Role,
        typer.Option(help="view sees every page; operate also replays, reveals, exports, deletes."),
    ] = Role.VIEW,
    password_stdin: FromStdin = False,
    generate: Generated = False,
) -> None:
    """Add an operator. The password is asked for, or made where nobody can be asked."""
    known = _name(name)
    with open_log(Settings.load()) as database:
        with database.reader.connect() as connection:
            if accounts.find(connection, known) is not None:
                fail(f"There is an operator {known} already.")
        password, is_made = _password(known, from_stdin=password_stdin, generate=generate)
        hashed, now = hash_password(password), datetime.now(UTC)
        with database.writer.begin() as connection:
            if not accounts.add(connection, known, role=role.value, password_hash=hashed, now=now):
                fail(f"There is an operator {known} already.")
        record(database, "add_operator", f"{known}, {role.value}")
    typer.echo(f"Added {known}, who may {role.value}.")
    _tell(password, is_made=is_made)


@app.command("list")
def list_operators(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the operators that were added."""
    settings = Settings.load()
    with open_log(settings) as database, database.reader.connect() as connection:
        listed = accounts.listed(connection)
    if as_json:
        print_json(listed)
        return
    if listed:
        _print(listed)
    if settings.dashboard_password is not None:
        note("Beside them there is admin, of MILLIS_HOOKS_DASHBOARD_PASSWORD, who may operate.")
    elif not listed:
        note("Nobody can sign in. Add somebody: millis-hooks operator add NAME")


@app.command("remove")
def remove(name: Name) -> None:
    """Remove an operator, and sign them out everywhere."""
    known = _name(name)
    with open_log(Settings.load()) as database:
        with database.writer.begin() as connection:
            if not accounts.remove(connection, known):
                _fail_unknown(known)
        record(database, "remove_operator", known)
    typer.echo(f"Removed {known}, and signed them out everywhere.")


@app.command("password")
def password(name: Name, password_stdin: FromStdin = False, generate: Generated = False) -> None:
    """Change an operator's password, and sign them out everywhere."""
    known = _name(name)
    with open_log(Settings.load()) as database:
        with database.reader.connect() as connection:
            if accounts.find(connection, known) is None:
                _fail_unknown(known)
        chosen, is_made = _password(known, from_stdin=password_stdin, generate=generate)
        hashed = hash_password(chosen)
        with database.writer.begin() as connection:
            if not accounts.set_password(connection, known, hashed):
                _fail_unknown(known)
        record(database, "change_password", known)
    typer.echo(f"Changed the password of {known}, and signed them out everywhere.")
    _tell(chosen, is_made=is_made)


@app.command("role")
def change_role(name: Name, role: Annotated[Role, typer.Argument(help="view or operate.")]) -> None:
    """Change what an operator may do, at once."""
    known = _name(name)
    with open_log(Settings.load()) as database:
        with database.writer.begin() as connection:
            if not accounts.set_role(connection, known, role.value):
                _fail_unknown(known)
        record(database, "change_role", f"{known}, {role.value}")
    typer.echo(f"From now on {known} may {role.value}.")


def _name(text: str) -> str:
    name = accounts.clean_name(text)
    if name is None:
        raise ConfigError(
            f"{text!r} cannot be a name: up to 64 letters, digits and . _ @ + -, and no spaces."
        )
    if name == OPERATOR:
        raise ConfigError("The operator admin is that of MILLIS_HOOKS_DASHBOARD_PASSWORD.")
    return name


def _fail_unknown(name: str) -> None:
    fail(f"There is no operator {name}. See who there is: millis-hooks operator list")


def _password(name: str, *, from_stdin: bool, generate: bool) -> tuple[str, bool]:
    """Return a password, and whether it was made here."""
    if from_stdin and generate:
        raise ConfigError("Choose one: --password-stdin or --generate.")
    if from_stdin:
        chosen = sys.stdin.readline(_PASSWORD_CHARS).rstrip("\r\n")
    elif generate or not _is_terminal():
        return make_password(), True
    else:
        chosen = typer.prompt("Password", hide_input=True, confirmation_prompt="Once more")
    try:
        require_strong(chosen, kind="the password", names=(name,))
    except ValueError as error:
        raise ConfigError(f"Choose another: {error}.") from None
    return chosen, False


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _tell(password: str, *, is_made: bool) -> None:
    if is_made:
        note("The password was made here and is kept nowhere but as a hash:")
        typer.echo(password)


def _print(listed: tuple[Account, ...]) -> None:
    rows = table("NAME", "ROLE", "ADDED", "LAST SEEN")
    for account in listed:
        added, seen = (
            f"{at:%Y-%m-%d %H:%M}" if at else "never"
            for at in (account.created_at, account.seen_at)
        )
        add_row(rows, printable(account.name), account.role, added, seen)
    console().print(rows)
