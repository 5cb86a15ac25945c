"""What runs between start and stop. Started in order, stopped in reverse: storage closes last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection
from starlette.types import ASGIApp, Receive, Scope, Send

from .call_log import CallLog
from .call_log.digest import digest_delivery
from .call_log.news import Change
from .call_log.rejections import Described, Rejection, RejectionLog
from .end_of_call import EndOfCallEndpoint
from .events import EndOfCall
from .exceptions import ConfigError
from .failures import hide_by, hide_no_more_by
from .housekeeping import Housekeeper
from .loop_lag import LoopLag, watch
from .marks import KEY_NAME, REHEARSALS, TESTS_ONLY, Marks
from .prefetch import PrefetchEndpoint, encode_default
from .routing import Router
from .runs.holder import holder_of
from .runs.registered import write_handlers
from .runs.replay import Replayed
from .runs.runner import Runner
from .settings import Settings
from .version import __version__
from .workbench import Lifespan, Workbench

if TYPE_CHECKING:
    from .call_log.rereading import Reread
    from .dashboard import Forgetting, Setup
    from .dashboard.sandbox import Sandbox
    from .masking import MaskPolicy
    from .millis_api import MillisApi
    from .operators import Operators
    from .reconciler import Reconciler
    from .sandbox.interfaces import StandIn
    from .sandbox.rehearsals import Rehearsals
    from .tracing import Tracing

T = TypeVar("T")


class Service:
    """A started application: the two webhooks, the dashboard, and what works behind them."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        workbench: Workbench,
        *,
        app: ASGIApp | None = None,
    ) -> None:
        """Open the call log and start its threads. Blocks.

        `app` is what the sandbox's calls are sent to.

        Raises `ConfigError` for a default answer that is none, and `StorageError`.
        """
        default = encode_default(settings)
        self._tracing = _tracing(settings)
        api = _api_to_look_into(settings)
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
            holder_of(self.call_log.database),
            concurrency=settings.handler_concurrency,
            own_numbers=settings.own_numbers,
            tell=self.call_log.tell_of_runs,
            tracing=self._tracing,
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
        tracing = self._tracing
        self.prefetch = PrefetchEndpoint(
            settings,
            router,
            workbench,
            record,
            note,
            default=default,
            mark_of=mark_of,
            tracing=tracing,
        )
        self.end_of_call = EndOfCallEndpoint(
            settings, store, note, mark_of=mark_of, tracing=tracing
        )
        if tracing is not None:
            from .call_log.traces import traces_going_on

            tracing.remember(traces_going_on(self.call_log.database.reader))
        self._settings = settings
        self._loops: dict[str, LoopLag] = {}
        self._metrics: ASGIApp | None = None
        self._site: ASGIApp | None = None
        self._app = app
        self._stand_in: StandIn | None = None
        self._making_stand_in = asyncio.Lock()
        self._reconciler = None if api is None else self._start_reconciler(api)

    @classmethod
    async def start(
        cls,
        settings: Settings,
        router: Router,
        lifespan: Lifespan | None,
        *,
        app: ASGIApp | None = None,
    ) -> Service:
        """Start everything; `app` is what the sandbox's calls are sent to.

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
            service = await asyncio.to_thread(partial(cls, settings, router, workbench, app=app))
        except BaseException:
            await workbench.stop()
            raise
        service._loops |= watch(serving=asyncio.get_running_loop(), handlers=workbench.loop)
        return service

    async def stop(self) -> None:
        """Let the handlers at work end, within bounds, and close the call log."""
        if self._stand_in is not None:
            await self._stand_in.close()
        for loop in self._loops.values():
            loop.stop()
        grace_s = self._settings.handler_grace_s
        if self._reconciler is not None:
            await asyncio.to_thread(self._reconciler.close)
        await asyncio.to_thread(partial(self.runner.close, grace_s=grace_s))
        await asyncio.to_thread(self._housekeeper.close)
        await self._workbench.stop()
        await asyncio.to_thread(self._rejections.close)
        await asyncio.to_thread(self.call_log.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._hidden is not None:
            hide_no_more_by(self._hidden)

    async def remember_started(self, session_id: str) -> None:
        """Keep a call in mind that Millis was asked to make. Raises `StorageError`."""
        from .call_log.gaps import remember_started

        note = partial(remember_started, session_id=session_id, now=_now())
        await asyncio.to_thread(self.call_log.writer.run, note)

    def check_storage(self) -> None:
        """Raise `StorageError` unless an end-of-call would be stored now."""
        self.call_log.check()

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

        if self._app is None:
            raise RuntimeError("The service was started without its application.")
        return StandIn(self._app, self._settings, self.marks, now=_now)

    async def dashboard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a page. The dashboard is made for the first one: calls do not wait for it."""
        if self._site is None:
            self._site = await asyncio.to_thread(self._make_dashboard)
        await self._site(scope, receive, send)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the metrics; what shows them is made for the first who asks."""
        if self._metrics is None:
            self._metrics = await asyncio.to_thread(self._make_metrics)
        await self._metrics(scope, receive, send)

    def _make_metrics(self) -> ASGIApp:
        from .metrics import MetricsEndpoint, Sources

        sources = Sources(
            webhooks={"prefetch": self.prefetch.counts, "end_of_call": self.end_of_call.counts},
            runner=self.runner,
            call_log=self.call_log,
            loops=self._loops,
            now=_now,
        )
        return MetricsEndpoint(self._settings, sources, self._is_operator)

    def _is_operator(self, scope: Scope) -> bool:
        from starlette.requests import Request

        from .dashboard.cookies import read_cookie

        return self._operators.resume(read_cookie(Request(scope)), is_use=False) is not None

    @cached_property
    def _operators(self) -> Operators:
        from .operators import Lasts, Operators

        return Operators(
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

    def _make_dashboard(self) -> ASGIApp:
        from .call_log.queries import Queries
        from .dashboard import DashboardSettings, Webhooks, dashboard
        from .masking import MaskPolicy

        return dashboard(
            Queries(self.call_log.database.reader),
            self._operators,
            replay=self._replay,
            settings=DashboardSettings(
                version=__version__,
                mask=MaskPolicy.of(self._settings),
                webhooks=Webhooks.of(self._settings),
            ),
            setup=self._setup(),
            forgetting=self._forgetting(),
            reread=self._reread,
            sandbox=self._sandbox(),
            now=_now,
            news=self.call_log.news,
        )

    def _start_reconciler(self, api: MillisApi) -> Reconciler:
        from .reconcile import Reconciliation
        from .reconciler import Reconciler
        from .redaction import redacting

        log, redact = self.call_log, redacting(self._settings)
        reconciler = Reconciler(
            partial(
                Reconciliation, api, log.database.reader, log.writer.run, now=_now, redact=redact
            ),
            every_s=60.0 * self._settings.reconcile_minutes,
            is_ours=lambda: self.runner.status.role == "working",
            on_filled=log.processor.wake,
        )
        reconciler.start()
        return reconciler

    def _sandbox(self) -> Sandbox | None:
        if not self._settings.sandbox or self._app is None:
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


def _tracing(settings: Settings) -> Tracing | None:
    """Return what traces calls, if that is wanted; raises `ConfigError` without the extra."""
    if not settings.tracing:
        return None
    try:
        from .tracing import Tracing

        return Tracing()
    except ImportError as error:
        raise ConfigError(
            "MILLIS_HOOKS_TRACING needs OpenTelemetry. Install it with the extra: "
            "pip install 'millis-hooks[otel]'"
        ) from error


def _api_to_look_into(settings: Settings) -> MillisApi | None:
    """Return the client to reconcile by, if that is wanted; raises `ConfigError`."""
    if settings.api_key is None or not settings.reconcile_minutes:
        return None
    from .millis_api import MillisApi

    return MillisApi.of(settings)


def _describe(settings: Settings, rejection: Rejection) -> Described:
    from .rejected import Describer  # as above: most never refuse anything

    return Describer.of(settings)(rejection)


def _now() -> datetime:
    return datetime.now(UTC)
