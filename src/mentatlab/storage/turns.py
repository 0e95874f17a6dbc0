"""One at a time within a process, and who comes later wins."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator


class Turn:
    """Its holder is interrupted when somebody else asks for it, until it says `finish()`."""

    def __init__(self, task: "asyncio.Task[object] | None") -> None:
        self.over = asyncio.Event()
        self._task = task
        self._asked = self._finishing = False

    def ask(self) -> None:
        if self._task is not None and not self._asked and not self._finishing:
            self._asked = True
            self._task.cancel()

    def finish(self) -> None:
        self._finishing = True

    def was_asked(self) -> bool:
        """Whether the cancellation that has just arrived is a newcomer's; then it is undone."""
        return self._asked and self._task is not None and self._task.uncancel() == 0


class Asked(Exception):  # noqa: N818 — a wish, no error
    """A newcomer has asked for the turn."""


class Busy(Exception):  # noqa: N818
    """The holder did not let go in time."""


class Turns:
    def __init__(self) -> None:
        self._taken: dict[str, Turn] = {}

    @contextlib.asynccontextmanager
    async def take(self, name: str, *, patience_s: float) -> AsyncGenerator[Turn]:
        """`Busy`; in the body, which a newcomer interrupts by a cancellation, `Asked`."""
        try:
            async with asyncio.timeout(patience_s):
                while (other := self._taken.get(name)) is not None:
                    other.ask()
                    await other.over.wait()
        except TimeoutError:
            raise Busy from None
        turn = self._taken[name] = Turn(asyncio.current_task())
        try:
            yield turn
        except asyncio.CancelledError:
            if turn.was_asked():
                raise Asked from None
            raise
        finally:
            del self._taken[name]
            turn.over.set()
