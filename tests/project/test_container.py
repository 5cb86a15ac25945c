"""The steps of the Dockerfiles, carried out in a folder that stands for the root of the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from millis_hooks.protocol.samples import end_of_call_body
from support.app import END_OF_CALL, PREFETCH, SECRET
from support.paths import ROOT
from support.proxies import FOLDER, ask, is_open
from support.sites import free_port
from support.waiting import eventually

#: The folders of the image, wherever a command names them.
_OURS = re.compile(r"(?<![\w./-])/(?=(src|wheels|venv|app|data)\b)")

APP = """
import iniconfig, greetings
from millis_hooks import MillisHooks

hooks = MillisHooks()
hooks.on_prefetch(greetings.greet)
"""
GREETINGS = """
def greet(call):
    return "Be kind."
"""


class Image:
    """An image in a folder. Its build knows the instructions that our files have."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.command: list[str] = []
        self.health: list[str] = []
        self._work = folder

    def build(self, file: Path, context: Path, **arguments: str) -> None:
        """Carry out every step of a Dockerfile."""
        text = re.sub(r"^#.*\n|\\\n", "", file.read_text(), flags=re.MULTILINE)
        ignored = re.findall(r"^(?:\*\*/)?([^*!].*|\*\..*)$", ignore_file(file), re.MULTILINE)
        self._ignore = shutil.ignore_patterns(*ignored)
        for line in filter(None, map(str.strip, text.splitlines())):
            step, _, rest = line.partition(" ")
            if step == "ARG":
                name, _, default = rest.partition("=")
                rest, step = f"{name}={arguments.get(name, default)}", "ENV"
            getattr(self, f"_{step.lower()}", lambda _: None)(rest, *[context] * (step == "COPY"))

    def run(self, command: list[str] | str, port: int = 8000) -> subprocess.Popen[bytes]:
        """Start a command of the image, on another port."""
        text = command if isinstance(command, str) else shlex.join(command)
        inside = _OURS.sub(f"{self.root}/", text).replace("8000", str(port))
        environment = {"HOME": str(self.root), **self.environment}
        return subprocess.Popen(["sh", "-ec", inside], cwd=self._work, env=environment)

    def _workdir(self, path: str) -> None:
        self._work = self.root / path.lstrip("/")
        self._work.mkdir(exist_ok=True)

    def _env(self, text: str) -> None:
        for pair in shlex.split(text):
            name, _, value = pair.partition("=")
            value = value.replace("$PATH", self.environment["PATH"])
            self.environment[name] = re.sub(r"(?<![\w.-])/(venv|data)\b", rf"{self.root}/\1", value)

    def _copy(self, text: str, context: Path) -> None:
        *sources, target = text.replace("${APP}", self.environment.get("APP", "")).split()
        if sources[0].startswith("--from"):
            assert (self.root / sources[1].lstrip("/")).exists()
            return
        for source in sources:
            place = self._work / _OURS.sub(f"{self.root}/", target)
            if (context / source).is_dir():
                shutil.copytree(context / source, place, ignore=self._ignore, dirs_exist_ok=True)
            else:
                place = place / source if target.endswith("/") else place
                place.parent.mkdir(exist_ok=True)
                shutil.copy(context / source, place)

    def _run(self, text: str) -> None:
        if not text.startswith("useradd"):
            assert self.run(text).wait(600) == 0, text

    def _cmd(self, text: str) -> None:
        self.command = json.loads(text)

    def _healthcheck(self, text: str) -> None:
        self.health = json.loads(text.partition(" CMD ")[2])


def ignore_file(dockerfile: Path) -> str:
    return dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_steps_of_the_dockerfiles_make_a_service(tmp_path: Path) -> None:
    context = tmp_path / "my-app"
    context.mkdir()
    for name, text in (("app.py", APP), ("greetings.py", GREETINGS), (".env", "A=1")):
        (context / name).write_text(text)
    (context / "requirements.txt").write_text("iniconfig\n")
    image = Image(tmp_path / "image")
    image.root.mkdir()
    image.build(FOLDER / "Dockerfile", ROOT)
    image.build(FOLDER / "Dockerfile.app", context)
    assert not (image.root / "app" / ".env").exists()
    image.environment["MILLIS_HOOKS_SECRETS"] = SECRET
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with image.run(["exec", *image.command], port) as service:
        try:
            eventually(lambda: is_open(port))
            assert image.run(image.health, port).wait(30) == 0
            assert ask(address, PREFETCH).status == 200
            assert ask(address, END_OF_CALL, end_of_call_body()).status == 200
        finally:
            service.terminate()
    assert (image.root / "data" / "millis_hooks.db").exists()
