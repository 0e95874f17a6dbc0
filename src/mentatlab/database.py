"""What the rooms ask of a database, SQLite's (`sqlite.py`) or Postgres' (`postgres.py`).

One SQL text serves both: `?` or `:name` for values, `ON CONFLICT`, `RETURNING`, `coalesce`; and the
function `clock()`, Unix seconds on the database's own clock.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

POLL_S = 1.0
"""Who waits for news looks for itself that often: a hint may be lost."""
MOST_ROWS = 2**63 - 1
"""A LIMIT that is none."""

Values = Sequence[Any] | Mapping[str, Any]


class Cursor(Protocol):
    """Rows are read by column name or index."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    def execute(self, sql: str, parameters: Values = (), /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> object: ...


class Hint:
    """That there may be news of one topic."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def tell(self) -> None:
        self._news.set()

    async def wait(self, timeout_s: float = POLL_S) -> None:
        """Returns on news since the last call, at the latest after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        self._news.clear()


class Hints:
    """Who listens to what, in this process; of one event loop."""

    def __init__(self) -> None:
        self._listening: defaultdict[str, set[Hint]] = defaultdict(set)

    @contextlib.contextmanager
    def listen(self, topic: str) -> Generator[Hint]:
        hint = Hint()
        self._listening[topic].add(hint)
        try:
            yield hint
        finally:
            self._listening[topic].discard(hint)
            if not self._listening[topic]:
                del self._listening[topic]

    def tell(self, topic: str) -> None:
        for hint in self._listening.get(topic, ()):
            hint.tell()


class Database(Protocol):
    """Writes that wait together are committed together; one job's error undoes that job only.

    `Unavailable(DATABASE_UNAVAILABLE)` when it does not answer, `OutOfSpace(DISK_FULL)`,
    `Internal(DATABASE_ERROR)`.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes write to it too."""
        ...

    @property
    def skip_locked(self) -> str:
        """The end of a SELECT that takes rows for itself, and leaves out those being taken."""
        ...

    @property
    def commits(self) -> int:
        """Changes before a write of this process is acknowledged."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread and a transaction; return after its commit. It may be run again
        when the transaction could not be committed, so it changes nothing but the database."""
        ...

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread; all of it sees one state, that of the last commit or a later."""
        ...

    def listen(self, topic: str) -> AbstractContextManager[Hint]:
        """Hear what `tell` says from the body's beginning on."""
        ...

    def tell(self, topic: str) -> None:
        """A hint to all who listen, in every process; it may be lost."""
        ...

    async def aclose(self) -> None: ...
