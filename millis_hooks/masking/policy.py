"""The one masking policy: what may not reach a page, an export, a log line or a traceback.

Secrets are found by the name of their key and by their shape, always; how much is shown of phone
numbers and of what people said is for the settings to choose. It errs on the side of masking too
much, and it masks a copy.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import unquote

from pydantic import JsonValue
from pydantic_core import to_json

from ..exceptions import PayloadError
from ..protocol.reading import read_json
from .places import END_OF_CALL, Place, Places

if TYPE_CHECKING:
    from ..settings import Level, Settings

#: What a key's name says is secret below it: nothing, its own texts, or everything.
_Hides: TypeAlias = Literal["nothing", "texts", "all"]

#: What stands where a secret was.
MASK = "••••••••"
#: What stands where words or a number are hidden whole, however long they were.
HIDDEN = "•••"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: How a word in the name of a secret ends, in the singular: `accesstoken`, as `access_token`.
_SECRET_ENDINGS = (
    "accesskey", "apikey", "auth", "authkey", "authorization", "bearer", "cookie", "credential",
    "encryptionkey", "jwt", "masterkey", "passcode", "passphrase", "passwd", "password",
    "privatekey", "pwd", "secret", "secretkey", "sessid", "sessionkey", "signature", "signingkey",
    "sshkey", "token",
)  # fmt: skip
#: How a name ends that is of several words, without what stands between them.
_SECRET_TAILS = ("connectionstring", "connstring", "connstr", "connectionuri", "jwts")
#: Words too short or too common to be looked for but as the last of a name.
_SECRET_LAST = frozenset({"cvc", "cvv", "dsn", "hmac", "otp", "pass", "pin", "sig"})
#: Of these a text is a secret; a number counts them, and below them are fields of other names.
_TEXT_SECRETS = frozenset({"keys", "session", "sessions", "tokens"})
#: What is counted in tokens, or how: `prompt_tokens` are no secret.
_COUNTED = frozenset(
    {"audio", "cache", "cached", "completion", "context", "generated", "image", "input", "llm",
     "max", "maximum", "min", "new", "num", "number", "of", "output", "prompt", "reasoning",
     "remaining", "stop", "text", "thinking", "total", "used"}
)  # fmt: skip
#: Names that speak of a secret and hold none.
_ABOUT = frozenset({"count", "limit", "type", "url", "usage"})
#: Keys that are no secret: what they name is public, or only a name.
_OPEN_KEYS = frozenset({"public", "identifier", "idempotency"})
#: Custom headers exist to carry a secret (`webhook.headers`, `tools[].header`).
_HEADERS = frozenset({"header", "headers"})

#: Secrets that can be told by how they begin, anywhere in a text. What repeats without bound ends
#: the pattern, or begins where nothing like it stood before: else it would not be linear.
_SHAPES = re.compile(
    r"""
      (?:(?<![\w-])eyJ[\w-]{5,}|(?:(?<=[_-])|(?<=%[0-9A-Fa-f]{2}))eyJ[\w-]{5,150})
        \.[\w-]{5,}(?:\.[\w-]*){0,3}                            # a JSON web token
    | (?:\b|(?<=_)|(?<=%[0-9A-Fa-f]{2}))
      (?: (?:sk|pk|rk|whsec|gh[opsur]|glpat|xox[a-z])[-_][\w-]{8,}  # of well-known services
        | (?:github_pat|gsk|shp[a-z]{2}|dckr_pat|pypi|sbp|sq0[a-z]{3}|lin_api|figd|glsa|pplx|xai
            |dop_v1|nvapi|PMAK|sntry[su])[-_][\w-]{16,}
        | (?:npm|hf|r8|ntn)_[A-Za-z0-9]{20,}
        | (?:AKIA|ASIA)[A-Z0-9]{12,}
        | AIza[\w-]{30,}                                        # Google
        | ya29\.[\w-]{20,}
        | SG\.[\w-]{16,64}\.[\w-]{16,}                          # SendGrid
        | SK[0-9a-f]{32}                                        # Twilio
        | hvs\.[\w-]{20,}
      )
    | (?<!\d)\d{8,10}:AA[\w-]{30,}                              # the token of a Telegram bot
    | (?<=-----BEGIN\s)[A-Z\s]{0,30}PRIVATE\sKEY(?:\sBLOCK)?-----(?:(?!-----END)[\s\S]){0,20000}
    """,
    re.VERBOSE,
)
_SHAPE_WORDS = (
    "eyJ", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "whsec", "gho", "ghp", "ghs", "ghu", "ghr",
    "github_pat", "glpat", "xox", "gsk", "npm_", "hf_", "shp", "dckr", "pypi-", "sbp_", "sq0",
    "lin_api", "ntn_", "figd_", "glsa_", "pplx-", "xai-", "r8_", "dop_v1", "nvapi-", "PMAK-",
    "sntry", "AKIA", "ASIA", "AIza", "ya29", "SG.", "SK", "hvs.", ":AA", "PRIVATE KEY",
)  # fmt: skip
#: Addresses that are secret below their host: whoever knows one can write there.
_HOOK_URL = re.compile(
    r"""
    ( hooks\.slack\.com/(?:services|workflows|triggers)/ | hooks\.zapier\.com/hooks/
    | hook\.[\w.]{1,20}make\.com/ | discord(?:app)?\.com/api/webhooks/ | webhook\.office\.com/
    )
    [^\s"'<>\\]{8,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s{1,3})(?=\S{0,60}\d|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE)
_BASIC = re.compile(r"\b(basic\s{1,3})([\w+/-]{6,}={0,2})", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""
    (?P<key>
        (?: (?:(?:api|access|private|secret|signing|encryption|master|ssh)[_-]?keys?|authorization
              |credentials?|passphrases?|passcodes?|passw(?:or)?ds?|secrets?|signatures?
              |(?<!\w)(?:(?:api|auth|access|refresh|bot|device)[_-]?)?
               tokens(?=\\{0,7}["'=])(?!["'\\]{0,8}\s{0,3}[=:]\s{0,3}\d+\b)
              |connection[_-]?string|token)
            (?:[_-][\w-]{0,20})?
          | (?<![\w-])(?:pass|pwd|jwt|dsn|sig|hmac|otp|key|keys|session)(?=\\{0,7}["'=])
          | (?:jwt|sessid)(?=\\{0,7}["'=])
        )
        (?:\\{0,7}["'])?\s{0,3}[=:]\s{0,3}
        (?:(?P<list>\[)|\\{0,7}(?P<quote>["']))?(?:(?:bearer|basic)\s{1,3})?
    )
    (?: (?(list)[^\]]{1,2000}|(?(quote)(?:(?!\\{0,7}(?P=quote)).)+|[^\s"'&;})\]]+)) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ASSIGNED_WORDS = (
    "key", "authorization", "credential", "pass", "pwd", "secret", "signature", "token", "string",
    "jwt", "sessi", "dsn", "sig", "hmac", "otp", "sessid",
)  # fmt: skip
_USERINFO = re.compile(r"(://[^\s/:@]{0,100}:)[^\s/?]{1,200}(?=@)")
#: Who signs in at an address: all that stands before the last @ ahead of its path.
_SIGN_IN = re.compile(r"(?<=[/\\]{2})[^/\\?#]*@")
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
_SHORTENED = re.compile(r"\+?(?:\d{4})?(?<!•)•{2,}\d{2}(?!\d)")
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

#: A pattern keeps the interpreter to itself, so a long text is searched in pieces of this length.
_PIECE_CHARS = 50_000
#: How much more of the text a match may need than the piece in which it begins.
_REACH_CHARS = 25_000


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
            text, _ = _replaced(_PIECE, _dotted, text)
        return self.text(text)

    def line(self, text: str) -> str:
        """Return a program's words, such as an error's, without what they must not give away."""
        return self._without_details(_mask_secrets_in(text)[0])

    def url(self, url: str | None) -> str | None:
        """Return the address of a recording, without who signs in there.

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
        """Return a copy of a JSON value as it may be seen; `places` tell what stands where."""
        return self.masked(value, places).value

    def masked(self, value: JsonValue, places: Places = END_OF_CALL) -> Masked:
        """Return what `payload` does, with the number of its secrets."""
        return self._masked(value, places, 0)

    def _masked(self, value: JsonValue, places: Places, text_depth: int) -> Masked:
        root: list[JsonValue] = [value]
        count = 0
        # A stack of our own: the nesting of a payload is for its sender to choose.
        todo: list[tuple[list[JsonValue] | dict[str, JsonValue], int | str, _Hides, Places]]
        todo = [(root, 0, "nothing", places)]
        while todo:
            holder, where, hides, places = todo.pop()
            item = holder[where]  # type: ignore[index]
            if places is Place.KEPT and isinstance(item, dict | list):
                places = Place.WORDS  # ids, times and states are none of these
            if isinstance(item, dict):
                item = self._renamed(item, places)
                todo.extend(
                    (item, key, "all" if hides == "all" else _hides(key), self._place(places, key))
                    for key in item
                )
            elif isinstance(item, list):
                item = list(item)
                todo.extend((item, index, hides, places) for index in range(len(item)))
            else:
                secret = hides == "all" or (hides == "texts" and isinstance(item, str))
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
        if text_depth == _MAX_TEXT_DEPTH or text.lstrip()[:1] not in ("[", "{", '"'):
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
            text, _ = _replaced(_EMAIL, _hidden_whole, text)
        if _DIGIT.search(text) is None:
            return text
        if self.numbers == "full" and "•" in text:
            text, _ = _replaced(_SHORTENED, _hidden_whole, text)
        if self.numbers != "none":
            text, _ = _replaced(_PHONE, lambda match: self.phone(unquote(match[0])), text)
        if self.words != "none":
            text, _ = _replaced(_LONG_NUMBER, _dotted, text)
        return text


def without_sign_in(url: str) -> str:
    """Return an address without the name and the password that may stand before its host."""
    return _SIGN_IN.sub("", url, count=1)


def mask_secrets(value: JsonValue) -> Masked:
    """Return a copy of a JSON value in which every secret reads `MASK`.

    Below a key that names a secret, and below `header` and `headers`, every text and number is
    one; `true`, `false`, `null` and empty text say only whether something is set, and stay.
    """
    return SECRETS_ALONE.masked(value, Place.OPEN)


def is_secret_name(name: str) -> bool:
    """Tell whether a key of this name usually holds a secret."""
    return _hides(name) != "nothing"


def _hides(name: str) -> _Hides:
    """Tell what below a key of this name is secret."""
    words = [word.lower() for word in _WORD.findall(name[:200])]
    if not words or words[-1] in _ABOUT:
        return "nothing"
    *before, last = words
    if last in _TEXT_SECRETS:
        is_counted = last == "tokens" and not _COUNTED.isdisjoint(before)
        is_open = last == "keys" and not _OPEN_KEYS.isdisjoint(before)
        return "nothing" if is_counted or is_open else "texts"
    if last == "key":
        return "all" if _OPEN_KEYS.isdisjoint(before) else "nothing"
    is_secret = (
        last in _SECRET_LAST
        or "".join(words).endswith(_SECRET_TAILS)
        or any(word in _HEADERS or _singular(word).endswith(_SECRET_ENDINGS) for word in words)
    )
    return "all" if is_secret else "nothing"


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and word != "tokens" else word


def mask_text(text: str) -> str:
    """Return a log line or a traceback without its secrets and with its phone numbers shortened."""
    masked, _ = _mask_secrets_in(text)
    return _replaced(_PHONE, lambda match: mask_phone(unquote(match[0])), masked)[0]


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
    counts = [0, 0, 0, 0, 0, 0]
    lowered = text.lower()
    # To look for words is many times quicker than to look for patterns, and most texts have none.
    if _has_any(_SHAPE_WORDS, text):
        text, counts[0] = _replaced(_SHAPES, _masked_whole, text)
    if "://" in text:
        text, counts[1] = _replaced(_USERINFO, _masked_rest, text)
    if "hook" in lowered:
        text, counts[2] = _replaced(_HOOK_URL, _masked_rest, text)
    if "bearer" in lowered:
        text, counts[3] = _replaced(_BEARER, _masked_rest, text)
    if "basic" in lowered:
        text, counts[4] = _replaced(_BASIC, _masked_sign_in, text)
    if _has_any("=:", text) and _has_any(_ASSIGNED_WORDS, lowered):
        text, counts[5] = _replaced(_ASSIGNED, _masked_rest, text)
    return text, sum(counts)


def _replaced(
    pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str
) -> tuple[str, int]:
    """Replace each match in pieces, between which other threads have their turn; count them."""
    shown: list[str] = []
    count = done = 0
    for match in _matches(pattern, text):
        new = replace(match)
        count += new != match[0]
        shown += (text[done : match.start()], new)
        done = match.end()
    return ("".join([*shown, text[done:]]), count) if done else (text, 0)


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Yield the matches that `finditer` does, and look at no more than a piece at a time."""
    at = 0
    while at < len(text):
        piece_end = at + _PIECE_CHARS
        match = pattern.search(text, at, piece_end + _REACH_CHARS)
        if match is None or match.start() >= piece_end:
            at = piece_end
            continue
        # It may have been cut off where the piece was.
        match = pattern.match(text, match.start()) or match
        yield match
        at = max(match.end(), at + 1)


def _masked_whole(_: re.Match[str]) -> str:
    return MASK


def _hidden_whole(_: re.Match[str]) -> str:
    return HIDDEN


def _dotted(match: re.Match[str]) -> str:
    return _DIGIT.sub("•", match[0])


def _masked_rest(match: re.Match[str]) -> str:
    return match[1] + MASK


def _masked_sign_in(match: re.Match[str]) -> str:
    """Hide what follows `Basic` if it is a name and a password, and not the next word."""
    try:
        signed_in = b64decode(match[2] + "=" * (-len(match[2]) % 4), altchars=b"-_")
    except ValueError:
        return match[0]
    return match[1] + MASK if b":" in signed_in and signed_in.isascii() else match[0]


def _has_any(words: Iterable[str], text: str) -> bool:
    return any(word in text for word in words)


#: Hides neither numbers nor words.
SECRETS_ALONE = MaskPolicy()
