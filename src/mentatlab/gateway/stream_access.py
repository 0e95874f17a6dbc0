"""Who may follow, publish to or cancel a stream: one answer for HTTP, SSE and WebSocket."""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar

from starlette.requests import HTTPConnection

from mentatlab.gateway.credentials import Credentials
from mentatlab.gateway.identity import Caller, authorise
from mentatlab.gateway.limits import Buckets
from mentatlab.protocol.errors import Code, Forbidden, MentatError, Unauthenticated
from mentatlab.protocol.tokens import Capability, Claims, ended
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Lane, Run, unknown

T = TypeVar("T")


class Shared(NamedTuple):
    """What the authorities of all connections share. Buckets are per caller's name."""

    hub: StreamingConnectionManager
    credentials: Credentials
    messages: Buckets
    records: Buckets


class Authority:
    """What one connection may do. It never grows: `renewed` gives another one.

    `caller` is who came in with `credential`; None: with nothing that could be revoked.
    """

    __slots__ = ("_credential", "_shared", "caller")

    def __init__(self, shared: Shared, caller: Caller, credential: str | None = None) -> None:
        self._shared, self.caller, self._credential = shared, caller, credential

    @property
    def known(self) -> bool:
        """False: a stranger, who must show a credential before anything else."""
        return bool(self.caller.name)

    @property
    def expires(self) -> float | None:
        """When it ends; Unix seconds, None = never."""
        return None if self.caller.claims is None else self.caller.claims.expires

    async def check(self, capability: Capability, id_: str) -> Lane | Run:
        """The stream or run, when the caller may do this now. Its counters are current for `sub`.

        `Unauthenticated`, `Forbidden`, or `NotFound(STREAM_UNKNOWN)`: unknown and foreign look
        alike.
        """
        if capability == "sub":
            return await self.allowed((capability,), id_)
        await self._identified((capability,))
        return self._covered((capability,), id_, await self._shared.hub.identity(id_))

    async def allowed(self, capabilities: Iterable[Capability], id_: str) -> Lane | Run:
        """As `check`, for all of them at once; of a run, too, `pub` and `cancel`: for those of its
        lanes that clients have opened.
        """
        await self._identified(capabilities)
        return self._covered(capabilities, id_, await self._shared.hub.find(id_))

    async def _identified(self, capabilities: Iterable[Capability]) -> None:
        """Before the stream is looked up: strangers do not learn whether there is one."""
        await self.guard()
        if self.caller.claims is None:
            for capability in capabilities:
                authorise(self.caller, "read" if capability == "sub" else "publish")

    def _covered(
        self, capabilities: Iterable[Capability], id_: str, found: Lane | Run
    ) -> Lane | Run:
        if found.workspace != self.caller.workspace:
            raise unknown(id_)
        for capability in capabilities:
            allow(self.caller, capability, found)
        return found

    async def guard(self) -> None:
        """Whether the credential still holds (a revoked key: within a second).

        `CredentialEnded(TOKEN_INVALID)` for a token or ticket that has ended,
        `Unauthenticated(UNAUTHENTICATED)` for a key that was revoked.
        """
        if self.expires is not None and self.expires <= time.time():
            raise ended("token")
        if self._credential is not None:
            await self._shared.credentials.still(self._credential)

    @property
    def revocable(self) -> bool:
        """Whether somebody may end it at any time: a key, which is looked up."""
        return self._credential is not None and self.caller.claims is None

    async def revoked(self) -> Unauthenticated | None:
        """Why it does not hold any more; None also while that cannot be said."""
        try:
            await self.guard()
        except Unauthenticated as error:
            return error
        except MentatError:
            return None
        return None

    async def renewed(self, credential: str) -> "Authority":
        """What that token (or key) gives; `Unauthenticated`."""
        caller = await self._shared.credentials.caller(credential)
        return Authority(self._shared, caller, credential)

    def spend(self) -> float:
        """Count one control message; seconds to wait when it is over the caller's rate, else 0."""
        if self.caller.exempt:
            return 0.0
        return self._shared.messages.take(self.caller.name, time.monotonic())

    def owe(self, records: int) -> float:
        """Count records that were published; seconds to read no more of them, 0 = go on."""
        if self.caller.exempt:
            return 0.0
        return self._shared.records.owe(self.caller.name, records, time.monotonic())

    def granted(self, subject: str, capabilities: tuple[Capability, ...], until: int) -> Claims:
        """The claims of a token that the caller hands on: never for longer than its own.

        Whether the caller has the capabilities is for `check` to say, before.
        """
        expires = until if self.expires is None else min(until, int(self.expires))
        return Claims(
            subject=subject,
            capabilities=capabilities,
            workspace=self.caller.workspace,
            expires=expires,
        )


def allow(who: Caller, capability: Capability, found: Lane | Run) -> None:
    """`Forbidden(STREAM_FORBIDDEN)` for a token of something else, and for publishing to what
    belongs to a run's own nodes.
    """
    ids = {found.run_id, found.stream_id} if isinstance(found, Lane) else {found.run_id}
    if who.claims is not None and (
        who.claims.subject not in ids or capability not in who.claims.capabilities
    ):
        raise Forbidden(
            Code.STREAM_FORBIDDEN,
            f"the token is not for this ({capability})",
            hint="use the token that `init` gave for this stream",
        )
    if capability != "sub" and isinstance(found, Lane) and not found.external:
        raise Forbidden(
            Code.STREAM_FORBIDDEN,
            "only its run publishes to this stream",
            hint="open a stream of your own with POST /api/v1/streams/init",
        )


def authority(connection: HTTPConnection) -> Authority:
    """That of this request or WebSocket; admission put it there (a FastAPI dependency)."""
    return connection.state.authority


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
