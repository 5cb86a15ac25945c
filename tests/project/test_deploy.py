"""What `examples/deploy` has for each place to serve from, as that place's own tool reads it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from millis_hooks.environment.sources import ENV_PREFIX
from millis_hooks.protocol.samples import end_of_call_body
from millis_hooks.server import ABANDON_S, Limits
from millis_hooks.settings import Settings
from support.app import AUTHORIZED, END_OF_CALL, PREFETCH, SECRET
from support.paths import ROOT
from support.programs import SCRIPT, Program
from support.proxies import FOLDER, ask, in_front, tool
from support.sites import free_port
from support.waiting import eventually

FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
MANIFESTS = sorted(FOLDER.glob("kubernetes*.yaml"))
DOMAIN = {"HOOKS_DOMAIN": "hooks.example.com"}


def check(name: str, *arguments: object, **variables: str) -> None:
    """Run a tool over a file; what it says is why the test fails."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def compose() -> Any:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def manifests() -> Iterator[Any]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def deployments() -> Iterator[Any]:
    return (each for each in manifests() if each["kind"] == "Deployment")


def unit() -> str:
    return (FOLDER / "millis-hooks.service").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.app"])
def test_the_dockerfiles_are_as_hadolint_wants_them(name: str) -> None:
    check("hadolint", FOLDER / name)


def test_the_image_is_made_of_files_that_are_there_and_let_through() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    default = dict(line.split()[1].split("=", 1) for line in lines if line.startswith("ARG "))
    copied = [line.split()[1:-1] for line in lines if re.match(r"COPY (?!--from)", line)]
    names = [name.replace("${APP}", default["APP"]) for names in copied for name in names]
    let_through = (FOLDER / "Dockerfile.dockerignore").read_text()
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert [n for n in names if f"!{n}\n" not in let_through and "examples" not in n] == []


def test_the_compose_file_keeps_to_its_schema() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml")


def test_what_the_compose_file_asks_for_is_in_the_example_of_an_env_file() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    assert asked
    assert asked <= set(re.findall(r"^(\w+)=", (FOLDER / ".env.example").read_text(), re.M))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_manifests_keep_to_the_schemas_of_kubernetes(path: Path) -> None:
    check("kubernetes-validate", "--strict", path)


def test_a_rollout_takes_no_pod_away_before_another_is_there() -> None:
    (web,) = (each for each in deployments() if each["metadata"]["name"] == "millis-hooks")
    assert web["spec"]["replicas"] >= 2
    assert web["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    installed = unit().replace("/opt/millis-hooks/venv/bin/millis-hooks", sys.executable)
    copy = tmp_path / "millis-hooks.service"
    copy.write_text(installed)
    check("systemd-analyze", "verify", copy)
    check("systemd-analyze", "security", "--offline=yes", "--threshold=20", copy)


def test_haproxy_takes_its_configuration() -> None:
    check("haproxy", "-c", "-f", FOLDER / "haproxy.cfg")


@pytest.mark.parametrize("name", ["Caddyfile", "machine.Caddyfile", "below-a-path.Caddyfile"])
def test_caddy_takes_its_configuration(name: str) -> None:
    caddyfile = FOLDER / name
    check("caddy", "validate", "--adapter", "caddyfile", "--config", caddyfile, **DOMAIN)
    check("caddy", "fmt", "--diff", caddyfile)


def stops() -> Iterator[tuple[str, int, float]]:
    """Each place, how long it waits for a stop, and how long a stop is put off there, in s."""
    image_s = float(re.findall(r"DRAIN_S=(\d+)", (FOLDER / "Dockerfile").read_text())[0])
    (config,) = (each for each in manifests() if each["kind"] == "ConfigMap")
    kubernetes_s = float(config["data"]["MILLIS_HOOKS_DRAIN_S"])
    yield "systemd", int(re.findall(r"TimeoutStopSec=(\d+)", unit())[0]), 0
    yield "fly", int(tomllib.loads((FOLDER / "fly.toml").read_text())["kill_timeout"][:-1]), image_s
    for name in ("hooks-1", "hooks-2", "worker"):
        yield name, int(compose()["services"][name]["stop_grace_period"][:-1]), image_s
    for each in deployments():
        grace_s = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        yield each["metadata"]["name"], grace_s, kubernetes_s


@pytest.mark.parametrize(("place", "patience_s", "drain_s"), [*stops()])
def test_every_place_waits_longer_than_a_stop_takes(
    place: str, patience_s: int, drain_s: float
) -> None:
    handlers_s = Settings.model_fields["handler_grace_s"].default
    at_most_s = drain_s + Limits().graceful_shutdown_s + 2 * ABANDON_S + handlers_s
    assert patience_s > at_most_s + 15, place


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(rf"\b{ENV_PREFIX}([A-Z_]+)\b", path.read_text()))
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def believed() -> Iterator[tuple[str, str]]:
    """Each file, and whom the service believes that is started with it."""
    yield "fly.toml", tomllib.loads((FOLDER / "fly.toml").read_text())["env"]["FORWARDED_ALLOW_IPS"]
    for name in ("hooks-1", "hooks-2", "worker"):
        yield name, compose()["services"][name]["environment"]["FORWARDED_ALLOW_IPS"]
    (config,) = (each for each in manifests() if each["kind"] == "ConfigMap")
    yield "kubernetes.yaml", config["data"]["FORWARDED_ALLOW_IPS"]


@pytest.mark.parametrize(("place", "proxies"), [*believed()])
def test_a_client_cannot_choose_the_address_its_guesses_count_for(place: str, proxies: str) -> None:
    for trusted in proxies.split(","):
        assert ip_network(trusted).is_private, place
        proxy = str(ip_network(trusted)[7])
        for forged in ("", "198.51.100.6, ", f"{proxy}, ", "127.0.0.1, "):
            assert seen_by(proxies, proxy, f"{forged}203.0.113.9") == "203.0.113.9"
        assert seen_by(proxies, "203.0.113.9", "198.51.100.6") == "203.0.113.9"


def test_every_place_that_believes_a_proxy_is_looked_at() -> None:
    named = {path.name for path in FILES if "FORWARDED_ALLOW_IPS" in path.read_text()}
    assert named == {"fly.toml", "compose.yaml", "kubernetes.yaml"}


def seen_by(proxies: str, peer: str, forwarded_for: str) -> str:
    """The address that a request has which `peer` hands on."""
    seen: list[str] = []

    async def note(scope: Any, *_: Any) -> None:
        seen.append(scope["client"][0])

    header = (b"x-forwarded-for", forwarded_for.encode())
    scope: Any = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": [header]}
    asyncio.run(ProxyHeadersMiddleware(note, trusted_hosts=proxies)(scope, None, None))  # type: ignore[arg-type]
    return seen[0]


@pytest.fixture(scope="module")
def below_voice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a replica that is served below a path."""
    folder, public = tmp_path_factory.mktemp("voice"), "https://example.com/voice"
    with replica(folder, secrets=SECRET, public_url=public) as (_, port):
        yield port


PROXIES = sorted(path.name for path in FOLDER.glob("*.nginx.conf"))
PROXIES += ["haproxy.cfg", "machine.Caddyfile", "below-a-path.Caddyfile"]


@pytest.mark.parametrize("file", PROXIES)
def test_webhooks_pages_and_large_requests_pass_every_proxy(
    file: str, below_voice: int, tmp_path: Path
) -> None:
    query = urlencode({"session_id": "-S", "metadata": "x" * 30_000})
    body = end_of_call_body(session_id="-S", metadata={"note": "x" * 9_000_000})
    with in_front(file, below_voice, tmp_path) as address:
        prefetch = f"/voice{PREFETCH.partition('?')[0]}?{query}"
        assert ask(address, prefetch).status == 200
        assert ask(address, f"/voice{END_OF_CALL}", body).status == 200
        page = ask(address, "/voice/calls")
        assert (page.status, page.headers["location"]) == (303, "/voice/login")
        if file.startswith("below"):
            assert ask(address, "/calls").status == 200  # of the site around it
            assert ask(address, "/voice").headers["location"].endswith("/voice/")


@contextmanager
def replica(folder: Path, **settings: str) -> Iterator[tuple[Program, int]]:
    port = free_port()
    target = str(ROOT / "examples" / "quickstart.py")
    command = [SCRIPT, "run", target, "--port", str(port)]
    variables = {f"{ENV_PREFIX}{name.upper()}": value for name, value in settings.items()}
    with Program(command, folder=folder, variables=variables) as process:
        try:
            eventually(lambda: answered(port, "/readyz")[0] == 200, deadline_s=30)
            yield process, port
        finally:
            process.kill()


def answered(port: int, path: str, body: bytes | None = None) -> tuple[int, str | None]:
    """Ask on a new connection; the status, 0 if nobody listens, and what becomes of it."""
    asking = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        asking.request("POST" if body else "GET", path, body, AUTHORIZED)
        answer = asking.getresponse()
        return answer.status, answer.headers["connection"]
    except ConnectionRefusedError:
        return 0, None
    finally:
        asking.close()


def test_a_replica_says_that_it_stops_and_serves_on_meanwhile(tmp_path: Path) -> None:
    with replica(tmp_path, secrets=SECRET, drain_s="60") as (process, port):
        process.send_signal(signal.SIGTERM)
        eventually(lambda: answered(port, "/readyz")[0] == 503)
        assert answered(port, "/healthz")[0] == 200
        assert answered(port, END_OF_CALL, end_of_call_body(session_id="-S")) == (200, "close")
        process.send_signal(signal.SIGINT)  # whoever insists does not wait
        assert process.wait(20) == 0
