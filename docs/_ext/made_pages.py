"""Fills in the parts of pages that the code knows better: the settings, and the command line.

A page says where by a comment: `<!-- made: settings -->`, `<!-- made: command line -->`,
`<!-- made: policy -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main
from sphinx.application import Sphinx

from millis_hooks.cli.commands import app as command_line
from millis_hooks.environment.sources import ENV_PREFIX
from millis_hooks.sandbox.policy import policy_settings
from millis_hooks.settings import Settings


def settings_table() -> str:
    """Return every setting with its default and its meaning, as a table."""
    rows = ["| Setting | Meaning |", "|---|---|"]
    for name, field in Settings.model_fields.items():
        default = _default(field.get_default(call_default_factory=True))
        meaning = _in_table(field.description or "")
        rows.append(f"| `{ENV_PREFIX}{name.upper()}`{default} | {meaning} |")
    return "\n".join(rows)


def policy_table() -> str:
    """Return every setting of the sandbox's policy with its values and its meaning."""
    rows = ["| Name | Is | |", "|---|---|---|"]
    for setting in policy_settings():
        default, *others = dict.fromkeys([setting.default, *setting.choices])
        values = _spelled(default)
        if others:
            values += f", or {', '.join(map(_spelled, others))}"
        rows.append(f"| `{setting.name}` | {values} | {_in_table(setting.meaning)} |")
    return "\n".join(rows)


def commands() -> str:
    """Return every command with its arguments and options, each under a heading."""
    group = typer.main.get_command(command_line)
    with typer.Context(group, info_name="millis-hooks") as context:
        return "\n\n".join(_described(group, context))


BAR = "\\|"
MADE = {
    "<!-- made: settings -->": settings_table,
    "<!-- made: command line -->": commands,
    "<!-- made: policy -->": policy_table,
}


def fill_in(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Replace the comments of a page that has been read."""
    for comment, make in MADE.items():
        if comment in source[0]:
            source[0] = source[0].replace(comment, make())


def setup(app: Sphinx) -> dict[str, Any]:
    """Take part in the build."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True}


def _default(value: object) -> str:
    if value is None or value in (frozenset(), (), {}):
        return ""
    return f"<br>default {_spelled(value)}"


def _spelled(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _described(command: Any, context: Any) -> Iterator[str]:
    """Describe a command, then those under it."""
    yield f"## {context.command_path}"
    yield command.help or ""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```"
    rows = [_row(one, context) for one in command.get_params(context) if one.name != "help"]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows])
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        _, inner, _ = command.resolve_command(context, [name])
        with typer.Context(inner, info_name=name, parent=context) as within:
            yield from _described(inner, within)


def _row(parameter: Any, context: Any) -> str:
    spelt, meaning = parameter.get_help_record(context) or (parameter.name, "")
    return f"| `{spelt.replace('|', BAR)}` | {_in_table(meaning)} |"


def _in_table(text: str) -> str:
    """Keep what stands in angle brackets from being taken for HTML, and the text in its cell."""
    visible = re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", text)
    return " ".join(visible.split()).replace("|", BAR)
