"""The types of settings: how each kind of value is read, and what it has to be.

Their checks raise `ValueError`, which says what was expected and quotes no secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, TypeAlias, cast

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo

from ..protocol.phones import international
from .addresses import web_address
from .secret_rules import require_own, require_strong
from .sources import cleaned


class _RepeatedError(ValueError):
    """JSON names a key twice, of which Python keeps the last."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _RepeatedError(repr(name))
        fields[name] = value
    return fields


def split(value: object) -> object:
    """Return the items of a list that is written with commas, or given as one; each is cleaned."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, SecretStr) or not isinstance(parts, Iterable):
        parts = [parts]
    return [part for part in map(cleaned, parts) if part is not None]


def _require_readable(url: str) -> None:
    """Raise `ValueError` where a database's address cannot be read in one way only.

    What follows an `@` or `/` of a password would be taken for the host, and appear in errors.
    """
    authority, slash, rest = url.partition("://")[2].partition("/")
    _user, colon, after = authority.partition(":")
    path = rest.partition("?")[0]
    hosts = authority.rpartition("@")[2].split(",")
    are_hosts = all(re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host) for host in hosts)
    is_cut = after.count("@") > 1 or "@" in slash + path or (colon and "?" in authority)
    if is_cut or not are_hosts:
        raise ValueError(
            "expected postgresql://user:password@host/database. In a password, write @ as %40, "
            "/ as %2F, : as %3A, ? as %3F, # as %23 and % as %25"
        )
    if "@" in after:
        require_own(after.rpartition("@")[0], kind="the password in it")


def read_object(text: str, such_as: str) -> object:
    """Read JSON in which no name repeats; `such_as` is an example."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except _RepeatedError as error:
        raise ValueError(f"{error} is in it twice") from None
    except (ValueError, RecursionError):
        raise ValueError(f"expected JSON, such as {such_as}") from None


def _are_strong(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for secret in secrets:
        require_strong(secret.get_secret_value(), kind="a secret")
    return secrets


def _is_strong(secret: SecretStr, info: ValidationInfo) -> SecretStr:
    kind = "the " + str(info.field_name).rpartition("_")[2]
    require_strong(secret.get_secret_value(), kind=kind)
    return secret


def _is_own(key: SecretStr) -> SecretStr:
    require_own(key.get_secret_value(), kind="the key")
    return key


def _are_international(numbers: frozenset[str]) -> frozenset[str]:
    return frozenset(map(international, numbers))


def _path(text: str) -> str:
    trimmed = text.rstrip("/")
    if trimmed and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", trimmed):
        raise ValueError("expected a path, such as /millis")
    return trimmed


def _networks(value: object) -> object:
    is_one = isinstance(value, str) or not isinstance(value, Iterable)
    parts: Iterable[object] = str(value).split(",") if is_one else cast("Any", value)
    return [_network(text) for text in (str(each).strip() for each in parts) if text]


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            f"expected addresses or networks, such as 10.0.0.5 or 10.1.0.0/16, not {text!r}"
        ) from None
    if network.prefixlen == 0:
        raise ValueError("expected the addresses of proxies, not all there are")
    return network


def _call_log(url: str) -> str:
    if re.match(r"sqlite:///.", url) and ":memory:" not in url:
        return url
    if not re.match(r"postgres(ql)?(\+psycopg)?://[^/]*/[^/?]", url):
        raise ValueError(
            "expected a SQLite file, such as sqlite:///millis_hooks.db, or a database of "
            "PostgreSQL, such as postgresql://user@host/database"
        )
    _require_readable(url)
    return url


Secrets: TypeAlias = Annotated[
    tuple[SecretStr, ...], BeforeValidator(split), AfterValidator(_are_strong)
]
OneSecret: TypeAlias = Annotated[SecretStr, AfterValidator(_is_strong)]
#: A key that others made.
OwnKey: TypeAlias = Annotated[SecretStr, AfterValidator(_is_own)]
Numbers: TypeAlias = Annotated[
    frozenset[str], BeforeValidator(split), AfterValidator(_are_international)
]
Networks: TypeAlias = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
PrefixPath: TypeAlias = Annotated[str, AfterValidator(_path)]
WebAddress: TypeAlias = Annotated[str, AfterValidator(web_address)]
DatabaseUrl: TypeAlias = Annotated[str, AfterValidator(_call_log)]
