"""Imports only go down: what stands in one layer may import from layers above it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "millis_hooks"

LAYERS: list[set[str]] = [
    {
        "version",
        "exceptions",
        "payload_places",
        "loopback",
        "finding",
        "marks",
        "peer",
        "in_place_of_millis",
        "known_secrets",
        "private_files",
    },
    {"password_rules", "phones", "web_address", "setting_sources"},
    {"settings"},
    {"stopping"},
    {"counts", "parts", "printable"},
    {"call_status", "variables", "masking", "wire", "retries", "webhooks", "exchange"},
    {"query_string", "typed_metadata", "failures", "plain_values", "agent_config", "loop_lag"},
    {"logs"},
    {"events"},
    {"merging"},
    {"parked", "drift_detection"},
    {"handlers", "signatures"},
    {"options"},
    {"registration"},
    {"samples", "auth", "routing", "content_encoding", "answers", "call_log", "millis_requests"},
    {"millis_api", "recorded_requests"},
    {
        "courier",
        "running",
        "replies",
        "operators",
        "redaction",
        "housekeeping",
        "rejected",
        "shared_answers",
        "bodies",
    },
    {"lines"},
    {"tracing"},
    {"interruption"},
    {"handler_threads"},
    {"workbench"},
    {"runs", "reconcile"},
    {"reconciler"},
    {"prefetch", "end_of_call", "near_misses", "dashboard", "sandbox"},
    {"doctor", "metrics"},
    {"sites"},
    {"service"},
    {"app"},
    {"connection_places"},
    {"connection"},
    {"server", "target", "testing"},
    {"cli", "pytest_plugin"},
    {"__main__"},
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Rank for rank, what may be imported from beside.
BESIDE = {
    ("masking", "wire"),
    ("marks", "exceptions"),
    ("in_place_of_millis", "exceptions"),
    ("answers", "content_encoding"),
    ("dashboard", "sandbox"),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path: Path) -> str:
    """Return the module, or the folder, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
    units = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = list(path.relative_to(PACKAGE).parts[:-1])
            base = parts[: len(parts) - node.level + 1] if node.level else ["?"]
            dotted = [*base, *(node.module or "").split(".")]
            if not node.level and (node.module or "").startswith("millis_hooks."):
                dotted = (node.module or "").split(".")[1:]
            names = [part for part in dotted if part] or [alias.name for alias in node.names]
            units.add(names[0])
        elif isinstance(node, ast.Import):
            units |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("millis_hooks.")
            }
    return units & RANKS.keys()


def test_every_module_has_its_layer() -> None:
    assert {unit(path) for path in modules()} == RANKS.keys()


def test_imports_only_go_down() -> None:
    upward = {
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in modules()
        for other in imported_units(path) - {unit(path)}
        if RANKS[other] >= RANKS[unit(path)] and (unit(path), other) not in BESIDE
    }
    assert not upward


def test_the_webhooks_and_the_pages_meet_only_in_the_call_log() -> None:
    apart = {"prefetch", "end_of_call", "dashboard"}
    for path in modules():
        if unit(path) in apart:
            assert not imported_units(path) & (apart - {unit(path)}), path


def test_the_call_log_has_no_idea_that_http_exists() -> None:
    for path in (PACKAGE / "call_log").rglob("*.py"):
        assert "starlette" not in path.read_text(), path
