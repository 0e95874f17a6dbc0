"""A real `mentatlab up` as a foreign process, for end-to-end tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

COMMAND = (sys.executable, "-c", "from mentatlab.cli import main; main()")


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MENTATLAB_", "ENABLE_"))}
    return {**kept, "MENTATLAB_HOME": str(home), "COLUMNS": "100", **more}


def mentatlab(
    *arguments: str | Path, home: Path, stdin: str = "", env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """One command line, to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(home, **env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True)
class Up:
    process: subprocess.Popen[str]
    url: str
    home: Path
    log: Callable[[], str]
    """What it has written to stderr."""

    @property
    def key(self) -> str:
        return (self.home / "key").read_text().strip()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def up(
    home: Path,
    *options: str | Path,
    env: Mapping[str, str] = {},
    within: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
) -> Generator[Up]:
    """Ready when entered; ended (if it has not ended by itself) when left.

    `within`: a command that becomes the one behind it.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*within, *command, "up", "--json", *(() if "--port" in options else ("--port", "0"))]
            + [str(option) for option in options],
            env=environment(home, **env),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise AssertionError(_text(log))
            told: dict[str, Any] = json.loads(line)
            try:
                yield Up(process, told["url"], home, lambda: _text(log))
            finally:
                if process.poll() is None:
                    process.kill()


def _text(log: IO[str]) -> str:
    """By its own offset: the server goes on writing at the end."""
    return os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace")
