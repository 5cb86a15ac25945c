"""The list of what the sandbox makes up has everything in it that is made up."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from millis_hooks import sandbox
from millis_hooks.sandbox.emulator import sessions, websocket
from millis_hooks.sandbox.made_up import MADE_UP, as_markdown
from millis_hooks.sandbox.policy import policy_settings
from support.paths import ROOT

#: Constants that the list has, as figures or in words.
NAMED = {
    "agent.CHARS_PER_S",
    "emulator.custom_llm.ANSWER_TIMEOUT_S",
    "emulator.custom_llm.OPEN_TIMEOUT_S",
    "emulator.custom_llm.VIOLATION",
    "emulator.http_api.MAX_BODY_BYTES",
    "emulator.http_api.MAX_HISTORIES",
    "emulator.rehearsals.LONGEST_S",
    "emulator.rehearsals.PATIENCE_S",
    "emulator.sessions.MAX_LIVE",
    "emulator.sessions.MAX_REGISTERED",
    "emulator.store.KEPT",
    "emulator.websocket.LOUD",
    "emulator.websocket.MOST_ODD",
    "emulator.websocket.SILENCE_S",
    "emulator.websocket.SPEECH_FROM_S",
    "emulator.websocket.TONE_HZ",
    "emulator.websocket.TRY_AGAIN",
    "emulator.websocket._AMPLITUDE",
    "emulator.websocket._FRAME_S",
    "emulator.websocket._METHOD_CHARS",
    "session.MAX_RESULT_CHARS",
    "texts._DEEPEST",
    "transport.MAX_ANSWER_BYTES",
    "webhook_client.TTS_PER_1000_CHARS",
}
#: Constants that are Millis' own, or of a standard, or that no call can show.
KNOWN = {
    "emulator.websocket.SAMPLES_PER_S",  # docs.millis.ai, native-apps-with-websocket
    "emulator.websocket._WINDOW_S",
    "emulator.websocket._WINDOW_SAMPLES",
    "emulator.websocket._MAX_REASON_BYTES",  # RFC 6455
    "emulator.store._VERSION",
    "simulator._PAUSE_S",
}


def constants() -> Iterator[str]:
    """Yield every figure that a module of the sandbox has under a name."""
    for found in pkgutil.walk_packages(sandbox.__path__, f"{sandbox.__name__}."):
        module = importlib.import_module(found.name)
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [_target(node)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if isinstance(getattr(module, name), int | float | timedelta):
                    yield f"{found.name.removeprefix(f'{sandbox.__name__}.')}.{name}"


def _target(node: ast.stmt) -> ast.expr | None:
    return node.target if isinstance(node, ast.AnnAssign) else None


def test_every_figure_of_the_sandbox_is_said_or_known_from_elsewhere() -> None:
    assert set(constants()) == NAMED | KNOWN


def test_every_setting_of_the_policy_is_said_with_its_values() -> None:
    page = as_markdown()
    for setting in policy_settings():
        (row,) = re.findall(rf"^\| `{setting.name}` \|.*$", page, re.MULTILINE)
        assert setting.meaning in row
        assert all(f"`{str(each).lower()}`" in row.lower() for each in setting.choices)


def test_every_method_and_address_of_the_sandbox_s_own_is_said() -> None:
    page = as_markdown()
    source = Path(websocket.__file__).read_text()
    methods = set(re.findall(r'method == "(\w+)"', source)) - {"ping", "initiate"}
    assert methods == {"say", "call", "hang_up"}
    assert all(f'"{method}"' in page or f"`{method}`" in page for method in methods)
    assert all(phone in page for phone in sessions.UNREACHED)
    assert "/sessions/{id}/call" in page


def test_the_page_is_made_of_the_list() -> None:
    page = (ROOT / "docs" / "made-up.md").read_text()
    assert "# What the sandbox makes up" in page
    assert "<!-- made: made up -->" in page


def test_rows_are_sentences_in_cells() -> None:
    for row in MADE_UP:
        assert row.text.endswith(".")
        assert "|" not in row.text + row.setting
        assert "\n" not in row.text
