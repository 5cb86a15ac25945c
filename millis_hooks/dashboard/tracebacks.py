"""Tracebacks on a page: the newest frame first, those of a library folded into one line.

A traceback is stored as text, masked, and may be cut or be any text at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from os.path import commonpath
from pathlib import Path

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
