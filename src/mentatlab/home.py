"""The home folder of one server: its lock, its key, and where it can be reached.

Memory and SQLite mean exactly one server process per home: whoever holds `flock` on `lock` is it.
`server.json` is only a hint (it may outlive a killed server); the lock is the truth.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Generator
from pathlib import Path

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Invalid


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    host: str
    port: int
    url: str


def default_home() -> Path:
    return Path.home() / ".mentatlab"


@contextlib.contextmanager
def locked(home: Path) -> Generator[None]:
    """Be the one server of this home; `Conflict(HOME_IN_USE)` when another process is."""
    _make(home)
    with (home / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(home) from error
        yield


def _make(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Invalid(
            Code.BAD_SETTING,
            f"the home folder {home} cannot be made: {error.strerror}",
            hint="set MENTATLAB_HOME (or --home) to a folder that you may write",
        ) from error


def _in_use(home: Path) -> Conflict:
    holder = read_server_info(home)
    where = f" (process {holder.pid}, {holder.url})" if holder else ""
    return Conflict(
        Code.HOME_IN_USE,
        f"another server runs on {home}{where}",
        hint="use that one, stop it, or set MENTATLAB_HOME (or --home) to another folder",
    )


@contextlib.contextmanager
def announced(home: Path, info: ServerInfo) -> Generator[None]:
    """`server.json` says where this server is, as long as it runs."""
    path = home / "server.json"
    draft = home / f".server.json.{info.pid}"
    draft.write_bytes(msgspec.json.encode(info))
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_server_info(home: Path) -> ServerInfo | None:
    try:
        return msgspec.json.decode((home / "server.json").read_bytes(), type=ServerInfo)
    except (OSError, msgspec.DecodeError):
        return None


def running_server(home: Path) -> ServerInfo | None:
    """Where this home's server is, if one holds the lock now and has said so."""
    info = read_server_info(home)
    if info is None:
        return None
    with contextlib.suppress(OSError), (home / "lock").open("a+") as file:
        fcntl.flock(
            file, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared: two who ask do not see each other
        return None  # nobody holds it: the file was left by a killed server
    return info


def home_key(home: Path) -> str:
    """This home's admin key; made on the first call, readable by its owner only."""
    _make(home)
    path = home / "key"
    if not path.exists():
        _write_key(path)
    return path.read_text().strip()


def _write_key(path: Path) -> None:
    """Whole and once, also when two processes begin together."""
    draft = path.with_name(f".key.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"ml_{secrets.token_urlsafe(32)}\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
