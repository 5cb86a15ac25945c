"""The end-of-call webhook kept in two other ways: as a team writes it, and as fast as a disk syncs.

`handwritten` is FastAPI, SQLAlchemy and SQLite with their defaults. `append_only` is the floor:
raw ASGI, the body appended to a file, one sync shared by all who wait for it. Both answer only
when the call is on disk, and keep their file in the directory `BENCH_STORAGE`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.types import Receive, Scope, Send

from .rivals import check_secret, is_authorized

STORAGE = Path(os.environ.get("BENCH_STORAGE", "."))


class Base(DeclarativeBase):
    """The team's tables."""


class Call(Base):
    """One finished call."""

    __tablename__ = "calls"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[str | None]
    call_id: Mapped[str | None]
    call_status: Mapped[str | None]
    ts: Mapped[float | None]
    duration: Mapped[float | None]
    cost: Mapped[float | None]
    from_phone: Mapped[str | None]
    to_phone: Mapped[str | None]
    raw: Mapped[dict[str, Any]] = mapped_column(JSON)


class Payload(BaseModel):
    """The documented body, as far as the team needs it."""

    model_config = ConfigDict(extra="allow")

    session_id: str
    agent_id: str | None = None
    call_id: str | None = None
    call_status: str | None = None
    ts: float | None = None
    duration: float | None = None
    cost_breakdown: list[dict[str, Any]] = []
    voip: dict[str, Any] | None = None


engine = create_engine(f"sqlite:///{STORAGE / 'handwritten.db'}")
handwritten = FastAPI(on_startup=[lambda: Base.metadata.create_all(engine)])


def session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@handwritten.post("/millis/end-of-call", dependencies=[Depends(check_secret)])
def _store(payload: Payload, session: Annotated[Session, Depends(session)]) -> dict[str, bool]:
    voip = payload.voip or {}
    call = Call(
        **payload.model_dump(
            include={"session_id", "agent_id", "call_id", "call_status", "ts", "duration"}
        ),
        cost=sum(item.get("credit") or 0 for item in payload.cost_breakdown),
        from_phone=voip.get("from"),
        to_phone=voip.get("to"),
        raw=payload.model_dump(mode="json"),
    )
    session.merge(call)
    session.commit()
    return {"ok": True}


class Appender(threading.Thread):
    """Append what has gathered, sync once, and tell everyone who waited."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.file = path.open("ab")
        self.loop = asyncio.get_running_loop()
        self.waiting: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()

    async def append(self, body: bytes) -> None:
        stored = self.loop.create_future()
        self.waiting.put((body, stored))
        await stored

    def run(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while not self.waiting.empty():
                batch.append(self.waiting.get())
            self.file.writelines(body + b"\n" for body, _ in batch)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.loop.call_soon_threadsafe(release, [stored for _, stored in batch])


def release(stored: list[asyncio.Future[None]]) -> None:
    for future in stored:
        if not future.done():
            future.set_result(None)


class AppendOnly:
    """An ASGI application that knows one URL."""

    appender: Appender | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.appender is None:
            self.appender = Appender(STORAGE / "append_only.jsonl")
            self.appender.start()
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        status = 401
        if is_authorized(header):
            await self.appender.append(await read_body(receive))
            status = 200
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


async def read_body(receive: Receive) -> bytes:
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


append_only = AppendOnly()
