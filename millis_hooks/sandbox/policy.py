"""Settings for what Millis does not document: each default is a guess that a team may change.

Source of what is known and what is not: docs.millis.ai, core-concepts/webhooks and variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..exceptions import PayloadError

#: A session waits for a week at most.
SECONDS = Field(ge=0, le=7 * 24 * 3600)


def setting(default: Any, meaning: str) -> Any:
    """Declare a field with its meaning, for forms and references; a class makes its default."""
    metadata = {"meaning": meaning}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the sandbox behaves where Millis' behavior is not documented."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=False, allow_inf_nan=False
    )

    prefetch_timeout_s: Annotated[float, SECONDS] = setting(
        5.0, "Seconds it waits for the answer to a prefetch."
    )
    on_prefetch_failure: Literal["go-on", "end-call"] = setting(
        "go-on", "What becomes of the call when the prefetch fails or is late."
    )
    flat_keys: Literal["ignored", "merged"] = setting(
        "ignored", "What becomes of keys beside `metadata` and `extra_prompt`, the form of 2024."
    )
    merge: Literal["shallow", "deep"] = setting(
        "shallow", "Whether objects within metadata are replaced or merged."
    )
    null_removes: bool = setting(False, "Whether null in a prefetch's metadata removes the key.")
    missing_variables: Literal["kept", "blank"] = setting(
        "kept", "How an unknown {name} appears in the text."
    )
    variables_in_headers: bool = setting(
        True, "Whether {name} is filled in the headers of webhooks and functions, too."
    )
    prefetch_if_unreached: bool = setting(
        False, "Whether a call that never connects is prefetched."
    )
    end_of_call_if_unreached: bool = setting(
        False, "Whether a call that never connected has an end-of-call. Most likely it has none."
    )
    end_of_call_timeout_s: Annotated[float, SECONDS] = setting(
        10.0, "Seconds it waits for an acknowledgement."
    )
    end_of_call_attempts: Annotated[int, Field(ge=1, le=100)] = setting(
        1, "How often it sends what was not acknowledged."
    )
    end_of_call_retry_after_s: Annotated[float, SECONDS] = setting(
        30.0, "Seconds between those attempts."
    )
    late_by_s: Annotated[float, SECONDS] = setting(
        600.0, "Seconds by which a late end-of-call is late."
    )
    tool_method: Literal["GET", "POST"] = setting(
        "GET", "How a function is called that names no method."
    )
    tool_timeout_s: Annotated[float, SECONDS] = setting(
        10.0, "Seconds a function may take that names no timeout."
    )
    tool_metadata: Literal["unless-excluded", "if-included", "always", "never"] = setting(
        "unless-excluded",
        "When a function gets the metadata: unless its include_metadata is false, as the older "
        "pages say, or if it is true, as the newer schema may mean.",
    )
    tool_metadata_as: Literal["keys", "object"] = setting(
        "keys", "How it gets them: key by key, or as one `metadata` object."
    )
    run_after_call: Literal["before-end-of-call", "after-end-of-call"] = setting(
        "before-end-of-call", "When functions are called that run after the call."
    )
    odd_messages: Literal["ignored", "end-call"] = setting(
        "ignored",
        "What becomes of a client's message that is not JSON or names no known method.",
    )
    tool_turns_in_chat: bool = setting(
        False, "Whether `chat` has the turns of functions in the current format, too."
    )
    earlier_turns_in_chat: bool = setting(
        False, "Whether `chat` repeats the conversation that a session continues."
    )


_POLICIES: TypeAdapter[Policy] = TypeAdapter(Policy)


def read_policy(settings: Mapping[str, Any]) -> Policy:
    """Return a policy with these settings, by name, and defaults for the others.

    Raises `PayloadError`, which lists the names that are unknown or have a bad value.
    """
    try:
        return _POLICIES.validate_python(dict(settings))
    except ValidationError as error:
        names = ", ".join(str(each["loc"][-1]) for each in error.errors(include_url=False))
        raise PayloadError(f"The policy has no such value: {names}") from error


class PolicySetting(NamedTuple):
    """One setting for a form or a list; `choices` is empty for numbers."""

    name: str
    default: object
    choices: tuple[object, ...]
    meaning: str


def policy_settings() -> list[PolicySetting]:
    """Return every setting of `Policy`, in order."""
    types = get_type_hints(Policy)
    return [
        PolicySetting(
            each.name,
            each.default,
            (True, False) if types[each.name] is bool else get_args(types[each.name]),
            each.metadata["meaning"],
        )
        for each in fields(Policy)
    ]
