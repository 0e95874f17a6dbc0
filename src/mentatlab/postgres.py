"""One Postgres for several servers, behind the same `Database` as SQLite: group commit, by threads.

A writer thread with one connection drains the waiting jobs (at most `GROUP`) into one transaction,
each in a savepoint; reads have their own connections. When the connection breaks, jobs wait for
another for `PATIENCE_S`; whether a transaction was committed whose answer was lost is asked of the
server, so nothing is done twice.
"""

import asyncio
import contextlib
import functools
import logging
import queue
import re
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, TypeVar

import psycopg
from psycopg import errors, sql

from mentatlab.database import Connection, Cursor, Hint, Hints, Values
from mentatlab.protocol.errors import Code, Conflict, Internal, MentatError, OutOfSpace, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
GROUP = 512
PATIENCE_S = 5.0
"""For a server that restarts, or for the one that follows it; counted from its loss."""
_RETRY_S = 0.1
_TRIES = 5
_STUCK_S = 5
"""A transaction whose process was stopped or cut off holds its locks no longer than this."""
_SESSION = f"""
    SET idle_in_transaction_session_timeout = '{_STUCK_S}s';
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET client_min_messages = warning;
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off';
"""
_CLOCK = """
    CREATE OR REPLACE FUNCTION clock() RETURNS double precision LANGUAGE sql
    AS 'SELECT extract(epoch FROM clock_timestamp())::double precision'
"""
_STATUS = "SELECT txid_status(%s::bigint)"
_LOST = (psycopg.OperationalError, psycopg.InterfaceError)
_AGAIN = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
_WORDS = {
    "TEXT": 'TEXT COLLATE "C"',
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
}


class _Job(NamedTuple):
    work: Callable[[Connection], Any]
    done: Future[Any]


class Row(tuple[Any, ...]):
    """By column name, or by index."""

    __slots__ = ()
    names: ClassVar[dict[str, int]]

    def keys(self) -> list[str]:
        return list(self.names)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names[key] if isinstance(key, str) else key)


class _Session:
    """A connection that takes the SQL that SQLite takes."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def execute(self, text: str, parameters: Values = (), /) -> Cursor:
        cursor = self._connection.cursor(binary=True)
        return cursor.execute(_translated(text), parameters or None)

    def executemany(self, text: str, parameters: Sequence[Sequence[Any]], /) -> object:
        return self._connection.cursor().executemany(_translated(text), parameters)


class PostgresDatabase:
    """`await open()`, then `write` and `read`; `aclose()` commits what is queued.

    The tables of `schema`, a list of migration scripts, stand in the Postgres schema `namespace`;
    its table `schema_versions` says how many of those called `name` were applied. Servers that
    start together apply each once. One that is `alone` suffers no other beside it.
    """

    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(
        self,
        url: str,
        name: str,
        schema: Sequence[str],
        *,
        namespace: str = "mentatlab",
        readers: int = 4,
        alone: bool = False,
    ) -> None:
        self.shared = not alone
        self._url, self._name, self._schema, self._namespace = url, name, schema, namespace
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._run, name=f"postgres-{name}", daemon=True)
        self._listener: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix=f"read-{name}")
        self._opened: Future[None] = Future()
        self._closing = False
        self._local = threading.local()
        self._connections: list[psycopg.Connection[Any]] = []
        self._hints = Hints()
        self.commits = 0

    async def open(self) -> "PostgresDatabase":
        """`Unavailable(DATABASE_UNAVAILABLE)`, or a newer version's `DATABASE_ERROR`;
        `Conflict(DATABASE_IN_USE)` beside one that is alone, or when it is to be alone itself."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()
        await asyncio.wrap_future(self._opened)
        return self

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._jobs.put(_Job(self._notify(""), Future()))  # wakes the listener
        self._jobs.put(None)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        self._writer.join()
        if self._listener is not None:
            self._listener.join()
        self._readers.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    async def __aenter__(self) -> "PostgresDatabase":
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- in the loop

    async def write(self, work: Callable[[Connection], T]) -> T:
        """A cancelled caller's job is still carried out."""
        if self._closing:
            raise Unavailable(Code.UNAVAILABLE, "the database is closing")
        job = _Job(work, Future())
        self._jobs.put(job)
        return await asyncio.shield(asyncio.wrap_future(job.done))

    async def read(self, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, work)

    def listen(self, topic: str) -> AbstractContextManager[Hint]:
        if self._listener is None:
            name = f"listen-{self._name}"
            self._listener = threading.Thread(target=self._hear, name=name, daemon=True)
            self._listener.start()
        return self._hints.listen(topic)

    def tell(self, topic: str) -> None:
        self._hints.tell(topic)
        if not self._closing:
            self._jobs.put(_Job(self._notify(topic), Future()))

    def _notify(self, topic: str) -> Callable[[Connection], object]:
        return lambda db: db.execute("SELECT pg_notify(?, ?)", (self._namespace, topic))

    # --- connections

    def _connect(self) -> "psycopg.Connection[Any]":
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            row_factory=_row_factory,
            connect_timeout=5,
            application_name=f"mentatlab {self._name}",
        )
        try:
            connection.execute(_SESSION.encode())
            path = sql.SQL("SET search_path TO {}").format(sql.Identifier(self._namespace))
            connection.execute(path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _enter(self) -> "psycopg.Connection[Any]":
        """The writer's connection, which says as long as it lasts that this server is here."""
        connection = self._connect()
        take = "pg_try_advisory_lock_shared" if self.shared else "pg_try_advisory_lock"
        key = zlib.crc32(f"mentatlab {self._namespace} {self._name} servers".encode())
        found = connection.execute(sql.SQL("SELECT {}(%s)").format(sql.SQL(take)), (key,))
        if not found.fetchall()[0][0]:
            connection.close()
            raise Conflict(
                Code.DATABASE_IN_USE,
                "another server uses the database of MENTATLAB_DATABASE",
                hint="several servers need MENTATLAB_LOG=redis://…, storage in S3 and one"
                " MENTATLAB_TOKEN_SECRET, all of them; else stop the other, or set"
                " MENTATLAB_DATABASE_SCHEMA",
            )
        return connection

    def _read(self, work: Callable[[Connection], T]) -> T:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._read_once(work)
            except _LOST as error:
                self._local.connection = None
                if _is_full(error) or time.monotonic() > give_up or self._closing:
                    raise _translate(error) from error
                time.sleep(_RETRY_S)
            except psycopg.Error as error:
                raise _translate(error) from error

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return work(_Session(connection))
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")

    def _hear(self) -> None:
        """The listener's thread."""
        while not self._closing:
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._namespace)))
                    self._pass_on(connection)
            except psycopg.Error as error:
                logger.warning("Postgres is not heard: %s", error)
                time.sleep(_RETRY_S)

    def _pass_on(self, connection: "psycopg.Connection[Any]") -> None:
        while not self._closing:
            for told in connection.notifies(timeout=1.0):
                if self._closing:
                    return
                self._loop.call_soon_threadsafe(self._hints.tell, told.payload)

    # --- the writer's thread

    def _run(self) -> None:
        try:
            connection = self._opened_connection()
        except BaseException as error:  # noqa: BLE001 (handed to whoever opens)
            self._opened.set_exception(_translate(error))
            return
        self._opened.set_result(None)
        writer = _Writer(connection, self._enter, self._committed)
        while jobs := self._next_group():
            writer.commit(jobs)
        writer.close()

    def _opened_connection(self) -> "psycopg.Connection[Any]":
        connection = self._enter()
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _committed(self) -> None:
        self.commits += 1

    def _next_group(self) -> list[_Job]:
        """Empty at the end."""
        group: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while len(group) < GROUP:
                job = self._jobs.get(block=not group)
                if job is None:
                    if group:
                        self._jobs.put(None)  # close after this group
                    break
                group.append(job)
        return group

    def _migrate(self, connection: "psycopg.Connection[Any]") -> None:
        with connection.transaction():
            lock = zlib.crc32(f"mentatlab {self._namespace}".encode())
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
            self._prepare(connection)
            wanted = "SELECT version FROM schema_versions WHERE name = %s"
            found = connection.execute(wanted, (self._name,)).fetchone()
            applied: int = found[0] if found else 0
            if applied > len(self._schema):
                raise Unavailable(
                    Code.DATABASE_ERROR,
                    f"the tables of {self._name} were written by a newer version",
                    hint="start the newer version, or name another database",
                )
            for script in self._schema[applied:]:
                connection.execute(_tables(script))
            connection.execute(
                "INSERT INTO schema_versions VALUES (%s, %s)"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                (self._name, len(self._schema)),
            )

    def _prepare(self, connection: "psycopg.Connection[Any]") -> None:
        """The namespace, and what every schema needs in it."""
        known = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if connection.execute(known, (self._namespace,)).fetchone() is None:
            name = sql.Identifier(self._namespace)
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_versions (name TEXT PRIMARY KEY, version BIGINT)"
        )
        connection.execute(_CLOCK)


class _Writer:
    """Commits groups of jobs, over connections that may break."""

    def __init__(
        self,
        connection: "psycopg.Connection[Any]",
        connect: Callable[[], "psycopg.Connection[Any]"],
        committed: Callable[[], None],
    ) -> None:
        self._connection, self._connect, self._told = connection, connect, committed
        self._lost_at: float | None = None

    def close(self) -> None:
        self._connection.close()

    def commit(self, jobs: list[_Job]) -> None:
        """Every job gets its answer."""
        try:
            results = self._committed(jobs)
        except _AGAIN as error:
            if len(jobs) > 1:  # others' locks and ours, in another order: one at a time has none
                for job in jobs:
                    self.commit([job])
            else:
                jobs[0].done.set_exception(_translate(error))
            return
        except BaseException as error:  # noqa: BLE001 (every waiting caller is told)
            failure = _translate(error)
            for job in jobs:
                job.done.set_exception(failure)
            return
        self._told()
        for job, (value, failure) in zip(jobs, results, strict=True):
            if failure is None:
                job.done.set_result(value)
            else:
                job.done.set_exception(failure)

    def _committed(self, jobs: list[_Job]) -> list[tuple[Any, BaseException | None]]:
        for _ in range(_TRIES):
            transaction = _Transaction(self._connection)
            try:
                results = transaction.run(jobs)
            except BaseException as error:
                if not isinstance(error, _LOST) or not self._connection.closed:
                    transaction.undo()
                    raise
                self._reconnect(error)
                if transaction.was_committed(self._connection):
                    return transaction.results
            else:
                self._lost_at = None
                return results
        raise Unavailable(
            Code.DATABASE_UNAVAILABLE,
            "connections to Postgres break again and again",
            hint="look at the log of Postgres",
        )

    def _reconnect(self, error: psycopg.Error) -> None:
        self._lost_at = self._lost_at or time.monotonic()
        while True:
            try:
                self._connection = self._connect()
            except _LOST as again:
                if time.monotonic() > self._lost_at + PATIENCE_S:
                    raise again from error
                time.sleep(_RETRY_S)
            else:
                return


class _Transaction:
    """One try at a group of jobs; `results` are those of its last run."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection, self._session = connection, _Session(connection)
        self._id: int | None = None
        self.results: list[tuple[Any, BaseException | None]] = []

    def run(self, jobs: list[_Job]) -> list[tuple[Any, BaseException | None]]:
        self._connection.execute("BEGIN; SAVEPOINT job")
        for job in jobs:
            self.results.append(self._run_job(job))
        found = self._connection.execute("SELECT txid_current_if_assigned()").fetchone()
        self._id = found[0] if found else None
        self._connection.execute("COMMIT")
        return self.results

    def _run_job(self, job: _Job) -> tuple[Any, BaseException | None]:
        try:
            value = job.work(self._session)
        except (*_AGAIN, *_LOST):
            raise  # of the whole group
        except Exception as error:  # noqa: BLE001 (of this job alone)
            self._connection.execute("ROLLBACK TO job")
            return None, _translate(error)
        self._connection.execute("RELEASE job; SAVEPOINT job")
        return value, None

    def undo(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._connection.execute("ROLLBACK")

    def was_committed(self, connection: "psycopg.Connection[Any]") -> bool:
        """Of one whose connection broke: the server knows, on another connection."""
        if self._id is None:
            return False
        while True:
            (state,) = connection.execute(_STATUS, (self._id,)).fetchall()[0]
            if state != "in progress":
                return state == "committed"
            time.sleep(_RETRY_S)


def _row_factory(cursor: "psycopg.Cursor[Any]") -> Callable[[Sequence[Any]], Any]:
    return _row_type(tuple(column.name for column in cursor.description or ()))


@functools.lru_cache(maxsize=512)
def _row_type(names: tuple[str, ...]) -> type[Row]:
    return type("Row", (Row,), {"__slots__": (), "names": {n: i for i, n in enumerate(names)}})


_LITERALS = r"(?P<literal>'(?:[^']|'')*'|--[^\n]*)"
_MARKS = re.compile(rf"{_LITERALS}|(?P<mark>\?)|(?<!:):(?P<name>[a-z_]\w*)|(?P<percent>%)")
_OPTION = r",?\s*\b(?:WITHOUT\s+ROWID|STRICT)\b"
_SCHEMA_WORDS = re.compile(rf"{_LITERALS}|\b(?P<word>{'|'.join(_WORDS)})\b|{_OPTION}")


@functools.lru_cache(maxsize=1024)
def _translated(text: str) -> bytes:
    """`?` and `:name` as psycopg wants them."""

    def mark(found: re.Match[str]) -> str:
        if found["mark"]:
            return "%s"
        if found["name"]:
            return f"%({found['name']})s"
        return found[0].replace("%", "%%")

    return _MARKS.sub(mark, text).encode()


def _tables(script: str) -> bytes:
    """A migration script with Postgres' names of SQLite's types; strings compare byte by byte."""

    def word(found: re.Match[str]) -> str:
        return found["literal"] or (_WORDS[found["word"]] if found["word"] else "")

    return _SCHEMA_WORDS.sub(word, script).encode()


def _is_full(error: BaseException) -> bool:
    return isinstance(error, errors.DiskFull)


def _translate(error: BaseException) -> BaseException:
    match error:
        case MentatError():
            return error
        case _ if _is_full(error):
            return OutOfSpace(
                Code.DISK_FULL,
                "the database's disk is full",
                hint="free some space there; nothing was half written",
            )
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return Unavailable(
                Code.DATABASE_UNAVAILABLE,
                f"Postgres does not answer: {str(error).strip()}",
                hint="is it up, and does MENTATLAB_DATABASE name it, its user and password?",
            )
        case psycopg.Error():
            return Internal(
                Code.DATABASE_ERROR,
                f"{type(error).__name__}: {str(error).strip()}",
                hint="look at the log of Postgres",
            )
        case _:
            return error
