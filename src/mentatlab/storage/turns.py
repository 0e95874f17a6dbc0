"""One at a time within a process; who comes later interrupts who only waits for a client."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator


class Asked(Exception):  # noqa: N818 — a wish, no error
    """Somebody else wants the turn."""


class Busy(Exception):  # noqa: N818
    """The holder did not let go in time."""


class Turn:
    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._asked = False
        self._task: asyncio.Task[object] | None = None  # that may be interrupted now

    def ask(self) -> None:
        if not self._asked and self._task is not None:
            self._task.cancel()
        self._asked = True

    @contextlib.contextmanager
    def interruptible(self) -> Generator[None]:
        """Its body is cancelled when somebody asks for the turn, which then becomes `Asked`."""
        if self._asked:
            raise Asked
        task = self._task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self._asked and task is not None and task.uncancel() == 0:
                raise Asked from None
            raise
        finally:
            self._task = None


class Turns:
    def __init__(self) -> None:
        self._taken: dict[str, Turn] = {}

    @contextlib.asynccontextmanager
    async def take(self, name: str, *, patience_s: float) -> AsyncGenerator[Turn]:
        """Waits until its holder is done with it, who is asked. `Busy`"""
        try:
            async with asyncio.timeout(patience_s):
                while (other := self._taken.get(name)) is not None:
                    other.ask()
                    await other.over.wait()
        except TimeoutError:
            raise Busy from None
        turn = self._taken[name] = Turn()
        try:
            yield turn
        finally:
            del self._taken[name]
            turn.over.set()
