"""What examples and documents put where a secret belongs starts no service."""

from __future__ import annotations

import re

import pytest

from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import Settings
from support.paths import ROOT

SET = re.compile(
    r"MILLIS_HOOKS_((?:[A-Z_]+_)?(?:SECRETS|PASSWORD|KEY|TOKEN)|DATABASE_URL)(?:=|: | = )"
    r"('[^'\n]*'|\"[^\"\n]*\"|[^\s`\"#|,;)]+(?: rand -[a-z0-9]+ \d+\))?)"
)
#: What the sandbox takes, which asks for no key.
ANY = "any"


def placeholders() -> list[tuple[str, str]]:
    pages = [*(ROOT / "examples").rglob("*"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    made = {"_build", "__pycache__"}
    texts = (page.read_text() for page in pages if page.is_file() and not made & set(page.parts))
    found = {(match[1], match[2].strip("'\"")) for text in texts for match in SET.finditer(text)}
    return sorted((name, value) for name, value in found if value not in ("", ANY))


def is_without_a_secret(name: str, value: str) -> bool:
    return name == "DATABASE_URL" and not re.search(r"://[^/]*:[^/]*@", value)


def test_there_are_some() -> None:
    assert {name for name, _ in placeholders()} >= {"SECRETS", "DASHBOARD_PASSWORD", "DATABASE_URL"}


@pytest.mark.parametrize(("name", "value"), placeholders())
def test_a_placeholder_is_refused_as_it_stands(name: str, value: str) -> None:
    if is_without_a_secret(name, value):
        return
    with pytest.raises(ConfigError):
        Settings.load(**{name.lower(): value})
