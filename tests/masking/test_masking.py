from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.masking.policy import MaskPolicy, mask_phone, mask_secrets, mask_text
from millis_hooks.masking.secret_patterns import MASK, is_secret_name
from support.paths import SAMPLES


def test_the_secrets_of_an_agents_config_do_not_show() -> None:
    payload = json.loads((SAMPLES / "v2.json").read_bytes())
    masked = mask_secrets(payload)
    shown = json.dumps(masked.value)
    assert masked.count == 2
    assert "tool-key-1" not in shown
    assert "hook-secret-1" not in shown


def test_the_value_given_is_left_as_it_was() -> None:
    payload = json.loads((SAMPLES / "v2.json").read_bytes())
    mask_secrets(payload)
    assert payload == json.loads((SAMPLES / "v2.json").read_bytes())


def test_all_that_is_not_secret_stays() -> None:
    payload = json.loads((SAMPLES / "v2_extras.json").read_bytes())
    assert mask_secrets(payload).value == payload
    assert mask_secrets(payload).count == 0


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "APIKey", "x-api-key", "apikey", "Authorization", "token", "accesstoken",
     "refreshToken", "client_secret", "password", "credentials", "key", "headers", "header",
     "custom_headers", "auth", "PRIVATE KEY", "Set-Cookie", "apiKeys", "x-api-keys", "bot_tokens",
     "AccessTokens", "keys", "signing-keys", "userPass", "pass", "passcodes", "idJwt", "session",
     "PHPSESSID", "sentryDsn", "connectionString", "db-connection-string", "privatekey"],
)  # fmt: skip
def test_a_name_that_tells_a_secret_is_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["prompt_tokens", "max_tokens", "keywords", "monkey", "public_key", "user_identifier_key",
     "secretary", "author", "token_count", "auth_type", "session_id", "", "1", "keyboard", "turkey",
     "completionTokens", "public_keys", "compass", "passenger", "pass_rate", "passport",
     "sessionId", "session_count", "spin", "signal", "tokens_used"],
)  # fmt: skip
def test_a_name_that_only_looks_like_one_is_not(name: str) -> None:
    assert not is_secret_name(name)


def test_everything_below_a_secret_name_is_masked() -> None:
    masked = mask_secrets({"credentials": {"user": "ann", "pins": [1234, None, True, ""]}})
    assert masked.value == {"credentials": {"user": MASK, "pins": [MASK, None, True, ""]}}
    assert masked.count == 2


@pytest.mark.parametrize(
    "value",
    ["sk-proj-abcdefgh1234", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
     "0123456789abcdef0123456789abcdef", "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6"],
)  # fmt: skip
def test_a_value_shaped_like_a_secret_is_masked_under_any_name(value: str) -> None:
    assert mask_secrets([value]).value == [MASK]


@pytest.mark.parametrize(
    "value",
    ["-Ox1demoSess00000001", "123e4567-e89b-12d3-a456-426614174000", "21m00Tcm4TlvDq8ikWAM",
     "support-agent-v2-for-the-weekend", "Good morning, how may I help you?",
     "https://files.example/recordings/2026/r.wav"],
)  # fmt: skip
def test_ids_addresses_and_sentences_are_not_masked_as_secrets(value: str) -> None:
    assert mask_secrets(value).value == value


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def1", f"Authorization: Bearer {MASK}"),
        ("authorization: rawkey", f"authorization: {MASK}"),
        ("{'password': 'my pass phrase'}", f"{{'password': '{MASK}'}}"),
        ('"{\\"token\\": \\"a b\\"}"', f'"{{\\"token\\": \\"{MASK}\\"}}"'),
        ("GET /hook?api_key=abc&x=1", f"GET /hook?api_key={MASK}&x=1"),
        ("postgresql://ann:p4ss@host/db", f"postgresql://ann:{MASK}@host/db"),
        ("MILLIS_HOOKS_SECRETS=one,two", f"MILLIS_HOOKS_SECRETS={MASK}"),
        ("from +14155550134 200 OK", "from +1415•••••34 200 OK"),
        ("from=%2B14155550134&x=1", "from=+1415•••••34&x=1"),
        ("call +1 (415) 555-0134 or 415-555-0134", "call +1415•••••34 or 4155••••34"),
        ("the caller 4155550134", "the caller 4155••••34"),
    ],
)
def test_a_line_loses_its_secrets_and_its_numbers(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    ["2026-10-18T12:30:45.123456+00:00 INFO 127.0.0.1:8000", "ts=1760000000.25 line 1234",
     "prompt_tokens=900 max_tokens: 5", "the bearer certificate", "session -Ox1demoSess00000001"],
)  # fmt: skip
def test_a_line_without_either_stays(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    ("phone", "masked"),
    [("+14155550134", "+1415•••••34"), ("+1 (415) 555-0134", "+1415•••••34"), ("5501", "••01"),
     ("sip:ann@host", MASK), ("anonymous", MASK), ("", "")],
)  # fmt: skip
def test_a_number_shows_where_it_is_from_and_how_it_ends(phone: str, masked: str) -> None:
    assert mask_phone(phone) == masked


def test_numbers_under_a_name_of_many_count_them() -> None:
    sent: Any = {"tokens": 120, "keys": 3, "sessions": {"id": "-Ox1"}, "usage": [{"tokens": 7}]}
    assert mask_secrets(sent).value == sent
    assert mask_secrets({"tokens": ["abc"]}).value == {"tokens": [MASK]}


@pytest.mark.parametrize(
    "secret",
    ["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",
     "987654321:AAF0zXqP3mR7tYwK5sLbN2vC8dGhJ4eUi6o", "gsk_9aB3dE5fG7hJ1kL3mN5p",
     "AIzaSyB1c2D3e4F5g6H7i8J9k0L1m2N3o4P5q6R", "github_pat_22BCDEFGH1jklmno_pqrstu3",
     "npm_Zy1Xw2Vu3Ts4Rq5Po6Nm7Lk8Ji9Hg0Fe", "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",
     "eyJraWQiOiI3In0.eyJzdWIiOiI5In0.c2lnbmVk"],
)  # fmt: skip
@pytest.mark.parametrize(
    "around", ["say {} twice", "https://h.example/?x={}&y=1", "of-{}", "%22{}"]
)
def test_a_secret_of_a_known_shape_is_masked_in_running_text(secret: str, around: str) -> None:
    assert secret not in mask_text(around.format(secret))
    mask = MaskPolicy()
    assert mask.texts([around.format(secret)]) == [mask.text(around.format(secret))]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("to https://hooks.slack.com/services/T9/B8/zYx7 now",
         f"to https://hooks.slack.com/services/{MASK} now"),
        ("discord.com/api/webhooks/123/aB-c_d", f"discord.com/api/webhooks/{MASK}"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQ==\n-----END EC PRIVATE KEY----- end",
         f"-----BEGIN {MASK}-----END EC PRIVATE KEY----- end"),
        ("sent Basic YWRhOmxvdmVsYWNl", f"sent Basic {MASK}"),
        ("https://b.example/a.wav?se=9&sig=q%2Bw%3D&sp=r", f"https://b.example/a.wav?se=9&sig={MASK}&sp=r"),
        ("amqp://ann:p@ss:word@host/x", f"amqp://ann:{MASK}@host/x"),
        ("?key=plainkey", f"?key={MASK}"),
        ('{\\\"api_keys\\\": [\\\"one\\\", \\\"two\\\"]}', f'{{\\\"api_keys\\\": [{MASK}]}}'),
    ],
)  # fmt: skip
def test_an_address_a_header_or_a_key_is_masked_in_running_text(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    ["the basic understanding of things", "a basic 24-hour plan", "press any key: enter",
     "session -Ox1", "session_id=-Ox1", "tokens=5", "risk_assessment2024", "http://h:80?to=x",
     "https://hooks.example.com/millis/prefetch"],
)  # fmt: skip
def test_what_is_near_a_secret_stays(text: str) -> None:
    assert mask_text(text) == text


def test_json_in_a_text_in_a_text_is_looked_into() -> None:
    config = json.dumps(json.dumps({"tools": [{"header": {"X-Auth": "opensesame"}}]}))
    masked = mask_secrets({"agent_config": config})
    assert masked.count == 1
    assert "opensesame" not in json.dumps(masked.value)


def test_a_secret_is_found_wherever_a_long_text_is_divided() -> None:
    secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    for before in range(49_940, 50_001, 7):
        text = "x" * (before - 1) + " " + secret + " " + "y" * 60_000
        assert mask_text(text) == text.replace(secret, MASK)


def test_credentials_are_left_out_of_recording_addresses() -> None:
    sent: Any = {"recording": {"recording_url": "https://ann:p@ss@files.example/a.mp3?sig=1"}}
    assert MaskPolicy().payload(sent) == {
        "recording": {"recording_url": "https://files.example/a.mp3?sig=1"}
    }


def test_a_value_nested_without_end_is_masked() -> None:
    value: Any = "sk-proj-abcdefgh1234"
    for _ in range(5000):
        value = {"a": [value]}
    assert mask_secrets(value).count == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )
)
def test_masking_twice_masks_nothing_more(value: Any) -> None:
    masked = mask_secrets(value)
    assert mask_secrets(masked.value).value == masked.value
    assert (masked.value == value) == (masked.count == 0)
