"""What is shipped: the built packages hold the templates and run without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import millis_hooks
from millis_hooks.version import templates_dir
from support.paths import ROOT

TEMPLATES = {
    str(path.relative_to(ROOT / "templates"))
    for path in (ROOT / "templates").rglob("*")
    if path.is_file()
}

PROBE = """
import asyncio, millis_hooks.dashboard.pages as pages
from millis_hooks import MillisHooks, __version__
print(pages.templates_dir())
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_every_template_inside_the_package(dist: Path) -> None:
    names = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    assert {f"millis_hooks/templates/{name}" for name in TEMPLATES} <= names
    assert not any(name.startswith(("templates/", "tests/")) for name in names)


def test_the_wheel_says_that_it_is_typed(dist: Path) -> None:
    assert "millis_hooks/py.typed" in zipfile.ZipFile(next(dist.glob("*.whl"))).namelist()


def test_the_sdist_holds_the_templates_at_its_top(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"templates/{name}" for name in TEMPLATES} <= names


def test_the_installed_wheel_finds_its_templates_from_anywhere(dist: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(site)  # all that installing is, here
    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(probe.stdout.strip()) == site / "millis_hooks" / "templates"


def test_the_checkout_finds_its_templates_too() -> None:
    assert templates_dir() == ROOT / "templates"


def test_every_template_named_in_the_code_exists() -> None:
    code = "".join(path.read_text() for path in (ROOT / "millis_hooks" / "dashboard").glob("*.py"))
    named = set(re.findall(r'"([\w/]+\.html)"', code))
    assert named
    assert named <= TEMPLATES


def test_the_changelog_knows_this_version_or_has_unreleased_changes() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {millis_hooks.__version__}" in changelog or "## Unreleased" in changelog
