"""The project's documents, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from support.paths import ROOT

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", ".github/**/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)

_EXCUSE = re.compile(r"<!-- not run: .+? -->")
_BETWEEN_COMMANDS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page its text begins in."""

    language: str
    text: str
    line: int
    excused: bool


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().parse(page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Yield the blocks of a page in these languages, from top to bottom."""
    tokens = _tokens(page)
    generated = False  # from an example or a docstring, which have tests of their own
    for before, token in zip([None, *tokens], tokens, strict=False):
        language = token.info.strip().partition(" ")[0]
        if token.type == "html_block":
            generated = token.content.startswith("<!-- generated: ")
        elif token.type == "fence" and language in languages:
            assert token.map
            excused = before is not None and _EXCUSE.fullmatch(before.content.strip())
            yield Block(language, token.content, token.map[0] + 2, generated or bool(excused))


def links(page: Path) -> Iterator[str]:
    """Yield the files of the project that a page links to, or shows."""
    for token in _tokens(page):
        for child in token.children or ():
            target = str(child.attrGet("href") or child.attrGet("src") or "")
            if target and not re.match(r"[a-z]+:|#", target):
                yield target.partition("#")[0]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command in a block: what follows `$ ` in a console, else all."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _BETWEEN_COMMANDS:
                command.append(word)
            elif command:
                yield command
                command = []
