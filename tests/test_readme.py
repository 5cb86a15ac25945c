"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from millis_hooks.settings import ENV_PREFIX, Settings

README = (Path(__file__).parent.parent / "README.md").read_text()


def settings_table() -> str:
    """The README's table of settings, as the code would write it."""
    rows = ["| Setting | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        empty = default is None or default in (frozenset(), (), {})
        shown = (
            "" if empty else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_table_of_settings_is_the_code_s() -> None:
    table = re.search(r"<!-- settings:.*?-->\n(.*?)\n<!-- /settings -->", README, re.DOTALL)
    assert table
    assert table[1] == settings_table()


def test_every_file_and_folder_named_exists() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"(?:examples|benchmarks|\.ci|millis_hooks)/[\w./]*", README)
    assert [name for name in named if not (root / name).exists()] == []
