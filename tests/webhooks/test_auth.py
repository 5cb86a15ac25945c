from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.exceptions import AuthenticationError
from millis_hooks.masking.policy import SECRETS_ALONE
from millis_hooks.settings import Hook, Settings
from millis_hooks.webhooks.auth import Gate
from support.app import SECRET

OTHER = "a-secret-for-tests-only-0002"


def gate(hook: Hook = "prefetch", **settings: Any) -> Gate:
    return Gate(Settings.load(**({"secrets": SECRET} | settings)), hook)


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"test"), (b"authorization", f"Bearer {secret}".encode())]


def test_the_secret_opens() -> None:
    gate().admit(bearer(SECRET)).require_agent("any agent")


@pytest.mark.parametrize("value", [f"bearer {SECRET}", f"BEARER   {SECRET} "])
def test_the_scheme_is_read_as_http_says(value: str) -> None:
    assert gate().admit([(b"authorization", value.encode())]).agent_id is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(OTHER),
        bearer(SECRET[:-1]),
        bearer(SECRET + "x"),
        bearer(""),
        bearer("pässwörd-of-a-guesser"),
        [(b"authorization", SECRET.encode())],
        [(b"authorization", f"Basic {SECRET}".encode())],
        [(b"x-millis-key", SECRET.encode())],
    ],
)
def test_anything_else_does_not(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(AuthenticationError):
        gate().admit(headers)


def test_the_reason_says_what_is_missing_and_not_what_came() -> None:
    with pytest.raises(AuthenticationError, match="No secret in the authorization header"):
        gate().admit([])
    with pytest.raises(AuthenticationError, match=r"^The secret is not one of those accepted\.$"):
        gate().admit(bearer(OTHER))


@pytest.mark.parametrize("others", [bearer(OTHER), bearer(SECRET), [(b"authorization", b"")]])
def test_two_of_the_header_are_refused_in_either_order(others: list[tuple[bytes, bytes]]) -> None:
    for headers in (bearer(SECRET) + others, others + bearer(SECRET)):
        with pytest.raises(AuthenticationError, match="Several authorization headers; one is due"):
            gate().admit(headers)


def test_two_of_a_header_of_ones_own_are_refused() -> None:
    custom = gate(secret_header="X-Millis-Key")
    key = (b"x-millis-key", SECRET.encode())
    with pytest.raises(AuthenticationError, match="Several x-millis-key headers; one is due"):
        custom.admit([key, key])
    assert custom.admit([key, *bearer(OTHER), *bearer(OTHER)]).agent_id is None


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"Bearer: {SECRET}",
        f"Bearer={SECRET}",
        f'Bearer "{SECRET}"',
        f"Bearer '{SECRET}'",
        f"Bearer <{SECRET}>",
        f"Bearer Bearer {SECRET}",
        f"Bearer {SECRET}, Bearer {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"Basic {SECRET}",
        f"Basic {b64encode(f'millis:{SECRET}'.encode()).decode()}",
        f"Token {SECRET}",
        f"token={SECRET};",
        f'"{SECRET}"',
    ],
)
@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-of-their-own", "cookie"])
def test_a_secret_in_another_form_is_refused_with_the_right_form(header: str, value: str) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        gate().admit([(b"host", b"test"), (header.encode(), value.encode())])
    named = "another header" if header == "x-of-their-own" else f"the {header} header"
    assert str(refusal.value) == (
        f"An accepted secret is in {named}, in another form. Send `Bearer`, a space and the secret "
        "in the authorization header."
    )
    assert SECRETS_ALONE.line(str(refusal.value)) == str(refusal.value)


def test_a_secret_of_several_words_is_found_too() -> None:
    secret = "correct horse: battery, staple"
    with pytest.raises(AuthenticationError, match="An accepted secret is in the authorization"):
        gate(secrets=[secret]).admit([(b"authorization", f"Token {secret}".encode())])


def test_the_form_of_a_header_of_ones_own_is_the_bare_secret() -> None:
    custom = gate(secret_header="X-Millis-Key")
    with pytest.raises(AuthenticationError, match="the secret alone in the x-millis-key header"):
        custom.admit([(b"x-millis-key", f"Bearer {SECRET}".encode())])


def test_a_name_that_is_a_secret_is_not_repeated() -> None:
    name = SECRET.encode()
    with pytest.raises(AuthenticationError) as refusal:
        gate().admit([(name, name)])
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_while_a_secret_is_rotated_both_open(secret: str) -> None:
    assert gate(secrets=[SECRET, OTHER]).admit(bearer(secret)).agent_id is None


def test_a_secret_may_be_written_in_any_script() -> None:
    secret = "пароль-из-многих-букв"
    assert gate(secrets=secret).admit(bearer(secret)).agent_id is None


def test_another_header_carries_the_bare_secret() -> None:
    custom = gate(secret_header="X-Millis-Key")
    assert custom.admit([(b"x-millis-key", SECRET.encode())]).agent_id is None
    with pytest.raises(AuthenticationError, match="x-millis-key"):
        custom.admit(bearer(SECRET))


def test_each_webhook_may_have_its_own() -> None:
    assert gate("prefetch", prefetch_secrets=OTHER).admit(bearer(OTHER)).agent_id is None
    with pytest.raises(AuthenticationError):
        gate("end_of_call", prefetch_secrets=OTHER).admit(bearer(OTHER))


@pytest.mark.parametrize("agent_id", ["-Ox2", "", None])
def test_the_secret_of_an_agent_is_good_for_that_agent_alone(agent_id: str | None) -> None:
    grant = gate(agent_secrets={"-Ox1": [OTHER]}).admit(bearer(OTHER))
    grant.require_agent("-Ox1")
    with pytest.raises(AuthenticationError, match="another agent"):
        grant.require_agent(agent_id)


def test_a_secret_of_an_agent_without_a_name_opens_nothing() -> None:
    grant = gate(agent_secrets={"": [OTHER]}).admit(bearer(OTHER))
    with pytest.raises(AuthenticationError):
        grant.require_agent("-Ox1")


def test_a_secret_in_the_path_counts_instead_of_the_header() -> None:
    assert gate().admit([], path_secret=SECRET.encode()).agent_id is None
    with pytest.raises(AuthenticationError):
        gate().admit(bearer(SECRET), path_secret=b"wrong")


@pytest.mark.parametrize("headers", [[], bearer(OTHER), bearer(OTHER) + bearer(OTHER)])
def test_an_insecure_service_takes_anything(headers: list[tuple[bytes, bytes]]) -> None:
    assert gate(insecure=True, secrets=[]).admit(headers).agent_id is None


def test_an_insecure_service_still_knows_the_secret_of_an_agent() -> None:
    grant = gate(insecure=True, agent_secrets={"-Ox1": [OTHER]}).admit(bearer(OTHER))
    assert grant.agent_id == "-Ox1"


GATE = gate()


@given(st.lists(st.tuples(st.just(b"authorization") | st.binary(), st.binary())))
def test_no_headers_open_by_accident_or_break_the_gate(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(AuthenticationError):
        GATE.admit(headers)
