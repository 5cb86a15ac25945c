"""Imports only go down: a module imports from its own folder and from the layers below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "millis_hooks"

#: From the bottom to the top; those of one layer import nothing of one another.
LAYERS: list[set[str]] = [
    {"exceptions", "version"},
    {"protocol"},
    {"environment"},
    {"settings"},
    {"masking"},
    {"handlers"},
    {"call_log"},
    {"operators", "millis_api"},
    {"observability"},
    {"runs"},
    {"webhooks"},
    {"checks", "sandbox"},
    {"dashboard"},
    {"service"},
    {"app"},
    {"server"},
    {"testing"},
    {"cli"},
    {"__main__"},
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imported_by(module: str) -> frozenset[str]:
    """Return what a module imports of the package, also for types and inside functions."""
    return frozenset(_imported(module))


def _imported(module: str) -> Iterator[str]:
    is_folder = PATHS[module].name == "__init__.py"
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in PATHS)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_folder]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in PATHS or base in PATHS:
                    yield full if full in PATHS else base


def unit(module: str) -> str:
    """Return the file or folder at the top that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_every_file_and_folder_at_the_top_has_its_layer() -> None:
    assert {unit(module) for module in PATHS} - {""} == RANKS.keys()


def test_imports_only_go_down() -> None:
    upward = [
        f"{module} imports {other}"
        for module in PATHS
        for other in imported_by(module)
        if unit(module) and unit(other) and unit(module) != unit(other)
        if RANKS[unit(other)] >= RANKS[unit(module)]
    ]
    assert not upward


def test_no_modules_import_one_another_in_a_circle() -> None:
    imports = {module: imported_by(module) - {module, "millis_hooks"} for module in PATHS}
    imports.pop("millis_hooks")  # its names are looked up when they are used
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_webhooks_and_the_pages_meet_only_in_the_call_log() -> None:
    for module in PATHS:
        if unit(module) == "dashboard":
            endpoints = {"millis_hooks.webhooks.prefetch", "millis_hooks.webhooks.end_of_call"}
            assert not imported_by(module) & endpoints, module


def test_the_call_log_and_the_protocol_know_no_http() -> None:
    for module, path in PATHS.items():
        if unit(module) in {"call_log", "protocol"}:
            assert "starlette" not in path.read_text(), module
