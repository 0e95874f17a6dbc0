"""A small process beside the host that lets no agent outlive it, not even `kill -9` of the host.

The host holds the write end of the guardian's stdin and tells it the process groups that live
(`+pgid`, `-pgid`, one a line). When the pipe ends, or the host is no longer its parent, the
guardian kills those groups, and on Linux everything else that carries the host's mark in its
environment (`MENTAT_PROCESS`): children that left the group with `setsid` are found so, unless they
also replaced their environment. It imports next to nothing, so that it starts in a few
milliseconds.
"""

import contextlib
import os
import select
import signal
import sys

MARK = "MENTAT_PROCESS"
_ROUNDS = 20
_POLL_S = 1.0


def kill_group(pgid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def kill_marked(mark: str) -> None:
    """SIGKILL whatever carries a mark that starts so; again, until nothing new was forked
    meanwhile.
    """
    for _ in range(_ROUNDS):
        found = marked(mark)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """Living processes of ours whose environment holds the mark; empty where there is no /proc."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112 — pathlib would double the start-up time
        return []
    numbers = [int(n) for n in os.listdir("/proc") if n.isdigit()]  # noqa: PTH208
    return [n for n in numbers if mark_of(n).startswith(mark)]


def mark_of(pid: int) -> str:
    """Empty without one."""
    name = f"{MARK}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            found = [v for v in file.read().split(b"\0") if v.startswith(name)]
    except OSError:  # it has gone, or is not ours
        return ""
    return found[0][len(name) :].decode("ascii", "replace") if found else ""


def main(mark: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for pgid in watch(os.getppid(), sys.stdin.fileno()):
        kill_group(pgid)
    kill_marked(mark)


def watch(host: int, pipe: int) -> set[int]:
    """What the host says on a file descriptor; the groups that live when it has gone."""
    groups: set[int] = set()
    rest = b""
    while os.getppid() == host:
        if not select.select([pipe], [], [], _POLL_S)[0]:
            continue
        block = os.read(pipe, 4096)
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    return groups


if __name__ == "__main__":
    main(sys.argv[1])
