"""The size and shape of the package, and which modules a prefetch and an end-of-call pass.

Counts `millis_hooks` of the checkout it is run in: `python -m benchmarks.house`. For another
commit, run it in a worktree of that commit. Functions are counted from `def` to their last line;
the longest chain follows every import, also those inside functions and for types, and takes a
circle as one step.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).parent.parent / "millis_hooks"
SECRET = "a-secret-of-the-benchmarks-0001"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text())


def imported_by(module: str) -> set[str]:
    return set(_imported(module)) & PATHS.keys() - {module, "millis_hooks"}


def _imported(module: str) -> Iterator[str]:
    parts = module.split(".")
    is_folder = PATHS[module].name == "__init__.py"
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = parts[: len(parts) - node.level + is_folder] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in PATHS else base


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected parts, the ones that are imported first."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    parts: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == index[module]:
            at = stack.index(module)
            parts.append(set(stack[at:]))
            del stack[at:]

    for module in imports:
        if module not in index:
            visit(module)
    return parts


def longest_chain(imports: dict[str, set[str]]) -> int:
    depth: dict[str, int] = {}
    for part in circles(imports):
        below = {other for module in part for other in imports[module]} - part
        deepest = 1 + max((depth[other] for other in below), default=0)
        depth.update(dict.fromkeys(part, deepest))
    return max(depth.values())


def functions() -> list[int]:
    nodes = (node for module in PATHS for node in ast.walk(tree_of(module)))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return sorted(
        (node.end_lineno or 0) - node.lineno + 1 for node in nodes if isinstance(node, kinds)
    )


class Visits:
    """Collects the modules of ours in which something is called while it is on."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False

    def profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if self.is_on and event == "call":
            self.files.add(frame.f_code.co_filename)

    def during(self, action: Callable[[], object]) -> int:
        self.files.clear()
        self.is_on = True
        action()
        self.is_on = False
        return sum(file.startswith(str(PACKAGE)) for file in self.files)


def visited() -> tuple[int, int]:
    """Return how many modules a prefetch passes, and an end-of-call up to its handler."""
    visits, handled = Visits(), threading.Event()
    threading.setprofile(visits.profile)
    sys.setprofile(visits.profile)
    from starlette.testclient import TestClient

    from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest

    with tempfile.TemporaryDirectory() as folder:
        hooks = MillisHooks(secrets=SECRET, database_url=f"sqlite:///{folder}/calls.db")

        @hooks.on_prefetch
        def greet(call: PrefetchRequest) -> str:
            return "A premium customer."

        @hooks.on_end_of_call
        def note(call: EndOfCall) -> None:
            handled.set()

        headers = {"Authorization": f"Bearer {SECRET}"}
        body = json.dumps({"session_id": "-s1", "call_status": "user-ended", "duration": 61})

        def end() -> None:
            handled.clear()
            client.post("/millis/end-of-call", content=body, headers=headers).raise_for_status()
            handled.wait(10)

        with TestClient(hooks) as client:
            query = {"session_id": "-s1", "agent_id": "-a", "from": "+15550100"}
            prefetch = visits.during(
                lambda: client.get("/millis/prefetch", params=query, headers=headers)
            )
            end_of_call = visits.during(end)
    threading.setprofile(None)
    sys.setprofile(None)
    return prefetch, end_of_call


def main() -> None:
    imports = {module: imported_by(module) for module in PATHS}
    importers = [sum(module in others for others in imports.values()) for module in PATHS]
    lengths = functions()
    at_the_top = [path for path in PACKAGE.iterdir() if path.suffix == ".py"]
    prefetch, end_of_call = visited()
    figures = {
        "lines": sum(len(path.read_text().splitlines()) for path in PATHS.values()),
        "modules": len(PATHS),
        "files at the top": len(at_the_top),
        "longest chain of imports": longest_chain(imports),
        "circles": sum(len(part) > 1 for part in circles(imports)),
        "modules with one importer": importers.count(1),
        "functions": len(lengths),
        "lines of a function, median": int(statistics.median(lengths)),
        "lines of a function, p90": lengths[len(lengths) * 9 // 10],
        "lines of a function, longest": lengths[-1],
        "modules a prefetch passes": prefetch,
        "modules an end-of-call passes": end_of_call,
    }
    for name, figure in figures.items():
        print(f"{name:32}{figure:8,}")


if __name__ == "__main__":
    main()
