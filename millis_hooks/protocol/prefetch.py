"""Prefetch requests, in which everything arrives as text, and the answers to them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Generic, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypeVar

from .fields import MOST_PROBLEMS, Model, Reading, read_metadata
from .memory import Recall, Remembers
from .phones import Channel, Direction, customer_of, direction_of, repair_phone
from .reading import Problem, describe, identifier, read_query
from .results import as_text, is_object, items_of, plain_metadata
from .test_marks import Received, State
from .variables import variables_of

#: What `metadata` is before a call: a dict, or the pydantic model in an annotation.
Metadata = TypeVar("Metadata", default=dict[str, str])


class PrefetchResponse(BaseModel):
    """What a prefetch handler tells Millis before the call begins.

    Values of `metadata` are sent in their plain form: a `datetime` as ISO 8601, a `Decimal` or a
    `UUID` as text, an `Enum` as its value, a set as a list. One that has none is left out, and the
    call's page says so. Raises pydantic's `ValidationError` for a name Millis does not read, and
    for `metadata` or an `extra_prompt` of another kind.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    #: Merged over the session's metadata: known keys are replaced, new ones added.
    metadata: dict[str, Any] = Field(default_factory=dict)
    #: Appended to the system prompt.
    extra_prompt: str | None = None
    #: Kept here with the call and never sent to Millis: `call.prefetch.keep` in an end-of-call
    #: handler. Of what several handlers keep under one name the last counts.
    keep: dict[str, Any] = Field(default_factory=dict, exclude=True)
    #: Fill `{name}` in `extra_prompt` here, not sent to Millis.
    fill_variables: bool = Field(default=False, exclude=True)

    @field_validator("metadata", "keep", mode="plain")
    @classmethod
    def _an_object(cls, value: Any) -> dict[str, Any]:
        if is_object(value):
            return items_of(value)
        raise ValueError("Input should be a dict, or another object of names and values")

    @field_validator("extra_prompt", mode="before")
    @classmethod
    def _a_text(cls, value: Any) -> str | None:
        left_out: list[str] = []
        text = as_text(value, "extra_prompt", left_out)
        if left_out:
            raise ValueError("Input should be a text")
        return text


_RESERVED = frozenset({"session_id", "agent_id", "from", "to"})


@dataclass(kw_only=True, slots=True)
class PrefetchRequest(Received[State], Remembers, Generic[Metadata, State]):
    """The prefetch request that Millis sends just before a call.

    Everything arrives as text. `metadata` is a dict of text, or your pydantic model where the
    handler is annotated `PrefetchRequest[YourModel]`; `PrefetchRequest[YourModel, YourState]` also
    gives `state` the type of what your `lifespan` yields.
    """

    session_id: str
    agent_id: str | None = None
    from_phone: str | None = None
    to_phone: str | None = None
    metadata: Metadata = field(default_factory=dict)  # type: ignore[assignment]
    #: What could not be read.
    problems: list[Problem] = field(default_factory=list)
    #: The query's fields as received, in order, repeated names and all.
    raw: list[tuple[str, str]] = field(default_factory=list)
    _own_numbers: frozenset[str] = field(default=frozenset(), repr=False)
    _state: State = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    _source: str | None = field(default=None, repr=False)
    _dry_run: bool = field(default=False, repr=False)
    _recall: Recall | None = field(default=None, repr=False, compare=False)
    #: What `variant` chose, by its name.
    _variants: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(
        cls, query: bytes, *, own_numbers: frozenset[str] = frozenset()
    ) -> PrefetchRequest[dict[str, str]]:
        """Read the query string of a prefetch; never raises.

        The names `session_id`, `agent_id`, `from` and `to` are Millis': metadata of the same name
        comes after them, is reported in `problems` and found only in `raw`. Of metadata keys that
        repeat, the first value counts. A `+` that was sent unescaped is put back.
        """
        reading = Reading()
        raw = read_query(query, reading.problems)
        own: dict[str, str] = {}
        metadata: dict[str, str] = {}
        for name, value in raw:
            if name not in _RESERVED:
                if name not in metadata:
                    metadata[name] = value
            elif name in own:
                reading.note(name, describe(value), "the name is Millis' own")
            else:
                own[name] = value
        session_id = own.get("session_id", "").strip()
        if not session_id:
            reading.note("session_id", "nothing", "every call has one")
        return PrefetchRequest(
            session_id=session_id,
            agent_id=identifier(own.get("agent_id")),
            from_phone=repair_phone(own.get("from", "")),
            to_phone=repair_phone(own.get("to", "")),
            metadata=metadata,
            problems=reading.close(),
            raw=raw,
            _own_numbers=own_numbers,
        )

    @property
    def channel(self) -> Channel:
        """How the conversation will be held: on the phone where a number is known."""
        return "phone" if self.from_phone or self.to_phone else "web"

    @property
    def direction(self) -> Direction | None:
        """Direction of a phone call; None on web calls and if no number is one of `own_numbers`."""
        return direction_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def customer_phone(self) -> str | None:
        """The side of a phone call that is not ours, as in `EndOfCall.customer_phone`."""
        return customer_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def variables(self) -> dict[str, object]:
        """What `{name}` stands for in this call's texts: metadata as sent, and the two numbers."""
        metadata = {name: values[0] for name, values in self._sent().items()}
        return variables_of(metadata, from_phone=self.from_phone, to_phone=self.to_phone)

    def copy(self) -> PrefetchRequest[Metadata, State]:
        """Return this request with metadata of its own, to be changed at will."""
        return replace(self, metadata=copy(self.metadata), _variants={})

    def typed(self, model: type[Model]) -> PrefetchRequest[Model, State]:
        """Return this request with its metadata as a pydantic model.

        Text is coerced to the model's types. Where a list, an object or null is due it is read as
        JSON; a name sent several times fills a list, too. A value that does not fit is reported in
        `problems` and left out: the field is then its default, or None.
        """
        metadata, problems = read_metadata(model, self._sent())
        request = cast("PrefetchRequest[Model, State]", self.copy())
        request._variants = self._variants
        request.metadata = metadata
        request.problems = [*self.problems, *problems[:MOST_PROBLEMS]]
        return request

    def _sent(self) -> dict[str, list[Any]]:
        """Return every value of every metadata key; of a request made by hand, its metadata."""
        if not self.raw:
            return {name: [value] for name, value in plain_metadata(self.metadata).items()}
        sent: dict[str, list[Any]] = {}
        for name, value in self.raw:
            if name not in _RESERVED:
                sent.setdefault(name, []).append(value)
        return sent
