from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millis_hooks import ConfigError, RegistrationError
from millis_hooks.server.app_loader import load_target

Write = Callable[[str, str], Path]

HOOKS = "from millis_hooks import MillisHooks\nhooks = MillisHooks()\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of the working directory, forgotten by the interpreter afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    known = set(sys.modules)

    def written(name: str, code: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        return file

    yield written
    for name in sys.modules.keys() - known:
        if str(vars(sys.modules[name]).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


def refusal(target: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_target(target)
    return str(caught.value)


@pytest.mark.parametrize("name", ["shop.py", "shop.py:hooks", "shop", "shop:hooks"])
def test_a_target_is_a_file_or_a_module_with_or_without_the_name(write: Write, name: str) -> None:
    write("shop.py", HOOKS)
    found = load_target(name)
    assert found.import_string == "shop:hooks"
    assert found.app is found.hooks


def test_a_file_of_a_package_is_imported_as_its_part(write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/web.py", "from . import names\n" + HOOKS)
    write("shop/names.py", "")
    assert load_target("shop/web.py").import_string == "shop.web:hooks"


def test_a_package_itself_can_be_the_target(write: Write) -> None:
    file = write("shop/__init__.py", HOOKS)
    assert load_target(str(file)).import_string == "shop:hooks"


def test_two_names_of_one_application_are_one(write: Write) -> None:
    write("shop.py", HOOKS + "application = hooks\n")
    assert load_target("shop.py").attribute == "hooks"


def test_of_several_applications_one_must_be_named(write: Write) -> None:
    write("shop.py", HOOKS + "others = MillisHooks()\n")
    told = refusal("shop.py")
    assert "shop.py:hooks" in told
    assert "shop.py:others" in told


def test_an_application_can_be_found_where_it_is_mounted(write: Write) -> None:
    mounting = "from starlette.applications import Starlette\napp = Starlette()\n"
    write("shop.py", f"{HOOKS}{mounting}app.mount('/in', hooks)\n")
    found = load_target("shop:app")
    assert found.hooks is sys.modules["shop"].hooks
    assert found.mounted_at == "/in"


def test_an_application_of_another_kind_has_no_hooks(write: Write) -> None:
    write("shop.py", "async def app(scope, receive, send): ...\n")
    found = load_target("shop:app")
    assert (found.hooks, found.mounted_at) == (None, "")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere.py", "There is no file nowhere.py."),
        ("folder/", "It is a folder"),
        ("folder/notes.txt", "not a Python file"),
        ("nowhere", "There is no module 'nowhere'"),
        ("folder.nowhere", "There is no module 'folder.nowhere'"),
        ("plain.py", "has no MillisHooks"),
        ("plain.py:app", "plain.py has no 'app'"),
        ("plain.py:number", "is not an application but of type int"),
        ("json.py", "another module is named 'json'"),
    ],
)
def test_what_is_not_there_is_reported_in_plain_words(write: Write, target: str, told: str) -> None:
    write("plain.py", "number = 1\n")
    write("json.py", HOOKS)
    write("folder/notes.txt", "")
    assert told in refusal(target)


def test_an_error_in_the_module_shows_where_it_was_raised(write: Write) -> None:
    write("shop.py", "import prices\n")
    prices = write("prices.py", "import json\njson.loads('{')\n")
    told = refusal("shop.py")
    assert f"File \"{prices}\", line 2\n    json.loads('{{')" in told
    assert "JSONDecodeError" in told


def test_a_missing_dependency_is_not_taken_for_a_missing_target(write: Write) -> None:
    file = write("shop.py", "import no_such_library\n")
    told = refusal("shop.py")
    assert f'File "{file}", line 1' in told
    assert "No module named 'no_such_library'" in told


def test_a_syntax_error_shows_its_line(write: Write) -> None:
    write("shop.py", "hooks = = 1\n")
    told = refusal("shop.py")
    assert 'shop.py", line 1' in told
    assert "hooks = = 1" in told


def test_our_own_errors_are_passed_on_as_they_are(write: Write) -> None:
    write("shop.py", HOOKS + "@hooks.on_prefetch\ndef greet(): ...\n")
    with pytest.raises(RegistrationError):
        load_target("shop.py")
