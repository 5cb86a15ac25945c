"""Every pattern that meets text from outside is linear: a long text costs what it is long.

Each pattern runs over 40 kB of each of its own beginnings, repeated: that is where a pattern that
starts anew at every character, or that divides one run of characters in many ways, is found out.
What counts is processor time, and only how it grows with the text.
"""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import millis_hooks

#: How `re` reads patterns; it has no public name (https://bugs.python.org/issue47152).
_parser, c = (importlib.import_module(f"re.{name}") for name in ("_parser", "_constants"))

PACKAGE = Path(millis_hooks.__file__).parent
#: What a call of these looks for in a text: any place in it, or its beginning.
ANYWHERE = {"search", "sub", "subn", "finditer", "findall", "split"}
AT_THE_START = {"match", "fullmatch"}
#: Patterns that functions put together, as they come out.
MADE = {
    # These read settings, which whoever runs the service writes, or are of bytes.
    "protocol/reading.py": [],
    "environment/secret_rules.py": [],
    "environment/sources.py": [],
    "environment/addresses.py": [],
    "call_log/upkeep/removal.py": [r"(?<!\d)1(?:[ ().,/-]{0,2}|%20)4(?:[ ().,/-]{0,2}|%20)1(?!\d)"],
    "call_log/search.py": [r"appointment|re\-schedule|1[Q().,/-]{0,3}4[Q().,/-]{0,3}1"],
    "dashboard/operators.py": [r"Firefox/", r"Chrome/", r"Windows"],
}

LONG = 40_000
MOST_BEGINNINGS = 40
#: As many of a pattern's beginnings as cost most in a short text are tried in the long one.
MOST_LONG = 3
#: Times as long as the text is shorter when it is measured how the work grows.
SHORTER = 4
#: Between 4, for what is linear, and 16, for what is quadratic.
MOST_GROWTH = 8


class Found(NamedTuple):
    """A pattern, where it stands, and the ways in which it is used there."""

    where: str
    pattern: re.Pattern[str]
    methods: frozenset[str]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        code = path.read_text()
        if re.search(r"^ *import re$", code, re.MULTILINE):
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(code)


def found() -> list[Found]:
    """Every pattern of the package: compiled, written where it is used, and put together."""
    trees = list(modules())
    used = {call for _, tree in trees for call in calls_in(tree)}
    inline = {(path, call) for path, tree in trees for call in written_in(tree)}
    unread = {path for path, (method, pattern) in inline if pattern is None}
    assert unread == set(MADE), "a pattern that a function makes: put what it makes into MADE"
    patterns = [
        Found(path, re.compile(pattern), frozenset({method}))
        for path, (method, pattern) in inline
        if pattern is not None
    ]
    for path, made in MADE.items():
        patterns += [Found(path, re.compile(each), frozenset({"search"})) for each in made]
    for path, _ in trees:
        module = importlib.import_module(
            "millis_hooks." + path.removesuffix(".py").replace("/", ".")
        )
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                methods = frozenset(method for owner, method in used if owner == name)
                patterns.append(Found(f"{path}: {name}", value, methods))
    return sorted(patterns, key=lambda each: (each.where, each.pattern.pattern))


def calls_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield whose method is called, and which: `_PHONE`, `sub`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield getattr(node.value, "id", getattr(node.value, "attr", "")), node.attr


def written_in(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Yield the patterns that functions hand to `re`, with the method; None for one they make."""
    of_re = {
        id(node): (node.func.attr, node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and getattr(node.func.value, "id", "") == "re"
        and node.func.attr in ANYWHERE | AT_THE_START | {"compile"}
    }
    for function in ast.walk(tree):
        if of_re and isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if id(node) in of_re:
                    method, pattern = of_re[id(node)]
                    text = pattern.value if isinstance(pattern, ast.Constant) else None
                    yield method, text if text is None else str(text)


# Texts that a pattern begins to match


def texts(pattern: re.Pattern[str]) -> set[str]:
    """Some texts that a pattern matches, or nearly, by each choice and member of a class."""
    tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    return {text for turn in range(6) for text in islice(samples(list(tree), turn), 12)}


def samples(nodes: list[Any], turn: int) -> Iterator[str]:
    if not nodes:
        yield ""
        return
    for rest in samples(nodes[1:], turn):
        for first in one(nodes[0], turn):
            yield first + rest


def one(node: Any, turn: int) -> Iterator[str]:
    op, arg = node
    if op is c.LITERAL:
        yield chr(arg)
    elif op is c.NOT_LITERAL:
        yield "a" if arg != ord("a") else "b"
    elif op is c.ANY:
        yield "ab1- "[turn % 5]
    elif op is c.IN:
        yield member(arg, turn)
    elif op is c.BRANCH:
        for branch in arg[1]:
            yield from islice(samples(list(branch), turn), 4)
    elif op is c.SUBPATTERN:
        yield from samples(list(arg[3]), turn)
    elif op is c.ATOMIC_GROUP:
        yield from samples(list(arg), turn)
    elif op in (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT):
        least, most, inner = arg
        for times in sorted({least, min(least + 1, most)}):
            for text in islice(samples(list(inner), turn), 3):
                yield text * times
    elif op is c.GROUPREF_EXISTS:
        for branch in arg[1:]:
            yield from samples(list(branch or ()), turn)
    elif op is c.ASSERT and arg[0] == -1:
        yield from samples(list(arg[1]), turn)
    else:  # where nothing is consumed; what a group matched before is not known here
        yield ""


def member(items: list[Any], turn: int) -> str:
    if items[0][0] is c.NEGATE:
        kept = [char for char in "a1-. :/@=+\"'" if not any(has(each, char) for each in items[1:])]
        return kept[turn % len(kept)]
    op, arg = items[turn % len(items)]
    if op is c.LITERAL:
        return chr(arg)
    if op is c.RANGE:
        return chr(arg[0])
    return {
        c.CATEGORY_DIGIT: "1",
        c.CATEGORY_NOT_DIGIT: "a",
        c.CATEGORY_SPACE: " ",
        c.CATEGORY_NOT_SPACE: "a",
        c.CATEGORY_WORD: "a",
        c.CATEGORY_NOT_WORD: "-",
    }[arg]


def has(item: Any, char: str) -> bool:
    op, arg = item
    if op is c.LITERAL:
        return char == chr(arg)
    if op is c.RANGE:
        return chr(arg[0]) <= char <= chr(arg[1])
    return {
        c.CATEGORY_DIGIT: char.isdigit(),
        c.CATEGORY_SPACE: char.isspace(),
        c.CATEGORY_WORD: char.isalnum() or char == "_",
    }.get(arg, False)


def beginnings(pattern: re.Pattern[str]) -> set[str]:
    """Begin as these texts do; not all: where nothing is new in them, time is lost on them."""
    every = {text[:end] for text in texts(pattern) for end in range(1, min(len(text), 48) + 1)}
    return set(sorted(every, key=lambda each: (len(each), each))[:MOST_BEGINNINGS])


# What it costs


def ways(each: Found) -> Iterator[Callable[[str], object]]:
    if not each.methods or each.methods & ANYWHERE:
        yield lambda text: each.pattern.sub("", text)
    if not each.methods or each.methods & AT_THE_START:
        yield each.pattern.fullmatch
        yield each.pattern.match


def work(run: Callable[[str], object], text: str) -> float:
    started = time.thread_time()
    run(text)
    return time.thread_time() - started


def is_linear(run: Callable[[str], object], beginning: str, unit: float) -> bool:
    """Tell whether work grows with the text; times as short as a plain search do not matter.

    Shorter texts come first: a pattern that is not linear is not tried on the longest.
    """
    return all(
        work(run, text(beginning, length)) < unit or grows_linearly(run, beginning, length)
        for length in (LONG // SHORTER**2, LONG // SHORTER, LONG)
    )


def grows_linearly(run: Callable[[str], object], beginning: str, length: int) -> bool:
    long, short = text(beginning, length), text(beginning, length // SHORTER)
    return any(work(run, long) < MOST_GROWTH * work(run, short) for _ in range(3))


def text(beginning: str, length: int) -> str:
    """Repeat a beginning; what comes last is in no pattern, for those that look for the end."""
    return (beginning * (length // len(beginning) + 1))[:length] + "\0"


def slowest(run: Callable[[str], object], pattern: re.Pattern[str]) -> list[str]:
    """Return the beginnings that cost most: one that is not linear is among them by far."""
    cost = {each: work(run, text(each, LONG // SHORTER**2)) for each in beginnings(pattern)}
    return sorted(cost, key=lambda each: cost[each], reverse=True)[:MOST_LONG]


def plain_work() -> float:
    """What a pattern does that looks at each character once, and replaces it."""
    plain = re.compile("[a-z]")
    return 2 * min(work(lambda text: plain.sub("", text), "a" * LONG) for _ in range(3))


def test_patterns_are_linear_on_their_own_beginnings() -> None:
    unit = plain_work()
    slow = [
        f"{each.where}: {each.pattern.pattern!r} on {beginning!r}"
        for each in found()
        for run in ways(each)
        for beginning in slowest(run, each.pattern)
        if not is_linear(run, beginning, unit)
    ]
    assert slow == []


@pytest.mark.parametrize(
    "pattern",
    [r"\beyJ[\w-]{5,}\.[\w-]{5,}", r"\s+$", r"[\w.+-]+@\w+", r"<!--.*-->"],
)
def test_a_quadratic_pattern_is_found_out(pattern: str) -> None:
    each = Found("here", re.compile(pattern), frozenset({"search"}))
    unit = plain_work()
    [run] = ways(each)
    assert not all(is_linear(run, beginning, unit) for beginning in slowest(run, each.pattern))
