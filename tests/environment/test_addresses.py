from __future__ import annotations

import pytest

from millis_hooks.environment.addresses import service_address, web_address, without_password

REFUSED = [
    "hooks.example.com",
    "//hooks.example.com",
    "ftp://hooks.example.com",
    "https:/hooks.example.com",
    "https://",
    "https://hooks.example.com?next=1",
    "https://hooks.example.com/a#b",
    "https://me:word@hooks.example.com",
    "https://hooks.example.com@elsewhere.example",
    "https://hooks.example.com:",
    "https://hooks.example.com:0",
    "https://hooks.example.com:70000",
    "https://hooks.example.com:http",
    "https://hooks example.com",
    "https://hooks..example.com",
    "https://<your-host>/",
    "https://[::1",
    "https://hooks.example.com/a b",
    "https://hooks.example.com/\u202e",
    "https://h.example/" + "a" * 600,
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected an address"):
        web_address(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("HTTPS://Hooks.Example.com/", "https://hooks.example.com"),
        ("http://[::1]:8000/Voice/", "http://[::1]:8000/Voice"),
        ("https://büro.example", "https://büro.example"),
        ("http://localhost:8000", "http://localhost:8000"),
    ],
)
def test_an_address_is_kept_in_one_spelling(text: str, kept: str) -> None:
    assert web_address(text) == kept


@pytest.mark.parametrize(
    ("text", "prefix", "kept"),
    [
        ("https://h.example/millis/prefetch", "/millis", "https://h.example"),
        ("https://h.example/voice/millis/end-of-call/", "/millis", "https://h.example/voice"),
        ("https://h.example/m/0123456789abcdefgh/prefetch", "/m", "https://h.example"),
        ("https://h.example/prefetch", "", "https://h.example"),
        ("https://h.example/voice", "/millis", "https://h.example/voice"),
        ("https://h.example", "/millis", "https://h.example"),
    ],
)
def test_the_address_of_a_webhook_is_understood(text: str, prefix: str, kept: str) -> None:
    assert service_address(text, prefix) == kept


def test_but_not_that_of_another_prefix() -> None:
    with pytest.raises(ValueError, match="below /millis"):
        service_address("https://h.example/hooks/prefetch", "/millis")


def test_no_password_of_an_address_is_reported() -> None:
    told = without_password("postgresql://me:p@s:s@h/db and postgresql://h/db?password=xyz&a=1")
    assert told == "postgresql://me:•@h/db and postgresql://h/db?password=•&a=1"
