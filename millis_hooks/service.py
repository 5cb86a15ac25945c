"""What runs between start and stop. Started in order, stopped in reverse: storage closes last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection
from starlette.types import ASGIApp, Receive, Scope, Send

from .call_log import CallLog
from .call_log.digest import digest_delivery
from .call_log.news import Change
from .call_log.rejections import Described, Rejection, RejectionLog
from .end_of_call import EndOfCallEndpoint
from .events import EndOfCall
from .failures import hide_by, hide_no_more_by
from .housekeeping import Housekeeper
from .marks import KEY_NAME, REHEARSALS, TESTS_ONLY, Marks
from .prefetch import PrefetchEndpoint, encode_default
from .routing import Router
from .runs.holder import Holder
from .runs.registered import write_handlers
from .runs.replay import Replayed
from .runs.runner import Runner
from .settings import Settings
from .version import __version__
from .workbench import Lifespan, Workbench

if TYPE_CHECKING:
    from .call_log.rereading import Reread
    from .dashboard import Forgetting, Setup
    from .masking import MaskPolicy

T = TypeVar("T")


class Service:
    """A started application: the two webhooks, the dashboard, and what works behind them."""

    def __init__(self, settings: Settings, router: Router, workbench: Workbench) -> None:
        """Open the call log and start its threads. Blocks.

        Raises `ConfigError` for a default answer that is none, and `StorageError`.
        """
        default = encode_default(settings)
        self._router = router
        self._workbench = workbench
        self._wake_runner: Callable[[], None] = lambda: None  # runs are written before there is one
        self.call_log = CallLog(
            settings.database_url,
            runs_for=self._runs_for,
            on_runs=lambda: self._wake_runner(),
            own_numbers=settings.own_numbers,
        )
        self._hidden = _hidden(settings)
        if self._hidden is not None:
            hide_by(self._hidden)
        writer = self.call_log.writer
        budget_s = settings.prefetch_budget_s
        writer.run(
            partial(write_handlers, registered=router, now=_now(), prefetch_budget_s=budget_s)
        )
        self.runner = Runner(
            self.call_log.database.reader,
            writer,
            workbench,
            router,
            Holder(self.call_log.database.runner_lock),
            concurrency=settings.handler_concurrency,
            own_numbers=settings.own_numbers,
            tell=self.call_log.tell_of_runs,
        )
        self._wake_runner = self.runner.wake
        self.runner.start()
        self._housekeeper = Housekeeper(
            self.call_log.database.reader,
            writer,
            retention_days=settings.retention_days,
            pack_after_days=settings.pack_after_days,
            is_ours=lambda: self.runner.status.role == "working",
            now=_now,
        )
        self._housekeeper.start()
        store, record = writer.store, writer.record
        if settings.redact_before_store and self._hidden is not None:
            from .redaction import Redaction

            redaction = Redaction(self._hidden, store, record)
            store, record = redaction.store, redaction.record
        self._rejections = RejectionLog(self._write_rejections, partial(_describe, settings))
        note = self._rejections.note
        accepted = REHEARSALS if settings.sandbox else TESTS_ONLY
        self.marks = Marks(self.call_log.key(KEY_NAME), accepts=accepted)
        mark_of = self.marks.mark_of
        self.prefetch = PrefetchEndpoint(
            settings, router, workbench, record, note, default=default, mark_of=mark_of
        )
        self.end_of_call = EndOfCallEndpoint(settings, store, note, mark_of=mark_of)
        self._settings = settings
        self._site: ASGIApp | None = None

    @classmethod
    async def start(cls, settings: Settings, router: Router, lifespan: Lifespan | None) -> Service:
        """Start everything.

        Raises `ConfigError`, `RegistrationError` or `StorageError`, and what `lifespan` raises.
        """
        settings.require_closed()
        router.check()
        workbench = Workbench(
            lifespan,
            isolated=settings.isolate_handlers,
            threads=settings.handler_threads,
            runs_threads=2 * settings.handler_concurrency,  # half of them may hang
        )
        await workbench.start()
        try:
            return await asyncio.to_thread(cls, settings, router, workbench)
        except BaseException:
            await workbench.stop()
            raise

    async def stop(self) -> None:
        """Let the handlers at work end, within bounds, and close the call log."""
        grace_s = self._settings.handler_grace_s
        await asyncio.to_thread(partial(self.runner.close, grace_s=grace_s))
        await asyncio.to_thread(self._housekeeper.close)
        await self._workbench.stop()
        await asyncio.to_thread(self._rejections.close)
        await asyncio.to_thread(self.call_log.close)
        if self._hidden is not None:
            hide_no_more_by(self._hidden)

    def check_storage(self) -> None:
        """Raise `StorageError` unless an end-of-call would be stored now."""
        self.call_log.check()

    async def dashboard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a page. The dashboard is made for the first one: calls do not wait for it."""
        if self._site is None:
            self._site = await asyncio.to_thread(self._make_dashboard)
        await self._site(scope, receive, send)

    def _make_dashboard(self) -> ASGIApp:
        from .call_log.queries import Queries
        from .dashboard import DashboardSettings, Webhooks, dashboard
        from .masking import MaskPolicy
        from .operators import Lasts, Operators

        operators = Operators(
            self.call_log.database.reader,
            write=self.call_log.writer.run,
            signing_key=self._session_key(),
            password=self._settings.dashboard_password,
            now=_now,
            lasts=Lasts(
                idle=timedelta(hours=self._settings.session_idle_hours),
                longest=timedelta(days=self._settings.session_days),
            ),
        )
        return dashboard(
            Queries(self.call_log.database.reader),
            operators,
            replay=self._replay,
            settings=DashboardSettings(
                version=__version__,
                mask=MaskPolicy.of(self._settings),
                webhooks=Webhooks.of(self._settings),
            ),
            setup=self._setup(),
            forgetting=self._forgetting(),
            reread=self._reread,
            now=_now,
            news=self.call_log.news,
        )

    def _forgetting(self) -> Forgetting:
        from .dashboard import Forgetting

        remembers = self._settings.prefetch_fallback == "last_good"
        return Forgetting(
            self.call_log.database.reader, self.call_log.writer.run, remembers=remembers
        )

    def _setup(self) -> Setup:
        from .dashboard import Setup, Trials
        from .doctor.examination import examine

        look = partial(examine, self._settings, reads_all=False, measures=False)
        trials = Trials(self._settings, self.marks)
        return Setup(self._settings, trials, lambda: look(_now()))

    def _write_rejections(self, work: Callable[[Connection], T]) -> T:
        written = self.call_log.writer.run(work)
        self.call_log.news.tell([Change("rejected")])
        return written

    def _replay(self, work: Callable[[Connection], Replayed | None]) -> Replayed | None:
        replayed = self.call_log.writer.run(work)
        self.runner.wake()
        return replayed

    def _reread(self, delivery_id: int) -> Reread | None:
        from .call_log.reread_one import reread_delivery

        digest = partial(
            digest_delivery, own_numbers=self._settings.own_numbers, runs_for=self._runs_for
        )
        log = self.call_log
        reread = reread_delivery(log.database.reader, log.writer.run, delivery_id, digest)
        self.runner.wake()
        return reread

    def _session_key(self) -> bytes:
        if self._settings.session_key is not None:
            return self._settings.session_key.get_secret_value().encode()
        return self.call_log.key("operator_sessions")

    def _runs_for(self, call: EndOfCall) -> list[str]:
        return [handler.name for handler in self._router.matching("end_of_call", call)]


def _hidden(settings: Settings) -> MaskPolicy | None:
    """Return what is kept out of the logs, and out of the call log if that is redacted."""
    if settings.mask_numbers == settings.mask_text == "none" and not settings.redact_before_store:
        return None  # masking compiles its patterns when it is imported: most never need it here
    from .redaction import policy_of

    return policy_of(settings)


def _describe(settings: Settings, rejection: Rejection) -> Described:
    from .rejected import Describer  # as above: most never refuse anything

    return Describer.of(settings)(rejection)


def _now() -> datetime:
    return datetime.now(UTC)
