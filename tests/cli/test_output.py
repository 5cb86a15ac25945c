"""What commands write reaches any encoding, and what cannot be written is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from support.programs import SCRIPT, Program, run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    told = run([SCRIPT, "doctor", "--fast"], variables={"PYTHONIOENCODING": encoding})
    assert (told.returncode, "? export MILLIS_HOOKS_SECRETS" in told.stdout) == (1, True)
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("command", ["--version", "simulate --list", "doctor --json"])
def test_a_disk_without_room_is_said_once(command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        program = Program([SCRIPT, *command.split()], stdout=full.fileno(), stderr=PIPE)
    with program:
        _, told = program.communicate()
    assert program.returncode == 2
    assert told == "Error: The output cannot be written: No space left on device.\n"


def test_an_output_that_is_closed_is_said_once() -> None:
    told = in_a_shell("--version >&-")
    assert told.returncode == 2
    assert told.stderr == "Error: The output cannot be written: it is closed.\n"


def test_a_reader_that_has_gone_is_not_an_error() -> None:
    assert in_a_shell("--help | true").stderr == ""


def test_it_runs_as_a_module() -> None:
    assert in_a_shell("--version").stdout.startswith("millis-hooks ")


def in_a_shell(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the module from a shell, with an interpreter of its own."""
    line = f"{sys.executable} -m millis_hooks {arguments}"
    return subprocess.run(
        ["/bin/sh", "-c", line], env=os.environ, capture_output=True, text=True, timeout=60
    )
