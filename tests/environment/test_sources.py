from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from millis_hooks.environment.sources import ENV_PREFIX, Given
from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import Settings

PASSWORD = "orchid-plinth-cobalt-meadow"
SetEnv = Callable[..., None]


@pytest.fixture
def set_env(monkeypatch: pytest.MonkeyPatch) -> SetEnv:
    def set_them(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_them


def refusal() -> str:
    with pytest.raises(ConfigError) as error:
        Settings.load()
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MILLIS_HOOKS_MASK_NUMBER", "MILLIS_HOOKS_MASK_NUMBERS"),
        ("MILLIS_HOOKS_DATABASE", "MILLIS_HOOKS_DATABASE_URL"),
        ("MILLIS_HOOKS_OWN-NUMBERS", "MILLIS_HOOKS_OWN_NUMBERS"),
        ("Millis_Hooks_Log_Format", "MILLIS_HOOKS_LOG_FORMAT"),
        ("MILLIS_HOOK_API_KEY", "MILLIS_HOOKS_API_KEY"),
        ("MILLIS_HOOKS_PORT", "--port"),
        ("MILLIS_HOOKS_ZZZZ", "lists all there are"),
    ],
)
def test_a_name_that_is_not_a_setting_is_refused_with_what_was_meant(
    set_env: SetEnv, name: str, meant: str, tmp_path: Path
) -> None:
    set_env(**{name: "8000"})
    assert refusal().startswith(f"{name} is not a setting. ")
    assert meant in refusal()


def test_so_is_one_in_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CRM_URL=x\nexport MILLIS_HOOKS_REDACT_BEFORE_STORAGE=1\n")
    assert refusal() == (
        "MILLIS_HOOKS_REDACT_BEFORE_STORAGE in .env is not a setting. "
        "Did you mean MILLIS_HOOKS_REDACT_BEFORE_STORE?"
    )


def test_one_that_is_empty_is_refused_anyway(set_env: SetEnv) -> None:
    set_env(MILLIS_HOOKS_SESSION_HOURS="")
    assert "is not a setting" in refusal()


def test_every_unknown_name_is_reported_at_once(set_env: SetEnv) -> None:
    set_env(MILLIS_HOOKS_SECRET="x", MILLIS_HOOKS_SANDBOX_PACES="2")
    assert len(refusal().splitlines()) == 2


def test_what_kubernetes_sets_for_services_is_left_alone(set_env: SetEnv) -> None:
    set_env(
        MILLIS_HOOKS_SERVICE_HOST="10.96.3.7",
        MILLIS_HOOKS_SERVICE_PORT="80",
        MILLIS_HOOKS_SERVICE_PORT_HTTP="80",
        MILLIS_HOOKS_PORT="tcp://10.96.3.7:80",
        MILLIS_HOOKS_PORT_80_TCP="tcp://[fd00::7]:80",
        MILLIS_HOOKS_PORT_80_TCP_PROTO="tcp",
        MILLIS_HOOKS_PORT_80_TCP_PORT="80",
        MILLIS_HOOKS_WORKER_PORT_80_UDP_ADDR="fd00::7",
    )
    assert Settings.load().prefix == "/millis"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILLIS_HOOKS_SERVICE_HOST", "0.0.0.0 and more"),
        ("MILLIS_HOOKS_SERVICE_PORT", "http"),
        ("MILLIS_HOOKS_PORT_80_TCP", "10.96.3.7:80"),
    ],
)
def test_but_only_in_their_form(set_env: SetEnv, name: str, value: str) -> None:
    set_env(**{name: value})
    assert "is not a setting" in refusal()


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\u00a0", "\ufeff"])
def test_an_empty_value_is_none_for_every_setting(set_env: SetEnv, blank: str) -> None:
    set_env(**{ENV_PREFIX + name.upper(): blank for name in Settings.model_fields})
    assert Settings.load() == Settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_argument_is_none_too(name: str) -> None:
    assert Settings.load(**{name: " "}) == Settings()


def test_an_empty_value_leaves_room_for_the_file(set_env: SetEnv, tmp_path: Path) -> None:
    set_env(MILLIS_HOOKS_PREFIX="")
    (tmp_path / ".env").write_text("MILLIS_HOOKS_PREFIX=/file\n")
    assert Settings.load().prefix == "/file"


@pytest.mark.parametrize("around", ["{}\n", "  {}\r\n", "\ufeff{}", "\u00a0{}\u200b"])
def test_what_surrounds_a_value_goes(set_env: SetEnv, around: str) -> None:
    set_env(
        MILLIS_HOOKS_DASHBOARD_PASSWORD=around.format(PASSWORD),
        MILLIS_HOOKS_RETENTION_DAYS=around.format("7"),
        MILLIS_HOOKS_AGENT_SECRETS=around.format(f'{{"a": ["{PASSWORD} "]}}'),
        MILLIS_HOOKS_PUBLIC_URL=around.format("https://h.example/"),
        MILLIS_HOOKS_LOG_FORMAT=around.format("json"),
    )
    settings = Settings.load(session_key=around.format(PASSWORD))
    assert settings.dashboard_password == settings.session_key
    assert (settings.retention_days, settings.log_format) == (7, "json")
    assert settings.public_url == "https://h.example"
    assert settings.accepted_secrets("prefetch") == {PASSWORD: "a"}


def test_a_wrong_value_is_reported_under_the_name_it_was_given(
    tmp_path: Path, set_env: SetEnv
) -> None:
    (tmp_path / ".env").write_text("MILLIS_HOOKS_DRAIN_S=soon\n")
    assert refusal().startswith("MILLIS_HOOKS_DRAIN_S in .env: expected a number")
    set_env(MILLIS_HOOKS_DRAIN_S="later")
    assert refusal().startswith("MILLIS_HOOKS_DRAIN_S: expected a number")
    with pytest.raises(ConfigError, match=r"^--to: expected"):
        Settings.load(drain_s="0", database_url=Given("nowhere", "--to"))


def test_a_setting_knows_the_name_it_was_given_under(set_env: SetEnv) -> None:
    set_env(MILLIS_HOOKS_PREFIX="/m")
    settings = Settings.load(drain_s=1)
    names = [settings.name_of(name) for name in ("prefix", "drain_s", "secrets")]
    assert names == ["MILLIS_HOOKS_PREFIX", "drain_s", "MILLIS_HOOKS_SECRETS"]


def test_the_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MILLIS_HOOKS_PREFIX=/first\n", encoding="utf-8-sig")
    assert Settings.load().prefix == "/first"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("MILLIS_HOOKS_PREFIX=/m\n".encode("utf-16"), "is not UTF-8"),
        (b"X=1\nMILLIS_HOOKS_PREFIX: /m\n", "line 2, cannot be read"),
        (b"X=1\nMILLIS_HOOKS_PREFIX\n", "line 2, cannot be read"),
        (b"$env:MILLIS_HOOKS_PREFIX=/m\n", "is not a setting"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    assert said in refusal()


def test_a_folder_of_that_name_is_not_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert Settings.load().prefix == "/millis"


@pytest.mark.parametrize(
    ("name", "meant"), [("retention", "retention_days"), ("MILLIS_HOOKS_SECRETS", "secrets")]
)
def test_an_unknown_argument_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^Unknown setting '{name}'. Did you mean '{meant}'"):
        Settings.load(**{name: "7"})
