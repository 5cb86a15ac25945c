"""A PostgreSQL server for the tests: the one that a URL names, or one of their own that is started
in a temporary folder by an ordinary user, and gone at the end. What a run that was killed left
running, the next run removes.

Tests have a database to themselves, one after the other: making one takes longer than most tests.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path

from sqlalchemy import URL, Engine, NullPool, StaticPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.tables import metadata

#: Read before the settings of the surroundings are taken away. Its user may make databases.
GIVEN_URL = os.environ.get("MILLIS_HOOKS_TEST_POSTGRES_URL")

#: Who the server runs as where we are root, whom it refuses.
_UNPRIVILEGED = "nobody"
_PREFIX = "millis-pg-"
_MEMORY, _DISK = "/dev/shm", "/tmp"


class NoServerError(Exception):
    """There is neither a URL nor the programs of PostgreSQL."""


class Server:
    """A server of our own. Every test that stops it has one to itself."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_room()))
        (self.folder / "owner").write_text(str(os.getpid()))
        self._user = _UNPRIVILEGED if os.name == "posix" and os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._data = self.folder / "data"
        self._options = f"-k {self.folder} -c listen_addresses= -c max_connections=200"
        self._options += "".join(f" -c {option}" for option in options)
        self._run(
            "initdb",
            *("--username=millis", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"),
            "--no-sync",
        )
        self.start()

    @property
    def url(self) -> URL:
        return make_url(f"postgresql+psycopg://millis@/postgres?host={self.folder}")

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", self._options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is as if the machine had stopped, but for what is on the disk."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """End the server and all its processes, as the kernel does that has no memory left."""
        os.kill(_pid_of(self._data), signal.SIGQUIT)

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        file = _program(program)
        subprocess.run(
            [file, "-D", str(self._data), *arguments],
            check=True,
            user=self._user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )


def _room() -> str:
    """Return where its files go: into memory, if there is room, for a disk lets commits wait."""
    memory = Path(_MEMORY)
    is_large = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    return _MEMORY if is_large and os.access(memory, os.W_OK) else _DISK


def _program(name: str) -> str:
    """Find it: Debian keeps those of the server out of the path."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or (str(kept[0]) if kept else None)
    if found is None:
        raise NoServerError(f"there is no {name} here, and no MILLIS_HOOKS_TEST_POSTGRES_URL")
    return found


@cache
def _shared() -> Engine:
    """The server that all tests share."""
    if GIVEN_URL:
        url = make_url(GIVEN_URL).set(drivername="postgresql+psycopg")
    else:
        _remove_abandoned()
        server = Server()
        atexit.register(server.remove)
        url = server.url
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _remove_abandoned() -> None:
    """Remove the servers of test processes that are no more."""
    for owner in chain.from_iterable(
        Path(place).glob(f"{_PREFIX}*/owner") for place in (_MEMORY, _DISK)
    ):
        with suppress(OSError):  # another process may be removing it
            if not Path("/proc", owner.read_text()).exists():
                with suppress(OSError):  # it has been stopped
                    os.kill(_pid_of(owner.parent / "data"), signal.SIGQUIT)
                shutil.rmtree(owner.parent, ignore_errors=True)


def _pid_of(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def require() -> None:
    """Raise `NoServerError` where there can be no server."""
    if not GIVEN_URL:
        _program("initdb")


def new_database(number: int | str) -> str:
    """Make a database without anything in it, and return its URL."""
    name = f"millis_hooks_test_{os.environ.get('PYTEST_XDIST_WORKER', '')}{number}"
    for statement in (f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}"):
        _execute(_shared(), statement)
    return _shared().url.set(database=name).render_as_string(hide_password=False)


def emptied_database(number: int) -> str:
    """Return the URL of a call log that has just been emptied, and that only its keeper is in."""
    try:
        return _made[number].emptied()
    except (KeyError, DBAPIError):  # there is none, or a test has broken it
        _made[number] = _Emptied(number)
        return _made[number].url


class _Emptied:
    """A call log that one test after the other is given, and a session that empties it.

    The session stays: a new one would take longer than most tests.
    """

    def __init__(self, number: int) -> None:
        self.url = new_database(number)
        CallLog(self.url).close()
        self._keeper = create_engine(self.url, poolclass=StaticPool, isolation_level="AUTOCOMMIT")
        _execute(self._keeper, _CREATE_EMPTY)

    def emptied(self) -> str:
        _execute(self._keeper, "SELECT pg_temp.throw_out(), pg_temp.make_empty()")
        return self.url


def _execute(engine: Engine, statement: str) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


#: Call logs by number, as tests left them.
_made: dict[int, _Emptied] = {}
#: Functions, as these keep their plans. To delete is quicker than TRUNCATE, which makes new files.
_CREATE_EMPTY = f"""
CREATE FUNCTION pg_temp.throw_out() RETURNS void LANGUAGE sql AS $$
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
$$;
CREATE FUNCTION pg_temp.make_empty() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    {"".join(f"DELETE FROM {table.name}; " for table in reversed(metadata.sorted_tables))}
    DELETE FROM call_search;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S';
END $$
"""
