"""One server on one core, one load generator on the other.

`wrk` and `taskset` have to be installed. Figures of different machines do not compare; figures of
one run do.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .rivals import SECRET

SERVER_CORE = 0
LOAD_CORE = 1

HEADERS = {"Authorization": f"Bearer {SECRET}"}
SCRIPT = Path(__file__).with_name("load.lua")
START_TIMEOUT_S = 20

PREFETCH = (
    "/millis/prefetch?session_id=SESSION&agent_id=-Ox1demoAgent&from=%2B15550100&to=%2B15550199"
    "&plan=gold&campaign=autumn"
)
FUNCTION = "/millis/functions/find_table?session_id=SESSION&people=4"
END_OF_CALL = "/millis/end-of-call"


@dataclass(frozen=True)
class Load:
    """What the load generator saw. `errors` are connections that broke or timed out."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    non_2xx: int


class Server:
    """A server process for the length of a `with` block.

    `target` is an application's import string, served by plain uvicorn, or a command of its own, in
    which `{port}` stands for the port.
    """

    def __init__(self, target: str | Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = uvicorn(target) if isinstance(target, str) else target
        self._command = [part.replace("{port}", str(self.port)) for part in command]
        self._env = {**os.environ, **(env or {})}

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *self._command],
            env=self._env,
            stdout=self._log,
            stderr=self._log,
        )
        self._wait_until_it_answers()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """Everything the server has printed so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        said = self.log()
        self.__exit__()
        raise RuntimeError(f"{' '.join(self._command)} did not start:\n{said}")


def uvicorn(app: str) -> list[str]:
    """The command a rival is served with: uvicorn at its fastest, logging nothing."""
    options = "--http httptools --loop uvloop --no-access-log --log-level warning --port {port}"
    return [sys.executable, "-m", "uvicorn", app, *options.split()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def load(
    url: str,
    *,
    connections: int,
    seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] = HEADERS,
) -> Load:
    """Request `url` from `connections` at once; `SESSION` in it becomes a new id each time.

    With `body` the requests are POSTs, and `SESSION` stands in the body.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(body or b"")
        file.flush()
        command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}"]
        command += [f"-d{seconds:g}s", "--timeout", "30s", "-s", str(SCRIPT)]
        for name, value in headers.items():
            command += ["-H", f"{name}: {value}"]
        command += [url, "--", *([file.name] if body is not None else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def end_of_call_body(size: int) -> bytes:
    """A delivery of today's format, about `size` bytes long."""
    delivery = {
        "session_id": "SESSION",
        "call_id": "c-77",
        "agent_id": "-Ox1demoAgent",
        "ts": 1764150000.25,
        "duration": 184,
        "chars_used": 2210,
        "call_status": "user-ended",
        "error_message": None,
        "voip": {"provider": "twilio", "from": "+15550100", "to": "+15550199"},
        "recording": {"recording_url": "https://recordings.example.com/c-77.wav"},
        "metadata": {"plan": "gold", "campaign": "autumn"},
        "function_calls": [
            {"name": "find_slot", "params": {"day": "tue"}, "result": "10:30 is free"}
        ],
        "cost_breakdown": [
            {"type": "stt", "provider": "deepgram", "credit": 0.0132},
            {"type": "tts", "provider": "elevenlabs", "credit": 0.1105},
            {"type": "llm", "provider": "openai", "credit": 0.021, "prompt_tokens": 9120},
        ],
        "agent_config": {"prompt": "You book appointments.", "language": "en-US"},
    }
    turns: list[dict[str, str]] = []
    while len(body := json.dumps({**delivery, "chat": json.dumps(turns)})) < size:
        missing = size - len(body)
        role = "assistant" if len(turns) % 2 else "user"
        # A turn costs about 40 bytes of quoting; the last one fills what is left.
        words = "I would like an appointment on Tuesday, please. " * 3
        turns.append({"role": role, "content": words if missing > 400 else "x" * missing})
    return body.encode()
