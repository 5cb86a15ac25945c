"""Programs of ours, in processes that are forked from one which has imported the package.

A fresh interpreter works for a second before it does anything, nearly all of it for imports. What
depends on one (what a command imports, reloading) is tried with `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, TimeoutExpired
from threading import Thread
from types import TracebackType
from typing import IO, Self

from millis_hooks.cli import main

SCRIPT = "millis-hooks"

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    [
        "pytest",  # the main module of the tests, which a child imports again
        "millis_hooks.service",
        "millis_hooks.cli.serve",
        "millis_hooks.cli.transfer",
        "millis_hooks.testing.client",
        "millis_hooks.call_log.postgres",
        "psycopg",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ]
)


class Program:
    """A program that was started, with the interface of `subprocess.Popen`; its output is text.

    It begins with `millis-hooks`, the path of a Python file, `-m` and a module, or `-c` and code.
    It ends with the tests at the latest.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        stdin: int | None = DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        new_session: bool = False,
    ) -> None:
        """Start it in `folder`, with `variables` on top of the environment."""
        self.args = [*command]
        self.stdin, its_stdin = _pipe(stdin, is_input=True)
        self.stdout, its_stdout = _pipe(stdout)
        if stderr == STDOUT:
            self.stderr, its_stderr = None, its_stdout
        else:
            self.stderr, its_stderr = _pipe(stderr)
        its = [its_stdin, its_stdout, its_stderr]
        environment = {**os.environ, **(variables or {})}
        arguments = (self.args, folder or Path.cwd(), environment, its, new_session)
        self._process = _forking.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        for stream in {stream for stream in its if stream is not None}:
            stream.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; the negative number of a signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status at its end; raises `TimeoutExpired` after `timeout`, in s."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read the output to its end, wait, and return it: standard output, then errors."""
        if self.stdin is not None:
            self.stdin.close()
        texts = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            with stream:
                texts[number] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        readers = [
            Thread(target=read, args=(number, stream), daemon=True)
            for number, stream in streams
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the pipes, and wait for its end."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def run(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> CompletedProcess[str]:
    """Run a program to its end, and return its exit status and what it wrote."""
    with Program(command, folder=folder, variables=variables, stdout=PIPE, stderr=PIPE) as program:
        try:
            output, errors = program.communicate(timeout)
        finally:
            program.kill()
        return CompletedProcess(program.args, program.wait(), output, errors)


def on_a_terminal(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    answer: str = "",
) -> str:
    """Return what a program shows on a terminal, on which somebody types `answer`."""
    ours, its = pty.openpty()
    with Program(
        command,
        folder=folder,
        variables=variables,
        stdin=its,
        stdout=its,
        stderr=its,
        new_session=True,
    ):
        os.close(its)
        os.write(ours, answer.encode())
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when nobody has the other end open any more
        return b""


def pytest_in(folder: Path, *options: str, every_plugin: bool = False) -> CompletedProcess[str]:
    """Run the tests in a folder: with our plugin alone, for others take a second to import."""
    # Plain: what has been imported cannot be rewritten, and pytest warns of that.
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--assert", "plain"]
    if every_plugin:
        return run([*command, *options], folder=folder)
    command += ["--disable-plugin-autoload", "-p", "millis_hooks"]
    return run([*command, *options], folder=folder)


def _pipe(kind: int | None, *, is_input: bool = False) -> tuple[IO[str] | None, Connection | None]:
    """Return our end of a stream and its own: of a pipe, or of the descriptor that `kind` is."""
    if kind is None:
        return None, None
    if kind == DEVNULL:
        return None, Connection(os.open(os.devnull, os.O_RDWR))
    if kind != PIPE:
        return None, Connection(os.dup(kind))
    reading, writing = os.pipe()
    if is_input:
        return os.fdopen(writing, "w"), Connection(reading, writable=False)
    return os.fdopen(reading), Connection(writing, readable=False)


def _run(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    streams: list[Connection | None],
    new_session: bool,
) -> None:
    """Be the program, in the process that was forked for it."""
    for number, stream in enumerate(streams):
        if stream is not None:
            os.dup2(stream.fileno(), number)
    for stream in {stream for stream in streams if stream is not None}:
        stream.close()
    encoding, _, errors = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, 1, encoding, errors or None, closefd=False)  # noqa: SIM115
        for number, mode in enumerate(("r", "w", "w"))
    )
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first, *rest = sys.argv = command
    if first == SCRIPT:
        main()
    elif first == "-m":
        sys.argv = rest
        sys.path.insert(0, str(folder))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
