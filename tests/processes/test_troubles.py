"""Two replicas behind HAProxy on one PostgreSQL, under load, through one trouble after the other.

What `examples/deploy` describes, with real processes. The table of what became of every delivery is
printed: pytest -m long -s tests/processes/test_troubles.py
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from subprocess import STDOUT

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from millis_hooks.call_log.migrations import open_database
from millis_hooks.call_log.tables import deliveries, handler_runs
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query, push_id
from support import postgres_server
from support.app import SECRET
from support.paths import ROOT
from support.postgres_server import Server as Postgres
from support.programs import SCRIPT, Program
from support.sites import free_port
from support.storage import rows
from support.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

HAPROXY_CFG = ROOT / "examples" / "deploy" / "haproxy.cfg"
#: How long it is loaded before a trouble, and after.
BEFORE_S, AFTER_S = 2.0, 3.0
SENDERS = 8

APP = """
import os
from millis_hooks import MillisHooks

hooks = MillisHooks()
journal = os.open("journal", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

@hooks.on_prefetch
async def greet(call):
    return "Be kind."

@hooks.on_end_of_call
async def note(call):
    os.write(journal, f"{call.session_id}\\n".encode())
"""

Trouble = Callable[["Farm"], None]


class Farm:
    """A server of PostgreSQL, two replicas, and the proxy in front of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = Postgres()
        self.url = self.postgres.url.render_as_string(hide_password=False)
        self.ports = (free_port(), free_port())
        self.front = free_port()
        (folder / "app.py").write_text(APP)
        self.replicas = [self.start(number) for number in range(2)]
        self._proxy = self._start_proxy()

    def start(self, number: int) -> Program:
        """Start a replica, and return when it is ready."""
        command = [SCRIPT, "run", "app.py", "--port", str(self.ports[number])]
        variables = {
            "MILLIS_HOOKS_SECRETS": SECRET,
            "MILLIS_HOOKS_DATABASE_URL": self.url,
            "MILLIS_HOOKS_DRAIN_S": "3",
        }
        with (self.folder / f"replica-{number}.log").open("ab") as log:
            replica = Program(
                command, folder=self.folder, variables=variables, stdout=log.fileno(), stderr=STDOUT
            )
        eventually(lambda: self._is_ready(self.ports[number]))
        return replica

    def restart(self, number: int) -> None:
        """Stop a replica in good order, and start it again."""
        self.replicas[number].send_signal(signal.SIGTERM)
        assert self.replicas[number].wait(30) == 0
        self.replicas[number] = self.start(number)

    def tell(self, statement: str) -> None:
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))

    def close(self) -> None:
        for replica in self.replicas:
            replica.kill()
            replica.wait()
        self._proxy.kill()
        self._proxy.wait()
        self.postgres.remove()

    def _start_proxy(self) -> subprocess.Popen[bytes]:
        places = {"8080": self.front, "8001": self.ports[0], "8002": self.ports[1]}
        told = re.sub(r"(?<=:)80\d\d\b", lambda port: str(places[port[0]]), HAPROXY_CFG.read_text())
        told = re.sub(r"(?m)^ *stats socket .*$", "", told)
        (self.folder / "haproxy.cfg").write_text(told)
        proxy = subprocess.Popen(
            ["haproxy", "-q", "-f", "haproxy.cfg"], cwd=self.folder, stdout=subprocess.DEVNULL
        )
        eventually(lambda: self._is_ready(self.front))
        return proxy

    def _is_ready(self, port: int) -> bool:
        return status_of(port, "GET", "/readyz") == 200


def status_of(port: int, method: str, path: str, body: bytes | None = None) -> int | None:
    """Send one request on a connection of its own; None where no answer came."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {SECRET}"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


class Load:
    """Deliveries and prefetches as Millis sends them: once, whatever comes back."""

    def __init__(self, farm: Farm, name: str) -> None:
        self._farm = farm
        self._name = name
        self._over = threading.Event()
        self.acknowledged: dict[str, float] = {}
        self.others: Counter[int | None] = Counter()
        self.prefetches: Counter[int | None] = Counter()
        self.slowest_prefetch_s = 0.0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        work = [*(self._deliver,) * SENDERS, self._prefetch]
        threads = [
            threading.Thread(target=each, args=(number,)) for number, each in enumerate(work)
        ]
        for thread in threads:
            thread.start()
        try:
            time.sleep(BEFORE_S)
            yield
            time.sleep(AFTER_S)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def longest_silence_s(self) -> float:
        """The longest time without an acknowledgement."""
        times = sorted(self.acknowledged.values())
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def _deliver(self, sender: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            session_id = f"-{self._name}-{sender}-{number}"
            body = end_of_call_body(session_id=session_id)
            status = status_of(self._farm.front, "POST", "/millis/end-of-call", body)
            if status == 200:
                self.acknowledged[session_id] = time.monotonic()
            else:
                self.others[status] += 1
            time.sleep(0.005)

    def _prefetch(self, _number: int) -> None:
        while not self._over.is_set():
            path = f"/millis/prefetch?{prefetch_query(session_id=push_id(datetime.now(UTC)))}"
            began = time.monotonic()
            self.prefetches[status_of(self._farm.front, "GET", path)] += 1
            self.slowest_prefetch_s = max(self.slowest_prefetch_s, time.monotonic() - began)
            time.sleep(0.01)


def nothing(farm: Farm) -> None:
    time.sleep(2)


def kill_a_replica(farm: Farm) -> None:
    farm.replicas[0].kill()
    farm.replicas[0].wait()
    time.sleep(3)
    farm.replicas[0] = farm.start(0)


def restart_both(farm: Farm) -> None:
    farm.restart(0)
    farm.restart(1)


def restart_postgres(farm: Farm) -> None:
    farm.postgres.stop("fast")
    farm.postgres.start()


def crash_postgres(farm: Farm) -> None:
    farm.postgres.stop("immediate")
    farm.postgres.start()


def terminate_sessions(farm: Farm) -> None:
    for _ in range(10):
        farm.tell(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'millis_hooks'"
        )
        time.sleep(0.2)


def take_all_connections(farm: Farm) -> None:
    engine = create_engine(farm.url, poolclass=NullPool)
    with ExitStack() as taken:
        first = taken.enter_context(engine.connect())
        first.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'millis_hooks'"
            )
        )
        end = time.monotonic() + 3
        while time.monotonic() < end:
            with suppress(OperationalError):
                taken.enter_context(engine.connect())


def forbid_writing(farm: Farm) -> None:
    """What a client sees of a server that has become a standby."""
    for value in ("on", "off"):
        farm.tell(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        farm.tell("SELECT pg_reload_conf()")
        time.sleep(3)


def freeze_postgres(farm: Farm) -> None:
    """A server that answers nothing, and does not hang up either."""
    engine = create_engine(farm.url, poolclass=NullPool)
    with engine.connect() as connection:
        sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'millis_hooks'"
        pids = connection.scalars(text(sessions)).all()
    for frozen in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, frozen)
        time.sleep(3)


TROUBLES: dict[str, Trouble] = {
    "none": nothing,
    "kill -9 of a replica": kill_a_replica,
    "both replicas restarted, one after the other": restart_both,
    "PostgreSQL restarted": restart_postgres,
    "PostgreSQL stopped at once (immediate)": crash_postgres,
    "all its sessions terminated, ten times": terminate_sessions,
    "all its connections taken for 3 s": take_all_connections,
    "read-only for 3 s, as a standby is": forbid_writing,
    "its sessions frozen for 3 s": freeze_postgres,
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    if shutil.which("haproxy") is None:
        pytest.skip("there is no haproxy here")
    try:
        farm = Farm(tmp_path_factory.mktemp("farm"))
    except postgres_server.NoServerError as error:
        pytest.skip(str(error))
    yield farm
    farm.close()


@pytest.mark.parametrize("name", TROUBLES)
def test_nothing_that_was_acknowledged_is_lost(
    farm: Farm, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Load(farm, str(list(TROUBLES).index(name)))
    with load.going_on():
        TROUBLES[name](farm)
    sent = set(load.acknowledged)
    eventually(lambda: sent <= set(handled(farm)), deadline_s=60)
    database = open_database(farm.url)
    lost = sent - {row.session_id for row in rows(database, deliveries)}
    eventually(lambda: {run.state for run in rows(database, handler_runs)} == {"succeeded"})
    database.close()
    times = handled(farm)
    twice = sum(times[session_id] > 1 for session_id in sent)
    with capsys.disabled():
        print(
            f"\n| {name} | {len(sent):,} | {load.others.total()} | {len(lost)} | {twice} | "
            f"{load.longest_silence_s():.1f} s | {load.prefetches[200]:,} of "
            f"{load.prefetches.total():,}, slowest {load.slowest_prefetch_s * 1000:.0f} ms | "
            f"{dict(load.others) or ''}"
        )
    assert not lost


def handled(farm: Farm) -> Counter[str]:
    """How often the handler was called, by session."""
    return Counter((farm.folder / "journal").read_text().split())
