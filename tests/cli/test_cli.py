"""The command line: in this process where it only prints, as a process where it serves."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from dotenv import dotenv_values
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from millis_hooks import MillisHooks, PrefetchRequest, PrefetchResponse, __version__
from millis_hooks.call_log import CallLog
from millis_hooks.cli.commands import COMMANDS, app, load_command
from millis_hooks.protocol.samples import (
    AGENT_ID,
    VINTAGES,
    Vintage,
    end_of_call_body,
    prefetch_query,
)
from millis_hooks.version import requirement
from support import programs
from support.paths import ROOT
from support.programs import SCRIPT, Program, pytest_in
from support.sites import free_port
from support.waiting import eventually

EXAMPLES = ROOT / "examples"
SECRET = "a-secret-for-the-tests-of-the-cli"
BEARER = {"Authorization": f"Bearer {SECRET}"}
SESSION = "-OA1XVnw"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder, under no settings but those it is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def command(*args: str, **settings: str) -> Result:
        env = {f"MILLIS_HOOKS_{name.upper()}": value for name, value in settings.items()}
        return CliRunner().invoke(app, args, env=env)

    return command


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the starter."""
    folder = tmp_path_factory.mktemp("served") / "shop"
    assert CliRunner().invoke(app, ["new", str(folder)]).exit_code == 0
    (folder / ".env").write_text(f"MILLIS_HOOKS_SECRETS={SECRET}\n")
    return folder


@pytest.fixture(scope="module")
def service(shop: Path) -> Iterator[str]:
    """The starter, served by `run`."""
    port = free_port()
    with started(shop, "run", "app.py", "--port", str(port)) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "serving app:hooks" in line)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(folder: Path, *args: str) -> Iterator[Program]:
    with Program([SCRIPT, *args], folder=folder, stdout=PIPE, stderr=PIPE) as it:
        try:
            yield it
        finally:
            it.terminate()
            it.communicate(timeout=30)


@contextmanager
def started_anew(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Start it with an interpreter of its own: what reloads starts others."""
    command, pipe = [sys.executable, "-m", "millis_hooks", *args], subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, text=True, stdout=pipe, stderr=pipe) as it:
        try:
            yield it
        finally:
            it.terminate()
            it.communicate(timeout=30)


def store(folder: Path, vintage: Vintage | None = "v2", session_id: str = SESSION) -> None:
    """Have a call begin, end unless it has no vintage, and be processed."""
    hooks = MillisHooks(secrets=SECRET, database_url=f"sqlite:///{folder}/millis_hooks.db")

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        return PrefetchResponse(extra_prompt="Be kind.", keep={"variant": "short"})

    with TestClient(hooks, headers=BEARER) as client:
        client.get(f"/millis/prefetch?{prefetch_query(session_id=session_id)}")
        if vintage is not None:
            body = end_of_call_body(vintage, session_id=session_id)
            client.post("/millis/end-of-call", content=body)
    log = CallLog(hooks.settings.database_url)
    while log.processor.process_chunk():
        pass
    log.close()


def test_the_version_is_reported(run: Run) -> None:
    assert run("--version").stdout == f"millis-hooks {__version__}\n"


@pytest.mark.parametrize(
    "command", ["", "new", "dev", "run", "config", "calls", "show", "runs", "replay", "send"]
)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"millis-hooks {command}".strip() in result.stdout.replace("root", "millis-hooks")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_says_of_a_command_what_its_own_help_says(command: str) -> None:
    loaded = load_command(command)
    assert (loaded.help or "").partition("\n")[0] == COMMANDS[command][1]


def test_a_starter_has_secrets_that_only_its_owner_can_read(run: Run, tmp_path: Path) -> None:
    assert run("new", "shop").exit_code == 0
    file = tmp_path / "shop" / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.search(r"^MILLIS_HOOKS_SECRETS=[0-9a-f]{64}$", file.read_text(), re.MULTILINE)


def test_a_starter_requires_this_package_as_it_is_installed(run: Run, tmp_path: Path) -> None:
    run("new", "My shop")
    project = tomllib.loads((tmp_path / "My shop" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-shop"
    assert project["project"]["dependencies"] == [requirement()]
    assert project["dependency-groups"]["dev"]


def test_no_two_starters_have_the_same_secrets(run: Run, tmp_path: Path) -> None:
    run("new", "a")
    run("new", "b")
    assert (tmp_path / "a/.env").read_text() != (tmp_path / "b/.env").read_text()


def test_the_tests_of_a_starter_pass(run: Run, tmp_path: Path) -> None:
    run("new", "shop")
    assert "3 passed" in pytest_in(tmp_path / "shop").stdout


def test_a_starter_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused = run("new", ".")
    assert (refused.exit_code, "not empty" in refused.stderr) == (2, True)
    assert run("new", "notes.txt").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_run_refuses_to_start_open_and_says_what_to_do(run: Run, tmp_path: Path) -> None:
    run("new", "shop")
    (tmp_path / "shop/.env").unlink()
    tried = programs.run([SCRIPT, "run", "app.py"], folder=tmp_path / "shop")
    assert tried.returncode == 2
    assert "export MILLIS_HOOKS_SECRETS" in tried.stderr
    assert "Traceback" not in tried.stderr


@pytest.mark.parametrize("command", ["run", "worker"])
def test_a_call_log_that_cannot_be_opened_is_reported_in_one_line(
    run: Run, tmp_path: Path, command: str
) -> None:
    run("new", "shop")
    (tmp_path / "shop/millis_hooks.db").write_text("this is a shopping list, and no database")
    arguments = [SCRIPT, command, "app.py", "--port", str(free_port())]
    tried = programs.run(arguments, folder=tmp_path / "shop")
    told = tried.stderr.splitlines()[-1]
    assert (tried.returncode, told.count("Error: ")) == (2, 1)
    assert "is not a call log: file is not a database" in told
    assert "uvicorn" not in tried.stderr


def test_run_ends_when_it_is_asked_to(run: Run, tmp_path: Path) -> None:
    run("new", "shop")
    args = ("run", "app.py", "--port", str(free_port()))
    with started(tmp_path / "shop", *args) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "serving app:hooks" in line)
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["run", "dev", "calls", "send prefetch"])
def test_a_wrong_setting_is_reported_without_a_traceback(run: Run, command: str) -> None:
    shutil.copy(EXAMPLES / "quickstart.py", "quick_wrong.py")
    target = ["quick_wrong.py"] if command in {"run", "dev"} else []
    result = run(*command.split(), *target, max_body_bytes="many")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: MILLIS_HOOKS_MAX_BODY_BYTES: ")


def test_dev_makes_secrets_that_reach_the_reloading_process(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from millis_hooks import MillisHooks\nh = MillisHooks()\n")
    with started_anew(tmp_path, "dev", "app.py", "--port", str(free_port())) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        command = next(line for line in lines if "millis-hooks send end-of-call" in line)
        kept = next(line for line in lines if "MILLIS_HOOKS_SECRETS=" in line)
        sent = run(*command.split()[1:])
    assert (sent.exit_code, "200 OK" in sent.stdout) == (0, True)
    assert kept.strip().removeprefix("MILLIS_HOOKS_SECRETS=") not in command


def test_dev_tells_no_secret_that_is_already_set(run: Run, tmp_path: Path) -> None:
    run("new", "shop")
    given = dotenv_values(tmp_path / "shop/.env")
    port = str(free_port())
    with started(tmp_path / "shop", "dev", "app.py", "--no-reload", "--port", port) as process:
        assert process.stdout is not None
        shown = [next(process.stdout) for _ in range(7)]
    assert f"Dashboard    http://127.0.0.1:{port}/calls\n" in shown
    assert not any(value in "".join(shown) for value in given.values() if value)


def test_dev_tells_no_secret_that_the_application_does_not_use(run: Run, tmp_path: Path) -> None:
    settings = f"secrets={SECRET!r}, dashboard_password={SECRET!r}"
    code = f"from millis_hooks import MillisHooks\nh = MillisHooks({settings})\n"
    (tmp_path / "own.py").write_text(code)
    port = str(free_port())
    with started(tmp_path, "dev", "own.py", "--no-reload", "--port", port) as process:
        assert process.stdout is not None
        shown = "".join(next(process.stdout) for _ in range(9))
    assert "password from your settings" in shown
    assert "--secret" not in shown
    assert "MILLIS_HOOKS_SECRETS=" not in shown


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({}, "export MILLIS_HOOKS_SECRETS"), ({"insecure": "1"}, "MILLIS_HOOKS_EXPOSED=1")],
)
def test_dev_is_not_for_others_without_secrets_or_a_second_word(
    run: Run, tmp_path: Path, settings: dict[str, str], remedy: str
) -> None:
    (tmp_path / "open_app.py").write_text(
        "from millis_hooks import MillisHooks\nh = MillisHooks()\n"
    )
    refused = run("dev", "open_app.py", "--host", "0.0.0.0", **settings)
    assert refused.exit_code == 2
    assert remedy in refused.stderr


def test_config_is_the_json_that_millis_takes(run: Run) -> None:
    result = run("config", "--url", "https://hooks.example/", secrets=SECRET)
    assert json.loads(result.stdout) == {
        "extra_prompt_webhook": {"url": "https://hooks.example/millis/prefetch", "headers": BEARER},
        "session_data_webhook": {
            "url": "https://hooks.example/millis/end-of-call",
            "headers": BEARER,
        },
    }
    assert result.stderr == ""


def test_config_as_a_string_has_the_secret_in_the_path_and_warns(run: Run) -> None:
    settings = {"secrets": "a/secret of 24 characters", "secret_in_path": "1"}
    result = run("config", "--url", "https://h.example", "--as", "string", **settings)
    url = "https://h.example/millis/a%2Fsecret%20of%2024%20characters/prefetch"
    assert json.loads(result.stdout)["extra_prompt_webhook"] == url
    assert "logs" in result.stderr


def test_config_uses_the_secret_of_the_agent_it_is_for(run: Run) -> None:
    bound = json.dumps({"-Ox1": ["the-secret-of-agent-one"]})
    settings = {"agent_secrets": bound, "secret_header": "X-Key"}
    own = run("config", "--url", "https://h.example", "--agent-id", "-Ox1", **settings)
    webhook = json.loads(own.stdout)["session_data_webhook"]
    assert webhook["headers"] == {"X-Key": "the-secret-of-agent-one"}
    assert "--agent-id" in run("config", "--url", "https://h.example", **settings).stderr


def test_config_reads_settings_that_are_given_in_code(run: Run, tmp_path: Path) -> None:
    code = f"from millis_hooks import MillisHooks\nh = MillisHooks(secrets={SECRET!r}, prefix='/m')"
    (tmp_path / "shop_in_code.py").write_text(code)
    result = run("config", "shop_in_code.py", "--url", "https://h.example")
    url = json.loads(result.stdout)["extra_prompt_webhook"]["url"]
    assert url == "https://h.example/m/prefetch"


def test_config_knows_where_the_application_is_mounted(run: Run) -> None:
    target = f"{EXAMPLES}/mounted_in_fastapi.py:app"
    result = run("config", target, "--url", "https://h.example", secrets=SECRET)
    url = json.loads(result.stdout)["session_data_webhook"]["url"]
    assert url == "https://h.example/hooks/millis/end-of-call"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--url", "https://h.example", "--as", "string"], "MILLIS_HOOKS_SECRET_IN_PATH=1"),
        (["--url", "hooks.example"], "begins with https://"),
        (["--url", "http://[::1"], "a port from 1 to 65535"),
        (["--url", "http://h.example"], "Use https"),
        (["--url", "https://127.0.0.1"], "tunnel"),
    ],
)
def test_config_tells_what_would_not_work(run: Run, args: list[str], told: str) -> None:
    assert told in run("config", *args, secrets=SECRET).stderr


def test_a_sample_is_marked_as_a_test_unless_it_goes_as_a_real_call(
    run: Run, service: str, shop: Path, tmp_path: Path
) -> None:
    (tmp_path / "call.json").write_text('{"session_id": "-of-a-file"}')
    (tmp_path / "call.gz").write_bytes(gzip.compress(b'{"session_id": "-compressed"}'))
    sent = [
        run("send", *what, "--url", service, "--secret", SECRET)
        for what in (
            ("prefetch", "--session-id=-test"),
            ("end-of-call", "--session-id=-test"),
            ("end-of-call", "--file=call.json"),
            ("end-of-call", "--file=call.gz"),
            ("end-of-call", "--session-id=-as-real", "--as-real"),
        )
    ]
    assert [("Marked as a test" in result.stderr) for result in sent] == [True] * 4 + [False]
    assert "it counts as a call of Millis'" in sent[-1].stderr
    with closing(sqlite3.connect(shop / "millis_hooks.db")) as log:
        ends = "SELECT session_id, source FROM deliveries WHERE kind = 'end_of_call'"
        stored = dict(log.execute(ends).fetchall())
    assert (stored["-test"], stored["-of-a-file"], stored["-as-real"]) == ("test", "test", None)
    assert stored["-compressed"] == "test"


def test_send_prefetch_shows_the_answer_and_how_long_it_took(run: Run, service: str) -> None:
    result = run("send", "prefetch", "--url", service, "--secret", SECRET)
    assert re.search(r"^200 OK in [\d.]+ ms$", result.stdout, re.MULTILINE)
    assert '{"first_name":"Ada"}' in result.stdout
    assert "outcome: fresh" in result.stdout


def test_settings_are_listed_with_their_source_and_without_secrets(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"MILLIS_HOOKS_SECRETS={SECRET}\n")
    (tmp_path / "kept.py").write_text(
        "from millis_hooks import MillisHooks\nhooks = MillisHooks(retention_days=9)\n"
    )
    result = run("settings", "kept.py", "--json", log_format="json")
    listed = {each["name"]: (each["value"], each["source"]) for each in json.loads(result.stdout)}
    assert listed["MILLIS_HOOKS_SECRETS"] == ("set", ".env")
    assert listed["MILLIS_HOOKS_LOG_FORMAT"] == ("json", "environment")
    assert listed["MILLIS_HOOKS_RETENTION_DAYS"] == ("9", "code")
    assert listed["MILLIS_HOOKS_PREFIX"] == ("/millis", "default")


def test_a_path_without_a_webhook_is_explained(run: Run, service: str) -> None:
    result = run("send", "prefetch", "--url", f"{service}/voice", "--secret", SECRET)
    assert result.exit_code == 1
    assert "prefix of its own" in result.stderr
    assert len(result.stdout.splitlines()) == 4  # no page of HTML


@pytest.mark.parametrize("vintage", VINTAGES)
def test_every_payload_format_is_answered_and_stored(run: Run, service: str, vintage: str) -> None:
    to = ["--url", service, "--secret", SECRET, "--format", vintage, "--session-id", "-S"]
    assert run("send", "prefetch", *to, "--metadata", "plan=gold").exit_code == 0
    assert run("send", "end-of-call", *to).exit_code == 0


def test_a_file_is_sent_as_it_is(run: Run, service: str, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text("no JSON at all")
    result = run("send", "end-of-call", "--url", service, "--file", "body.json", secrets=SECRET)
    assert '{"received":true}' in result.stdout


def test_a_whole_address_is_taken_as_it_is(run: Run, service: str) -> None:
    address = f"{service}/millis/prefetch"
    assert run("send", "prefetch", "--url", address, secrets=SECRET).exit_code == 0


def test_a_number_that_millis_never_sends_is_refused_with_the_option(run: Run) -> None:
    result = run("send", "end-of-call", "--to", "(415) 555-0199", secrets=SECRET)
    assert result.exit_code == 2
    assert (
        "'--to': '(415) 555-0199' is not a telephone number in international form" in result.stderr
    )


def test_a_caller_of_ones_own_is_sent(run: Run, service: str) -> None:
    result = run("send", "prefetch", "--url", service, "--from", "+14155550111", secrets=SECRET)
    assert "Ada" not in result.stdout


def test_a_wrong_secret_is_explained(run: Run, service: str) -> None:
    result = run("send", "prefetch", "--url", service, "--secret", "not-the-one")
    assert result.exit_code == 1
    assert "401" in result.stdout
    assert "--secret" in result.stderr


def test_a_webhook_that_is_not_there_is_an_error(run: Run, service: str) -> None:
    result = run("send", "prefetch", "--url", f"{service}/elsewhere/prefetch", secrets=SECRET)
    assert (result.exit_code, "has no webhook at this path" in result.stderr) == (1, True)


def test_a_server_that_does_not_speak_http_is_reported(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = run("send", "prefetch", "--url", url, secrets=SECRET)
    assert (result.exit_code, url in result.stderr) == (1, True)


def test_an_invalid_address_is_reported(run: Run) -> None:
    result = run("send", "prefetch", "--url", "http://a\x01b", secrets=SECRET)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --url 'http://a\\x01b': ")


def test_a_service_that_is_not_there_is_explained(run: Run) -> None:
    result = run("send", "prefetch", "--url", f"http://127.0.0.1:{free_port()}", secrets=SECRET)
    assert result.exit_code == 1
    assert "Nothing answers" in result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--format", "v9"], "'v1a', 'v1b', 'v2'"),
        (["--metadata", "plan"], "KEY=VALUE"),
        (["--file", "nowhere.json"], "No such file"),
        (["--url", "localhost:8000"], "begins with https://"),
    ],
)
def test_what_cannot_be_sent_is_reported(run: Run, args: list[str], told: str) -> None:
    result = run("send", "end-of-call", *args, secrets=SECRET)
    assert (result.exit_code, told in result.stderr) == (2, True)


@pytest.mark.parametrize("command", [["calls"], ["show", SESSION]])
def test_without_a_call_log_nothing_is_made(run: Run, tmp_path: Path, command: list[str]) -> None:
    result = run(*command)
    assert (result.exit_code, "There is no call log" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_call_log_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "millis_hooks.db").write_text("something else, and long enough to be read" * 50)
    result = run("calls")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_calls_are_listed_newest_first(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    store(tmp_path, session_id="-OA2later")
    lines = run("calls").stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["-OA2later", SESSION]
    assert "User ended" in lines[1]


def test_no_more_calls_are_listed_than_asked_for(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    store(tmp_path, session_id="-OA2later")
    listed = json.loads(run("calls", "--limit", "1", "--json").stdout)
    assert [call["session_id"] for call in listed] == ["-OA2later"]


def test_a_result_or_what_was_kept_is_listed_on_request(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    listed = run("calls", "--column", "keep.variant", "--column", "booked").stdout
    assert "keep.variant" in listed.splitlines()[0]
    assert "short" in listed.splitlines()[1]
    [call] = json.loads(run("calls", "--json").stdout)
    assert (call["kept"], call["results"]) == ({"keep.variant": "short"}, [])


def test_calls_are_chosen_by_the_filters_of_the_page(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    store(tmp_path, session_id="-OA2later")
    listed = json.loads(run("calls", "--q", "-OA2later", "--json").stdout)
    assert [call["session_id"] for call in listed] == ["-OA2later"]
    assert json.loads(run("calls", "--status", "busy", "--json").stdout) == []
    refused = run("calls", "--outcome", "voicmail")
    assert (refused.exit_code, "voicemail" in refused.stderr) == (2, True)


def test_a_call_that_continues_is_listed_and_shown(run: Run, tmp_path: Path) -> None:
    store(tmp_path, None)
    assert "in progress" in run("calls").stdout
    assert "in progress" in run("show", SESSION).stdout


def test_what_could_not_be_read_is_counted(run: Run, tmp_path: Path) -> None:
    hooks = MillisHooks(secrets=SECRET)
    with TestClient(hooks, headers=BEARER) as client:
        client.post("/millis/end-of-call", content=b"{")
    assert "kept as received: 1" in run("calls").stderr


def test_an_empty_call_log_says_so(run: Run, tmp_path: Path) -> None:
    CallLog(f"sqlite:///{tmp_path}/millis_hooks.db").close()
    assert run("calls").stdout.startswith("No calls yet.")
    assert run("calls", "--json").stdout == "[]\n"


@pytest.mark.parametrize("args", [[SESSION], ["--", SESSION]])
def test_a_call_is_shown_by_an_id_that_begins_with_a_dash(
    run: Run, tmp_path: Path, args: list[str]
) -> None:
    store(tmp_path)
    shown = run("show", *args).stdout
    assert "Is there a table for two on Tuesday?" in shown
    assert "Be kind." in shown


def test_what_was_kept_and_which_functions_were_called_is_shown(run: Run) -> None:
    hooks = MillisHooks(secrets=SECRET)
    hooks.on_prefetch(lambda call: {"keep": {"plan": "B"}})
    hooks.function(name="find_slot")(lambda: "free")
    with TestClient(hooks, headers=BEARER) as client:
        client.get("/millis/prefetch", params={"session_id": SESSION})
        client.post("/millis/functions/find_slot", json={"session_id": SESSION})
        client.post("/millis/end-of-call", json={"session_id": SESSION, "call_status": "busy"})
    shown = " ".join(run("show", SESSION).stdout.split())
    assert 'Kept plan "B"' in shown
    assert "Functions find_slot" in shown


def test_show_as_json_is_what_the_page_shows(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    shown = json.loads(run("show", SESSION, "--json").stdout)
    assert shown["call"]["session_id"] == SESSION
    assert shown["conversation"]["lines"][0]["role"] == "assistant"


def test_a_call_that_is_not_there_is_reported(run: Run, tmp_path: Path) -> None:
    store(tmp_path)
    result = run("show", "-nowhere")
    assert (result.exit_code, "There is no call -nowhere" in result.stderr) == (1, True)


@pytest.mark.parametrize("args", [["calls"], ["show", SESSION], ["show", SESSION, "--json"]])
def test_a_terminal_obeys_nothing_that_a_caller_said(
    run: Run, tmp_path: Path, args: list[str]
) -> None:
    store(tmp_path, "hostile")
    shown = run(*args).stdout
    assert SESSION in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", shown)


def test_markup_in_what_was_said_is_shown_as_it_is(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "hostile")
    assert "[bold]<script>alert(1)</script>" in run("show", SESSION).stdout


def test_agents_are_shown_by_the_names_in_code_then_settings_then_millis(
    run: Run, tmp_path: Path
) -> None:
    hooks = MillisHooks(secrets=SECRET, agent_names={AGENT_ID: "Desk", "-Ox2": "Bookings"})
    hooks.agent(AGENT_ID, name="Front desk")
    with TestClient(hooks, headers=BEARER) as client:
        for agent_id in (AGENT_ID, "-Ox2"):
            body = end_of_call_body(session_id=f"-of{agent_id}", agent_id=agent_id)
            client.post("/millis/end-of-call", content=body)
        assert eventually(lambda: "Front desk" in run("calls").stdout)
        assert eventually(lambda: "Bookings" in run("calls").stdout)
    [other, front] = json.loads(run("calls", "--json").stdout)
    assert (front["agent_id"], front["agent_name"]) == (AGENT_ID, "Front desk")
    assert other["agent_name"] == "Bookings"
    assert f"Front desk {AGENT_ID}" in run("show", f"-of{AGENT_ID}").stdout
