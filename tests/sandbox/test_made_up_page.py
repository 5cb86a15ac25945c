"""The page "Assumptions of the sandbox" lists every assumption."""

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
from millis_hooks.sandbox.policy import policy_settings
from millis_hooks.sandbox.texts import IGNORED
from support.paths import ROOT

PAGE = (ROOT / "docs" / "made-up.md").read_text()

#: How the page writes each number of the sandbox.
ON_THE_PAGE = {
    "session.CHARS_PER_S": "at {:g} characters per second",
    "webhook_client.MAX_RESULT_CHARS": "at most {:,} characters of a result",
    "transport.MAX_ANSWER_BYTES": "At most {:,} bytes of an answer are read",
    "webhook_client.TTS_PER_1000_CHARS": "{} per 1,000 spoken characters",
    "agents.ANSWER_TIMEOUT_S": "at most {:g} s for an answer",
    "agents.OPEN_TIMEOUT_S": "{:g} s to connect",
    "agents.VIOLATION": "closed with {}",
    "emulator.http_api.MAX_BODY_BYTES": "over {:,} bytes",
    "emulator.http_api.MAX_HISTORIES": "at most {:,} calls",
    "emulator.sessions.ABANDONED_S": "after {:g} seconds without activity",
    "emulator.sessions.LONGEST_S": "after 60 minutes",
    "emulator.sessions.MAX_LIVE": "beyond {} simultaneous calls",
    "emulator.sessions.MAX_REGISTERED": "The last {:,} are kept",
    "emulator.store.KEPT": "kept for 24 hours",
    "emulator.websocket.LOUD": "peak of at least {:,} of 32,767",
    "emulator.websocket.MOST_ODD": "the first {} of them",
    "emulator.websocket.SILENCE_S": "{:g} s of silence",
    "emulator.websocket.SPEECH_FROM_S": "Sound of {:g} s is speech",
    "emulator.websocket.TONE_HZ": "tone of {} Hz",
    "emulator.websocket.TRY_AGAIN": "a call beyond the limit with {}",
}
#: Constants that are Millis' own, or of a standard, or that no call can show.
ELSEWHERE = {
    "simulator._PAUSE_S",
    "texts._DEEPEST",
    "emulator.sessions.PATIENCE_S",
    "emulator.store._VERSION",
    "emulator.websocket.SAMPLES_PER_S",  # docs.millis.ai, native-apps-with-websocket
    "emulator.websocket._AMPLITUDE",
    "emulator.websocket._FRAME_S",
    "emulator.websocket._MAX_REASON_BYTES",  # RFC 6455
    "emulator.websocket._METHOD_CHARS",
    "emulator.websocket._WINDOW_S",
    "emulator.websocket._WINDOW_SAMPLES",
}


def figures() -> Iterator[tuple[str, float | timedelta]]:
    """Yield every figure that a module of the sandbox has under a name."""
    for found in pkgutil.walk_packages(sandbox.__path__, f"{sandbox.__name__}."):
        module = importlib.import_module(found.name)
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [_target(node)]
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                value = getattr(module, name)
                if isinstance(value, int | float | timedelta):
                    yield f"{found.name.removeprefix(f'{sandbox.__name__}.')}.{name}", value


def _target(node: ast.stmt) -> ast.expr | None:
    return node.target if isinstance(node, ast.AnnAssign) else None


def test_every_number_of_the_sandbox_is_on_the_page_or_has_another_source() -> None:
    values = dict(figures())
    assert values.keys() == ON_THE_PAGE.keys() | ELSEWHERE
    for name, words in ON_THE_PAGE.items():
        assert words.format(values[name]) in PAGE, name
    assert sessions.LONGEST_S == 60 * 60


def test_every_setting_of_the_policy_has_a_description() -> None:
    assert "<!-- generated: policy -->" in PAGE
    assert all(setting.meaning.endswith(".") for setting in policy_settings())


def test_every_extra_method_and_endpoint_of_the_sandbox_is_on_the_page() -> None:
    source = Path(websocket.__file__).read_text()
    methods = set(re.findall(r'method == "(\w+)"', source)) - {"ping", "initiate"}
    assert methods == {"say", "call", "hang_up"}
    assert all(f'"{method}"' in PAGE or f"`{method}`" in PAGE for method in methods)
    assert all(phone in PAGE for phone in sessions.UNREACHED)
    assert "/sessions/{id}/call" in PAGE


def test_every_part_of_an_agent_without_effect_is_on_the_page() -> None:
    assert all(f"`{part}`" in PAGE for part in IGNORED)
