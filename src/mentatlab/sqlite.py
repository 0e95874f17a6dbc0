"""One SQLite file, one writer thread, group commit.

Every durable table of the embedded mode (runs.db, streams.db, catalog.db) is written through this:
jobs that wait together are committed together (at most `GROUP`), each in its own savepoint, so that
one job's error undoes that job only. `write` returns after the commit that holds the job.
WAL and `synchronous=FULL`: what was acknowledged survives a power cut. Reads have their own
connections.
"""

import asyncio
import contextlib
import errno
import itertools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from mentatlab.database import Hint, Hints
from mentatlab.protocol.errors import Code, Internal, MentatError, OutOfSpace, Unavailable

T = TypeVar("T")
GROUP = 512
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _nothing() -> None:
    """There is nothing beside the database."""


class _Job(NamedTuple):
    """`done` belongs to `loop`: only that sets it."""

    work: Callable[[sqlite3.Connection], Any]
    done: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop


_Answer = tuple[_Job, Any, BaseException | None]


class Database:
    """`await open()`, then `write` and `read`; `aclose()` commits what is queued.

    `schema` is a list of migration scripts; the file's `user_version` says how many were applied.
    `before_commit` is called in the writer thread when a group's jobs are done: what else must be
    on disk first. When it raises, the group is undone.
    """

    shared = False
    skip_locked = ""

    def __init__(
        self,
        path: Path,
        schema: Sequence[str],
        *,
        readers: int = 2,
        before_commit: Callable[[], None] = _nothing,
    ) -> None:
        self.path = path
        self.commits = 0  # changes before a write is acknowledged: what was read may be old then
        self._schema, self._before_commit = schema, before_commit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sqlite-{path.stem}", daemon=True)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix=f"read-{path.stem}")
        self._local = threading.local()
        self._opened: Future[None] = Future()
        self._closing = False
        self._connections: list[sqlite3.Connection] = []
        self._hints = Hints()

    async def open(self) -> "Database":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        await asyncio.wrap_future(self._opened)
        return self

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._readers.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    async def __aenter__(self) -> "Database":
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the writer thread, inside the group's transaction; return after its commit.

        A cancelled caller's job is still carried out. A full disk is `OutOfSpace(DISK_FULL)`.
        """
        if self._closing:
            raise Unavailable(Code.UNAVAILABLE, "the database is closing")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future(), loop)
        self._jobs.put(job)
        return await job.done

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a read-only connection in a small thread pool; all of it sees the last
        commit before it. `work` leaves no cursor open.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, work)

    def listen(self, topic: str) -> AbstractContextManager[Hint]:
        return self._hints.listen(topic)

    def tell(self, topic: str) -> None:
        self._hints.tell(topic)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
            self._local.connection = connection
            self._connections.append(connection)
        try:
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _translate(error) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA busy_timeout=5000")
        connection.create_function("clock", 0, time.time)
        return connection

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(contextlib.closing(self._connect()))
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                self._migrate(connection)
            except BaseException as error:  # noqa: BLE001 — handed to whoever opens
                self._opened.set_exception(_translate(error))
                return
            self._opened.set_result(None)
            while (jobs := self._next_group()) is not None:
                self._commit(connection, jobs)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (applied,) = connection.execute("PRAGMA user_version").fetchone()
        if applied > len(self._schema):
            raise Unavailable(
                Code.DATABASE_ERROR,
                f"{self.path.name} was written by a newer version",
                hint="start the newer version, or another home folder",
            )
        for number in range(applied, len(self._schema)):
            script = self._schema[number]
            connection.executescript(f"BEGIN;{script};PRAGMA user_version={number + 1};COMMIT;")

    def _next_group(self) -> list[_Job] | None:
        first = self._jobs.get()
        if first is None:
            return None
        group = [first]
        while len(group) < GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # close after this group
                break
            group.append(job)
        return group

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            answers = [(job, *self._run_job(connection, job)) for job in jobs]
            self._before_commit()
            connection.execute("COMMIT")
            self.commits += 1
        except BaseException as error:  # noqa: BLE001 — every waiting caller is told
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            failure = _translate(error)
            answers = [(job, None, failure) for job in jobs]
        _tell(answers)

    @staticmethod
    def _run_job(connection: sqlite3.Connection, job: _Job) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT job")
        try:
            value = job.work(connection)
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO job")
                connection.execute("RELEASE job")
                return None, _translate(error)
            raise  # SQLite itself rolled the whole group back (disk full, I/O error)
        connection.execute("RELEASE job")
        return value, None


def _tell(answers: Sequence[_Answer]) -> None:
    """In the loop of the callers, all of a group at once: waking it costs more than a job."""
    for loop, group in itertools.groupby(answers, key=lambda answer: answer[0].loop):
        with contextlib.suppress(RuntimeError):  # a loop that was closed waits for nothing
            loop.call_soon_threadsafe(_settle, list(group))


def _settle(answers: Sequence[_Answer]) -> None:
    for job, value, error in answers:
        if job.done.done():
            continue  # its caller was cancelled
        if error is None:
            job.done.set_result(value)
        else:
            job.done.set_exception(error)


def _translate(error: BaseException) -> BaseException:
    match error:
        case MentatError():
            return error
        case sqlite3.OperationalError() if "full" in str(error):
            return _disk_full()
        case OSError() if error.errno in _FULL:
            return _disk_full()
        case sqlite3.Error():
            return Internal(
                Code.DATABASE_ERROR,
                f"{type(error).__name__}: {error}",
                hint="look at the home folder's disk: is it full, over a quota, or failing?",
            )
        case _:
            return error


def _disk_full() -> OutOfSpace:
    return OutOfSpace(
        Code.DISK_FULL, "the disk is full", hint="free some space; nothing was half written"
    )
