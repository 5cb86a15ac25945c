"""Speech as far as it goes without a model: a tone to say something, loudness to hear something.

Both ways it is what Millis sends and takes: signed 16-bit little-endian samples, 16,000 a second,
one channel. Source: docs.millis.ai, integration/native-apps-with-websocket.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

SAMPLES_PER_S = 16_000

TONE_HZ = 220
_AMPLITUDE = 4_000
_FRAME_S = 0.1

_WINDOW_SAMPLES = SAMPLES_PER_S // 50
_WINDOW_S = _WINDOW_SAMPLES / SAMPLES_PER_S
#: A window with a peak like this is loud; of 32,767.
LOUD = 1_500
#: Speech that is shorter is a noise.
SPEECH_FROM_S = 0.2
#: Speech is over after so much silence.
SILENCE_S = 0.6


def tone(seconds: float) -> Iterator[bytes]:
    """Yield a quiet tone, in frames of a tenth of a second; at least one frame."""
    for _ in range(max(1, round(seconds / _FRAME_S))):
        yield _frame()


@cache
def _frame() -> bytes:
    # A whole number of waves fits, so that frames join without a click.
    step = 2 * math.pi * TONE_HZ / SAMPLES_PER_S
    count = round(SAMPLES_PER_S * _FRAME_S)
    return _bytes(array("h", (round(_AMPLITUDE * math.sin(step * at)) for at in range(count))))


def _bytes(samples: array[int]) -> bytes:
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


@dataclass(frozen=True, slots=True)
class Noise:
    """Something is heard that may be speech."""


@dataclass(frozen=True, slots=True)
class Speech:
    """It is speech, and goes on."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """It is over; `speech_s` is how long it lasted, 0 where it was a noise."""

    speech_s: float


class Ear:
    """Hears when somebody speaks, by nothing but loudness. Time is that of the samples."""

    def __init__(self) -> None:
        self._rest = b""
        self._began_s: float | None = None
        self._is_speech = False
        self._loud_s = 0.0
        self._at_s = 0.0

    def hear(self, audio: bytes) -> Iterator[Noise | Speech | Quiet]:
        """Take audio of any length, and yield what is new."""
        data = self._rest + audio
        size = 2 * _WINDOW_SAMPLES
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        for start in range(0, whole, size):
            yield from self._take(_peak(data[start : start + size]) >= LOUD)

    def _take(self, is_loud: bool) -> Iterator[Noise | Speech | Quiet]:
        self._at_s += _WINDOW_S
        if is_loud:
            self._loud_s = self._at_s
        if self._began_s is None:
            if is_loud:
                self._began_s = self._at_s - _WINDOW_S
                yield Noise()
        elif not self._is_speech and self._loud_s - self._began_s >= SPEECH_FROM_S:
            self._is_speech = True
            yield Speech()
        elif self._at_s - self._loud_s >= SILENCE_S:
            lasted_s = self._loud_s - self._began_s if self._is_speech else 0.0
            self._began_s, self._is_speech = None, False
            yield Quiet(round(lasted_s, 2))


def _peak(data: bytes) -> int:
    samples = array("h", data)
    if sys.byteorder == "big":
        samples.byteswap()
    return max(max(samples), -min(samples))
