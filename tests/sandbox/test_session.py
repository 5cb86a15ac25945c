"""A session as Millis runs it, from the first word about it to its entry in the call logs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from millis_hooks.protocol.call_status import CallStatus
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import Vintage
from millis_hooks.sandbox.policy import Policy
from millis_hooks.sandbox.scenario import Ending, Faults, Line, Script, ToolUse
from millis_hooks.sandbox.session import Session
from millis_hooks.sandbox.steps import (
    EndDelivered,
    HungUp,
    Merged,
    Prefetched,
    Rendered,
    Said,
    StepLog,
)
from millis_hooks.sandbox.transport import Answer, TransportError
from support.sandbox_calls import PREFETCH, Receiver, Reply, call, json_answer


def test_a_call_goes_through_its_steps_in_order() -> None:
    result = call(Receiver())
    assert [step.kind for step in result.log] == [
        "attached", "prefetched", "merged", "rendered", "said", "said", "hung_up",
        "end_delivered", "logged",
    ]  # fmt: skip
    assert [step.number for step in result.log] == list(range(1, 10))


def test_the_prefetch_has_the_form_of_millis() -> None:
    receiver = Receiver()
    result = call(receiver, from_phone="+14155550134", to_phone="+14155550199", metadata={"n": 1})
    assert receiver.query == {
        "session_id": result.session_id,
        "agent_id": "-Ox1sampleAgent00001",
        "from": "+14155550134",
        "to": "+14155550199",
        "n": "1",
    }
    assert b"%2B1415" in receiver.to("prefetch")[0].query
    assert receiver.to("prefetch")[0].headers == (("Authorization", "Bearer of the tests"),)


def test_metadata_named_as_a_field_of_millis_comes_second_and_is_noted() -> None:
    receiver = Receiver()
    result = call(receiver, metadata={"session_id": "of another"})
    assert receiver.to("prefetch")[0].query.endswith(b"&session_id=of%20another")
    assert "session_id" in result.log.of(Prefetched)[0].notes[0]


def test_answered_metadata_replaces_what_was_attached_and_adds_to_it() -> None:
    answer = json_answer({"metadata": {"plan": "gold", "name": "Ada"}, "extra_prompt": "Be brief."})
    result = call(Receiver(prefetch=answer), metadata={"plan": "free", "kept": True})
    assert result.metadata == {"plan": "gold", "kept": True, "name": "Ada"}
    merged = result.log.of(Merged)[0]
    assert (merged.added, merged.changed) == (("name",), ("plan",))


def test_the_texts_are_filled_in_after_the_prefetch() -> None:
    answer = json_answer({"metadata": {"name": "Ada"}, "extra_prompt": "{name} is in a hurry."})
    result = call(
        Receiver(prefetch=answer),
        prompt="Help {name}, who calls from {FromPhone}.",
        config={"first_message": "Hi {name}, {nobody}"},
        from_phone="+14155550134",
    )
    assert result.texts.prompt == "Help Ada, who calls from +14155550134.\n\nAda is in a hurry."
    assert result.texts.first_message == "Hi Ada, {nobody}"
    assert result.log.of(Rendered)[0].unresolved == {"first_message": ("nobody",)}


def test_metadata_is_in_the_prompt_only_if_the_flag_is_set() -> None:
    told = call(Receiver(), metadata={"plan": "gold"}, include_metadata_in_prompt=True)
    assert '"plan": "gold"' in told.texts.prompt
    assert call(Receiver(), metadata={"plan": "gold"}).texts.prompt == ""


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (json_answer({}, 500), "answered with status 500"),
        (TransportError("no answer within 5 s"), "no answer within 5 s"),
        (json_answer([]), "not a JSON object but a list"),
        (Answer(200, b"{"), "no JSON"),
    ],
)
def test_a_call_continues_without_a_good_answer(
    answer: Answer | TransportError, failure: str
) -> None:
    result = call(Receiver(prefetch=answer), metadata={"plan": "free"})
    assert (result.log.of(Prefetched)[0].failure or "").startswith(failure)
    assert (result.metadata, result.ending.call_status) == ({"plan": "free"}, "user-ended")


def test_the_policy_can_end_a_call_whose_prefetch_failed() -> None:
    policy = Policy(on_prefetch_failure="end-call")
    result = call(Receiver(prefetch=json_answer({}, 503)), policy=policy)
    assert result.ending == Ending("error", "The prefetch failed: answered with status 503.")
    assert not result.log.of(Said)


@pytest.mark.parametrize(
    ("faults", "failure"),
    [
        (Faults(prefetch="slow", prefetch_slow_s=60), "no answer within 5 s"),
        (Faults(prefetch="error"), "answered with status 500"),
        (Faults(prefetch="bad-json"), "no JSON"),
        (Faults(prefetch="unreachable"), "could not be reached"),
    ],
)
def test_a_fault_spoils_a_good_answer(faults: Faults, failure: str) -> None:
    result = call(Receiver(prefetch=json_answer({"metadata": {"a": 1}})), faults=faults)
    asked = result.log.of(Prefetched)[0]
    assert (asked.failure or "").startswith(failure)
    assert "on purpose" in asked.notes[-1]
    assert result.metadata == {}


def test_an_answer_that_is_a_little_slow_still_counts() -> None:
    faults = Faults(prefetch="slow", prefetch_slow_s=2)
    result = call(Receiver(prefetch=json_answer({"metadata": {"a": 1}})), faults=faults)
    assert result.metadata == {"a": 1}
    assert result.log.of(Prefetched)[0].took_ms > 2000


def test_the_policy_decides_about_flat_keys() -> None:
    flat = json_answer({"plan": "gold"})
    assert call(Receiver(prefetch=flat)).metadata == {}
    assert call(Receiver(prefetch=flat), policy=Policy(flat_keys="merged")).metadata == {
        "plan": "gold"
    }


def test_unusable_parts_of_an_answer_are_left_out_and_noted() -> None:
    result = call(Receiver(prefetch=json_answer({"metadata": 3, "extra_prompt": ["x"]})))
    assert (result.metadata, result.texts.prompt) == ({}, "")
    assert len(result.log.of(Prefetched)[0].notes) == 2


@pytest.mark.parametrize("status", list(CallStatus))
def test_a_call_may_end_with_any_status(status: CallStatus) -> None:
    receiver = Receiver()
    result = call(receiver, script=Script(ending=Ending(status)))
    assert result.log_entry()["call_status"] == status
    unreached = status in {"busy", "no-answer", "canceled", "failed"}
    assert len(receiver.ends) == (0 if unreached else 1)


@pytest.mark.parametrize("vintage", ["v1a", "v1b", "v2", "v2-extras"])
def test_an_end_of_call_comes_in_every_vintage(vintage: Vintage) -> None:
    receiver = Receiver()
    result = call(receiver, vintage=vintage, metadata={"plan": "gold"})
    told = EndOfCall.parse(receiver.to("end")[0].body or b"")
    assert (told.session_id, told.problems) == (result.session_id, [])
    assert [message.content for message in told.chat] == ["Hello.", "Good morning."]
    assert told.metadata == ({} if vintage == "v1a" else {"plan": "gold"})
    assert isinstance(receiver.ends[0]["chat"], list if vintage < "v2" else str)


def test_a_hostile_end_of_call_keeps_the_session_id() -> None:
    receiver = Receiver()
    result = call(receiver, vintage="hostile")
    assert EndOfCall.parse(receiver.to("end")[0].body or b"").session_id == result.session_id


def test_an_end_of_call_may_come_twice() -> None:
    receiver = Receiver()
    call(receiver, faults=Faults(end_of_call="twice"))
    assert receiver.ends[0] == receiver.ends[1]


def test_an_end_of_call_may_never_come() -> None:
    receiver = Receiver()
    result = call(receiver, faults=Faults(end_of_call="never"))
    assert not receiver.ends
    assert result.log.of(EndDelivered)[0].notes == ("It is not sent, on purpose.",)
    assert result.log_entry()["call_status"] == "user-ended"


def test_a_late_end_of_call_is_of_a_call_that_is_long_over() -> None:
    early, late = Receiver(), Receiver()
    call(early)
    call(late, faults=Faults(end_of_call="late"), policy=Policy(late_by_s=3600))
    assert early.ends[0]["ts"] - late.ends[0]["ts"] == pytest.approx(3600, abs=60)


def test_a_refused_end_of_call_is_sent_again_if_the_policy_says_so() -> None:
    refused: list[Reply] = [json_answer({}, 503), TransportError("gone"), json_answer({})]
    receiver = Receiver(end=refused)
    result = call(receiver, policy=Policy(end_of_call_attempts=5))
    failures = [step.failure for step in result.log.of(EndDelivered)]
    assert failures == ["answered with status 503", "gone", None]


def test_a_call_that_never_connects_is_only_in_the_call_logs() -> None:
    receiver = Receiver()
    result = call(receiver, unreached=CallStatus.BUSY)
    assert receiver.sent == []
    assert (result.log_entry()["call_status"], result.log_entry()["chat"]) == ("busy", None)


def test_a_call_that_never_connects_may_have_both_webhooks() -> None:
    receiver = Receiver()
    policy = Policy(prefetch_if_unreached=True, end_of_call_if_unreached=True)
    call(receiver, unreached=CallStatus.NO_ANSWER, policy=policy)
    assert (len(receiver.to("prefetch")), receiver.ends[0]["call_status"]) == (1, "no-answer")


def test_an_agent_without_webhooks_sends_nothing() -> None:
    receiver = Receiver()
    nowhere = {"extra_prompt_webhook": None, "session_data_webhook": ""}
    result = call(receiver, config=nowhere)
    assert receiver.sent == []
    assert result.log.of(Prefetched)[0].failure is None


def test_a_webhook_may_be_a_bare_address() -> None:
    receiver = Receiver()
    call(receiver, config={"extra_prompt_webhook": PREFETCH})
    assert receiver.to("prefetch")[0].headers == ()


def test_a_call_takes_as_long_as_its_words() -> None:
    receiver = Receiver()
    call(receiver, Line("user", "x" * 150), Line("assistant", "x" * 150, pause_s=10))
    assert receiver.ends[0]["duration"] == 30


def test_a_script_may_say_how_long_the_call_took() -> None:
    receiver = Receiver()
    call(receiver, script=Script(ending=Ending(duration_s=412)))
    assert receiver.ends[0]["duration"] == 412


def test_a_call_ends_when_it_has_lasted_as_long_as_it_may() -> None:
    limited = {"session_timeout": {"max_duration": 60}}
    result = call(Receiver(), Line("user", "Hold on."), Line("user", "Well?", 600), config=limited)
    assert result.ending.call_status == "timeout"
    assert result.log.of(HungUp)[0].duration_s == pytest.approx(60, abs=1)


def test_the_agent_begins_unless_the_caller_does() -> None:
    greeting = {"first_message": "Good morning!"}
    waiting = {**greeting, "flow": {"user_start_first": True}}
    first = call(Receiver(), config=greeting).log.of(Said)[0]
    assert (first.role, first.text) == ("assistant", "Good morning!")
    assert call(Receiver(), config=waiting).log.of(Said)[0].role == "user"


async def wait(session: Session) -> Ending:
    """Wait until the call is ended from elsewhere."""
    await session.speak("assistant", "Hello?")
    await asyncio.get_running_loop().create_future()
    return Ending()


def test_a_call_can_be_ended_from_elsewhere() -> None:
    def soon(session: Session) -> None:
        session.log.listen(
            lambda step: session.hang_up("api-ended") if isinstance(step, Said) else None
        )

    result = call(Receiver(), agent=wait, during=soon)
    assert result.ending.call_status == "api-ended"


def test_a_call_can_be_ended_before_its_first_word() -> None:
    result = call(Receiver(), agent=wait, during=lambda session: session.hang_up("user-ended"))
    assert result.ending.call_status == "user-ended"


async def fail(session: Session) -> Ending:
    raise RuntimeError("no model")


def test_an_agent_that_fails_ends_the_call_with_an_error() -> None:
    result = call(Receiver(), agent=fail)
    assert result.ending == Ending("error", "RuntimeError: no model")


def test_only_a_recorded_call_has_a_recording() -> None:
    recording = {"call_settings": {"enable_recording": True}}
    kept, not_kept = Receiver(), Receiver()
    call(kept, config=recording)
    call(not_kept)
    assert kept.ends[0]["recording"]["recording_url"].startswith("https://")
    assert not_kept.ends[0]["recording"] is None


def test_extra_fields_are_sent_in_the_vintage_with_extras() -> None:
    receiver = Receiver()
    extra = {"call_analysis": {"opt_out_detection": True}}
    call(receiver, vintage="v2-extras", extra_fields=extra)
    assert EndOfCall.parse(receiver.to("end")[0].body or b"").opted_out


def test_a_continued_conversation_is_repeated_only_if_the_policy_says_so() -> None:
    earlier = [{"role": "user", "content": "Yesterday."}]
    without, repeated = Receiver(), Receiver()
    call(without, earlier=earlier)
    call(repeated, earlier=earlier, policy=Policy(earlier_turns_in_chat=True))
    assert "Yesterday." not in without.ends[0]["chat"]
    assert json.loads(repeated.ends[0]["chat"])[0] == earlier[0]


def test_steps_hold_no_secret_of_the_configuration() -> None:
    result = call(Receiver())
    assert "Bearer of the tests" not in json.dumps(result.log.as_json())
    assert "Bearer of the tests" in json.dumps(result.log_entry())


def test_a_late_follower_gets_every_step() -> None:
    result = call(Receiver())

    async def heard(log: StepLog) -> list[int]:
        return [step.number async for step in log.follow()]

    assert asyncio.run(heard(result.log)) == [step.number for step in result.log]


def test_a_follower_gets_each_step_at_once() -> None:
    heard: list[int] = []
    followers: list[asyncio.Task[None]] = []

    async def follow(log: StepLog) -> None:
        async for step in log.follow():
            heard.append(step.number)

    def during(session: Session) -> None:
        followers.append(asyncio.ensure_future(follow(session.log)))

    async def look(session: Session) -> Ending:
        await asyncio.sleep(0)
        assert heard
        return Ending()

    assert call(Receiver(), agent=look, during=during).ending == Ending()


def said_in(receiver: Receiver) -> list[str]:
    return [turn["content"] for turn in json.loads(receiver.ends[0]["chat"])]


@pytest.mark.parametrize(
    ("call_status", "words"),
    [("timeout", ["Time is up."]), ("voicemail-message", ["Call Ada back."]), ("user-ended", [])],
)
def test_the_agent_says_its_message_for_the_end_of_a_call(
    call_status: str, words: list[str]
) -> None:
    receiver = Receiver()
    config = {
        "session_timeout": {"message": "Time is up."},
        "flow": {"voicemail": {"action": "message", "message": "Call {who} back."}},
    }
    script = Script(turns=(Line("user", "Hello."),), ending=Ending(call_status))
    call(receiver, script=script, config=config, metadata={"who": "Ada"})
    assert said_in(receiver) == ["Hello.", *words]


def test_the_agent_says_a_message_of_a_function_that_it_calls() -> None:
    receiver = Receiver()
    messages = ["One moment, {who}.", "Hm."]
    tools = [{"name": "find", "messages": messages}, {"name": "find", "messages": []}]
    later = {"name": "sum_up", "messages": ["Not said."], "run_after_call": True}
    uses = (ToolUse("find"), ToolUse("sum_up"))
    call(receiver, *uses, config={"tools": [*tools, later]}, metadata={"who": "Ada"})
    assert said_in(receiver) == ["One moment, Ada."]


def test_parts_of_an_agent_without_effect_are_noted() -> None:
    config: dict[str, Any] = {
        "session_timeout": {"max_idle": 5, "max_duration": None},
        "tools": [{"name": "a"}, {"name": "b", "response_mode": "strict"}],
        "flow": {"interruption": {"allowed": False}, "dtmf_dial": None, "user_start_first": True},
        "memory": [],
    }
    result = call(Receiver(), config=config)
    (note,) = result.log.of(Rendered)[0].notes
    parts = "flow.interruption, session_timeout.max_idle, tools.response_mode"
    assert note == f"Not rehearsed here: {parts}."
    assert call(Receiver()).log.of(Rendered)[0].notes == ()
