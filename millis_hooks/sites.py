"""What a service serves beside the two webhooks: the dashboard, metrics, the stand-in for Millis.

Each is made for the first who asks: calls do not wait for what they do not need.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from starlette.types import ASGIApp, Receive, Scope, Send

from .call_log import CallLog
from .call_log.digest import digest_delivery
from .call_log.ends import RunsFor
from .counts import WebhookCounts
from .loop_lag import LoopLag
from .runs.runner import Runner
from .settings import Settings
from .version import __version__

if TYPE_CHECKING:
    from .call_log.rereading import Reread
    from .dashboard import Forgetting, Setup
    from .dashboard.sandbox import Sandbox
    from .operators import Operators
    from .runs.replay import Replayed
    from .sandbox.interfaces import StandIn
    from .sandbox.rehearsals import Rehearsals


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """What works behind the sites. `app` is what the sandbox's calls are sent to."""

    settings: Settings
    call_log: CallLog
    runner: Runner
    runs_for: RunsFor
    counts: Mapping[str, WebhookCounts]
    loops: Mapping[str, LoopLag]
    app: ASGIApp | None


class Sites:
    """ASGI applications over one service."""

    def __init__(self, works: Works, *, now: Callable[[], datetime]) -> None:
        self._works = works
        self._settings = works.settings
        # Not for the first page: it may be asked for while nothing can be written.
        self._session_key = _session_key(works)
        self._now = now
        self._site: ASGIApp | None = None
        self._metrics: ASGIApp | None = None
        self._stand_in: StandIn | None = None
        self._making_stand_in = asyncio.Lock()
        self._making = threading.Lock()  # several may be the first to ask

    async def close(self) -> None:
        """End the calls of the sandbox."""
        if self._stand_in is not None:
            await self._stand_in.close()

    async def stand_in(self) -> StandIn:
        """Return what stands in for Millis; it is made for the first call that comes in by it.

        Raises `RuntimeError` where there is no application to call.
        """
        async with self._making_stand_in:
            if self._stand_in is None:
                self._stand_in = await asyncio.to_thread(self._make_stand_in)
            return self._stand_in

    def _make_stand_in(self) -> StandIn:
        from .sandbox.interfaces import StandIn

        if self._works.app is None:
            raise RuntimeError("The service was started without its application.")
        return StandIn(self._works.app, self._settings, now=self._now)

    async def dashboard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a page. The dashboard is made for the first one: calls do not wait for it."""
        site = self._site
        if site is None:
            site = await asyncio.to_thread(self._made_site)
        await site(scope, receive, send)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the metrics; what shows them is made for the first who asks."""
        metrics = self._metrics
        if metrics is None:
            metrics = await asyncio.to_thread(self._made_metrics)
        await metrics(scope, receive, send)

    def _made_site(self) -> ASGIApp:
        with self._making:
            if self._site is None:
                self._site = self._make_dashboard()
            return self._site

    def _made_metrics(self) -> ASGIApp:
        with self._making:
            if self._metrics is None:
                self._metrics = self._make_metrics()
            return self._metrics

    def _make_metrics(self) -> ASGIApp:
        from .metrics import MetricsEndpoint, Sources

        sources = Sources(
            webhooks=self._works.counts,
            runner=self._works.runner,
            call_log=self._works.call_log,
            loops=self._works.loops,
            now=self._now,
        )
        return MetricsEndpoint(self._settings, sources, self._is_operator)

    def _is_operator(self, scope: Scope) -> bool:
        from starlette.requests import Request

        from .dashboard.cookies import Cookies

        with self._making:
            operators = self._operators
        cookie = Cookies(self._settings.public_url).session(Request(scope))
        return operators.resume(cookie, is_use=False) is not None

    @cached_property
    def _operators(self) -> Operators:
        from .operators import Lasts, Operators

        return Operators(
            self._works.call_log.database.reader,
            write=self._works.call_log.writer.run,
            signing_key=self._session_key,
            password=self._settings.dashboard_password,
            now=self._now,
            lasts=Lasts(
                idle=timedelta(hours=self._settings.session_idle_hours),
                longest=timedelta(days=self._settings.session_days),
            ),
        )

    def _make_dashboard(self) -> ASGIApp:
        from .call_log.queries import Queries
        from .dashboard import DashboardSettings, Webhooks, dashboard
        from .masking import MaskPolicy

        return dashboard(
            Queries(self._works.call_log.database.reader),
            self._operators,
            replay=self._replay,
            settings=DashboardSettings(
                version=__version__,
                mask=MaskPolicy.of(self._settings),
                webhooks=Webhooks.of(self._settings),
                damage=lambda: self._works.call_log.damage,
                public_url=self._settings.public_url,
            ),
            setup=self._setup(),
            forgetting=self._forgetting(),
            reread=self._reread,
            sandbox=self._sandbox(),
            now=self._now,
            news=self._works.call_log.news,
        )

    def _sandbox(self) -> Sandbox | None:
        if not self._settings.sandbox or self._works.app is None:
            return None
        from .dashboard.sandbox import Sandbox

        return Sandbox(self._rehearsed)

    async def _rehearsed(self) -> Rehearsals:
        """Return what begins the calls of the sandbox's page; it is made for the first one."""
        return (await self.stand_in()).rehearsals

    def _forgetting(self) -> Forgetting:
        from .dashboard import Forgetting

        remembers = self._settings.prefetch_fallback == "last_good"
        return Forgetting(
            self._works.call_log.database.reader,
            self._works.call_log.writer.run,
            remembers=remembers,
        )

    def _setup(self) -> Setup:
        from .dashboard import Setup, Trials
        from .doctor.examination import examine

        look = partial(examine, self._settings, self._now, reads_all=False, measures=False)
        return Setup(self._settings, Trials(self._settings), look)

    def _replay(self, work: Callable[[Connection], Replayed | None]) -> Replayed | None:
        replayed = self._works.call_log.writer.run(work)
        self._works.runner.wake()
        return replayed

    def _reread(self, delivery_id: int) -> Reread | None:
        from .call_log.reread_one import reread_delivery

        digest = partial(
            digest_delivery, own_numbers=self._settings.own_numbers, runs_for=self._works.runs_for
        )
        log = self._works.call_log
        reread = reread_delivery(log.database.reader, log.writer.run, delivery_id, digest)
        self._works.runner.wake()
        return reread


def _session_key(works: Works) -> bytes:
    if works.settings.session_key is not None:
        return works.settings.session_key.get_secret_value().encode()
    return works.call_log.key("operator_sessions")
