"""A real `mentatlab up` as a foreign process, for end-to-end tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    @property
    def key(self) -> str:
        return (self.home / "key").read_text().strip()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def up(home: Path, *options: str | Path, env: Mapping[str, str] = {}) -> Generator[Up]:
    """Ready when entered; ended (if it has not ended by itself) when left."""
    process = subprocess.Popen(
        [*COMMAND, "up", "--json", *(() if "--port" in options else ("--port", "0"))]
        + [str(option) for option in options],
        env=environment(home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.stderr.read())
        told: dict[str, Any] = json.loads(line)
        try:
            yield Up(process, told["url"], home)
        finally:
            if process.poll() is None:
                process.kill()
