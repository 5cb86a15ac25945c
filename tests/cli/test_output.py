"""What commands write reaches any encoding, and what cannot be written is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "millis_hooks"]
SHELL = "/bin/sh"


def run(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("millis-hooks", " ".join(COMMAND))
    return subprocess.run(
        [SHELL, "-c", command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict"])
def test_what_an_encoding_lacks_is_replaced(encoding: str, tmp_path: Path) -> None:
    told = run("millis-hooks doctor --fast", PYTHONIOENCODING=encoding)
    assert (told.returncode, "? export MILLIS_HOOKS_SECRETS" in told.stdout) == (1, True)
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("command", ["--version", "simulate --list", "doctor --json"])
@pytest.mark.parametrize(
    ("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_what_cannot_be_written_is_said_once(command: str, where: str, why: str) -> None:
    told = run(f"millis-hooks {command} {where}")
    assert told.returncode == 2
    assert told.stderr.count(f"Error: The output cannot be written: {why}.") == 1
    assert "Traceback" not in told.stderr


def test_a_reader_that_has_gone_is_not_an_error() -> None:
    assert run("millis-hooks simulate --list | true").stderr == ""


def test_it_runs_as_a_module() -> None:
    assert run("millis-hooks --version").stdout.startswith("millis-hooks ")
