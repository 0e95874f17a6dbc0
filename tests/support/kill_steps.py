"""SIGKILL before every single step that changes the disk, one child process for each.

A step is a call of an `os` function that changes a file or a folder, or of a statement of SQLite,
in any thread; Python's profiler announces each before it happens. `killed_at_every_step` starts
this file as a process of one thread, which forks a child for every step and prints what became of
it.
"""

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

CHANGES = {"pwritev", "pwrite", "writev", "write", "ftruncate", "fdatasync", "fsync", "utime"}
CHANGES |= {"link", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "chmod", "fchmod"}


class Steps:
    """Counts once armed; `told` the last one, before which this process is killed."""

    def __init__(
        self,
        last: int,
        told: Callable[[str], object],
        counts: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._left = last
        self._told = told
        self._counts = counts
        self._armed = False
        self._lock = threading.Lock()

    def watch(self) -> None:
        """This thread and those that start from now on."""
        threading.setprofile(self._profiled)
        sys.setprofile(self._profiled)

    def arm(self) -> None:
        self._armed = True

    def _profiled(self, frame: FrameType, event: str, called: Any) -> None:
        del frame
        if event == "c_call" and self._armed and (name := _step(called)) and self._counts(name):
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._told(name)
                    os.kill(os.getpid(), signal.SIGKILL)
                    signal.pause()


def _step(called: Any) -> str | None:
    if getattr(called, "__module__", None) == "posix" and called.__name__ in CHANGES:
        return called.__name__
    if isinstance(getattr(called, "__self__", None), sqlite3.Connection):
        return f"sql {called.__name__}" if called.__name__.startswith("execute") else None
    return None


def kill_this_server() -> None:
    """Before step `KILL_AT` from the first byte on that somebody stores."""
    begun = threading.Event()

    def counts(step: str) -> bool:
        thread = threading.current_thread().name
        if thread.startswith("blobs") and step == "pwritev":
            begun.set()
        return begun.is_set() and thread.startswith(("blobs", "sqlite-catalog"))

    steps = Steps(int(os.environ["KILL_AT"]), lambda name: print("killed before", name), counts)
    steps.watch()
    steps.arm()


Say = Callable[[str], None]
Scenario = Callable[[Path, Callable[[], None], Say], None]
"""`scenario(root, arm, say)`: steps count from `arm()` on; what it says is heard by the test."""


class Ended(NamedTuple):
    root: Path  # the child's own folder
    said: list[str]
    taken: str  # the step that it was killed before, "" for the last one, which was not killed


def killed_at_every_step(scenario: Scenario, folder: Path) -> Iterator[Ended]:
    """Children killed one step later each time; the last one comes to its end. `scenario` is a
    function of a module."""
    name = f"{scenario.__module__}:{scenario.__qualname__}"
    command = [sys.executable, "-m", "tests.support.kill_steps", name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            root, said, taken = json.loads(line)
            yield Ended(Path(root), said, taken)
    assert process.returncode == 0, f"{name} failed"


def _main(name: str, folder: Path) -> None:
    module, _, function = name.partition(":")
    scenario: Scenario = getattr(importlib.import_module(module), function)
    for step in range(1, 1000):
        root = folder / f"{step:03}"
        root.mkdir()
        ended = _child(scenario, root, step)
        print(json.dumps(ended), flush=True)
        if not ended[-1]:
            return
    sys.exit("it has no end")


def _child(scenario: Scenario, root: Path, step: int) -> tuple[str, list[str], str]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(scenario, root, step, writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        *said, taken = told.read().splitlines() or [""]
    _, status = os.waitpid(pid, 0)
    if status not in (0, signal.SIGKILL):
        sys.exit(f"step {step} failed with {status}")
    return str(root), said, taken


def _run(scenario: Scenario, root: Path, step: int, writing: int) -> NoReturn:
    told = os.fdopen(writing, "w", buffering=1)
    steps = Steps(step, lambda taken: told.write(f"{taken}\n"))
    steps.watch()
    try:
        scenario(root, steps.arm, lambda line: print(line, file=told))
        told.write("\n")  # no step
        told.flush()
        os._exit(0)
    except BaseException:  # noqa: BLE001 — the child must not go on as its parent
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
