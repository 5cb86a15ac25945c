"""The masking policy: what may not reach a page, an export, a log line or a traceback.

Secrets are always hidden, found by the name of their key and by their shape. The settings choose
how much is shown of phone numbers and of what people said. The policy errs on the side of masking
too much, and masks a copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import unquote

from pydantic import JsonValue
from pydantic_core import to_json

from ..exceptions import PayloadError
from ..protocol.reading import read_json
from .places import END_OF_CALL, Place, Places
from .secret_patterns import (
    MASK,
    SecretValues,
    is_random,
    mask_secrets_in,
    may_hold_secrets,
    replace_matches,
    secret_values,
    words_in,
)

if TYPE_CHECKING:
    from ..settings import Level, Settings

#: Replaces words and numbers that are hidden whole, whatever their length.
HIDDEN = "•••"

#: The user name and password of an address: all before the last @ ahead of its path.
_SIGN_IN = re.compile(r"(?<=[/\\]{2})[^/\\?#]*@")

_INTERNATIONAL = r"(?:\d{7,15}(?!\d)|\d(?:[ ().-]{0,2}\d){6,14})"
#: Begins with a set of characters, and looks back from there: so it is quick to find nothing.
_PHONE = re.compile(
    rf"""
    [+%(\d]
    (?: (?<=\+){_INTERNATIONAL}
      | (?<=%)2[Bb]{_INTERNATIONAL}
      | (?<![\w.+-][(\d])
        (?: (?<=\d)\d{{9,14}}(?!\w|\.\d)                                # bare digits
          | (?:(?<=\()\d|(?<=\d))\d\d\)?[ .-]{{1,2}}\d{{3}}[ .-]\d{{4}}(?!\w)
          | (?:(?<=\()0|(?<=0))\d(?:[ ()./-]{{0,2}}\d){{7,13}}(?![\w:])  # with a trunk prefix
          | (?<=\d)(?:[ ,-]{{1,2}}\d){{6,14}}(?![\w:])                   # as dictated
        )
    )
    """,
    re.VERBOSE,
)
#: What `mask_phone` makes of a number.
_SHORTENED = re.compile(r"\+?(?:\d{4})?(?<!•)•{2,}\d{2}(?!\d)")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
#: Long enough to be an account, a card or a date of birth.
_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"\d(?:[ ,./-]{0,2}\d){3,}")

#: Three digits and more may be the end of a phone number that was cut.
_CUT_NUMBER = re.compile(r"\d(?:[ ().,/-]{0,2}\d){2,}")

_PHONE_WORDS = frozenset(
    {"callee", "caller", "cell", "cellphone", "fax", "mobile", "msisdn", "phone", "tel",
     "telephone", "whatsapp"}
)  # fmt: skip
_PHONE_NAMES = frozenset({"from", "to", "number", "from_number", "to_number"})

#: How deep JSON is read that stands in texts of JSON: a chat, and its tool calls' arguments.
_MAX_TEXT_DEPTH = 4
_BEGINNINGS = ("[", "{", '"')

#: Lines of a traceback that name a place in the code and quote no value.
_CODE_LINE = re.compile(
    r'  File ".*", line \d+|Traceback \(most recent|The above exception|During handling of the'
)
_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Masked:
    """A JSON value with its secrets replaced, and how many there were."""

    value: JsonValue
    count: int


@dataclass(frozen=True, slots=True)
class MaskPolicy:
    """How much is shown of phone numbers and of words; secrets never are.

    `partial` shortens numbers (`+1415•••••34`), and takes long numbers and e-mail addresses out of
    words; `full` hides both whole. A team's `own_numbers`, digits alone, are always shown.
    """

    numbers: Level = "none"
    words: Level = "none"
    own_numbers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> MaskPolicy:
        """Return the policy of pages, exports and commands."""
        own_numbers = frozenset(map(_digits, settings.own_numbers))
        return cls(settings.mask_numbers, settings.mask_text, own_numbers)

    def shown(self, text: str, place: Place) -> str | None:
        """Return a text of the call log or of a program as it may be shown in its place."""
        if place is Place.KEPT or not text:
            return text
        if place is Place.LINK:
            return self.url(text)
        if place is Place.TRACEBACK:
            return self.traceback(text)
        return self._without_personal(mask_secrets_in(text)[0], place)

    def phone(self, number: str) -> str:
        """Return a phone number, or whatever stands in the place of one, as it may be shown."""
        if self.numbers == "none" or not number or _digits(number) in self.own_numbers:
            return number
        if self.numbers == "full":
            return HIDDEN
        return number if _SHORTENED.fullmatch(number) else mask_phone(number)

    def text(self, text: str) -> str:
        """Return what a person said or wrote as it may be shown."""
        return self.line(text) if self.words != "full" else HIDDEN if text else ""

    def texts(self, texts: Sequence[str]) -> Sequence[str]:
        """Return what was said, each as `text` does, and much faster where nothing is hidden."""
        if self._hides_secrets_alone and not may_hold_secrets("\n".join(texts)):
            return texts
        return [self.text(each) for each in texts]

    def cut_text(self, text: str) -> str:
        """Return a part of a text as it may be shown: it may begin or end within a number."""
        if self.numbers != "none":
            text, _ = replace_matches(_CUT_NUMBER, _dotted, text)
        return self.text(text)

    def line(self, text: str) -> str:
        """Return a program's message, such as an error's, as it may be shown."""
        return self._without_details(mask_secrets_in(text)[0])

    def url(self, url: str | None) -> str | None:
        """Return the address of a recording, without user name and password.

        Its query stays: players need the signature in it. None where words are hidden: the
        recording holds them all.
        """
        return None if self.words == "full" or url is None else without_sign_in(url)

    def traceback(self, text: str) -> str:
        """Return a traceback; where words are hidden, without the messages of its exceptions."""
        if self.words == "none":
            return self.line(text)
        return "\n".join(_without_messages(text, self))

    def payload(self, value: JsonValue, places: Places = END_OF_CALL) -> JsonValue:
        """Return a copy of a JSON value as it may be shown; `places` is its part of the table."""
        if places is Place.WORDS and self._hides_secrets_alone and _is_plain(value):
            return dict(value)
        return self.masked(value, places).value

    def masked(self, value: JsonValue, places: Places = END_OF_CALL) -> Masked:
        """Return the result of `payload` with the number of secrets in it."""
        return self._masked(value, places, 0)

    def _masked(self, value: JsonValue, places: Places, text_depth: int) -> Masked:
        root: list[JsonValue] = [value]
        count = 0
        # A stack of our own: the sender chooses how deep a payload is nested.
        todo: list[tuple[list[JsonValue] | dict[str, JsonValue], int | str, SecretValues, Places]]
        todo = [(root, 0, "nothing", places)]
        while todo:
            holder, key, hides, places = todo.pop()
            item = holder[key]  # type: ignore[index]
            if places is Place.KEPT and isinstance(item, dict | list):
                places = Place.WORDS  # no id, time or state is a list or an object
            if isinstance(item, dict):
                item = self._renamed(item, places)
                todo.extend(
                    (item, name, _secret_below(name, hides), self._place(places, name))
                    for name in item
                )
            elif isinstance(item, list):
                item = list(item)
                todo.extend((item, index, hides, places) for index in range(len(item)))
            else:
                secret = hides == "all" or (hides == "texts" and isinstance(item, str))
                item, secrets = self._leaf(item, places, text_depth, secret=secret)
                count += secrets
            holder[key] = item  # type: ignore[index]
        return Masked(root[0], count)

    def _leaf(
        self, item: JsonValue, places: Places, text_depth: int, *, secret: bool
    ) -> tuple[JsonValue, int]:
        if item is None or isinstance(item, bool) or item == "":
            return item, 0
        if secret:
            return MASK, 1
        if places is Place.KEPT:
            return item, 0
        if not isinstance(item, str):
            shown = self._without_personal(str(item), places)
            return (item if shown == str(item) else shown), 0
        if places is Place.LINK:
            return self.url(item), 0
        nested = self._in_text(item, places, text_depth)
        if nested is not None:
            return nested.value, nested.count
        if is_random(item):
            return MASK, 1
        without_secrets, secrets = mask_secrets_in(item)
        return self._without_personal(without_secrets, places), secrets

    def _in_text(self, text: str, places: Places, text_depth: int) -> Masked | None:
        """Mask JSON that came inside a text; None if it is not JSON, or needs no change."""
        if text_depth == _MAX_TEXT_DEPTH or not text.lstrip().startswith(_BEGINNINGS):
            return None
        try:
            value = read_json(text)
        except PayloadError:
            return None
        masked = self._masked(value, places, text_depth + 1)
        if not masked.count and self._hides_secrets_alone:
            return None
        # Serialized again: of a name that repeats only the last value was masked.
        return Masked(to_json(masked.value).decode(), masked.count)

    def _without_personal(self, text: str, places: Places) -> str:
        """Return a text, whose secrets are masked already, as it may be shown in its place."""
        if places is Place.OPEN:
            return text
        if places is Place.NUMBER:
            return self.phone(text)
        if places is Place.LINE:
            return self._without_details(text)
        return HIDDEN if self.words == "full" else self._without_details(text)

    def _place(self, places: Places, key: str) -> Places:
        if isinstance(places, Mapping):
            places = places.get(key, Place.WORDS)
        if places is Place.WORDS and self._knows_numbers_by_name and _names_phone(key):
            return Place.NUMBER
        return places

    def _renamed(self, item: dict[str, JsonValue], places: Places) -> dict[str, JsonValue]:
        """Copy an object; keys that a sender chose may be numbers as well."""
        if places is not Place.WORDS or self._hides_secrets_alone:
            return dict(item)
        renamed: dict[str, JsonValue] = {}
        for key, value in item.items():
            shown = self.line(key)
            while shown in renamed:
                shown = f"{shown} {len(renamed)}"
            renamed[shown] = value
        return renamed

    @property
    def _hides_secrets_alone(self) -> bool:
        return self.numbers == self.words == "none"

    @property
    def _knows_numbers_by_name(self) -> bool:
        return self.numbers != "none" and self.words != "full"

    def _without_details(self, text: str) -> str:
        if self.words != "none" and "@" in text:
            text, _ = replace_matches(_EMAIL, _hidden_whole, text)
        if _DIGIT.search(text) is None:
            return text
        if self.numbers == "full" and "•" in text:
            text, _ = replace_matches(_SHORTENED, _hidden_whole, text)
        if self.numbers != "none":
            text, _ = replace_matches(_PHONE, lambda match: self.phone(unquote(match[0])), text)
        if self.words != "none":
            text, _ = replace_matches(_LONG_NUMBER, _dotted, text)
        return text


def _is_plain(value: JsonValue) -> TypeGuard[dict[str, str]]:
    """Tell whether it is an object of texts that hold no secret, as nearly all are."""
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(text, str)
        and secret_values(name) == "nothing"
        and not text.lstrip().startswith(_BEGINNINGS)
        and not is_random(text)
        and not mask_secrets_in(text)[1]
        for name, text in value.items()
    )


def _secret_below(name: str, above: SecretValues) -> SecretValues:
    return "all" if above == "all" and name.lower() not in _OPEN_HEADERS else secret_values(name)


#: Headers that every request has; no secret travels in them.
_OPEN_HEADERS = frozenset({"accept", "content-type"})


def without_sign_in(url: str) -> str:
    """Return an address without the user name and password before its host."""
    return _SIGN_IN.sub("", url, count=1)


def mask_secrets(value: JsonValue) -> Masked:
    """Return a copy of a JSON value in which every secret reads `MASK`.

    Below a key that names a secret, and below `header` and `headers`, every text and number is
    a secret. `true`, `false`, `null` and empty text only show whether something is set, and stay.
    """
    return SECRETS_ALONE.masked(value, Place.OPEN)


def mask_text(text: str) -> str:
    """Return a log line or a traceback without its secrets and with its phone numbers shortened."""
    masked, _ = mask_secrets_in(text)
    return replace_matches(_PHONE, lambda match: mask_phone(unquote(match[0])), masked)[0]


def mask_phone(phone: str) -> str:
    """Return a phone number with its middle hidden: `+14155550134` reads `+1415•••••34`.

    Of a short number only the last two digits are shown; any other text is hidden whole.
    """
    digits = _digits(phone)
    if len(digits) < 4:
        return MASK if phone else ""
    plus = "+" if phone.lstrip().startswith("+") else ""
    head = digits[:4] if len(digits) >= 8 else ""
    hidden = len(digits) - len(head) - 2
    return f"{plus}{head}{'•' * hidden}{digits[-2:]}"


def _digits(number: str) -> str:
    return "".join(filter(str.isdigit, number))


def _names_phone(name: str) -> bool:
    """Tell whether a key of this name usually holds a phone number."""
    return not _PHONE_WORDS.isdisjoint(words_in(name)) or name.lower() in _PHONE_NAMES


def _without_messages(traceback: str, policy: MaskPolicy) -> Iterator[str]:
    """Yield the lines of code; the lines after them are a message, of which the first is kept."""
    in_code = False
    for line in traceback.splitlines():
        if _CODE_LINE.match(line) or (in_code and (not line or line.startswith("    "))):
            in_code = True
            yield mask_text(line)
        elif in_code:
            in_code = False
            error_type, _, message = line.partition(": ")
            yield f"{error_type}: {policy.text(message[:_MESSAGE_CHARS])}"


def _hidden_whole(_: re.Match[str]) -> str:
    return HIDDEN


def _dotted(match: re.Match[str]) -> str:
    return _DIGIT.sub("•", match[0])


#: Hides neither numbers nor words.
SECRETS_ALONE = MaskPolicy()
