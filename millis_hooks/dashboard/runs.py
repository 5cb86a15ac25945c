"""Runs on a page: their order, their replay, the words and colors of their outcomes, tracebacks.

A traceback is shown with the newest frame first, and frames of a library folded into one line. It
is stored as text, masked, and may be cut or be any text at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from os.path import commonpath
from pathlib import Path

from ..call_log.queries.records import Attempt, Run

#: Outcome of an attempt -> its words, before the exception if there is one.
_OUTCOMES = {
    "succeeded": "done",
    "failed": "raised",
    "timed_out": "timed out",
    "retry": "asked for a retry",
    "gave_up": "gave up",
    "interrupted": "interrupted by the end of the process",
    "handed_back": "handed back when the service stopped; not counted",
}
_ATTEMPT_KEYS = {"": "done", "succeeded": "done", "handed_back": "done", "retry": "retry"}
_RUN_KEYS = {"failed": "error", "retrying": "retry"}
_STANDINGS = {"succeeded": "is done", "failed": "failed", "retrying": "waits for its next attempt"}
#: State of a run that was replayed -> what the notice says of it.
_REPLAYED = {
    "pending": "is running again",
    "running": "is running again",
    "succeeded": "has run again and is done",
    "failed": "has run again and failed",
    "retrying": "has run again and waits for its next attempt",
}

#: Runs that a notice names: it is a cookie.
_MOST_NAMED = 100
_NOTICE = re.compile(r"((?:\d{1,18}\.)*)-(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReplayOffer:
    """A possible replay of a run; `refusal` is why it is not allowed."""

    label: str
    refusal: str | None = None
    #: The run has succeeded: its side effects would happen again.
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class RunBar:
    """A handler of the call: how long its attempts took, and the state of its run."""

    handler: str
    duration_ms: float
    state: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The result of a replay, said once: the sentences, and how many runs were skipped."""

    sentences: tuple[str, ...]
    skipped: int


def replay_offer(run: Run) -> ReplayOffer | None:
    """Return whether a run can be replayed; None while it is at work or if it was replaced."""
    if not run.is_latest or run.state in ("pending", "running"):
        return None
    label = {"retrying": "Try now", "failed": "Retry"}.get(run.state, "Replay")
    if run.max_attempts is None:
        return ReplayOffer(label, f"No handler is named {run.handler} any more")
    if run.state != "retrying" and not run.repeatable:
        return ReplayOffer(label, f"{run.handler} is registered as not repeatable")
    return ReplayOffer(label, is_repeat=run.state == "succeeded")


def standing(run: Run) -> str:
    """Return the words for the state of a run after the name of its handler."""
    return _STANDINGS.get(run.state, "is already waiting or running")


def failure_of(run: Run) -> str:
    """Return the words for a failed run after the name of its handler."""
    last = run.attempts[-1] if run.attempts else None
    what = "gave up" if last and last.outcome == "gave_up" else "failed"
    return f"{what} after {run.spent} attempt{'s' if run.spent != 1 else ''}" if run.spent else what


def cause_of(run: Run) -> str:
    """Return why a run failed: its last exception, else the reason in words."""
    last = run.attempts[-1] if run.attempts else None
    if last and last.error_type and last.outcome != "gave_up":
        return f"{last.error_type}: {last.error_message}" if last.error_message else last.error_type
    return run.reason or (outcome_words(last) if last and last.outcome else "")


def write_notice(run_ids: Sequence[int], skipped: int) -> str:
    """Return the result of a replay as a cookie's value."""
    ids = "".join(f"{run_id}." for run_id in run_ids[:_MOST_NAMED])
    return f"{ids}-{min(skipped, 999_999)}"


def read_notice(cookie: str | None, runs: Sequence[Run]) -> Notice | None:
    """Read what `write_notice` wrote and say how the runs stand; None if it is of another call."""
    match = _NOTICE.fullmatch(cookie or "")
    if match is None:
        return None
    ids = {int(run_id) for run_id in match[1].split(".") if run_id}
    replayed = [run for run in runs if run.id in ids]
    if ids and not replayed:
        return None
    sentences = tuple(f"{run.handler} {_REPLAYED.get(run.state, '')}." for run in replayed)
    return Notice(sentences, int(match[2]))


def in_order(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Sort runs by the first run of each handler, each latest run before those it replaced.

    Runs of `on_failed` hooks come last.
    """
    groups: dict[tuple[str, str, int | None], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        groups.setdefault((run.hook, run.handler, run.failed_run_id), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: group[0].hook == "failed")
    return tuple(run for group in ordered for run in sorted(group, key=_newest_first))


def attempt_of(run: Run) -> str:
    """Return the number of the last attempt, and of how many."""
    if not run.spent:
        return ""
    if run.max_attempts is None or run.spent > run.max_attempts:  # now registered with fewer
        return f"{run.spent}"
    return f"{run.spent} of {run.max_attempts}"


def outcome_words(attempt: Attempt) -> str:
    """Return the words for the outcome of an attempt."""
    return _OUTCOMES.get(attempt.outcome, attempt.outcome) if attempt.outcome else "at work"


def attempt_key(attempt: Attempt) -> str:
    """Return the name of an attempt's color."""
    return _ATTEMPT_KEYS.get(attempt.outcome or "", "error")


def run_key(run: Run | RunBar) -> str:
    """Return the name of a run's color."""
    return _RUN_KEYS.get(run.state, "done")


def _newest_first(run: Run) -> tuple[bool, int]:
    return not run.is_latest, -run.id


#: The line of a frame. Those of an exception group, which are indented by `|`, stay as they are.
_FRAME = re.compile(r'  File "([^"\n]+)", line (\d+), in ([^\n]+)')
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")
_STANDARD = re.compile(r"[/\\]lib[/\\]python3\.\d+[/\\]|<frozen ")
#: Lines of code that are read of one frame.
_MOST_CODE_LINES = 20
_OURS = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its file as it is shown, and the lines of code below it.

    `library` is the name of the library it is in, and None in the team's own code.
    """

    path: str
    line: int
    function: str
    code: tuple[str, ...]
    library: str | None

    @property
    def text(self) -> str:
        """The frame as Python writes it."""
        return "\n".join((f'File "{self.path}", line {self.line}, in {self.function}', *self.code))


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames in a row of the same library, or of the team's own code, the newest first."""

    library: str | None
    frames: tuple[Frame, ...]

    @property
    def title(self) -> str:
        """How many frames of what these are."""
        count = len(self.frames)
        return f"{count} frame{'s' if count != 1 else ''} of {self.library}"

    @property
    def text(self) -> str:
        """The frames as Python writes them."""
        return "\n".join(frame.text for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Traceback:
    """A traceback: the message of its exception, and its frames, the newest first.

    `rest` is the text of what cannot be read so: an exception group, or the exceptions before.
    """

    message: str
    parts: tuple[Frames, ...]
    rest: str = ""

    @property
    def own_frames(self) -> tuple[Frame, ...]:
        """The frames of the team's own code, the newest first."""
        return tuple(each for part in self.parts if part.library is None for each in part.frames)


def read_traceback(text: str) -> Traceback:
    """Read a traceback; one without frames is all `rest`."""
    before, separator, last = text.rpartition("Traceback (most recent call last):\n")
    lines = last.split("\n")
    frames = _relative(list(_frames(lines)))
    message = "\n".join(_message(lines)).strip()
    if not frames or "\n  |" in text or not separator:
        return Traceback("", (), text)
    newest = groupby(reversed(frames), key=lambda frame: frame.library)
    parts = tuple(Frames(library, tuple(group)) for library, group in newest)
    return Traceback(message, parts, before.strip())


def _frames(lines: Sequence[str]) -> Iterator[Frame]:
    frame: Frame | None = None
    for line in lines:
        match = _FRAME.fullmatch(line)
        if match:
            if frame:
                yield frame
            path = match[1]
            frame = Frame(path, int(match[2][:9]), match[3], (), _library(path))
        elif frame and line.startswith("    ") and len(frame.code) < _MOST_CODE_LINES:
            frame = replace(frame, code=(*frame.code, line))
    if frame:
        yield frame


def _message(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines after the last frame: the exception, and its notes."""
    of_frame = ("  File ", "    ", "  [Previous line")
    below = 0
    for number, line in enumerate(lines, 1):
        below = number if line.startswith(of_frame) else below
    yield from lines[below:]


def _library(path: str) -> str | None:
    if path.startswith(_OURS):
        return "millis_hooks"
    if installed := _INSTALLED.search(path):
        return installed[1].removesuffix(".py")
    return "Python" if _STANDARD.search(path) else None


def _relative(frames: Sequence[Frame]) -> list[Frame]:
    """Shorten the paths of the team's own files: below the working folder, else their own."""
    paths = [frame.path for frame in frames if frame.library is None]
    own = [path for path in paths if Path(path).is_absolute()]
    if not own:
        return list(frames)
    here = str(Path.cwd())
    folder = here if all(path.startswith(f"{here}/") for path in own) else _folder_of(own)
    return [
        replace(frame, path=frame.path.removeprefix(f"{folder}/"))
        if frame.library is None
        else frame
        for frame in frames
    ]


def _folder_of(paths: Sequence[str]) -> str:
    return commonpath([str(Path(path).parent) for path in paths])


FILTERS = {
    each.__name__: each
    for each in (
        attempt_key,
        attempt_of,
        cause_of,
        failure_of,
        outcome_words,
        read_traceback,
        replay_offer,
        run_key,
        standing,
    )
}
