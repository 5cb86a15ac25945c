"""Names of agents, which pages and commands show in place of ids of 20 letters.

A name given in code comes before one of the settings, and that before the name at Millis. Names at
Millis are not ours: they are cleaned and cut.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

#: Characters of a name.
MOST_NAME_CHARS = 60
#: Agents whose names at Millis are kept.
MOST_AGENTS = 10_000
_MOST_ID_CHARS = 200
#: The number of characters shown of an id without a name, if it is clearly longer: ids of one
#: account begin alike.
_TAIL_CHARS = 8
_SHORT_ID_CHARS = 12


class AgentNames:
    """The names of agents by id: those that were `given`, else those of Millis."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._given = dict(given or {})
        self.take({})

    def take(self, at_millis: Mapping[str, str]) -> None:
        """Replace the names at Millis."""
        names = dict(at_millis) | self._given
        uses = Counter(name.casefold() for name in names.values())
        self._names = {
            agent_id: name if uses[name.casefold()] == 1 else f"{name} ({_tail(agent_id)})"
            for agent_id, name in names.items()
        }

    def name_of(self, agent_id: str | None) -> str | None:
        """Return the name, None without one; agents of the same name have the end of their id."""
        return self._names.get(agent_id or "")

    def label(self, agent_id: str | None) -> str:
        """Return what is shown of an agent: its name, else the last characters of its id."""
        return self.name_of(agent_id) or _tail(agent_id or "")

    def named(self) -> tuple[str, ...]:
        """Return the ids that have a name."""
        return tuple(self._names)

    def in_order(self, agent_ids: Iterable[str]) -> list[str]:
        """Sort ids by what is shown of them, those with a name first."""
        return sorted(
            agent_ids, key=lambda each: (each not in self._names, self.label(each).casefold())
        )


def check_agent(agent_id: object, name: object) -> tuple[str, str]:
    """Return an id and a name as they are used; raises `ValueError` for what can be neither."""
    if not isinstance(agent_id, str) or not _is_id(agent_id.strip()):
        raise ValueError(f"{agent_id!r} is not the id of an agent, such as -Ox1sampleAgent00001")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"agent {agent_id} needs a name")
    if not name.strip().isprintable():
        raise ValueError(f"the name of agent {agent_id} has characters that cannot be printed")
    if len(name.strip()) > MOST_NAME_CHARS:
        raise ValueError(f"the name of agent {agent_id} has more than {MOST_NAME_CHARS} characters")
    return agent_id.strip(), name.strip()


def check_unique(names: Mapping[str, str]) -> None:
    """Raise `ValueError` where two agents have one name."""
    owners: dict[str, str] = {}
    for agent_id, name in names.items():
        owner = owners.setdefault(name.casefold(), agent_id)
        if owner != agent_id:
            raise ValueError(f"agents {owner} and {agent_id} are both named {name!r}")


def names_at_millis(agents: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Return what can be shown of names at Millis: printable, and of a bounded size."""
    names: dict[str, str] = {}
    for agent_id, name in agents:
        if not isinstance(agent_id, str) or not isinstance(name, str) or not _is_id(agent_id):
            continue
        cleaned = _printable(name[: 10 * MOST_NAME_CHARS])
        if len(cleaned) > MOST_NAME_CHARS:
            cleaned = f"{cleaned[: MOST_NAME_CHARS - 1].rstrip()}…"
        if cleaned and len(names) < MOST_AGENTS:
            names[agent_id] = cleaned
    return names


def _is_id(text: str) -> bool:
    return 0 < len(text) <= _MOST_ID_CHARS and text.isprintable() and not set(text) & set(" ,")


def _printable(text: str) -> str:
    """Return a text on one line, without characters that change how the text around is shown."""
    plain = (_IN_PLACE.get(unicodedata.category(char), char) for char in text)
    return " ".join("".join(plain).split())


#: What stands for controls, marks of direction, halves of characters, and what means nothing.
_IN_PLACE = {"Cc": " ", "Cf": "", "Cs": "", "Co": "", "Cn": ""}


def _tail(agent_id: str) -> str:
    plain = _printable(agent_id)
    return plain if len(plain) <= _SHORT_ID_CHARS else f"…{plain[-_TAIL_CHARS:]}"
