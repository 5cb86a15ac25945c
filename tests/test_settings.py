from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import MIN_SECRET_CHARS, Settings

ONE, TWO, THREE = (f"secret-number-{number}-of-three" for number in range(1, 4))


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        Settings.load(**settings)
    return str(error.value)


def test_without_anything_set_there_are_defaults_and_no_secret() -> None:
    settings = Settings.load()
    assert (settings.prefix, settings.prefetch_budget_s, settings.secrets) == ("/millis", 2.0, ())


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_SECRETS", f"{ONE}, {TWO},")
    monkeypatch.setenv("MILLIS_HOOKS_OWN_NUMBERS", "+15550100,+15550101")
    monkeypatch.setenv("MILLIS_HOOKS_PREFETCH_DEFAULT", '{"extra_prompt": "Hi"}')
    settings = Settings.load()
    assert set(settings.accepted_secrets("prefetch")) == {ONE, TWO}
    assert settings.own_numbers == {"+15550100", "+15550101"}
    assert settings.prefetch_default == {"extra_prompt": "Hi"}


def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "MILLIS_HOOKS_PREFIX=/file\nMILLIS_HOOKS_MAX_BODY_BYTES=1\nMILLIS_HOOKS_HANDLER_THREADS=1\n"
    )
    monkeypatch.setenv("MILLIS_HOOKS_PREFIX", "/environment")
    monkeypatch.setenv("MILLIS_HOOKS_MAX_BODY_BYTES", "2")
    settings = Settings.load(prefix="/argument")
    assert settings.prefix == "/argument"
    assert (settings.max_body_bytes, settings.handler_threads) == (2, 1)


def test_other_lines_of_the_file_are_none_of_our_business(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CRM_URL=https://crm.example\nMILLIS_HOOKS_LATER=1\n")
    assert Settings.load().prefix == "/millis"


def test_an_unknown_argument_is_refused_with_the_known_ones() -> None:
    message = refusal(secret=ONE)
    assert message.startswith("Unknown setting 'secret'.")
    assert "secrets" in message


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("prefetch_budget_s", 0),
        ("prefetch_budget_s", "soon"),
        ("prefetch_budget_s", "nan"),
        ("max_body_bytes", -1),
        ("body_timeout_s", 0),
        ("handler_threads", 0),
        ("handler_concurrency", 10**6),
        ("prefetch_fallback", "guess"),
        ("prefetch_default", []),
        ("secret_header", "X Key"),
        ("secret_header", ""),
        ("prefix", "millis"),
        ("prefix", "/{secret}"),
        ("database_url", "sqlite://"),
        ("database_url", "sqlite:///:memory:"),
        ("database_url", "mysql://host/calls"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(setting: str, value: object) -> None:
    assert refusal(**{setting: value}).startswith(f"MILLIS_HOOKS_{setting.upper()}: ")


def test_every_wrong_setting_is_named_at_once() -> None:
    lines = refusal(prefix="x", handler_threads=0).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "MILLIS_HOOKS_PREFIX",
        "MILLIS_HOOKS_HANDLER_THREADS",
    ]


@pytest.mark.parametrize("setting", ["secrets", "prefetch_secrets", "end_of_call_secrets"])
def test_a_short_secret_is_refused_without_being_told(setting: str) -> None:
    message = refusal(**{setting: "hunter2"})
    assert f"at least {MIN_SECRET_CHARS}" in message
    assert "hunter2" not in message


def test_a_short_secret_of_an_agent_is_refused_without_being_told() -> None:
    message = refusal(agent_secrets={"-Ox1": [ONE, "hunter2"]})
    assert message.startswith("MILLIS_HOOKS_AGENT_SECRETS: a secret has 7 characters")
    assert "hunter2" not in message


def test_what_should_be_json_and_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_AGENT_SECRETS", f"-Ox1={ONE}")
    message = refusal()
    assert "agent_secrets" in message
    assert ONE not in message


def test_secrets_do_not_show_in_the_settings() -> None:
    settings = Settings.load(
        secrets=ONE, agent_secrets={"a": [TWO]}, dashboard_password=THREE, session_key=THREE
    )
    assert not any(secret in f"{settings!r} {settings}" for secret in (ONE, TWO, THREE))


@pytest.mark.parametrize(
    "setting", ["api_key", "dashboard_password", "metrics_token", "sandbox_key", "session_key"]
)
def test_a_key_or_password_that_is_empty_is_not_set(setting: str) -> None:
    assert getattr(Settings.load(**{setting: ""}), setting) is None


@pytest.mark.parametrize("given", [[f" {ONE}", f"{TWO}\n"], f" {ONE} ,{TWO}\n"])
def test_blanks_around_a_secret_do_not_count(given: object) -> None:
    assert set(Settings.load(secrets=given).accepted_secrets("prefetch")) == {ONE, TWO}


def test_a_webhook_has_its_own_secrets_or_the_common_ones() -> None:
    settings = Settings.load(secrets=ONE, prefetch_secrets=TWO)
    assert settings.accepted_secrets("prefetch") == {TWO: None}
    assert settings.accepted_secrets("end_of_call") == {ONE: None}


def test_a_secret_for_everybody_is_not_bound_to_an_agent() -> None:
    settings = Settings.load(secrets=ONE, agent_secrets={"-Ox1": [ONE, TWO]})
    assert settings.accepted_secrets("prefetch") == {ONE: None, TWO: "-Ox1"}


@pytest.mark.parametrize(
    "settings",
    [{"insecure": True}, {"secrets": ONE}, {"agent_secrets": {"-Ox1": [ONE]}},
     {"prefetch_secrets": ONE, "end_of_call_secrets": TWO}],
)  # fmt: skip
def test_with_a_secret_for_each_webhook_or_the_choice_of_none_it_may_start(
    settings: dict[str, Any],
) -> None:
    Settings.load(**settings).require_closed()


@pytest.mark.parametrize("settings", [{}, {"prefetch_secrets": ONE}, {"secrets": " , "}])
def test_a_webhook_left_open_is_refused_with_the_line_that_closes_it(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match="export MILLIS_HOOKS_SECRETS="):
        Settings.load(**settings).require_closed()


@pytest.mark.parametrize(("given", "kept"), [("/", ""), ("", ""), ("/a/b/", "/a/b")])
def test_a_prefix_ends_without_a_slash(given: str, kept: str) -> None:
    assert Settings.load(prefix=given).prefix == kept


def test_blanks_do_not_make_a_secret_longer() -> None:
    assert "a secret has 0 characters" in refusal(secrets=[" " * 40])
