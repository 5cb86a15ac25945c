"""What runs between start and stop. Started in order, stopped in reverse: storage closes last.

What a service serves beside the two webhooks: the dashboard, metrics, the stand-in for Millis.

Each is made for the first who asks: calls do not wait for what they do not need.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection
from starlette.types import ASGIApp, Receive, Scope, Send

from .call_log import CallLog
from .call_log.call_ends import RunsFor
from .call_log.call_rows import agent_of_session
from .call_log.change_feed import Change
from .call_log.deliveries import Delivery
from .call_log.projection import digest_delivery
from .call_log.rejections import Described, Rejection, RejectionLog
from .call_log.upkeep.housekeeping import Housekeeper
from .exceptions import ConfigError, StorageError
from .handlers.executor import Executor, Lifespan
from .handlers.made_up_calls import Answers, logged
from .handlers.retries import FailedRun
from .handlers.routing import Event, Router
from .masking.error_report import hide_by, hide_no_more_by
from .masking.known_secrets import forget, know
from .observability.metrics import Metrics, MetricsEndpoint, StateCollector
from .protocol.events import EndOfCall
from .protocol.test_marks import REHEARSALS, TESTS_ONLY, Marks
from .runs.outcome import OUTCOMES, write_handlers
from .runs.processes import dispatcher_of
from .runs.runner import Runner
from .settings import Settings
from .version import __version__
from .webhooks.end_of_call import EndOfCallEndpoint
from .webhooks.prefetch import PrefetchEndpoint, encode_default
from .webhooks.refused import NearMisses

if TYPE_CHECKING:
    from .call_log.upkeep.reprocess import Reread
    from .dashboard import Forgetting, Setup
    from .dashboard.sandbox import Sandbox
    from .masking.policy import MaskPolicy
    from .millis_api.client import MillisApi
    from .millis_api.reconcile import Reconciler
    from .observability.tracing import Tracing
    from .operators import Operators
    from .runs.replay import Replayed
    from .sandbox.emulator import StandIn
    from .sandbox.emulator.rehearsals import Rehearsals
    from .webhooks.prefetch_cache import SharedAnswers


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """What works behind the sites. `app` is what the sandbox's calls are sent to."""

    settings: Settings
    call_log: CallLog
    runner: Runner
    runs_for: RunsFor
    metrics: Metrics
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
        from .sandbox.emulator import StandIn

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
        works, metrics = self._works, self._works.metrics
        states = StateCollector(works.call_log, works.runner, metrics.loops, self._now)
        metrics.registry.register(states)
        return MetricsEndpoint(self._settings, metrics.registry, self._is_operator)

    def _is_operator(self, scope: Scope) -> bool:
        from starlette.requests import Request

        from .dashboard.security import Cookies

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
        from .dashboard import DashboardSettings, dashboard
        from .masking.policy import MaskPolicy

        return dashboard(
            Queries(self._works.call_log.database.reader),
            self._operators,
            replay=self._replay,
            settings=DashboardSettings(
                version=__version__,
                mask=MaskPolicy.of(self._settings),
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
        from .checks.local import check_installation
        from .dashboard import Setup, Trials

        look = partial(
            check_installation, self._settings, self._now, reads_all=False, measures=False
        )
        return Setup(self._settings, Trials(self._settings), look)

    def _replay(self, work: Callable[[Connection], Replayed | None]) -> Replayed | None:
        replayed = self._works.call_log.writer.run(work)
        self._works.runner.wake()
        return replayed

    def _reread(self, delivery_id: int) -> Reread | None:
        from .call_log.upkeep.reprocess import reread_delivery

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


T = TypeVar("T")

logger = logging.getLogger("millis_hooks")


class Service:
    """A started application: the two webhooks, the dashboard, and what works behind them."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        *,
        app: ASGIApp | None = None,
    ) -> None:
        """Open the call log and start its threads. Blocks.

        `app` is what the sandbox's calls are sent to.

        Raises `ConfigError` for a default answer that is none, and `StorageError`.
        """
        default = encode_default(settings)
        api = _api_to_look_into(settings)
        self._settings = settings
        self._router = router
        self._executor = executor
        self._tracing = _tracing(settings)
        self._hidden = _hidden(settings)
        self._turn = asyncio.Lock()
        self._wake_runner: Callable[[], None] = lambda: None  # runs are written before there is one
        with ExitStack() as undoing:
            self._begin(undoing, default, app)
            self._reconciler = None if api is None else self._start_reconciler(api)
            undoing.pop_all()

    def _begin(self, undoing: ExitStack, default: bytes | None, app: ASGIApp | None) -> None:
        """Start one after the other; what has begun is put on `undoing`."""
        settings = self._settings
        if self._tracing is not None:
            undoing.callback(self._tracing.close)
        undoing.callback(forget, know(_secrets_of(settings)))
        if self._hidden is not None:
            hide_by(self._hidden)
            undoing.callback(hide_no_more_by, self._hidden)
        self.metrics = Metrics()
        self.call_log = self._open_call_log()
        undoing.callback(self.call_log.close)
        self._write_handlers()
        self.runner = self._start_runner()
        undoing.callback(self.runner.close, grace_s=0)
        self._housekeeper = self._start_housekeeper()
        undoing.callback(self._housekeeper.close)
        self._rejections = RejectionLog(self._write_rejections, partial(_describe, settings))
        self.prefetch, self.end_of_call = self._make_webhooks(default)
        self.near_misses = NearMisses(settings, self._rejections.note)
        self._shared_answers = self._start_sharing_answers()
        if self._shared_answers is not None:
            undoing.callback(self._shared_answers.close)
        self.sites = self._make_sites(app)

    @classmethod
    async def start(
        cls,
        settings: Settings,
        router: Router,
        lifespan: Lifespan | None,
        *,
        app: ASGIApp | None = None,
        answers: Answers | None = None,
    ) -> Service:
        """Start everything; `app` is what the sandbox's calls are sent to.

        `answers` stands for Millis to handlers that work for a call that was made up; by default
        the sandbox does, where there is one.

        Raises `ConfigError`, `RegistrationError` or `StorageError`, and what `lifespan` raises.
        """
        settings.require_closed()
        for warning in settings.warnings():
            logger.warning(warning)
        router.check()
        executor = Executor(
            lifespan,
            isolated=settings.isolate_handlers,
            threads=settings.handler_threads,
            runs_threads=settings.handler_concurrency,
            answers_for=_in_place_of_millis(settings, app, answers),
        )
        await executor.start()
        try:
            service = await asyncio.to_thread(partial(cls, settings, router, executor, app=app))
        except BaseException:
            await executor.stop()
            raise
        service.metrics.watch(serving=asyncio.get_running_loop(), handlers=executor.loop)
        return service

    async def turn(self) -> None:
        """Wait until another page may begin: one in each round of the serving loop.

        A thousand that come at once would else begin in the same round, and a webhook that comes
        after them wait for seconds.
        """
        async with self._turn:
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Let the handlers at work end, within bounds, and close the call log."""
        await self.sites.close()
        await asyncio.to_thread(self.end_of_call.close)
        self.metrics.stop()
        grace_s = self._settings.handler_grace_s
        if self._reconciler is not None:
            await asyncio.to_thread(self._reconciler.close)
        if self._shared_answers is not None:
            await asyncio.to_thread(self._shared_answers.close)
        await asyncio.to_thread(partial(self.runner.close, grace_s=grace_s))
        await asyncio.to_thread(self._housekeeper.close)
        await self._executor.stop()
        await asyncio.to_thread(self._rejections.close)
        await asyncio.to_thread(self.call_log.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._hidden is not None:
            hide_no_more_by(self._hidden)

    async def remember_started(self, session_id: str) -> None:
        """Keep a call in mind that Millis was asked to make. Raises `StorageError`."""
        from .call_log.missing_ends import remember_started

        note = partial(remember_started, session_id=session_id, now=_now())
        await asyncio.to_thread(self.call_log.writer.run, note)

    def check_storage(self) -> None:
        """Raise `StorageError` unless an end-of-call would be stored now."""
        self.call_log.check()

    def _open_call_log(self) -> CallLog:
        return CallLog(
            self._settings.database_url,
            runs_for=self._runs_for,
            hears_of_changes=self._hears_of_changes,
            on_runs=lambda: self._wake_runner(),
            own_numbers=self._settings.own_numbers,
            observer=self.metrics.storage,
        )

    def _write_handlers(self) -> None:
        budget_s = self._settings.prefetch_budget_s
        write = partial(
            write_handlers, registered=self._router, now=_now(), prefetch_budget_s=budget_s
        )
        self.call_log.writer.run(write)

    def _start_runner(self) -> Runner:
        log = self.call_log
        runner = Runner(
            log.database.reader,
            log.writer,
            self._executor,
            self._router,
            dispatcher_of(log.database, log.writer, takes_part=self._settings.run_handlers),
            concurrency=self._settings.handler_concurrency,
            own_numbers=self._settings.own_numbers,
            tell=log.tell_of_runs,
            count=self.metrics.count_attempt,
            tracing=self._tracing,
        )
        with_runs = [key for key in runner.handlers if key[0] != "prefetch"]
        self.metrics.expect_attempts(with_runs, OUTCOMES)
        self._wake_runner = runner.wake
        runner.start()
        return runner

    def _start_housekeeper(self) -> Housekeeper:
        housekeeper = Housekeeper(
            self.call_log.database.reader,
            self.call_log.writer,
            retention_days=self._settings.retention_days,
            pack_after_days=self._settings.pack_after_days,
            is_ours=self._leads,
            now=_now,
        )
        housekeeper.start()
        return housekeeper

    def _make_webhooks(self, default: bytes | None) -> tuple[PrefetchEndpoint, EndOfCallEndpoint]:
        settings, note, tracing = self._settings, self._rejections.note, self._tracing
        store, record = self.call_log.writer.store, self.call_log.writer.record
        if not settings.take_calls_when_damaged:
            store = partial(_store_if_sound, self.call_log, store)
        if settings.redact_before_store and self._hidden is not None:
            from .call_log.redaction import record_redacted, store_redacted

            store = partial(store_redacted, store, self._hidden)
            record = partial(record_redacted, record, self._hidden)
        if tracing is not None:
            from .observability.tracing import traces_going_on

            tracing.remember(traces_going_on(self.call_log.database.reader))
        mark_of = Marks(accepts=REHEARSALS if settings.sandbox else TESTS_ONLY).mark_of
        prefetch = PrefetchEndpoint(
            settings,
            self._router,
            self._executor,
            record,
            note,
            default=default,
            metrics=self.metrics,
            mark_of=mark_of,
            tracing=tracing,
        )
        end_of_call = EndOfCallEndpoint(
            settings,
            store,
            note,
            metrics=self.metrics,
            agent_of=partial(agent_of_session, self.call_log.database.reader),
            tell=self.call_log.news.tell,
            mark_of=mark_of,
            tracing=tracing,
        )
        return prefetch, end_of_call

    def _start_sharing_answers(self) -> SharedAnswers | None:
        last_good, settings = self.prefetch.last_good, self._settings
        if last_good is None:
            return None
        from .webhooks.prefetch_cache import GoodAnswers, SharedAnswers

        reader = self.call_log.database.reader
        answers = GoodAnswers(reader, most=settings.last_good_max_entries)
        shared = SharedAnswers(answers, last_good, max_age_s=settings.last_good_max_age_s, now=_now)
        shared.start()
        return shared

    def _make_sites(self, app: ASGIApp | None) -> Sites:
        works = Works(
            settings=self._settings,
            call_log=self.call_log,
            runner=self.runner,
            runs_for=self._runs_for,
            metrics=self.metrics,
            app=app,
        )
        return Sites(works, now=_now)

    def _leads(self) -> bool:
        return self.runner.leads

    def _start_reconciler(self, api: MillisApi) -> Reconciler:
        from .call_log.redaction import redaction_of
        from .millis_api.reconcile import Reconciler, Reconciliation

        log, redact = self.call_log, redaction_of(self._settings)
        reconciler = Reconciler(
            partial(
                Reconciliation, api, log.database.reader, log.writer.run, now=_now, redact=redact
            ),
            every_s=60.0 * self._settings.reconcile_minutes,
            is_ours=self._leads,
            on_filled=log.processor.wake,
        )
        reconciler.start()
        return reconciler

    def _write_rejections(self, work: Callable[[Connection], T]) -> T:
        written = self.call_log.writer.run(work)
        self.call_log.news.tell([Change("rejected")])
        return written

    def _runs_for(self, call: EndOfCall) -> list[str]:
        return [handler.name for handler in self._router.matching("end_of_call", call)]

    def _hears_of_changes(self, name: str) -> bool:
        handler = self._router.get("end_of_call", name)
        return handler is not None and handler.on_change


def _secrets_of(settings: Settings) -> Iterator[str]:
    """Yield what is set and secret, to keep it out of the log."""
    for hook in ("prefetch", "end_of_call"):
        yield from settings.accepted_secrets(hook)
    for secret in (settings.api_key, settings.metrics_token, settings.dashboard_password):
        if secret is not None:
            yield secret.get_secret_value()


async def _store_if_sound(
    call_log: CallLog, store: Callable[[Delivery], Awaitable[None]], delivery: Delivery
) -> None:
    """Store a delivery unless the call log was found damaged; raise `StorageError` then."""
    if call_log.damage is not None:
        raise StorageError(f"The call log is damaged: {call_log.damage}.")
    await store(delivery)


def _hidden(settings: Settings) -> MaskPolicy | None:
    """Return what is kept out of the logs, and out of the call log if that is redacted."""
    if settings.mask_numbers == settings.mask_text == "none" and not settings.redact_before_store:
        return None  # masking compiles its patterns when it is imported: most never need it here
    from .call_log.redaction import storage_policy

    return storage_policy(settings)


def _tracing(settings: Settings) -> Tracing | None:
    """Return what traces calls, if that is wanted; raises `ConfigError` without the extra."""
    if not settings.tracing:
        return None
    try:
        from .observability.tracing import Tracing

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
    from .millis_api.client import MillisApi

    return MillisApi.of(settings)


def _in_place_of_millis(
    settings: Settings, app: ASGIApp | None, given: Answers | None
) -> Callable[[Event], Answers | None]:
    """Return what tells who answers a handler in place of Millis: nobody for a call of Millis'."""
    unsent = given or logged
    rehearsed = unsent
    if given is None and settings.sandbox and app is not None:
        from .sandbox.api_answers import SandboxAnswers

        rehearsed = SandboxAnswers(app, settings.sandbox_key, asyncio.get_running_loop())

    def answers_for(event: Event) -> Answers | None:
        call = event.call if isinstance(event, FailedRun) else event
        if not call.is_made_up:
            return None
        # In the sandbox a call would go on, and its handlers know of no dry run.
        return unsent if call.dry_run else rehearsed

    return answers_for


def _describe(settings: Settings, rejection: Rejection) -> Described:
    from .webhooks.refused import Describer  # as above: most never refuse anything

    return Describer.of(settings)(rejection)


def _now() -> datetime:
    return datetime.now(UTC)
