"""The service: everything between start and stop. Its parts are started in order and closed in
reverse, so that storage is closed last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from starlette.types import Scope

from .call_log import CallLog
from .call_log.agents import names_at_millis, write_names
from .call_log.call_rows import agent_of_session
from .call_log.change_feed import Change
from .call_log.deliveries import Delivery
from .call_log.earlier import Memory
from .call_log.rejections import RejectionLog
from .call_log.tables import rereads
from .call_log.upkeep.retention import Housekeeper
from .exceptions import ConfigError, StorageError
from .handlers.executor import Executor, Lifespan
from .handlers.made_up_calls import Answers, logged
from .handlers.routing import Router
from .masking.error_report import forget, hide_by, hide_no_more_by, know
from .observability.metrics import Metrics, MetricsEndpoint, StateCollector
from .protocol.agent_names import AgentNames, check_unique
from .protocol.results import Plain
from .protocol.test_marks import REHEARSALS, TESTS_ONLY, Marks
from .runs.outcome import OUTCOMES, write_handlers
from .runs.processes import coordinator_of
from .runs.runner import Runner
from .settings import Settings
from .version import requirement, templates_dir
from .webhooks.end_of_call import EndOfCallEndpoint
from .webhooks.functions import FunctionEndpoint
from .webhooks.prefetch import PrefetchEndpoint
from .webhooks.prefetch_answer import encode_default
from .webhooks.refused import Describer, NearMisses
from .webhooks.responses import Records

if TYPE_CHECKING:
    from .masking.policy import MaskPolicy
    from .observability.tracing import Tracing
    from .operators import Operators
    from .runs.replay import Replayed

logger = logging.getLogger("millis_hooks")


class Service:
    """A started application: the webhooks, and what they and the pages need."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        agent_names: Mapping[str, str],
    ) -> None:
        """Do nothing yet: see `start`. Raises `ConfigError` if the default answer is invalid."""
        self._settings = settings
        self._router = router
        self._executor = executor
        self._given_names = agent_names
        self.agent_names = AgentNames(self._given_names)
        self._default_answer = encode_default(settings)
        self._tracing = _tracing(settings)
        self._mask = _mask_for_logs(settings)
        self._wake_runner: Callable[[], None] = lambda: None  # runs are written before there is one
        self._closing = AsyncExitStack()
        self.metrics = Metrics()

    @classmethod
    async def start(
        cls,
        settings: Settings,
        router: Router,
        lifespan: Lifespan | None,
        *,
        unsent: Answers = logged,
        rehearsed: Answers = logged,
    ) -> Service:
        """Start everything. Handlers that work for a made-up call are answered in place of Millis:
        by `unsent` in a dry run, else by `rehearsed`.

        Raises `ConfigError`, `RegistrationError` or `StorageError`, and what `lifespan` raises.
        """
        settings.require_closed(has_functions=bool(router.functions()))
        router.check()
        if settings.dashboard and not templates_dir().is_dir():
            raise ConfigError(f"{templates_dir()} is missing. Install millis_hooks again.")
        for warning in (*settings.warnings(), *_warnings_about(settings, router)):
            logger.warning("%s", warning)
        agent_names = _agent_names(settings, router)
        executor = Executor(
            lifespan,
            isolated=settings.isolate_handlers,
            threads=settings.handler_threads,
            runs_threads=settings.handler_concurrency,
            unsent=unsent,
            rehearsed=rehearsed,
        )
        service = cls(settings, router, executor, agent_names)
        await executor.start()
        secrets = know(settings.secret_values())
        try:
            await asyncio.to_thread(service._start_parts)
        except BaseException:
            await service.stop()
            await executor.stop()
            forget(secrets)
            raise
        service.metrics.watch(serving=asyncio.get_running_loop(), handlers=executor.loop)
        return service

    async def stop(self) -> None:
        """Let the handlers at work end, within bounds, and close the call log."""
        await self._closing.aclose()

    async def remember_started(self, session_id: str) -> None:
        """Store that Millis was asked to start a call. Raises `StorageError`."""
        from .call_log.missing_ends import remember_started

        note = partial(remember_started, session_id=session_id, now=utc_now())
        await asyncio.to_thread(self.call_log.writer.run, note)

    def check_storage(self) -> None:
        """Raise `StorageError` unless an end-of-call would be stored now."""
        self.call_log.check()

    def _start_parts(self) -> None:
        """Start one part after the other, each with its closing. Blocks."""
        if self._tracing is not None:
            self._close_later(self._tracing.close)
        if self._mask is not None:
            hide_by(self._mask)
            self._close_later(hide_no_more_by, self._mask)
        self.call_log = self._open_call_log()
        self._close_later(self.call_log.close)
        # Not for the first page, which may be asked for while nothing can be written.
        self._session_key = self._read_session_key()
        self._write_handlers()
        self._write_agent_names()
        self._rejections = RejectionLog(
            self.call_log.writer.submit,
            Describer.of(self._settings),
            on_written=partial(self.call_log.feed.publish, [Change("rejected")]),
        )
        self._closing.push_async_callback(self._executor.stop)
        self._start_runner()
        self._start_housekeeper()
        self._memory = Memory(self.call_log.database.reader, self._settings.own_numbers)
        self._executor.recall = self._memory.recall
        self._close_later(self._memory.close)
        self._start_webhooks()
        self._start_metrics()
        if self._settings.api_key is not None:
            if self._settings.reconcile_minutes:
                self._start_reconciler()
            self._start_agent_names()

    def _close_later(self, close: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self._closing.push_async_callback(partial(asyncio.to_thread, close, *args, **kwargs))

    def _open_call_log(self) -> CallLog:
        from .masking.policy import MaskPolicy

        return CallLog(
            self._settings.database_url,
            runs_for=self._router.runs_for,
            hears_of_changes=self._router.hears_of_changes,
            on_runs=lambda: self._wake_runner(),
            own_numbers=self._settings.own_numbers,
            mask=MaskPolicy.of(self._settings),
            observer=self.metrics.storage,
        )

    def _write_handlers(self) -> None:
        budget_s = self._settings.prefetch_budget_s
        write = partial(
            write_handlers, registered=self._router, now=utc_now(), prefetch_budget_s=budget_s
        )
        self.call_log.writer.run(write)

    def _write_agent_names(self) -> None:
        self.call_log.writer.run(partial(write_names, names=self._given_names, source="given"))
        with self.call_log.database.reader.connect() as connection:
            self.agent_names.take(names_at_millis(connection))

    def _start_agent_names(self) -> None:
        from .millis_api import MillisApi
        from .millis_api.background import RepeatedWork

        api = MillisApi.of(self._settings)

        async def fetch() -> None:
            names = await api.agent_names()
            self.agent_names.take(names)
            self.call_log.writer.run(partial(write_names, names=names, source="millis"))

        work = RepeatedWork(
            fetch,
            name="millis-hooks-agents",
            title="fetching the names of agents",
            first_s=2.0,
            every_s=600.0,
        )
        work.start()
        self._close_later(work.close)

    def _start_runner(self) -> None:
        log = self.call_log
        redact: Callable[[Mapping[str, Plain]], Mapping[str, Plain]] = dict
        if self._settings.redact_before_store:
            from .call_log.redaction import results_redaction

            redact = results_redaction(self._settings)
        self.runner = Runner(
            log.database.reader,
            log.writer,
            self._executor,
            self._router,
            coordinator_of(log.database, log.writer, takes_part=self._settings.run_handlers),
            concurrency=self._settings.handler_concurrency,
            own_numbers=self._settings.own_numbers,
            tell=log.tell_of_runs,
            count=self.metrics.count_attempt,
            tracing=self._tracing,
            redact=redact,
            read_ends=log.read_ends,
        )
        self._wake_runner = self.runner.wake
        self.runner.start()
        self._close_later(self.runner.close, grace_s=self._settings.handler_grace_s)

    def _start_housekeeper(self) -> None:
        housekeeper = Housekeeper(
            self.call_log.database.reader,
            self.call_log.writer,
            retention_days=self._settings.retention_days,
            pack_after_days=self._settings.pack_after_days,
            is_ours=lambda: self.runner.leads,
            now=utc_now,
        )
        housekeeper.start()
        self._close_later(housekeeper.close)

    def _start_webhooks(self) -> None:
        settings, log, tracing = self._settings, self.call_log, self._tracing
        store, record = log.writer.store, log.writer.record
        if not settings.take_calls_when_damaged:
            store = partial(_store_if_sound, log, store)
        if settings.redact_before_store and self._mask is not None:
            from .call_log.redaction import record_redacted, store_redacted

            store = partial(store_redacted, store, self._mask)
            record = partial(record_redacted, record, self._mask)
        if tracing is not None:
            from .observability.tracing import traces_going_on

            tracing.remember(traces_going_on(log.database.reader))
        records = Records(
            record,
            self._rejections.note,
            self.metrics,
            Marks(accepts=REHEARSALS if settings.sandbox else TESTS_ONLY).mark_of,
            tracing,
        )
        router, executor = self._router, self._executor
        self.prefetch = PrefetchEndpoint(
            settings,
            router,
            executor,
            records,
            default=self._default_answer,
            remember=self._memory.note,
        )
        self.functions = FunctionEndpoint(settings, router, executor, records)
        self.end_of_call = EndOfCallEndpoint(
            settings,
            store,
            records,
            agent_of=partial(agent_of_session, log.database.reader),
            tell=log.feed.publish,
        )
        self._close_later(self.end_of_call.close)
        endpoints = (self.prefetch, self.end_of_call, self.functions)
        self.near_misses = NearMisses(settings, [each.webhook for each in endpoints])
        if settings.prefetch_fallback == "last_good":
            self.prefetch.cache.load(log.database.reader, now=utc_now())

    def _start_metrics(self) -> None:
        metrics, runner, log = self.metrics, self.runner, self.call_log
        with_runs = [key for key in runner.handlers if key[0] != "prefetch"]
        metrics.expect_attempts(with_runs, OUTCOMES)
        states = StateCollector(
            log.database,
            log.writer,
            log.feed,
            runner,
            is_damaged=lambda: log.damage is not None,
            loops=metrics.loops,
            now=utc_now,
        )
        metrics.registry.register(states)
        self.metrics_endpoint = MetricsEndpoint(self._settings, metrics.registry, self._is_operator)
        self._close_later(metrics.stop)

    def _start_reconciler(self) -> None:
        from .call_log.redaction import redaction_of
        from .millis_api import MillisApi
        from .millis_api.reconcile import Reconciliation, reconciler

        api, log = MillisApi.of(self._settings), self.call_log
        redact = redaction_of(self._settings)
        work = reconciler(
            partial(
                Reconciliation, api, log.database.reader, log.writer.run, now=utc_now, redact=redact
            ),
            every_s=60.0 * self._settings.reconcile_minutes,
            is_ours=lambda: self.runner.leads,
            on_filled=log.processor.wake,
        )
        work.start()
        self._close_later(work.close)

    @cached_property
    def operators(self) -> Operators:
        """The operators of the pages; read from the call log when they are needed."""
        from .operators import Lasts, Operators

        return Operators(
            self.call_log.database.reader,
            write=self.call_log.writer.run,
            signing_key=self._session_key,
            password=self._settings.dashboard_password,
            now=utc_now,
            lasts=Lasts(
                idle=timedelta(hours=self._settings.session_idle_hours),
                longest=timedelta(days=self._settings.session_days),
            ),
        )

    def _read_session_key(self) -> bytes:
        if self._settings.session_key is not None:
            return self._settings.session_key.get_secret_value().encode()
        return self.call_log.key("operator_sessions")

    def _is_operator(self, scope: Scope) -> bool:
        from starlette.requests import Request

        from .dashboard.security import Cookies

        cookie = Cookies(self._settings.public_url).session(Request(scope))
        return self.operators.resume(cookie, is_use=False) is not None

    def replay(self, work: Callable[[Connection], Replayed | None]) -> Replayed | None:
        """Have runs written again, and begin them. Blocks."""
        replayed = self.call_log.writer.run(work)
        self._wake_runner()
        return replayed

    def reread(self, delivery_id: int) -> bool:
        """Read a stored delivery again; False if there is none of this id. Blocks."""
        from .call_log.upkeep.reprocess import put_back_one

        log = self.call_log
        if not log.writer.run(partial(put_back_one, delivery_id=delivery_id)):
            return False
        log.processor.process([delivery_id], rereads)
        return True


def _agent_names(settings: Settings, router: Router) -> dict[str, str]:
    """Return the names given in code and settings, those in code first.

    Raises `ConfigError` where two agents have one name.
    """
    names = {**settings.agent_names, **router.agent_names()}
    try:
        check_unique(names)
    except ValueError as error:
        raise ConfigError(f"{settings.name_of('agent_names')}: {error}.") from None
    return names


async def _store_if_sound(
    call_log: CallLog, store: Callable[[Delivery], Awaitable[None]], delivery: Delivery
) -> None:
    """Store a delivery unless the call log was found damaged; raise `StorageError` then."""
    if call_log.damage is not None:
        raise StorageError(f"The call log is damaged: {call_log.damage}.")
    await store(delivery)


def _mask_for_logs(settings: Settings) -> MaskPolicy | None:
    """Return what masks log lines, and deliveries if they are redacted before they are stored."""
    if settings.mask_numbers == settings.mask_text == "none" and not settings.redact_before_store:
        return None  # without its import, which is slow as it compiles patterns
    from .call_log.redaction import storage_policy

    return storage_policy(settings)


def _warnings_about(settings: Settings, router: Router) -> Iterator[str]:
    """Say at each start which handlers are never called, and if there are none."""
    if not settings.own_numbers and any("direction" in each.accepted for each in router):
        yield (
            "handlers with direction= get no calls: set MILLIS_HOOKS_OWN_NUMBERS, by which "
            "directions are told"
        )
    if not list(router):
        yield (
            "no handlers are registered: every prefetch is answered with {}. Register one with "
            "@hooks.on_prefetch or @hooks.on_end_of_call"
        )


def _tracing(settings: Settings) -> Tracing | None:
    """Return what traces calls, or None if that is off; raises `ConfigError` without the extra."""
    if not settings.tracing:
        return None
    try:
        from .observability.tracing import Tracing

        return Tracing()
    except ImportError as error:
        raise ConfigError(
            "MILLIS_HOOKS_TRACING needs OpenTelemetry. Install the extra: "
            f"pip install '{requirement('otel')}'"
        ) from error


def utc_now() -> datetime:
    """Return the time of the machine's clock."""
    return datetime.now(UTC)
