"""What the project says of itself: its architecture, its protocol, its versions, its workflows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from test_layers import LAYERS

from millis_hooks.call_log.tables import metadata
from millis_hooks.dashboard.security import HEADERS
from millis_hooks.protocol.call_status import CallStatus, Outcome, outcome_of
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.sandbox.policy import Policy
from millis_hooks.version import __version__
from support.paths import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted(path for path in (ROOT / ".ci").iterdir() if path.suffix != ".txt")


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = section[section.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_in(file: Path) -> set[str]:
    """What a module defines at its top, and `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if hasattr(inner, "name")}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif hasattr(node, "name"):
            names.add(node.name)
    return names


@pytest.mark.parametrize(
    ("question", "file", "name"), rows(ARCHITECTURE, "Where is …"), ids=lambda cell: cell
)
def test_what_is_asked_for_is_where_the_page_says(question: str, file: str, name: str) -> None:
    assert name in names_in(ROOT / file), question


@pytest.mark.parametrize("way", ["A prefetch", "An end-of-call"])
def test_the_files_on_the_way_exist(way: str) -> None:
    files = [file for _, file, _ in rows(ARCHITECTURE, way)]
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_layers_are_those_that_are_checked() -> None:
    told = re.search(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert told
    assert told[1].splitlines() == [" ".join(sorted(layer)) for layer in LAYERS]


def test_the_tables_exist() -> None:
    told = {name for name, _ in rows(ARCHITECTURE, "The call log's tables")}
    assert told
    assert told <= metadata.tables.keys()


def test_the_threads_are_the_code_s() -> None:
    code = "".join(path.read_text() for path in (ROOT / "millis_hooks").rglob("*.py"))
    told = re.findall(r"`(millis-hooks-\w+)`", ARCHITECTURE)
    assert [name for name in told if f'name="{name}"' not in code] == []


def test_every_policy_of_the_sandbox_answers_a_question_of_the_protocol() -> None:
    named = set(re.findall(r"`(\w+)`", PROTOCOL.partition("## Open questions")[2]))
    assert {field.name for field in fields(Policy)} <= named


def test_every_field_of_an_end_of_call_is_in_the_protocol() -> None:
    told = {name for name, *_ in rows(PROTOCOL, "End-of-call")}
    assert EndOfCall.model_fields.keys() == told


def test_every_status_is_in_the_protocol_with_its_outcome() -> None:
    section = PROTOCOL.partition("### How a call ended")[2].partition("###")[0]
    told = {
        status: outcome
        for outcome, statuses in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
        for status in re.findall(r"`([\w-]+)`", statuses)
    }
    assert told == {str(status): str(outcome_of(status)) for status in CallStatus}
    assert set(told.values()) == {str(outcome) for outcome in Outcome}


def test_the_headers_of_pages_are_the_code_s() -> None:
    told = re.search(r"```text\n(.*?)```", SECURITY, re.DOTALL)
    assert told
    lines = told[1].replace("\n  ", " ").splitlines()
    assert dict(line.split(": ", 1) for line in lines) == HEADERS


def test_the_changelog_s_newest_version_is_the_package_s_or_is_still_to_come() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0]
    assert newest in ("Unreleased", __version__)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix_shell(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n#")
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_the_lowest_versions_are_tried_with_tests_that_exist() -> None:
    script = (ROOT / ".ci" / "floor").read_text()
    names = re.sub(
        r"`.*?`|\\\n", " ", script.partition("for name in")[2].partition("\ndo")[0]
    ).split()
    files = [ROOT / "tests" / re.sub(r"(\w+)$", r"test_\1.py", name) for name in names]
    assert len(files) > 20
    assert [file for file in files if not file.is_file()] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_only_scripts_that_exist(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    run = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = [re.search(r"sh (\.ci/\w+)", command) for command in run]
    assert all(called), "a step that is not a script cannot be tried at home"
    assert [found[1] for found in called if found and not (ROOT / found[1]).is_file()] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_the_shape_of_one(workflow: Path) -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([check, "--builtin-schema", "vendor.github-workflows", workflow], check=True)
