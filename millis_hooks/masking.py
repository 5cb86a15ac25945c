"""The one masking policy: what may not reach a page, an export, a log line or a traceback.

Secrets are found by the name of their key and by their shape, always; how much is shown of phone
numbers and of what people said is for the settings to choose. It errs on the side of masking too
much, and it masks a copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pydantic import JsonValue
from pydantic_core import to_json

from .exceptions import PayloadError
from .payload_places import END_OF_CALL, Place, Places
from .wire import read_json

if TYPE_CHECKING:
    from .settings import Level, Settings

#: What stands where a secret was.
MASK = "••••••••"
#: What stands where words or a number are hidden whole, however long they were.
HIDDEN = "•••"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: How a word in the name of a secret ends: `accesstoken` as well as `access_token`.
_SECRET_ENDINGS = (
    "apikey", "auth", "authorization", "bearer", "cookie", "credential", "credentials",
    "passphrase", "passwd", "password", "pwd", "secret", "secrets", "signature", "token",
)  # fmt: skip
#: Names that speak of a secret and hold none.
_ABOUT = frozenset({"count", "limit", "type", "url", "usage"})
#: Keys that are no secret: what they name is public, or only a name.
_OPEN_KEYS = frozenset({"public", "identifier", "idempotency"})
#: Custom headers exist to carry a secret (`webhook.headers`, `tools[].header`).
_HEADERS = frozenset({"header", "headers"})

#: Secrets that can be told by how they begin, anywhere in a text.
_SHAPES = re.compile(
    r"""
      \beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?                    # a JSON web token
    | \b(?:sk|pk|rk|whsec|ghp|gho|glpat|xox[a-z])[-_][\w-]{8,}  # keys of well-known services
    | \bAKIA[A-Z0-9]{12,}
    """,
    re.VERBOSE,
)
_SHAPE_WORDS = (
    "eyJ", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "whsec", "ghp", "gho", "glpat", "xox", "AKIA",
)  # fmt: skip
_BEARER = re.compile(r"\b(bearer\s{1,3})(?=\S{0,60}\d|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""
    (?P<key>
        (?:(?:api|access|private)[_-]?key|authorization|credentials?|passphrase
          |passw(?:or)?d|secrets?|signature|token)
        (?:[_-][\w-]{0,20})?(?:\\?["'])?\s{0,3}[=:]\s{0,3}(?:\\?(?P<quote>["']))?(?:(?:bearer|basic)\s{1,3})?
    )
    (?P<value>(?(quote)(?:(?!\\?(?P=quote)).)+|[^\s"'&;})\]]+))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ASSIGNED_WORDS = (
    "key", "authorization", "credential", "passphrase", "passwd", "password", "secret",
    "signature", "token",
)  # fmt: skip
_USERINFO = re.compile(r"(://[^\s/:@]{0,100}:)[^\s/@]{1,200}(?=@)")
#: Long and random, as a whole value; a slug (`support-agent-v2-for-the-weekend`) is not.
_RANDOM = re.compile(r"(?=.*\d)(?:(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9_+/=-]+|(?=.*[a-z])[a-z0-9]+)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

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
_SHORTENED = re.compile(r"\+?(?:\d{4})?•{2,}\d{2}(?!\d)")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
#: Long enough to be an account, a card or a date of birth.
_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"\d(?:[ ,./-]{0,2}\d){3,}")

#: Three digits and more may be what is left of a phone number.
_PIECE = re.compile(r"\d(?:[ ().,/-]{0,2}\d){2,}")

_PHONE_WORDS = frozenset(
    {"callee", "caller", "cell", "cellphone", "fax", "mobile", "msisdn", "phone", "tel",
     "telephone", "whatsapp"}
)  # fmt: skip
_PHONE_NAMES = frozenset({"from", "to", "number", "from_number", "to_number"})

#: JSON in the text of JSON in a text: a chat, and the arguments of its tool calls.
_MAX_TEXT_DEPTH = 4

#: Lines of a traceback that tell where, and not what was at hand there.
_WHERE = re.compile(
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
    words; `full` hides both whole. A team's `own_numbers`, digits alone, are nobody's secret.
    """

    numbers: Level = "none"
    words: Level = "none"
    own_numbers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> MaskPolicy:
        """Return the policy for what is shown and written out."""
        own_numbers = frozenset(map(_digits, settings.own_numbers))
        return cls(settings.mask_numbers, settings.mask_text, own_numbers)

    def phone(self, number: str) -> str:
        """Return a phone number, or whatever stands in the place of one, as it may be seen."""
        if self.numbers == "none" or not number or _digits(number) in self.own_numbers:
            return number
        if self.numbers == "full":
            return HIDDEN
        return number if _SHORTENED.fullmatch(number) else mask_phone(number)

    def text(self, text: str) -> str:
        """Return what somebody said or wrote as it may be seen."""
        if self.words == "full":
            return HIDDEN if text else ""
        return self.line(text)

    def stretch(self, text: str) -> str:
        """Return a piece cut out of a text as it may be seen: its ends may be those of numbers."""
        if self.numbers != "none":
            text = _PIECE.sub(lambda match: _DIGIT.sub("•", match[0]), text)
        return self.text(text)

    def line(self, text: str) -> str:
        """Return a program's words, such as an error's, without what they must not give away."""
        return self._without_details(_mask_secrets_in(text)[0])

    def url(self, url: str | None) -> str | None:
        """Return the address of a recording; None where words are hidden: it holds them all."""
        return None if self.words == "full" else url

    def traceback(self, text: str) -> str:
        """Return a traceback; where words are hidden, without the messages of its exceptions."""
        if self.words == "none":
            return self.line(text)
        return "\n".join(_without_messages(text, self))

    def payload(self, value: JsonValue, places: Places = END_OF_CALL) -> JsonValue:
        """Return a copy of a JSON value as it may be seen; `places` tell what stands where."""
        return self.masked(value, places).value

    def masked(self, value: JsonValue, places: Places = END_OF_CALL) -> Masked:
        """Return what `payload` does, with the number of its secrets."""
        return self._masked(value, places, 0)

    def _masked(self, value: JsonValue, places: Places, text_depth: int) -> Masked:
        root: list[JsonValue] = [value]
        count = 0
        # A stack of our own: the nesting of a payload is for its sender to choose.
        todo: list[tuple[list[JsonValue] | dict[str, JsonValue], int | str, bool, Places]]
        todo = [(root, 0, False, places)]
        while todo:
            holder, where, secret, places = todo.pop()
            item = holder[where]  # type: ignore[index]
            if places is Place.KEPT and isinstance(item, dict | list):
                places = Place.WORDS  # ids, times and states are none of these
            if isinstance(item, dict):
                item = self._renamed(item, places)
                todo.extend(
                    (item, key, secret or is_secret_name(key), self._place(places, key))
                    for key in item
                )
            elif isinstance(item, list):
                item = list(item)
                todo.extend((item, index, secret, places) for index in range(len(item)))
            else:
                item, found = self._leaf(item, places, text_depth, secret=secret)
                count += found
            holder[where] = item  # type: ignore[index]
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
            shown = self._seen(str(item), places)
            return (item if shown == str(item) else shown), 0
        if places is Place.LINK:
            return self.url(item), 0
        nested = self._in_text(item, places, text_depth)
        if nested is not None:
            return nested.value, nested.count
        if _is_random(item):
            return MASK, 1
        without_secrets, found = _mask_secrets_in(item)
        return self._seen(without_secrets, places), found

    def _in_text(self, text: str, places: Places, text_depth: int) -> Masked | None:
        """Mask JSON that came inside a text; None if that is no JSON, or may stay as it is."""
        if text_depth == _MAX_TEXT_DEPTH or text.lstrip()[:1] not in ("[", "{"):
            return None
        try:
            value = read_json(text)
        except PayloadError:
            return None
        masked = self._masked(value, places, text_depth + 1)
        if not masked.count and self._hides_secrets_alone:
            return None
        # Written anew: of a name that repeats only the last value was looked at.
        return Masked(to_json(masked.value).decode(), masked.count)

    def _seen(self, text: str, places: Places) -> str:
        """Return a text without secrets as it may be seen in this place."""
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
        """Copy an object; what somebody else chose its keys to be may be a number as well."""
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
            text = _EMAIL.sub(HIDDEN, text)
        if _DIGIT.search(text) is None:
            return text
        if self.numbers == "full" and "•" in text:
            text = _SHORTENED.sub(HIDDEN, text)
        if self.numbers != "none":
            text = _PHONE.sub(lambda match: self.phone(unquote(match[0])), text)
        if self.words != "none":
            text = _LONG_NUMBER.sub(lambda match: _DIGIT.sub("•", match[0]), text)
        return text


def mask_secrets(value: JsonValue) -> Masked:
    """Return a copy of a JSON value in which every secret reads `MASK`.

    Below a key that names a secret, and below `header` and `headers`, every text and number is
    one; `true`, `false`, `null` and empty text say only whether something is set, and stay.
    """
    return SECRETS_ALONE.masked(value, Place.OPEN)


def is_secret_name(name: str) -> bool:
    """Tell whether a key of this name usually holds a secret."""
    words = [word.lower() for word in _WORD.findall(name[:200])]
    if not words or words[-1] in _ABOUT:
        return False
    if words[-1] == "key":
        return _OPEN_KEYS.isdisjoint(words)
    return any(word in _HEADERS or word.endswith(_SECRET_ENDINGS) for word in words)


def mask_text(text: str) -> str:
    """Return a log line or a traceback without its secrets and with its phone numbers shortened."""
    masked, _ = _mask_secrets_in(text)
    return _PHONE.sub(lambda match: mask_phone(unquote(match[0])), masked)


def mask_phone(phone: str) -> str:
    """Return a phone number with its middle hidden: `+14155550134` reads `+1415•••••34`.

    Of a short number only the last two digits show; what is no number at all is hidden whole.
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


def _is_random(text: str) -> bool:
    if not 32 <= len(text) <= 512 or _UUID.fullmatch(text):
        return False
    return _RANDOM.fullmatch(text) is not None


def _names_phone(name: str) -> bool:
    """Tell whether a key of this name usually holds a phone number."""
    words = {word.lower() for word in _WORD.findall(name[:200])}
    return not _PHONE_WORDS.isdisjoint(words) or name.lower() in _PHONE_NAMES


def _without_messages(traceback: str, policy: MaskPolicy) -> Iterator[str]:
    """Yield the lines that tell where; what follows them is a message, of any number of lines."""
    in_code = False
    for line in traceback.splitlines():
        if _WHERE.match(line) or (in_code and (not line or line.startswith("    "))):
            in_code = True
            yield mask_text(line)
        elif in_code:
            in_code = False
            error_type, _, message = line.partition(": ")
            yield f"{error_type}: {policy.text(message[:_MESSAGE_CHARS])}"


def _mask_secrets_in(text: str) -> tuple[str, int]:
    """Replace what is shaped like a secret; return how many there were."""
    count = 0
    lowered = text.lower()
    # To look for words is many times quicker than to look for patterns, and most texts have none.
    if _has_any(_SHAPE_WORDS, text):
        text, count = _SHAPES.subn(MASK, text)
    if "://" in text:
        text, passwords = _USERINFO.subn(rf"\1{MASK}", text)
        count += passwords
    if "bearer" in lowered:
        text, bearers = _BEARER.subn(rf"\1{MASK}", text)
        count += bearers
    if _has_any(_ASSIGNED_WORDS, lowered):
        count += sum(match["value"] != MASK for match in _ASSIGNED.finditer(text))
        text = _ASSIGNED.sub(rf"\g<key>{MASK}", text)
    return text, count


def _has_any(words: Iterable[str], text: str) -> bool:
    return any(word in text for word in words)


#: Hides neither numbers nor words.
SECRETS_ALONE = MaskPolicy()
