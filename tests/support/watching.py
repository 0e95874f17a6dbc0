"""Does a server stay small and go on answering while something big passes through it?"""

import contextlib
import threading
from collections.abc import Generator
from pathlib import Path

import httpx2
from tests.support.server import Up

EVERY_S = 0.01


@contextlib.contextmanager
def watched(server: Up, *, growth: int, pings: int = 64) -> Generator[None]:
    """Meanwhile its memory grows by at most `growth` bytes, and `pings` other requests, one after
    the other, are answered. (A loop that stands still for the whole transfer answers one or two.)
    """
    pid, answered, over = server.process.pid, [0], threading.Event()
    pinging = threading.Thread(target=_ping, args=(server.url, answered, over))
    before = peak_from_now(pid)
    pinging.start()
    try:
        yield
    finally:
        over.set()
        pinging.join()
    grown = peak(pid) - before
    assert grown <= growth, f"its memory grew by {grown >> 20} MiB"
    assert answered[0] >= pings, f"{answered[0]} other requests were answered"


def _ping(url: str, answered: list[int], over: threading.Event) -> None:
    with httpx2.Client(base_url=url) as http:
        while not over.wait(EVERY_S):
            http.get("/healthz").raise_for_status()
            answered[0] += 1


def peak_from_now(pid: int) -> int:
    """Resident bytes; the process's peak is counted anew from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _field(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most resident bytes so far."""
    return _field(pid, "VmHWM")


def _field(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024
