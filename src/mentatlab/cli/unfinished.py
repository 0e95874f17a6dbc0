"""Uploads that were begun and have not ended: a small file for each, so that they can be resumed.

What is uploaded is known by its file's path, size and time of change: after a change it is another.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

_KEPT_S = 2 * 86_400.0
"""Servers forget sooner."""


class Unfinished:
    """`server`: whom they go to, as told; "" is the one of the home folder."""

    def __init__(self, folder: Path, server: str) -> None:
        self._folder, self._server = folder, server

    def key_of(self, file: Path, wishes: Sequence[str | None]) -> str:
        status = file.stat()
        what = [str(file.resolve()), status.st_size, status.st_mtime_ns, self._server, *wishes]
        return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:32]

    def find(self, key: str) -> str | None:
        """The upload's id."""
        try:
            return (self._folder / key).read_text()
        except FileNotFoundError:
            return None

    def remember(self, key: str, upload_id: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._drop_old()
        (self._folder / key).write_text(upload_id)

    def forget(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def _drop_old(self) -> None:
        for file in self._folder.iterdir():
            if file.stat().st_mtime < time.time() - _KEPT_S:
                file.unlink(missing_ok=True)
