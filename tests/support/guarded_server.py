"""A server of streams with keys, tokens and tickets, on any transport."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from fastapi import FastAPI

from mentatlab.gateway import problems
from mentatlab.gateway.admission import Admission, Rules
from mentatlab.gateway.asgi import AdmissionMiddleware
from mentatlab.gateway.identity import Caller
from mentatlab.gateway.server import Transport, serving
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_portable import portable_router
from mentatlab.gateway.stream_routes import stream_router
from mentatlab.gateway.streams import Streams
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.tokens import Claims, Ticket, mint, mint_ticket
from mentatlab.streams import StreamingConnectionManager

TOKEN_SECRET = b"s" * 32
HOME_KEY = "ml_home_key_of_the_server"
KEYS = {
    "ml_reader_key": Caller(scopes=frozenset({"read"}), name="reader"),
    "ml_writer_key": Caller(scopes=frozenset({"publish"}), name="writer"),
    "ml_foreign_key": Caller(scopes=frozenset({"read", "publish"}), name="f", workspace="theirs"),
}
NEVER = "ml_key_that_is_looked_up_for_ever"
ELSEWHERE = {"loopback": False}


class Guarded(NamedTuple):
    hub: StreamingConnectionManager
    admission: Admission
    port: int
    keys: dict[str, Caller]  # that are not revoked


@asynccontextmanager
async def guarded(
    hub: StreamingConnectionManager, transport: Transport, **rules: Any
) -> AsyncGenerator[Guarded]:
    said = {"loopback": True, "home_key": HOME_KEY, "token_secret": TOKEN_SECRET, **rules}
    keys = dict(KEYS)

    async def lookup(key: str) -> Caller | None:
        if key == NEVER:
            await asyncio.Event().wait()
        return keys.get(key)

    admission = Admission(Rules(**said), lookup, hub, authorise_s=0.2)
    streams = Streams(admission, Connections(hub))
    app = FastAPI()
    problems.install(app)
    app.include_router(stream_router(hub, admission))
    app.include_router(portable_router(streams.connections))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving(
            AdmissionMiddleware(app, admission),
            listener,
            drain=hub.drain,
            streams=streams,
            transport=transport,
        ):
            yield Guarded(hub, admission, listener.getsockname()[1], keys)


def claims(id_: str, *capabilities: Any, seconds: float = 60, workspace: str = "default") -> Claims:
    until = int(time.time() + seconds)
    return Claims(subject=id_, capabilities=capabilities, workspace=workspace, expires=until)


def token(id_: str, *capabilities: Any, **more: Any) -> dict[str, str]:
    return bearer(mint(claims(id_, *capabilities, **more), TOKEN_SECRET))


def ticket(id_: str, *, seconds: float = 60) -> str:
    until = int(time.time() + seconds)
    return mint_ticket(
        Ticket(id=new_id("tk"), claims=claims(id_, "sub"), expires=until), TOKEN_SECRET
    )


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
