"""How many handlers may be at work, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..routing import Handler


class Places:
    """Shares out the places between handlers.

    Every handler can always have one, however slow the others are; beyond that, who has the fewest
    comes first. A handler's own `concurrency` bounds it further.

    Late handlers, given up and yet at work, hold no place: otherwise a few that never end would
    stop all others. When there are as many of them as places, who has any gets no more.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        total: int,
        *,
        busy: Iterable[Handler] = (),
        late: Iterable[Handler] = (),
    ) -> None:
        """Share `total` places; `busy` has a handler once for each place it has already, and `late`
        once for each call that it does not end."""
        self._handlers = handlers
        self._busy = Counter(map(_key, busy))
        self._late = Counter(map(_key, late))
        self._are_many_late = self._late.total() >= total
        self._free = total - self._busy.total()

    def in_turn(self) -> list[Handler]:
        """Return the handlers, those with the fewest places first."""
        return sorted(self._handlers, key=self.taken)

    def taken(self, handler: Handler) -> int:
        """Return how many places the handler has."""
        return self._busy[_key(handler)]

    def room(self, handler: Handler, *, elsewhere: int = 0) -> int:
        """Return how many places the handler may take now, when it has others `elsewhere`."""
        late = self._late[_key(handler)]
        if self.is_hung(handler):
            return 0
        taken = self.taken(handler)
        kept_free = sum(not self.taken(other) for other in self._handlers if other is not handler)
        room = min(max(self._free - kept_free, 0 if taken else 1), self._free)
        if handler.concurrency is None:
            return room
        return min(room, handler.concurrency - taken - late - elsewhere)

    def is_hung(self, handler: Handler) -> bool:
        """Tell whether it gets no place because of calls that it does not end."""
        late, own = self._late[_key(handler)], handler.concurrency
        all_own = own is not None and late >= own and not self.taken(handler)
        return bool(late) and (self._are_many_late or all_own)

    def take(self, handler: Handler, count: int) -> None:
        """Note that the handler has taken so many."""
        self._busy[_key(handler)] += count
        self._free -= count


def _key(handler: Handler) -> tuple[str, str]:
    return handler.hook, handler.name
