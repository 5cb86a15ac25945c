"""Reverse proxies with the configurations of `examples/deploy`, each on a free port."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path

import pytest

from support.app import AUTHORIZED
from support.paths import ROOT
from support.sites import free_port
from support.waiting import eventually

FOLDER = ROOT / "examples" / "deploy"

#: What a site's file of nginx is included in, with folders that an ordinary user may write to.
_NGINX = """
daemon off;
pid nginx.pid;
error_log stderr;
{user}
events {{}}
http {{
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include site.conf;
}}
"""


def tool(name: str) -> str:
    """Find a program, beside this Python first; without it the test is skipped."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    return shutil.which(name, path=path) or pytest.skip(f"there is no {name} here")


@contextmanager
def in_front(file: str, port: int, folder: Path) -> Iterator[str]:
    """Serve what listens on `port` as this file of `examples/deploy` says; yield the address."""
    own_port = free_port()
    text = re.sub(r"127\.0\.0\.1:800\d", f"127.0.0.1:{port}", (FOLDER / file).read_text())
    scheme, command = _COMMANDS[file.rpartition(".")[2]](text, own_port, folder)
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"HOME": str(folder)}) as process:
        try:
            eventually(lambda: process.poll() is not None or is_open(own_port))
            assert process.poll() is None, f"{command[0]} has ended with {process.returncode}"
            yield f"{scheme}://127.0.0.1:{own_port}"
        finally:
            process.terminate()


def ask(address: str, path: str, body: bytes | None = None) -> HTTPResponse:
    """Send a request with the secret, also to a server whose certificate is its own."""
    host, unverified = address.rpartition("/")[2], ssl._create_unverified_context()
    asking = (
        HTTPSConnection(host, timeout=20, context=unverified)
        if address.startswith("https")
        else HTTPConnection(host, timeout=20)
    )
    with closing(asking):
        asking.request("POST" if body else "GET", path, body, AUTHORIZED)
        response = asking.getresponse()
        response.read()
        return response


def is_open(port: int) -> bool:
    """Tell whether a server listens on a port of this machine."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def _nginx(text: str, port: int, folder: Path) -> tuple[str, list[str]]:
    program = tool("nginx")
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/var/log/nginx/", "")
    text = re.sub(r"/etc/letsencrypt/\S+/(\w+\.pem)", r"\1", text)
    make_certificate(folder)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "site.conf").write_text(text)
    (folder / "nginx.conf").write_text(_NGINX.format(user=user))
    command = [program, "-p", str(folder), "-c", "nginx.conf"]
    subprocess.run([*command, "-t", "-q"], check=True, timeout=60)
    return "https", command


def make_certificate(folder: Path) -> None:
    """Write a certificate and its key, named as Let's Encrypt does."""
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    files = ("-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem"))
    command = [tool("openssl"), "req", *kind, *files, "-subj", "/CN=127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _caddy(text: str, port: int, folder: Path) -> tuple[str, list[str]]:
    program = tool("caddy")
    text = text.replace("{\n\t# Log", "{\n\tadmin off\n\t# Log", 1)
    text = re.sub(r"^(hooks\.)?example\.com", f"http://127.0.0.1:{port}", text, flags=re.M)
    (folder / "Caddyfile").write_text(text)
    return "http", [program, "run", "--adapter", "caddyfile", "--config", "Caddyfile"]


def _haproxy(text: str, port: int, folder: Path) -> tuple[str, list[str]]:
    program = tool("haproxy")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = text.replace("/run/haproxy/", f"{folder}/")
    (folder / "haproxy.cfg").write_text(text)
    return "http", [program, "-q", "-f", "haproxy.cfg"]


_COMMANDS = {"conf": _nginx, "Caddyfile": _caddy, "cfg": _haproxy}
