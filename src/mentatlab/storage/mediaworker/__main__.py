"""Takes orders as JSON lines, answers each with a JSON line and `body` bytes behind it.

    order    {"probe": family} or {"preview": kind, "pixels", "format"}, and {"cpu_s", "size",
             "path"?}
    answer   {"found": {…}, "body": n} or {"error": why}
    between  {"read": [offset, length]}: the parent answers with exactly so many bytes, or closes

It ends at the end of its input, so that no orphan outlives a killed server.
"""

import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from .limits import limit_cpu, limit_process
from .reading import Ranges

Order = dict[str, Any]

# Imported when first asked for: most files are images, and those need no FFmpeg (60 ms, 20 MiB).
_PROBES = {"image": "images", "audio": "timed", "video": "timed"}
_PREVIEWS = {"thumb": "thumbs", "poster": "posters", "waveform": "waveforms"}


def answer(order: Order, file: BinaryIO) -> tuple[Order, bytes]:
    if "probe" in order:
        return _load(_PROBES[order["probe"]]).probe(file), b""
    return _load(_PREVIEWS[order["preview"]]).draw(file, order["pixels"], order["format"])


def _load(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


@contextlib.contextmanager
def opened(order: Order, orders: BinaryIO, answers: BinaryIO) -> Generator[BinaryIO]:
    """The medium: a file of this machine, or one that the parent reads for us."""
    if "path" in order:
        with Path(order["path"]).open("rb") as file:
            yield file
        return

    def fetch(offset: int, length: int) -> bytes:
        _write(answers, {"read": [offset, length]})
        data = orders.read(length)
        if len(data) < length:
            sys.exit(0)  # the parent has gone
        return data

    with io.BufferedReader(Ranges(order["size"], fetch)) as file:
        yield file


def serve(order: Order, orders: BinaryIO, answers: BinaryIO) -> None:
    try:
        with opened(order, orders, answers) as file:
            found, body = answer(order, file)
    except Exception as error:  # noqa: BLE001 — any decoder error is the answer
        _write(answers, {"error": _reason(error)})
        return
    _write(answers, {"found": found, "body": len(body)}, body)


def _reason(error: Exception) -> str:
    """Clients read it: it names no folder of the server."""
    said = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {re.sub(' <.*>', '', said)}"[:300]


def _write(answers: BinaryIO, head: Order, body: bytes = b"") -> None:
    answers.write(json.dumps(head).encode() + b"\n" + body)
    answers.flush()


def main() -> None:
    limit_process()
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in iter(orders.readline, b""):
        order = json.loads(line)
        limit_cpu(order["cpu_s"])
        serve(order, orders, answers)


if __name__ == "__main__":
    main()
