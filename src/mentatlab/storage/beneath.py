"""Opening files below a folder without following a symbolic link on the way."""

import contextlib
import errno
import os
from collections.abc import Generator, Sequence
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang us


@contextlib.contextmanager
def folder(root: Path, names: Sequence[str], *, create: bool = False) -> Generator[int]:
    """A descriptor of `root/names…`. `NotADirectoryError` for a file or link in the way."""
    fd = os.open(root, _FOLDER)
    try:
        for name in names:
            child = _enter(fd, name, create=create)
            os.close(fd)
            fd = child
        yield fd
    finally:
        os.close(fd)


def open_file(root: Path, names: Sequence[str]) -> int:
    """A descriptor for reading; `FileNotFoundError` when it is missing, or a link."""
    with folder(root, names[:-1]) as parent:
        return open_in(parent, names[-1])


def open_in(parent: int, name: str) -> int:
    """As `open_file`, in the folder of a descriptor."""
    try:
        return os.open(name, _FILE, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileNotFoundError(errno.ENOENT, "a symbolic link", name) from error
        raise


def _enter(parent: int, name: str, *, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            os.fsync(parent)
        return _enter(parent, name, create=False)
    except OSError as error:  # Linux says ENOTDIR of a link, others ELOOP
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, "a symbolic link", name) from error
        raise
