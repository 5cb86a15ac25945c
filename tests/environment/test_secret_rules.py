from __future__ import annotations

import secrets

import pytest

from millis_hooks.environment.secret_rules import MIN_CHARS, require_strong
from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import Settings

#: Every setting that lets somebody in.
SETTINGS = [
    "secrets",
    "prefetch_secrets",
    "end_of_call_secrets",
    "agent_secrets",
    "dashboard_password",
    "session_key",
    "metrics_token",
    "sandbox_key",
]
GUESSABLE = [
    "hunter22",
    "x" * MIN_CHARS,
    "abc" * 20,
    "9876543210987654",
    "mnbvcxzlkjhgfdsa",
    "Passw0rd!Passw0rd!",
    "P4ssword12345678",
    "1q2w3e4r5t6y7u8i",
    "my-millis-secret-2026",
    "dashboard-admin-key",
    "aaaabbbbccccdddd",
    "a1b2c3d4e5f6g7h8",
    "correcthorsebatterystaple",
    "replace_with_32_random_bytes",
    "PLEASE-CHANGE-ME-SOON",
    "<the secret of the webhook>",
    "put your secret here",
    "Your_Dashboard_Password",
    "$(openssl rand -hex 32)",
    "${MILLIS_WEBHOOK_SECRET}",
    "{{ lookup_the_secret }}",
    "todo-make-up-a-secret",
    "example-do-not-use-it-2026",
    "xxxxxxxx-xxxxxxxx-xxxx",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("text", GUESSABLE)
def test_what_can_be_guessed_is_refused_for_every_setting_and_not_told(
    setting: str, text: str
) -> None:
    given = {"somebody": [text]} if setting == "agent_secrets" else text
    with pytest.raises(ConfigError, match=f"^{setting}: ") as error:
        Settings.load(**{setting: given})
    assert text not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "orchid plinth cobalt meadow",
        "correct-horse-battery-staple",
        "0123456789abcdef0123456789abcdef",
        "пароль-из-многих-букв",
        "Tr0ub4dor&3-and-a-half",
    ],
)
def test_others_are_taken(text: str) -> None:
    require_strong(text, kind="a secret")


def test_what_is_made_by_chance_is_taken() -> None:
    for _ in range(200):
        require_strong(secrets.token_hex(32), kind="a secret")
        require_strong(secrets.token_urlsafe(16), kind="a secret")


def test_the_name_of_an_operator_does_not_make_a_password() -> None:
    require_strong("benedikta-2026-sommer", kind="the password")
    with pytest.raises(ValueError, match="common words"):
        require_strong("Benedikta-Sommer", kind="the password", names=("benedikta",))
    with pytest.raises(ValueError, match="common words"):
        require_strong("benedikta-2026-07", kind="the password", names=("Benedikta",))
