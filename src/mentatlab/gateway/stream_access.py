"""Who may follow, publish to or cancel a stream, for HTTP, SSE and WebSocket alike."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

from mentatlab.gateway.identity import Caller, authorise, caller
from mentatlab.protocol.errors import Code, Forbidden
from mentatlab.protocol.tokens import Capability
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Lane, Run, unknown

T = TypeVar("T")


async def admit(
    hub: StreamingConnectionManager, connection: HTTPConnection, id_: str, capability: Capability
) -> Lane | Run:
    """The lane or run, when the caller may. Its counters are current for `sub` only.

    `Unauthenticated`, `Forbidden`, or `NotFound(STREAM_UNKNOWN)`: unknown and foreign look alike.
    """
    who = caller(connection)
    if who.claims is None:
        authorise(who, "read" if capability == "sub" else "publish")
    found = await (hub.find(id_) if capability == "sub" else hub.identity(id_))
    if found.workspace != who.workspace:
        raise unknown(id_)
    _check(who, found, capability)
    return found


def _check(who: Caller, found: Lane | Run, capability: Capability) -> None:
    ids = {found.run_id, found.stream_id} if isinstance(found, Lane) else {found.run_id}
    if who.claims is not None:
        if who.claims.subject not in ids or capability not in who.claims.capabilities:
            raise Forbidden(
                Code.STREAM_FORBIDDEN,
                f"the token is not for this ({capability})",
                hint="use the token that `init` gave for this stream",
            )
    elif capability != "sub" and isinstance(found, Lane) and not found.external:
        raise Forbidden(
            Code.STREAM_FORBIDDEN,
            "only its run publishes to this stream",
            hint="open a stream of your own with POST /api/v1/streams/init",
        )


async def expiry(connection: HTTPConnection) -> None:
    """Returns when the connection's token ends; never without one."""
    claims = caller(connection).claims
    if claims is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(max(0.0, claims.expires - time.time()))


async def first_of(*coroutines: Coroutine[Any, Any, T]) -> T:
    """Runs them together until one returns (or raises), ends the others, and gives its answer."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()
