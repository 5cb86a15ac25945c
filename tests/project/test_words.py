"""The words of the project: expressions that readers stumble over do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from support.paths import ROOT

#: What not to write in any text, docstring, message or comment, and what to write instead.
EVERYWHERE = {
    r"\b(whoever|anyhow|anew|for ever|lest|thereof|whence)\b": "anyone who, anyway, again, forever",
    r"\bseldom\b": "rarely",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bin earnest\b": "for real, with side effects",
    r"\bends[ -]of[ -]calls?\b": "end-of-calls, end-of-call webhooks",
    r"(?<!here )\b(is|are) no (UTF-8|JSON|object|file|text|call log|error)\b": "is not a",
    r"\bsays (no|yes) to\b": "returns 503, accepts",
    r"\bfaster than life\b": "in real time, playback speed",
    r"\bhas no more\b": "no longer has",
    r", as 20\d\d-": "e.g. 2026-11-01",
    r"\bgoes on\b": "continues",
    r"\ball the same\b": "anyway, in any case",
    r"\bof ours\b": "our, this package's",
    r"\b[Ss]o many (bytes|calls|characters|deliveries|keys|levels|pages|rows|runs|slots)\b": (
        "this number of, the most"
    ),
}
#: The same, in what users read: documents, help, settings and pages.
FOR_USERS = EVERYWHERE | {
    r"\bwhom\b": "that, which",
    r"(?<!or )\bnobody\b(?! says| is meant)": "no one; or name who",
    r"\bsomebody\b": "someone, a person",
    r"(?<!/)\b[Rr]ehears(e|es|ed|al|als|ing)\b": "simulate, simulated call",
    r"\bstands? (in for|in the|beside|before)\b": "is in, replaces, is next to",
    r"\bof (yours|ours|theirs)\b": "your, our, their",
    r"\b(at|a) will\b": "freely",
    r"\bparked\b": "failed",
    r"(?<![\w\"`-])\bvintages?\b(?![\"`=:.(])(?! = | %)": "payload format",
    r"(?i)\bis it well\b": "health check",
    r"\bso many (seconds|credits|requests|times)\b": "a number, N",
    r"\b(behaviour|catalogue|centre|colour|favour|honour|licence|neighbour)s?\b": (
        "American spelling"
    ),
    r"\b(cancelled|labelled|modelled|travelled)\b": "American spelling",
    r"\b\w*(recogn|organ|normal|summar|synchron|initial|author|minim|optim)is(e|es|ed|ing)\b": (
        "American spelling"
    ),
    r"\b(is|are) told of\b": "is reported",
    r"\bmisspelt\b": "misspelled",
}
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob(".github/**/*.md"),
]


def hits(text: str, refused: dict[str, str]) -> Iterator[str]:
    """Yield each refused expression with its line and the advice."""
    for pattern, advice in refused.items():
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"line {line}: {match[0]!r}; write: {advice}"


def words_of(source: str) -> str:
    """Return the strings and comments of a module, each on its line, without the code."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.splitlines()):
                if node.lineno - 1 + offset < len(lines):
                    lines[node.lineno - 1 + offset] += " " + line
    return "\n".join(lines)


def text_of(template: str) -> str:
    """Return a template without its tags, statements and names; strings in expressions stay."""
    template = re.sub(
        r"\{\{.*?\}\}", lambda match: " ".join(re.findall(r'"[^"]*"', match[0])), template
    )
    for markup in (r"\{#.*?#\}", r"\{%.*?%\}", r"<[^>]*>"):
        template = re.sub(
            markup, lambda match: "\n" * match[0].count("\n"), template, flags=re.DOTALL
        )
    return template


def hits_in(
    files: Iterable[Path], text_of: Callable[[str], str], refused: dict[str, str]
) -> list[str]:
    """Return the same of files, of which `text_of` returns the text that is looked at."""
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [
        f"{file.relative_to(ROOT)} {hit}"
        for file, text in texts.items()
        if next(hits(text, refused), None)  # `text_of` takes longer
        for hit in hits(text_of(text), refused)
    ]


def test_documents() -> None:
    assert hits_in(DOCUMENTS, str, FOR_USERS) == []


def test_pages() -> None:
    assert hits_in(ROOT.glob("templates/*.html"), text_of, FOR_USERS) == []


def test_examples_help_settings_docstrings_messages_and_comments() -> None:
    for_users = {*ROOT.glob("examples/*.py"), *ROOT.glob("millis_hooks/cli/*.py")}
    for_users.add(ROOT / "millis_hooks" / "settings.py")
    others = {*ROOT.glob("millis_hooks/**/*.py")} - for_users
    assert hits_in(for_users, words_of, FOR_USERS) == []
    assert hits_in(others, words_of, EVERYWHERE) == []


def test_an_expression_in_a_string_or_comment_is_found_and_code_is_not() -> None:
    source = 'seldom = 1  # mended\n"""Whom it is.\n\nanew."""\n'
    found = list(hits(words_of(source), FOR_USERS))
    assert [hit.partition(";")[0] for hit in found] == ["line 4: 'anew'", "line 1: 'mended'"]
