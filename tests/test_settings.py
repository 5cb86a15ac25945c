from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from millis_hooks.environment.secret_rules import MIN_CHARS
from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import Settings

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
    (tmp_path / ".env").write_text("CRM_URL=https://crm.example\nMILLIS_KEY\n? what\n")
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
        ("prefix", "millis"),
        ("prefix", "/{secret}"),
        ("database_url", "sqlite://"),
        ("database_url", "sqlite:///:memory:"),
        ("database_url", "mysql://host/calls"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(setting: str, value: object) -> None:
    assert refusal(**{setting: value}).startswith(f"{setting}: expected ")


def test_every_wrong_setting_is_named_at_once() -> None:
    lines = refusal(prefix="x", handler_threads=0).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "prefix",
        "handler_threads",
    ]


@pytest.mark.parametrize("setting", ["secrets", "prefetch_secrets", "end_of_call_secrets"])
def test_a_short_secret_is_refused_without_being_told(setting: str) -> None:
    message = refusal(**{setting: "hunter2"})
    assert f"at least {MIN_CHARS}" in message
    assert "hunter2" not in message


def test_a_short_secret_of_an_agent_is_refused_without_being_told() -> None:
    message = refusal(agent_secrets={"-Ox1": [ONE, "hunter2"]})
    assert message.startswith("agent_secrets: a secret has 7 characters")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "given",
    [{"-Ox1": [ONE], "-Ox2": [TWO, ONE]}, f'{{"-Ox1": "{TWO}, {ONE}", "-Ox2": " {ONE} "}}'],
)
def test_a_secret_of_two_agents_is_refused_with_the_names_of_both(given: object) -> None:
    message = refusal(agent_secrets=given)
    assert message.startswith("agent_secrets: agents -Ox1 and -Ox2 have the same secret")
    assert ONE not in message


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("Front desk", "expected JSON, such as "),
        ('["-Ox1"]', "expected JSON, such as "),
        ('{"-Ox1": "A", "-Ox1": "B"}', "'-Ox1' is in it twice"),
        ({"-Ox1": "Desk", "-Ox2": "desk"}, "agents -Ox1 and -Ox2 are both named 'desk'"),
        ({"-Ox1": ""}, "agent -Ox1 needs a name"),
        ({"": "Desk"}, "'' is not the id of an agent"),
        ({"-Ox1": None}, "agent -Ox1 needs a name"),
    ],
)
def test_names_of_agents_that_cannot_work_are_refused(given: object, why: str) -> None:
    assert refusal(agent_names=given).startswith(f"agent_names: {why}")


def test_what_should_be_json_and_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_AGENT_SECRETS", f"-Ox1={ONE}")
    message = refusal()
    assert message.startswith("MILLIS_HOOKS_AGENT_SECRETS: expected JSON, such as ")
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


@pytest.mark.parametrize(("given", "kept"), [("/", ""), ("/a/b/", "/a/b")])
def test_a_prefix_ends_without_a_slash(given: str, kept: str) -> None:
    assert Settings.load(prefix=given).prefix == kept


def test_blanks_are_not_a_secret() -> None:
    assert Settings.load(secrets=[" " * 40]).secrets == ()


def test_a_key_that_is_not_ours_is_only_asked_not_to_be_a_placeholder() -> None:
    assert Settings.load(api_key="k").api_key is not None
    assert "is a placeholder" in refusal(api_key="your-millis-api-key")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("prefetch_budget_s", "a number above 0 and up to 60"),
        ("retention_days", "a whole number from 0 and up to 36,500"),
        ("sandbox", "1 or 0, or true or false"),
        ("mask_text", "one of none, partial, full"),
        ("prefetch_default", "JSON, such as "),
    ],
)
def test_an_error_shows_what_was_found_and_says_what_was_expected(
    setting: str, expected: str
) -> None:
    message = refusal(**{setting: "soon"})
    assert message.startswith(f"{setting}: expected {expected}")
    assert message.endswith("(found: 'soon').")


def test_what_is_long_is_not_shown_to_its_end() -> None:
    assert len(refusal(retention_days="9" * 5000)) < 300


@pytest.mark.parametrize(
    "given",
    ["(415) 555-0142", "+1 415 555 0142, 030 1234567", "sip:desk@pbx.example", "4155550142"],
)
def test_a_number_that_can_never_match_is_refused(given: str) -> None:
    message = refusal(own_numbers=given)
    assert message.startswith("own_numbers: ")
    assert "with + and the country code" in message


def test_numbers_are_kept_as_millis_sends_them() -> None:
    given = "+1 (415) 555-0142, 0049 30/1234567"
    assert Settings.load(own_numbers=given).own_numbers == {"+14155550142", "+49301234567"}


@pytest.mark.parametrize(
    "url", ["postgresql://u:sekret/calls", "postgresql://u:sekret@db:port/calls",
            "postgresql+psycopg://u:sekret@[::1/calls"],
)  # fmt: skip
def test_an_invalid_port_is_refused_without_being_shown(url: str) -> None:
    message = refusal(database_url=url)
    assert "expected postgresql://user:password@host/database" in message
    assert "sekret" not in message


PASSWORDS_THAT_TEAR = ["p@ss", "pa/ss", "p@s/s", "p?ss@", "1/2"]


@pytest.mark.parametrize("password", PASSWORDS_THAT_TEAR)
def test_a_password_that_is_not_encoded_is_refused_without_being_told(password: str) -> None:
    message = refusal(database_url=f"postgresql://millis:{password}@db.example/calls")
    assert "In a password, write @ as %40" in message
    assert password not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@corp:secret%40word@db.example/calls",
        "postgresql://millis@/calls?host=/run/postgresql&user=me@corp",
        "postgres://millis:pw@one:5432,two:5432/calls?target_session_attrs=read-write",
    ],
)
def test_other_addresses_of_databases_are_taken(url: str) -> None:
    assert Settings.load(database_url=url).database_url == url


def test_the_password_of_a_database_is_asked_not_to_be_a_placeholder() -> None:
    assert "placeholder" in refusal(database_url="postgresql://me:change-me@db.example/calls")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"sign_in_header": "X-User"}, "sign_in_header needs MILLIS_HOOKS_SIGN_IN_PROXIES"),
        ({"sign_in_proxies": "10.0.0.5"}, "sign_in_proxies needs MILLIS_HOOKS_SIGN_IN_HEADER"),
        ({"sign_in_role_header": "X-Role"}, "sign_in_role_header needs MILLIS_HOOKS_SIGN_IN_H"),
        ({"sign_in_proxies": "proxy.local"}, "sign_in_proxies: expected addresses or networks"),
        ({"sign_in_proxies": "10.0.0.5/8"}, "sign_in_proxies: expected addresses or networks"),
        ({"sign_in_proxies": "0.0.0.0/0"}, "sign_in_proxies: expected the addresses of proxies"),
        ({"sign_in_header": "Cookie"}, "sign_in_header: expected a header that only the proxy"),
        ({"sign_in_header": "X User"}, "sign_in_header: expected the name of a header"),
        (
            {"sign_in_header": "X-U", "sign_in_role_header": "x-u", "sign_in_proxies": "10.0.0.5"},
            "sign_in_header and sign_in_role_header are the same header",
        ),
        ({"sign_in_role": "root"}, "sign_in_role: expected one of view, operate"),
    ],
)
def test_half_a_sign_in_by_proxy_is_refused(settings: dict[str, Any], why: str) -> None:
    assert refusal(**settings).startswith(why)
