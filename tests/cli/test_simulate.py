"""`simulate`, in this process and against services that run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from typer.testing import CliRunner, Result

from millis_hooks.cli.commands import app
from support.databases import url_in
from support.programs import SCRIPT, Program
from support.sites import free_port

SECRET = "a-secret-for-the-tests-of-simulate"
APP = """
from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest

hooks = MillisHooks()

@hooks.on_prefetch
def greet(call: PrefetchRequest) -> str:
    return "Be kind."

@hooks.on_end_of_call(max_attempts=1)
def book(call: EndOfCall) -> None:
    if call.metadata.get("fail"):
        raise RuntimeError("no calendar")
    with open("booked", "a") as file:
        file.write("dry\\n" if call.dry_run else "booked\\n")
"""
FAILING = """
[session]
metadata = { fail = true }

[[turns]]
user = "Hello \\u001b[2J"

[expect]
prefetch = "failed"
handlers = { book = "failed" }
"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `simulate` in a folder with an application and a scenario."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "simulated.py").write_text(APP)
    (tmp_path / "failing.toml").write_text(FAILING)
    (tmp_path / ".env").write_text(f"MILLIS_HOOKS_SECRETS={SECRET}\n")
    monkeypatch.delitem(sys.modules, "simulated", raising=False)

    def command(*args: str, **settings: str) -> Result:
        env = {f"MILLIS_HOOKS_{name.upper()}": value for name, value in settings.items()}
        return CliRunner().invoke(app, ["simulate", *args], env=env)

    return command


@contextmanager
def serving(folder: Path, *command: str) -> Iterator[str]:
    port = free_port()
    args = [SCRIPT, *command, "--port", str(port)]
    with Program(args, folder=folder, stdout=PIPE, stderr=PIPE) as process:
        try:
            ready = process.stdout if command[0] == "dev" else process.stderr
            assert ready is not None
            next(line for line in ready if f":{port}" in line)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_shipped_scenarios_are_listed(run: Run) -> None:
    listed = run("--list").stdout
    assert all(name in listed for name in ("inbound", "tool-calls", "hostile"))


def test_a_call_is_simulated_in_this_process(run: Run, tmp_path: Path) -> None:
    result = run("inbound", "--target", "simulated.py")
    assert result.exit_code == 0, result.output
    assert "GET http://receiver.test/millis/prefetch?session_id=-" in result.stdout
    assert "ok   handler book: succeeded" in result.stdout
    assert "ok   outcome: completed" in result.stdout
    assert SECRET not in result.output
    assert not (tmp_path / "millis_hooks.db").exists()


def test_several_scenarios_share_the_application(run: Run, tmp_path: Path) -> None:
    assert run("web", "voicemail", "--target", "simulated.py").exit_code == 0
    assert (tmp_path / "booked").read_text() == "booked\nbooked\n"


def test_handlers_see_a_dry_run(run: Run, tmp_path: Path) -> None:
    assert run("web", "--target", "simulated.py", "--dry-run").exit_code == 0
    assert (tmp_path / "booked").read_text() == "dry\n"


def test_an_unmet_expectation_is_printed_and_ends_with_1(run: Run) -> None:
    result = run("failing.toml", "--target", "simulated.py")
    assert result.exit_code == 1
    assert "FAIL prefetch: failed: answered" in result.stdout
    assert "ok   handler book: failed" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_handler_that_fails_ends_with_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "unexpected.toml").write_text("[session]\nmetadata = { fail = true }\n")
    result = run("unexpected.toml", "--target", "simulated.py")
    assert result.exit_code == 1
    assert (
        "FAIL handler book: failed: 1 of 1 attempts failed; RuntimeError: no calendar"
        in result.stdout
    )


def test_handlers_that_an_end_never_reached_are_not_met(run: Run, tmp_path: Path) -> None:
    scenario = '[faults]\nend_of_call = "never"\n[expect]\nhandlers = { book = "succeeded" }\n'
    (tmp_path / "silent.toml").write_text(scenario)
    result = run("silent.toml", "--target", "simulated.py")
    assert result.exit_code == 1
    assert "FAIL handler book: succeeded: not called" in result.stdout


def test_simulate_prints_json(run: Run) -> None:
    told = json.loads(run("tool-calls", "--target", "simulated.py", "--json").stdout)
    assert (told["ok"], told["outcome"], told["handlers"]) == (
        True, "completed", {"book": "succeeded"},
    )  # fmt: skip
    assert [step["kind"] for step in told["steps"]][:3] == ["attached", "prefetched", "merged"]


def test_masked_values_are_masked_in_the_output(run: Run) -> None:
    result = run("inbound", "--target", "simulated.py", mask_numbers="full", mask_text="full")
    assert result.exit_code == 0
    assert "4155550134" not in result.stdout
    assert "table for two" not in result.stdout


def test_calls_may_be_kept_in_the_application_s_own_log(run: Run, tmp_path: Path) -> None:
    assert run("web", "--target", "simulated.py", "--keep").exit_code == 0
    assert (tmp_path / "millis_hooks.db").exists()


def test_many_calls_are_summarized(run: Run) -> None:
    many = ("--count", "20", "--concurrency", "5")
    result = run("web", "--target", "simulated.py", *many)
    assert result.exit_code == 0
    assert "web: 20 calls in" in result.stdout
    told = json.loads(run("web", "--target", "simulated.py", *many, "--json").stdout)
    assert (told["prefetch"]["count"], told["end_of_call"]["failed"]) == (20, 0)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], "Name a scenario"),
        (["inbuond"], "Did you mean 'inbound'?"),
        (["web", "--target", "gone.py"], "There is no file gone.py"),
        (["web", "--target", "support.sites:free_port"], "is not a MillisHooks"),
        (["web", "--url", "localhost"], "begins with https://"),
        (["web", "--url", "https://hooks.example.com"], "is not on this machine"),
    ],
)
def test_invalid_arguments_of_simulate_end_with_2(run: Run, args: list[str], why: str) -> None:
    result = run(*args)
    assert (result.exit_code, why in result.stderr) == (2, True), result.output


def test_a_service_under_dev_is_simulated_and_its_handlers_are_seen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    with serving(tmp_path, "dev", "simulated.py", "--no-reload") as url:
        result = run("inbound", "--url", url)
        load = run("web", "--url", url, "--count", "5", "--json")
    assert result.exit_code == 0, result.output
    assert "handler book: succeeded" in result.stdout
    assert json.loads(load.stdout)["calls"] == 5


def test_a_service_without_a_sandbox_refuses_simulated_calls(run: Run, tmp_path: Path) -> None:
    with serving(tmp_path, "run", "simulated.py") as url:
        result = run("inbound", "--url", url)
    assert result.exit_code == 1
    assert "The service has no sandbox" in result.stderr
    assert not (tmp_path / "booked").exists()


def test_an_unreachable_service_ends_with_1(run: Run) -> None:
    result = run("web", "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "All connection attempts failed" in result.stdout
    assert "call log is not at hand" in result.stderr
