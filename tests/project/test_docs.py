"""What the documents say is so: their code runs, their commands, settings and files exist."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
import typer.main
import yaml

from millis_hooks.cli.commands import app as command_line
from millis_hooks.environment.sources import ENV_PREFIX
from millis_hooks.settings import Settings
from support.documents import PAGES, Block, blocks, commands, links
from support.paths import ROOT
from support.programs import SCRIPT, pytest_in, run

#: What typer raises for every command it cannot parse; it exports only kinds of it.
UsageError: Any = typer.BadParameter.__base__

SETTING = re.compile(rf"\b{ENV_PREFIX}([A-Z][A-Z_]*[A-Z])\b")
PATH = re.compile(
    r"(?<![\w./-])(?:millis_hooks|templates|examples|benchmarks|tests|docs|\.ci)/[\w./-]*\w"
)
PARSERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}

GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def compiled(page: Path, block: Block) -> Any:
    """Compile a block so that errors name the page and the line in it."""
    return compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)


@cache
def whole_command_line() -> Any:
    return typer.main.get_command(command_line)


def parse_command(words: list[str]) -> None:
    """Parse what follows `millis-hooks`; raises `UsageError` as the command line would."""
    command = whole_command_line()
    context = command.make_context("millis-hooks", list(words))
    while isinstance(command, typer.core.TyperGroup):
        left = [*context._protected_args, *context.args]
        name, found, left = command.resolve_command(context, left)
        assert name
        assert found
        context = found.make_context(name, left, parent=context)
        command = found


def blocks_of_all_pages(*languages: str) -> Iterator[tuple[Path, Block]]:
    for page in PAGES:
        for block in blocks(page, *languages):
            yield page, block


def of_ours(words: list[str]) -> list[str] | None:
    """Return the arguments of `millis-hooks`, if that is the program."""
    program = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    return program[1:] if program and Path(program[0]).name == "millis-hooks" else None


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text()],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_runs_from_top_to_bottom(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem, "__file__": str(page)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks(page, "python"):
            code = compiled(page, block)
            if not block.excused:
                exec(code, namespace)


def test_commands_are_those_of_the_command_line() -> None:
    wrong = []
    for page, block in blocks_of_all_pages("console", "sh", "bash"):
        for words in commands(block):
            arguments = of_ours(words)
            try:
                if arguments is not None:
                    parse_command(arguments)
            except UsageError as error:
                wrong.append(f"{page}: {' '.join(words)}: {error.format_message()}")
            except typer.Exit:  # --help, --version
                pass
    assert not wrong


def test_data_can_be_parsed() -> None:
    wrong = []
    for page, block in blocks_of_all_pages(*PARSERS):
        try:
            if not block.excused:
                PARSERS[block.language](block.text)
        except (ValueError, yaml.YAMLError) as error:
            wrong.append(f"{page}:{block.line}: {error}")
    assert not wrong


def test_settings_exist() -> None:
    named = {(page, name.lower()) for page in PAGES for name in SETTING.findall(page.read_text())}
    assert {(page, name) for page, name in named if name not in Settings.model_fields} == set()


def test_every_file_and_folder_named_exists() -> None:
    named = {(page, name) for page in PAGES for name in PATH.findall(page.read_text())}
    built = "docs/_build/"  # by `.ci/docs`, which need not have run here
    missing = ((page, name) for page, name in named if not (ROOT / name).exists())
    assert [(page, name) for page, name in missing if not name.startswith(built)] == []


def test_generated_parts_are_those_of_the_code_and_the_examples() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in GENERATE["pages"]()}
    old = [page for page, text in texts.items() if GENERATE["up_to_date"](text) != text]
    assert not old, "run: python docs/generate.py"


def test_links_lead_somewhere() -> None:
    """In pages that are not a part of the site, whose build looks at its own."""
    pages = (page for page in PAGES if ROOT / "docs" not in page.parents)
    named = ((page, link) for page in pages for link in links(page))
    assert [(page, link) for page, link in named if not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_tutorial_s_tests_pass(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    app, tests = (block.text for block in blocks(page, "python") if not block.excused)
    (customers,) = (block.text for block in blocks(page, "text"))
    shop = tmp_path / "shop"
    assert run([SCRIPT, "new", str(shop)]).returncode == 0
    (shop / "app.py").write_text(app)
    (shop / "test_app.py").write_text(tests)
    (shop / "customers.csv").write_text(customers)
    with (shop / ".env").open("a") as settings:
        settings.write("MILLIS_HOOKS_OWN_NUMBERS=+14155550199\n")
    done = pytest_in(shop)
    assert "3 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "words", ["nonsense", "calls --nonsense", "show", "calls --limit many", "send nonsense"]
)
def test_a_wrong_command_would_be_found(words: str) -> None:
    with pytest.raises(UsageError):
        parse_command(words.split())
