"""`MillisHooks`: the application on which a team registers its handlers, and which it serves.

The webhooks are answered here, ahead of the dashboard's router, because a caller is waiting on
the line; every other request goes to the dashboard.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from starlette.types import ASGIApp, Receive, Scope, Send

from .environment.addresses import is_elsewhere
from .exceptions import MillisHooksError, StorageError
from .handlers.executor import Lifespan
from .handlers.made_up_calls import Answers, logged
from .handlers.routing import Router, forgotten_routers
from .masking.error_report import describe_failure, safe_path
from .service import Service, utc_now
from .settings import NOT_EXPOSED, STOPPING, Settings, SettingsOptions
from .version import __version__
from .webhooks.responses import MOST_HEAD_BYTES, head_bytes, reply

if TYPE_CHECKING:
    from .dashboard.sandbox import Sandbox
    from .dashboard.setup import Setup
    from .millis_api import MillisApi, StartedCall
    from .sandbox.emulator.app import Emulator
    from .sandbox.emulator.sessions import SessionManager

logger = logging.getLogger("millis_hooks")

_SLASHES = re.compile("//+")
App = TypeVar("App", bound=ASGIApp)

_WEBHOOKS = frozenset({"prefetch", "end-of-call"})
_FUNCTIONS = "functions/"
#: The API of the sandbox, in place of Millis'; its page belongs to the dashboard.
_SANDBOX = "/sandbox/api/"
_METRICS = "/metrics"


class BuiltOnDemand(Generic[App]):
    """An ASGI application that is built, on a thread, for the first request: its imports are slow,
    and webhooks do not need it."""

    def __init__(self, build: Callable[[], App]) -> None:
        self.built: App | None = None
        self._build = build
        self._lock = asyncio.Lock()

    async def get(self) -> App:
        """Return the application."""
        async with self._lock:
            if self.built is None:
                self.built = await asyncio.to_thread(self._build)
            return self.built

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.built or await self.get())(scope, receive, send)


class Site:
    """What is served beside the webhooks: the pages, and the sandbox's API, which calls `app`."""

    def __init__(self, app: MillisHooks, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = app.settings
        self._turn = asyncio.Lock()
        self.emulator = BuiltOnDemand(self._build_emulator)
        self.pages: ASGIApp = _no_pages
        if app.settings.dashboard:
            self.pages = BuiltOnDemand(self._build_pages)

    async def page_turn(self) -> None:
        """Wait until another page may begin: one in each round of the serving loop.

        Otherwise a thousand that arrive at once would begin in the same round, and a webhook that
        arrives after them would wait for seconds.
        """
        async with self._turn:
            await asyncio.sleep(0)

    async def close(self) -> None:
        """End the calls of the sandbox."""
        if self.emulator.built is not None:
            await self.emulator.built.close()

    def _build_emulator(self) -> Emulator:
        from .sandbox.emulator.app import Emulator

        return Emulator(self._app, self._settings, now=utc_now, tools=self._app.router.tools)

    def _build_pages(self) -> ASGIApp:
        from .call_log.queries import Queries
        from .dashboard.call_actions import CallActions
        from .dashboard.forget import Forgetting
        from .dashboard.pages import DashboardSettings
        from .dashboard.security import ProxySignIn
        from .dashboard.site import dashboard
        from .masking.policy import MaskPolicy

        service, log, settings = self._service, self._service.call_log, self._settings
        forgetting = Forgetting(
            log.database.reader,
            log.writer.run,
            service.operators,
            own_numbers=frozenset(settings.own_numbers),
            remembers=settings.prefetch_fallback == "last_good",
        )
        return dashboard(
            Queries(log.database.reader),
            service.operators,
            actions=CallActions(service.replay, service.reread),
            forgetting=forgetting,
            setup=self._setup(),
            settings=DashboardSettings(
                version=__version__,
                mask=MaskPolicy.of(settings),
                damage=lambda: log.damage,
                public_url=settings.public_url,
                agents=service.agent_names,
            ),
            now=utc_now,
            sandbox=self._sandbox(),
            changes=log.feed,
            proxy=ProxySignIn(settings) if settings.sign_in_header else None,
        )

    def _setup(self) -> Setup:
        from .checks.installation import check_installation
        from .dashboard.connection_test import ConnectionTest
        from .dashboard.setup import Setup

        check = partial(
            check_installation, self._settings, utc_now, reads_all=False, measures=False
        )
        return Setup(self._settings, ConnectionTest(self._settings), check)

    def _sandbox(self) -> Sandbox | None:
        if not self._settings.sandbox:
            return None
        from .dashboard.sandbox import Sandbox

        return Sandbox(self._sandbox_sessions)

    async def _sandbox_sessions(self) -> SessionManager:
        return (await self.emulator.get()).sessions


class MillisHooks:
    """An ASGI application that receives Millis' webhooks and runs your handlers.

    Settings come from keyword arguments, the environment or `.env`; a wrong one raises
    `ConfigError`. `lifespan` is an async context manager for resources that handlers share, such as
    HTTP clients and connection pools. It runs on the handlers' event loop, and handlers get what it
    yields as `call.state`. Pass `Router`s of handlers registered elsewhere, or add them with
    `include`.
    """

    def __init__(
        self,
        *routers: Router,
        lifespan: Lifespan | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> None:
        self.settings = Settings.load(**settings)
        self.router = Router()
        for router in routers:
            self.router.include(router)
        self.on_prefetch = self.router.on_prefetch
        self.function = self.router.function
        self.on_end_of_call = self.router.on_end_of_call
        self.on_failed = self.on_parked = self.router.on_failed
        self.agent = self.router.agent
        self.include = self.router.include
        self._lifespan = lifespan
        self._paths = {f"{self.settings.prefix}/{webhook}": webhook for webhook in _WEBHOOKS}
        self._public_path = self.settings.public_path
        self._is_unsafe = bool(self.settings.unsafe) and not self.settings.exposed
        self._service: Service | None = None
        self._site: Site | None = None
        self._answers: Answers | None = None
        self._starting = asyncio.Lock()

    @property
    def service(self) -> Service:
        """The running service; raises `RuntimeError` before the start and after the stop."""
        if self._service is None:
            raise RuntimeError("The application is not started.")
        return self._service

    @cached_property
    def millis(self) -> MillisApi:
        """The client of Millis' API; it follows calls that it starts until their end-of-call.

        For a simulated call the sandbox answers, and in a test `HooksClient`, instead of Millis.
        Raises `ConfigError` without `MILLIS_HOOKS_API_KEY`, except in tests.
        """
        from .millis_api import MillisApi

        return MillisApi.of(self.settings, remember=self._remember)

    async def _remember(self, started: StartedCall) -> None:
        if self._service is None or started.session_id is None:
            return
        try:
            await self._service.remember_started(started.session_id)
        except StorageError as error:  # the call has begun in any case
            logger.error("a started call may not be tracked: %s", error)

    def under(
        self, *, millis: Answers | None = None, **settings: Unpack[SettingsOptions]
    ) -> MillisHooks:
        """Return a copy of this application with other settings, for tests.

        `millis` answers its handlers in place of Millis when they work for a call that Millis did
        not make. Raises `ConfigError`.
        """
        merged: Any = {**self.settings.model_dump(exclude_unset=True), **settings}
        hooks = MillisHooks(self.router, lifespan=self._lifespan, **merged)
        hooks._answers = millis
        return hooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        service = self._service or await self._start()
        self._place(scope)
        path = _path_in(scope)
        webhook, path_secret = self._webhook_at(path)
        if self._is_unsafe and self._is_for_this_machine_alone(scope, path, webhook):
            await _refuse(scope, send)
            return
        if scope["type"] == "http" and head_bytes(scope) > MOST_HEAD_BYTES:
            await service.near_misses.refuse_head(scope, send)
            return
        if scope["type"] != "http" or webhook is None:
            await self._serve_other(service, path, scope, receive, send)
            return
        if path_secret is not None:
            # Servers write access lines from the scope.
            hidden = f"{self.settings.prefix}/•/{webhook}"
            scope["path"] = scope["path"].removesuffix(path) + hidden
        if webhook.startswith(_FUNCTIONS):
            name = webhook.removeprefix(_FUNCTIONS)
            await service.functions(scope, receive, send, name=name, path_secret=path_secret)
            return
        endpoint = service.prefetch if webhook == "prefetch" else service.end_of_call
        await endpoint(scope, receive, send, path_secret=path_secret)

    def _place(self, scope: Scope) -> None:
        """Put the request below the path of the public address, which a proxy may have removed.

        The scope itself is changed, because servers write access lines from it.
        """
        public, root = self._public_path, scope.get("root_path", "")
        if root == public or not public.endswith(root):
            return
        path: str = scope["path"]
        scope["root_path"] = public
        if path == public:
            scope["path"] = f"{public}/"
        elif not path.startswith(f"{public}/") or self._webhook_at(path)[0] is not None:
            scope["path"] = public.removesuffix(root) + path

    async def probes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection of a process that receives nothing, and only calls handlers."""
        if scope["type"] == "lifespan" or _path_in(scope) in {*_PROBES, _METRICS}:
            await self(scope, receive, send)
        elif scope["type"] == "http":
            await reply(send, 404, b'{"detail":"This process only calls handlers."}')
        else:
            await send({"type": "websocket.close"})

    @asynccontextmanager
    async def running(self, _app: object = None) -> AsyncIterator[None]:
        """Start, and stop at the end: the `lifespan` of an application this one is mounted in.

        Without it a mounted `MillisHooks` starts at its first request, and ends with the process.
        """
        await self._start()
        try:
            yield
        finally:
            await self._stop()

    async def _start(self) -> Service:
        async with self._starting:
            if self._service is None:
                unsent, rehearsed = self._answers_in_place_of_millis()
                self._service = await Service.start(
                    self.settings, self.router, self._lifespan, unsent=unsent, rehearsed=rehearsed
                )
                self._site = Site(self, self._service)
                for warning in forgotten_routers(self.router):
                    logger.warning("%s", warning)
            return self._service

    def _answers_in_place_of_millis(self) -> tuple[Answers, Answers]:
        """Return what answers handlers of made-up calls in a dry run, and what else."""
        unsent = self._answers or logged
        if self._answers is not None or not self.settings.sandbox:
            return unsent, unsent
        from .sandbox.transport import sandbox_answers

        # In a dry run it would start a call, whose handlers know nothing of the dry run.
        loop = asyncio.get_running_loop()
        return unsent, sandbox_answers(self, self.settings.sandbox_key, loop)

    async def _stop(self) -> None:
        service, self._service = self._service, None
        site, self._site = self._site, None
        if site is not None:
            await site.close()
        if service is not None:
            await service.stop()

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            # Left to the server, this would be taken for an application without a lifespan.
            await send({"type": "lifespan.startup.failed", "message": _why(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve_other(
        self, service: Service, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        original = {**scope}
        # Servers write access lines from the scope; none of our pages has a secret in its path.
        scope["path"] = safe_path(scope["path"])
        if scope["type"] == "http" and path in _PROBES:
            await _PROBES[path](service, scope, send)
        elif scope["type"] == "http" and path == _METRICS:
            await service.metrics_endpoint(scope, receive, send)
        elif (site := self._site) is None:  # it stopped meanwhile
            await reply(send, 503, b'{"detail":"The service stops."}')
        elif self.settings.sandbox and path.startswith(_SANDBOX):
            await site.emulator(scope, receive, send)
        else:
            await site.page_turn()
            await service.near_misses.serve(site.pages, scope, receive, send, original)

    def _is_for_this_machine_alone(self, scope: Scope, path: str, webhook: str | None) -> bool:
        """Tell whether a request arrived at an address that other machines can reach, and asks for
        what only this machine may have. The server tells the address; a name tells too little."""
        is_unsafe = (webhook is not None and self.settings.insecure) or (
            path.startswith("/sandbox") and self.settings.sandbox
        )
        return is_unsafe and is_elsewhere((scope.get("server") or [None])[0])

    def _webhook_at(self, path: str) -> tuple[str | None, bytes | None]:
        """Return the webhook at `path`, and the secret before its name if there is one; that of a
        function is `functions/` and its name."""
        if path in self._paths:
            return self._paths[path], None
        webhook = self._webhook_below_prefix(path)
        if webhook[0] is None and "//" in path:  # as in `https://host//millis/prefetch`
            return self._webhook_below_prefix(_SLASHES.sub("/", path))
        return webhook

    def _webhook_below_prefix(self, path: str) -> tuple[str | None, bytes | None]:
        prefix = f"{self.settings.prefix}/"
        if path.startswith(prefix):
            secret, webhook = _parted(path[len(prefix) :].rstrip("/"))
            if webhook is not None and not secret:
                return webhook, None
            if webhook is not None and self.settings.secret_in_path:
                return webhook, secret.encode()
        return None, None


async def _no_pages(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await reply(send, 404, b'{"detail":"The pages are turned off: MILLIS_HOOKS_DASHBOARD=0."}')
    else:
        await send({"type": "websocket.close"})


def _parted(path: str) -> tuple[str, str | None]:
    """Part what is below the prefix: what stands before the webhook, and the webhook if any."""
    before, _, name = path.rpartition("/")
    if name == "functions":
        return before, _FUNCTIONS
    if before == "functions" or before.endswith("/functions"):
        return before[: -len("/functions")], _FUNCTIONS + name
    return before, name if name in _WEBHOOKS else None


async def _refuse(scope: Scope, send: Send) -> None:
    logger.error("refused a request from another machine: %s", NOT_EXPOSED)
    if scope["type"] == "http":
        await reply(send, 403, b'{"detail":"This service is for its own machine only."}')
    else:
        await send({"type": "websocket.close"})


def _path_in(scope: Scope) -> str:
    """Return the path below the one this application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


async def _alive(_service: Service, _scope: Scope, send: Send) -> None:
    await reply(send, 200, b'{"status":"alive"}')


async def _ready(service: Service, scope: Scope, send: Send) -> None:
    if scope.get("state", {}).get(STOPPING):
        await reply(send, 503, b'{"status":"stopping"}')
        return
    try:
        await asyncio.to_thread(service.check_storage)
    except StorageError as error:
        logger.error("not ready: %s", error)
        await reply(send, 503, b'{"status":"cannot store"}')
        return
    runner = service.runner.status
    can_run = runner.role != "stopped" and not runner.hung
    status = {"status": "ready" if can_run else "cannot run handlers", "runner": asdict(runner)}
    await reply(send, 200 if can_run else 503, json.dumps(status).encode())


_PROBES = {"/healthz": _alive, "/readyz": _ready}


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, MillisHooksError) else describe_failure(error).traceback
