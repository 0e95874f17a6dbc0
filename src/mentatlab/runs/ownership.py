"""Which runs an engine conducts, when several share a store.

An engine keeps a lease. It takes over the runs of those whose lease is over, drops its own that
somebody else has taken over meanwhile (it was stopped, or cut off), and does what others ask of the
runs that it conducts. What a former owner still writes is refused by the run's epoch.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mentatlab.protocol.errors import Code, MentatError, NotFound, Unavailable
from mentatlab.runs.state import RUN_TERMINAL
from mentatlab.runs.store import LEASE_S, RENEW_S, Request, RunRow, RunStore

logger = logging.getLogger(__name__)

SHARE = 16
"""Runs that are taken over at a time, so that others get theirs."""
PATIENCE_S = 30.0
"""For an answer by a run's owner, or by who takes over from it."""
CLOSE_S = 5.0
"""What follows from a run's end takes no longer, unless it has to wait for the next start."""


class Conducting(Protocol):
    """The engine, as its ownership sees it."""

    def conducted(self) -> set[str]:
        """The runs that it conducts now."""
        ...

    async def adopt(self, row: RunRow) -> None:
        """Go on with a run that is this engine's from now on; raises nothing for a broken one."""
        ...

    async def drop(self, run_id: str) -> None:
        """End its attempts, write nothing more; fine when it is not conducted."""
        ...

    async def answer(self, request: Request) -> None:
        """Do what was asked, or find that there is nothing to do."""
        ...


class Ownership:
    """`await start()`, then `await keep()` in a task of its own; `await aclose()` at the end."""

    def __init__(
        self,
        store: RunStore,
        owner: str,
        engine: Conducting,
        *,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self._store, self.owner, self._engine = store, owner, engine
        self._lease_s, self._renew_s = lease_s, renew_s

    async def start(self) -> None:
        """Take over what a former process left, or one that lives no more."""
        await self._store.renew(self.owner, self._lease_s)
        while await self._claim():
            pass

    async def keep(self) -> None:
        """Until it is cancelled. Nothing to do where no other engine writes to the store."""
        if self._store.shared:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._renew_forever())
                tasks.create_task(self._serve_forever())

    async def aclose(self) -> None:
        """What has not ended is for others to go on with, at once."""
        await self._tried(lambda: self._store.release(self.owner))

    # --- the engine's side

    async def _renew_forever(self) -> None:
        while True:
            await self._tried(self._renew)
            await asyncio.sleep(self._renew_s)

    async def _serve_forever(self) -> None:
        with self._store.listen(self.owner) as hint:
            while True:
                await self._tried(self._answer)
                await self._tried(self._claim)
                await hint.wait()

    async def _tried(self, work: Callable[[], Awaitable[object]]) -> None:
        """The next try may do: a database that does not answer now, a full disk."""
        try:
            await work()
        except MentatError as error:
            logger.warning("the engine's lease: %s", error)
        except Exception:  # a bug in one round must not end the lease
            logger.exception("the engine's lease")

    async def _renew(self) -> None:
        conducted = self._engine.conducted()
        mine = await self._store.renew(self.owner, self._lease_s)
        for run_id in conducted - mine:  # closed just now, or somebody else's
            if not await self._is_mine(run_id):
                logger.warning("the run %s has another owner now", run_id)
                await self._engine.drop(run_id)

    async def _is_mine(self, run_id: str) -> bool:
        try:
            return (await self._store.get(run_id)).owner == self.owner
        except NotFound:
            return True  # it ended and was deleted

    async def _claim(self) -> bool:
        """Whether there was something; there may be more."""
        rows = await self._store.claim(self.owner, limit=SHARE)
        for row in rows:
            await self._engine.drop(row.id)  # it was this engine's before, under another epoch
            await self._engine.adopt(row)
        return bool(rows)

    async def _answer(self) -> None:
        for request in await self._store.asked(self.owner):
            try:
                await self._engine.answer(request)
            except MentatError as error:
                logger.info("what was asked of %s came to nothing: %s", request.run_id, error)
            await self._store.answered(request)

    # --- of runs that another engine conducts

    async def ask(
        self, run_id: str, request: dict[str, Any], *, patience_s: float = PATIENCE_S
    ) -> None:
        """Returns when the run's owner has done it, or the run has ended.
        `Unavailable(UNAVAILABLE)` when nobody does in time: it stays asked for."""
        asked = await self._store.ask(run_id, request)
        with self._store.listen(run_id) as hint:
            try:
                async with asyncio.timeout(patience_s):
                    while await self._store.is_open(asked):
                        await hint.wait()
            except TimeoutError:
                raise Unavailable(
                    Code.UNAVAILABLE,
                    f"the engine that conducts {run_id} has not answered yet",
                    hint="it will be done when it does; ask for the run again in a while",
                ) from None

    async def wait(self, run_id: str) -> None:
        """Until the run has ended, with its streams."""
        with self._store.listen(run_id) as hint:
            while (row := await self._store.get(run_id)).state not in RUN_TERMINAL:
                await hint.wait()
            give_up = asyncio.get_running_loop().time() + CLOSE_S
            while not row.closed and asyncio.get_running_loop().time() < give_up:
                await hint.wait()
                row = await self._store.get(run_id)
