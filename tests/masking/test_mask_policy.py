"""One policy for all that is shown: what it hides is on no page, in no twin and in no output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from millis_hooks import EndOfCall
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import ConfigError, HandlerTimeoutError
from millis_hooks.masking.error_report import describe_failure, hide_by, hide_no_more_by
from millis_hooks.masking.places import PREFETCH_ANSWER, PREFETCH_QUERY, Place
from millis_hooks.masking.policy import HIDDEN, MaskPolicy
from millis_hooks.masking.secret_patterns import MASK
from millis_hooks.settings import Settings
from support.dashboard_site import Site
from support.paths import SAMPLES

PARTIAL, FULL = MaskPolicy("partial", "partial"), MaskPolicy("full", "full")
NUMBER, SHORTENED = "+14155550134", "+1415•••••34"
SESSION = "-call"
#: Where each of these words stands, a person's affairs do.
WORDS = ("zebra", "giraffe", "ocelot", "tapir", "lemur", "walrus", "bison", "marmot", "heron")
SAID = [
    {"role": "user", "content": f"I am zebra, my number is {NUMBER}"},
    {
        "role": "assistant",
        "content": "giraffe",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "book", "arguments": json.dumps({"day": "ocelot"})},
            }
        ],
    },
    {"role": "tool", "content": "tapir", "tool_call_id": "call_1"},
]
SENT: dict[str, Any] = {
    "session_id": SESSION,
    "agent_id": "-agent",
    "chat": json.dumps(SAID),
    "function_calls": [{"name": "book", "params": {"day": "lemur"}, "result": "walrus"}],
    "ts": 1760000000.25,
    "duration": 41,
    "cost_breakdown": [{"type": "llm", "provider": "openai", "credit": 0.0043}],
    "voip": {"provider": "twilio", "from": NUMBER, "to": "+14155550199"},
    "metadata": {"name": "bison", "phone": NUMBER, "visits": 31},
    "call_status": "user-ended",
    "call_analysis": {"opt_out_detection": "false", "summary": "marmot"},
    "summary": "heron",
}


@pytest.mark.parametrize(
    ("level", "phone", "text"),
    [
        ("none", NUMBER, "ann@host.example, 4111 1111 1111 1111"),
        ("partial", SHORTENED, "•••, •••• •••• •••• ••••"),
        ("full", HIDDEN, HIDDEN),
    ],
)
def test_each_level_hides_more(level: Any, phone: str, text: str) -> None:
    policy = MaskPolicy(level, level)
    assert policy.phone(NUMBER) == phone
    assert policy.text("ann@host.example, 4111 1111 1111 1111") == text
    assert policy.text("") == policy.phone("") == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("call +14155550134", f"call {SHORTENED}"),
        ("ring 06 12 34 56 78 please", "ring 0612••••78 please"),
        ("it is (020) 7946 0958", "it is 0207•••••58"),
        ("four is 4 1 5 5 5 5 0 1 3 4.", "four is 4155••••34."),
        ("on 2026-10-18 at 12:30, or 06/09/2024", "on 2026-10-18 at 12:30, or 06/09/2024"),
        ("token=abc", f"token={MASK}"),
        (SHORTENED, SHORTENED),
    ],
)
def test_numbers_are_found_in_words_whatever_they_look_like(text: str, shown: str) -> None:
    assert MaskPolicy("partial").text(text) == shown


def test_a_shortened_number_is_hidden_whole_where_all_are() -> None:
    assert FULL.line(f"from {SHORTENED}") == f"from {HIDDEN}"
    assert MaskPolicy("partial").phone(SHORTENED) == SHORTENED


def test_your_own_numbers_are_shown() -> None:
    settings = Settings.load(mask_numbers="full", own_numbers="+1 415 555 0199")
    policy = MaskPolicy.of(settings)
    assert policy.phone("+14155550199") == "+14155550199"
    assert policy.line(f"{NUMBER} to +14155550199") == f"{HIDDEN} to +14155550199"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask_numbers: expected one of"):
        Settings.load(mask_numbers="some")


def test_words_are_hidden_wherever_they_stand_in_a_payload() -> None:
    shown = json.dumps(FULL.payload(SENT), ensure_ascii=False)
    assert not [word for word in (*WORDS, NUMBER[1:]) if word in shown]
    assert MaskPolicy(words="full").payload(SENT["voip"], Place.OPEN) == SENT["voip"]


def masked(policy: MaskPolicy, payload: dict[str, Any]) -> dict[str, Any]:
    shown = policy.payload(payload)
    assert isinstance(shown, dict)
    return shown


def test_a_masked_payload_reads_as_before() -> None:
    before = EndOfCall.from_raw(SENT)
    after = EndOfCall.from_raw(masked(FULL, SENT))
    assert after.problems == []
    for fact in ("session_id", "agent_id", "started_at", "duration_s", "cost_total", "channel",
                 "outcome", "opted_out"):  # fmt: skip
        assert getattr(after, fact) == getattr(before, fact), fact
    assert [message.role for message in after.chat] == ["user", "assistant", "tool"]
    assert after.chat[1].tool_calls[0].arguments == {"day": HIDDEN}


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.json")))
@pytest.mark.parametrize("policy", [PARTIAL, FULL])
def test_every_documented_payload_stays_readable(name: str, policy: MaskPolicy) -> None:
    payload = json.loads((SAMPLES / name).read_bytes())
    after = EndOfCall.from_raw(masked(policy, payload))
    assert len(after.problems) <= len(EndOfCall.from_raw(payload).problems)
    assert policy.payload(after.raw) == after.raw


def test_without_other_masking_a_payload_is_searched_for_secrets_only() -> None:
    sent = SENT | {"api_key": "abc"}
    assert MaskPolicy().payload(sent) == SENT | {"api_key": MASK}


def test_secrets_are_found_in_json_inside_a_text() -> None:
    masked = MaskPolicy().masked({"agent_config": '{"tools": [{"header": {"X-Key": "abc"}}]}'})
    assert masked.value == {"agent_config": '{"tools":[{"header":{"X-Key":"••••••••"}}]}'}
    assert masked.count == 1


def test_a_name_that_repeats_inside_a_text_hides_nothing() -> None:
    shown = FULL.payload({"chat": '[{"content": "zebra", "content": ""}]'})
    assert shown == {"chat": '[{"content":""}]'}


def test_an_id_is_kept_whatever_it_looks_like() -> None:
    sent: Any = {"session_id": "0123456789abcdef0123456789abcdef", "call_id": 14155550134}
    assert FULL.payload(sent) == sent


def test_a_number_is_known_by_the_name_of_its_field() -> None:
    shown = MaskPolicy("partial").payload({"metadata": {"phoneNumber": "555 0134", "caller": 5501}})
    assert shown == {"metadata": {"phoneNumber": "•••••34", "caller": "••01"}}


def test_a_number_that_is_a_key_is_hidden_and_nothing_is_lost() -> None:
    shown = FULL.payload({NUMBER: True, "+14155550135": False}, Place.WORDS)
    assert shown == {HIDDEN: True, f"{HIDDEN} 1": False}


def test_a_prefetch_keeps_its_ids() -> None:
    asked: Any = {"session_id": SESSION, "agent_id": "-a", "from": NUMBER, "name": "zebra"}
    shown = FULL.payload(asked, PREFETCH_QUERY)
    assert shown == asked | {"from": HIDDEN, "name": HIDDEN}
    answer: Any = {"metadata": {"tier": "gold"}, "extra_prompt": "zebra"}
    shown = FULL.payload(answer, PREFETCH_ANSWER)
    assert shown == {"metadata": {"tier": HIDDEN}, "extra_prompt": HIDDEN}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from([*SENT]), inner, max_size=4)
        | inner.map(json.dumps)
    ),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_nothing_makes_masking_fail_and_masking_twice_hides_nothing_more(value: Any) -> None:
    shown = FULL.payload(value)
    assert FULL.payload(shown) == shown


@given(st.text("+0123456789 ()-.x@•%2B"))
def test_no_text_makes_masking_fail(text: str) -> None:
    for policy in (PARTIAL, FULL):
        for show in (policy.line, policy.cut_text, policy.phone, policy.traceback):
            show(text)


# What handlers raise


@pytest.fixture
def hide() -> Iterator[Callable[[MaskPolicy], None]]:
    """Hide by policies until the end of the test."""
    hidden: list[MaskPolicy] = []

    def hide(policy: MaskPolicy) -> None:
        hidden.append(policy)
        hide_by(policy)

    yield hide
    for policy in hidden:
        hide_no_more_by(policy)


def failure() -> Exception:
    try:
        try:
            raise KeyError("zebra\n    giraffe")
        except KeyError:
            raise ValueError(f"no slot for {NUMBER}\n    on tuesday") from None
    except ValueError as error:
        return error


def test_an_exception_is_reported_by_where_it_was_raised(
    hide: Callable[[MaskPolicy], None],
) -> None:
    hide(FULL)
    told = describe_failure(failure())
    assert str(told) == f"ValueError: {HIDDEN}"
    assert "in failure" in told.traceback
    assert told.traceback.endswith(f"ValueError: {HIDDEN}")
    assert "tuesday" not in told.traceback.replace('on tuesday")', "")


def test_of_several_policies_all_count(hide: Callable[[MaskPolicy], None]) -> None:
    hide(FULL)
    hide(MaskPolicy("partial"))
    assert describe_failure(failure()).message == HIDDEN
    assert describe_failure(HandlerTimeoutError("took over 2 s")).message == "took over 2 s"


def test_without_a_policy_numbers_are_shortened_and_words_stay() -> None:
    told = describe_failure(failure())
    assert told.message == f"no slot for {SHORTENED}\n    on tuesday"


# Pages, twins and output


def fill(site: Site) -> None:
    numbers: Any = {"from_phone": NUMBER, "to_phone": "+14155550199", "customer_phone": NUMBER}
    body = json.dumps(SENT).encode()
    ended = site.stored.add_delivery(session_id=SESSION, body=body, redacted=True)
    query = f"session_id={SESSION}&from=%2B{NUMBER[1:]}&name=bison"
    answer = json.dumps({"metadata": {"name": "marmot"}, "extra_prompt": "heron"}).encode()
    site.stored.add_delivery(
        "prefetch", session_id=SESSION, query=query, answer=answer, reason="greet: lemur"
    )
    call = site.stored.add_call(
        SESSION,
        text=f"I am zebra\nand {NUMBER}",
        delivery_id=ended,
        direction="inbound",
        snippet="I am zebra",
        error_message=f"no route to {NUMBER}",
        recording_url="https://files.example/walrus.wav",
        **numbers,
    )
    run = site.stored.add_run(call, "notify_crm", "failed", reason="ocelot")
    site.stored.add_attempt(
        run,
        outcome="gave_up",
        error_type="GiveUp",
        error_message="ocelot",
        traceback='Traceback (most recent call last):\n  File "a.py", line 1\nGiveUp: ocelot',
    )
    site.stored.add_unended_call("-live", minutes_ago=1, **numbers)
    site.stored.add_delivery(
        "prefetch", session_id="-live", query=query.replace(SESSION, "-live"), outcome="fresh"
    )
    site.stored.add_delivery(
        body=f"junk tapir {NUMBER}".encode(), outcome="unparsed", query="token=tapir"
    )


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, mask=FULL)
    fill(site)
    site.sign_in()
    yield site
    site.stored.database.close()


PAGES = ["/calls", "/calls?q=zebra", f"/calls?q={NUMBER[5:]}", "/calls/-call", "/calls/-live",
         "/deliveries", "/deliveries/1", "/deliveries/2", "/deliveries/4"]  # fmt: skip


def leaks(text: str) -> list[str]:
    return [word for word in (*WORDS, NUMBER[1:], NUMBER[-7:], "555 0134") if word in text]


@pytest.mark.parametrize("path", PAGES)
def test_no_page_and_no_twin_shows_what_is_hidden(hidden: Site, path: str) -> None:
    asked = path.partition("?q=")[2]
    page, _, query = path.partition("?")
    for response in (hidden.get(path), hidden.get(f"{page}.json?{query}")):
        assert response.status_code == 200
        text = response.text.replace(asked, "") if asked else response.text
        assert leaks(text) == []


def test_where_nothing_is_hidden_all_of_it_is_there(tmp_path: Path) -> None:
    site = Site(tmp_path)
    fill(site)
    site.sign_in()
    text = "".join(site.get(path).text for path in PAGES)
    assert [word for word in (*WORDS, NUMBER[1:]) if word not in text] == []
    site.stored.database.close()


def test_a_partial_number_stands_in_the_list_and_on_the_page(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy("partial"))
    fill(site)
    site.sign_in()
    assert SHORTENED in site.page("/calls").text
    assert SHORTENED in site.page("/calls/-call").text
    hit = site.get("/calls.json?q=5550134").json()["page"]["rows"][0]["excerpt"]
    assert [hit[part] for part in ("before", "hit", "after")] == [
        "…zebra, my number is +••••",
        "•••••••",
        "",
    ]
    site.stored.database.close()


def test_a_hidden_recording_looks_different_from_no_recording(hidden: Site) -> None:
    page = hidden.page("/calls/-call")
    assert "MILLIS_HOOKS_MASK_TEXT hides the conversation" in page.text
    assert page.all("audio") == []


def test_the_page_says_what_was_redacted_before_it_was_stored(hidden: Site) -> None:
    assert "redacted before it was stored" in hidden.page("/calls/-call").text
    assert "redacted before it was stored" in hidden.page("/deliveries/1").text
    assert "redacted before" not in hidden.page("/deliveries/4").text


@pytest.mark.parametrize(
    "args", [["calls"], ["calls", "--json"], ["show", "-call"], ["show", "-call", "--json"],
             ["runs"], ["runs", "--json"]]
)  # fmt: skip
def test_no_command_prints_what_is_hidden(
    hidden: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{tmp_path}/log.db")
    monkeypatch.setenv("MILLIS_HOOKS_MASK_NUMBERS", "full")
    monkeypatch.setenv("MILLIS_HOOKS_MASK_TEXT", "full")
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert SESSION in result.stdout
    assert leaks(result.stdout) == []
