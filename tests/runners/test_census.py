"""What agents use, counted over real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.agent_processes import sync_eventually

from mentatlab.runners import guardian
from mentatlab.runners.census import Census, proportional_memory
from mentatlab.runners.watch import folder_size

FAMILY = """
import os, sys, time
block = b"x" * (40 << 20)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # a daemon, and without its environment
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
    os.wait()
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def family(mark: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        env={guardian.MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            for pid in Census().take({process.pid: mark})[mark].pids:
                os.kill(pid, 9)


def test_a_whole_family_is_counted_once() -> None:
    census, mark = Census(), "test-census.1."
    with family(mark) as leader:
        sync_eventually(lambda: len(census.take({leader.pid: mark})[mark].pids) == 3)
        usage = census.take({leader.pid: mark})[mark]
        assert usage.memory > 2 * (40 << 20)  # shared by the fork, and counted twice
        assert 40 << 20 < proportional_memory(usage.pids) < usage.memory
        assert usage.cpu_s >= 0
    sync_eventually(lambda: mark not in census.take({}))


def test_sizes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/usr")
    assert 100_000 <= folder_size(tmp_path, 1 << 30) < 200_000
    assert folder_size(tmp_path / "gone", 5) == 0
