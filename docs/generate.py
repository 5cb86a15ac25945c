"""Writes the parts of the documentation that come from the code and from `examples/`.

    python docs/generate.py

A page marks such a part by two comments, and the program replaces what is between them:

    <!-- generated: settings -->
    <!-- end of generated -->

The subject after the colon is one of `TABLES`; or a public name such as `millis_hooks.EndOfCall`,
followed by the members to show where not all of them are public; or a file such as
`examples/crm_lookup.py`, which is shown as code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main
from pydantic import BaseModel

from millis_hooks import PrefetchRequest, PrefetchResponse
from millis_hooks.cli.commands import GROUPS
from millis_hooks.cli.commands import app as command_line
from millis_hooks.environment.sources import ENV_PREFIX
from millis_hooks.sandbox.policy import Policy, policy_settings
from millis_hooks.sandbox.scenario import TABLES as SCENARIO_TABLES
from millis_hooks.sandbox.scenario import ScenarioFile
from millis_hooks.settings import Settings

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".ini": "ini",
    ".yaml": "yaml",
    ".conf": "nginx",
    ".app": "dockerfile",
}
BAR = "\\|"


def main() -> None:
    """Bring every page up to date and print the pages that changed."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (current := up_to_date(text)) != text:
            page.write_text(current, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


def pages() -> list[Path]:
    """Return every page with generated parts: of the documentation and beside it."""
    return [*(ROOT / name for name in ("README.md", "AGENTS.md", "llms.txt")), *_documentation()]


def _documentation() -> list[Path]:
    docs = sorted(Path(__file__).parent.rglob("*.md"))
    return [page for page in docs if "_build" not in page.parts]


def up_to_date(text: str) -> str:
    """Return a page's text with every generated part made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{_made(part[2])}\n\n{part[3]}", text)


def _made(subject: str) -> str:
    if subject in TABLES:
        return TABLES[subject]()
    if "/" in subject:
        file = ROOT / subject
        code = file.read_text(encoding="utf-8").rstrip()
        return f"```{LANGUAGES.get(file.suffix, 'text')}\n{code}\n```"
    return "\n\n".join(_python(subject))


def _settings() -> str:
    """Return every setting with its default and its meaning, as a table."""
    rows = ["| Setting | Meaning |", "|---|---|"]
    for name, field in Settings.model_fields.items():
        default = _default(field.get_default(call_default_factory=True))
        meaning = _in_table(field.description or "")
        rows.append(f"| `{ENV_PREFIX}{name.upper()}`{default} | {meaning} |")
    return "\n".join(rows)


def _policy() -> str:
    """Return every setting of the sandbox's policy with its values and its meaning."""
    rows = ["| Name | Values, the default first | Meaning |", "|---|---|---|"]
    for setting in policy_settings():
        values = ", ".join(map(_code, dict.fromkeys([setting.default, *setting.choices])))
        rows.append(f"| `{setting.name}` | {values} | {_in_table(setting.meaning)} |")
    return "\n".join(rows)


def _scenario() -> str:
    """Return every table of a scenario file with its keys, values and their meaning."""
    parts = [_scenario_table(ScenarioFile)]
    for name, table in SCENARIO_TABLES.items():
        if table is not Policy:
            parts += [f"### {_SPELLINGS.get(name, f'`[{name}]`')}", _scenario_table(table)]
    return "\n\n".join(parts)


#: Tables that are not just `[name]`.
_SPELLINGS = {"turns": "`[[turns]]`", "answers": "`[answers.NAME]`"}


def _scenario_table(table: Any) -> str:
    rows = ["| Key | Values | Meaning |", "|---|---|---|"]
    for key, hint, default, meaning in _keys(table):
        rows.append(f"| `{key}` | {_values(hint, default)} | {_in_table(meaning)} |")
    return "\n".join(rows)


def _keys(table: Any) -> Iterator[tuple[str, Any, object, str]]:
    """Yield the name of each key, its type, its default and its meaning."""
    hints = typing.get_type_hints(table)
    for name, one in getattr(table, "model_fields", {}).items():
        yield name, hints[name], one.default, one.description or ""
    for each in dataclasses.fields(table) if dataclasses.is_dataclass(table) else ():
        yield each.name, hints[each.name], each.default, each.metadata["meaning"]


def _values(hint: Any, default: object) -> str:
    """Describe what a key of a scenario file may be, the default first where there is one."""
    choices = [one for one in typing.get_args(hint) if one is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _values(choices[0], default)
    if typing.get_origin(hint) is typing.Literal:
        known = [default] if default in choices else []
        return ", ".join(map(_code, dict.fromkeys([*known, *choices])))
    if hint is bool:
        return ", ".join(map(_code, [default, not default]))
    kind = _KINDS.get(typing.get_origin(hint) or hint, "a table")
    is_plain = isinstance(default, str | int | float) and default != ""
    return f"{kind}, default {_code(default)}" if is_plain else kind


_KINDS = {str: "text", int: "a number", float: "a number", list: "a list", Sequence: "a list"}


def _commands() -> str:
    """Return every command with its arguments and options, each under a heading."""
    group = typer.main.get_command(command_line)
    with typer.Context(group, info_name="millis-hooks") as context:
        return "\n\n".join(_command(group, context))


def _list_of_commands() -> str:
    """Return every command with its first line of help, by group."""
    groups = (
        "\n".join(
            [f"{group}:", "", *(f"- `{name}`: {text}" for name, (_, text) in commands.items())]
        )
        for group, commands in GROUPS.items()
    )
    return "\n\n".join(groups)


def _list_of_pages() -> str:
    """Return every page with its title and its first sentence."""
    lines = []
    for page in _documentation():
        title, _, text = page.read_text(encoding="utf-8").partition("\n")
        paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
        first = next(part for part in paragraphs if re.match(r"\w|`\w|\*\*", part))
        sentence = re.split(r"(?<=\.)\s", first, maxsplit=1)[0]
        path = page.relative_to(ROOT).as_posix()
        lines.append(f"- [{title.removeprefix('# ')}]({path}): {sentence}")
    return "\n".join(lines)


TABLES = {
    "settings": _settings,
    "command line": _commands,
    "commands": _list_of_commands,
    "pages": _list_of_pages,
    "policy": _policy,
    "scenario": _scenario,
}


def _command(command: Any, context: Any) -> Iterator[str]:
    """Describe a command, then its subcommands."""
    yield f"## {context.command_path}"
    yield command.help or ""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```"
    rows = [_option(one, context) for one in command.get_params(context) if one.name != "help"]
    if rows:
        yield "\n".join(["| Argument or option | Meaning |", "|---|---|", *rows])
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        _, inner, _ = command.resolve_command(context, [name])
        with typer.Context(inner, info_name=name, parent=context) as within:
            yield from _command(inner, within)


def _option(parameter: Any, context: Any) -> str:
    name, meaning = parameter.get_help_record(context) or (parameter.name, "")
    return f"| `{name.replace('|', BAR)}` | {_in_table(meaning)} |"


def _python(subject_and_members: str) -> Iterator[str]:
    """Describe a public class or function: signature, docstring, then its members."""
    path, *selected = subject_and_members.split()
    module, _, name = path.rpartition(".")
    subject = getattr(import_module(module), name)
    if inspect.ismodule(subject):
        yield _exceptions(subject)
        return
    yield f"### {name}"
    if not inspect.isclass(subject):
        yield f"```text\n{name}{_signature(subject)}\n```"
        yield inspect.getdoc(subject) or ""
        return
    if not _is_received(subject):
        yield f"```text\n{name}{_signature(subject)}\n```"
    yield inspect.getdoc(subject) or ""
    members = [one for one in _members(subject) if not selected or one[0] in selected]
    if rows := [*_fields(subject), *_attributes(subject, members)]:
        yield "\n".join(["| Attribute | Type | Meaning |", "|---|---|---|", *rows])
    for method, function in members:
        if inspect.isfunction(function):
            yield f"#### {name}.{method}"
            yield f"```text\n{method}{_signature(getattr(subject, method))}\n```"
            yield inspect.getdoc(function) or ""


def _exceptions(module: ModuleType) -> str:
    """Return the exceptions of a module, each with its base class."""
    rows = ["| Exception | Base | Meaning |", "|---|---|---|"]
    for name, error in vars(module).items():
        if inspect.isclass(error) and error.__module__ == module.__name__:
            base = error.__mro__[1].__name__
            rows.append(f"| `{name}` | `{base}` | {_in_table(inspect.getdoc(error) or '')} |")
    return "\n".join(rows)


def _is_received(subject: type) -> bool:
    """Whether only the service makes objects of a class."""
    return issubclass(subject, BaseModel | PrefetchRequest) and subject is not PrefetchResponse


def _fields(subject: type) -> Iterator[str]:
    """Yield a row for each field of a model or a data class."""
    hints = typing.get_type_hints(subject)
    model: dict[str, Any] = getattr(subject, "model_fields", {})
    for name in model or getattr(subject, "__dataclass_fields__", {}):
        if not name.startswith("_"):
            meaning = model[name].description if name in model else None
            yield f"| `{name}` | {_type(hints.get(name, ''))} | {_in_table(meaning or '')} |"


def _attributes(subject: type, members: list[tuple[str, Any]]) -> Iterator[str]:
    """Yield a row for each property and each value of an enumeration."""
    for name, member in members:
        if isinstance(member, property | cached_property):
            getter = member.fget if isinstance(member, property) else member.func
            returned = inspect.signature(getter).return_annotation if getter else ""
            yield f"| `{name}` | {_type(returned)} | {_in_table(inspect.getdoc(member) or '')} |"
        elif isinstance(member, str) and hasattr(subject, "__members__"):
            yield f"| `{name}` | `{member}` | |"


def _members(subject: type) -> Iterator[tuple[str, Any]]:
    """Yield the public members that a class and its bases in this package define, in order."""
    seen = set()
    for base in subject.__mro__:
        if not base.__module__.startswith("millis_hooks"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or name in seen or name in ("model_config", "model_post_init"):
                continue
            seen.add(name)
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            yield name, plain


def _signature(subject: Any) -> str:
    """Return a signature, one parameter a line where it is long."""
    signature = inspect.signature(subject)
    text = str(signature).replace("'", "")
    if len(text) < 80:
        return text
    before, _, returned = text.rpartition(" -> ")
    parameters = [str(parameter).replace("'", "") for parameter in signature.parameters.values()]
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"(\n{lines})" + (f" -> {returned}" if before else "")


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(?:\w+\.)+(?=\w)|~", "", text)
    text = re.sub(r"Optional\[(\w+)\]", r"\1 | None", text)
    return f"`{text.replace('|', BAR)}`" if text else ""


def _default(value: object) -> str:
    if value is None or value in (frozenset(), (), {}):
        return ""
    return f"<br>default {_code(value)}"


def _code(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _in_table(text: str) -> str:
    """Keep text in angle brackets from being taken for HTML, and all of it in its cell."""
    visible = re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", text)
    return " ".join(visible.split()).replace("|", BAR)


if __name__ == "__main__":
    main()
