"""An answer that a model streams: put together, and spoken as fast as it would be heard.

One `stream_id` is one answer, and one turn of the conversation with all its white space. A piece is
spoken as soon as a sentence is complete, or when the model says `flush`. Source: docs.millis.ai,
integration/custom-llm.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

#: Where a sentence is complete: its mark and the quotes that close after it, before white space.
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|\Z)|[。！？؟।\n]""")


class Answer:
    """One answer, from its request until the last of it was heard."""

    def __init__(
        self,
        stream_id: int,
        *,
        speak: Callable[[str], None],
        chars_per_s: float,
    ) -> None:
        """`speak` is called with each piece when its time has come."""
        self.stream_id = stream_id
        #: Whether all of it has come.
        self.is_complete = False
        #: Whether some of it has come that is more than white space.
        self.has_begun = False
        #: Whether a piece of it is being heard.
        self.is_heard = False
        self._speak = speak
        self._chars_per_s = chars_per_s
        self._held: list[str] = []
        self._pieces: asyncio.Queue[str | float | None] = asyncio.Queue()

    def take(self, content: str, *, is_flushed: bool, pause_s: float, is_last: bool) -> None:
        """Take the next part of it; what comes after the last one is not said."""
        if self.is_complete:
            return
        self.has_begun = self.has_begun or bool(content.strip())
        is_due = is_flushed or pause_s > 0 or is_last
        ends_at = len(content) if is_due else _sentences_end(content)
        self._held.append(content[:ends_at])
        if (is_due or ends_at) and self.has_begun:
            self._release()
        self._held.append(content[ends_at:])
        if pause_s > 0:
            self._pieces.put_nowait(pause_s)
        if is_last:
            self.is_complete = True
            self._pieces.put_nowait(None)

    def _release(self) -> None:
        if piece := "".join(self._held):
            self._pieces.put_nowait(piece)
        self._held.clear()

    async def play(self) -> None:
        """Speak each piece when those before it were heard; return after the last one."""
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, str):
                self._speak(piece)
            self.is_heard = True
            await asyncio.sleep(piece if isinstance(piece, float) else self._lasts_s(piece))
            self.is_heard = False

    def _lasts_s(self, piece: str) -> float:
        return len(piece) / self._chars_per_s


def _sentences_end(text: str) -> int:
    """Return where the last complete sentence of `text` ends; 0 if none does."""
    return max((match.end() for match in _SENTENCE_END.finditer(text)), default=0)
