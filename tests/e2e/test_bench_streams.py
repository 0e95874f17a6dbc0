"""`make bench-streams`, the parts that need nothing fetched."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_parts_without_peers_print_their_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.streams_peers", "--quick"]
    done = subprocess.run(
        [*command, "commits", "init", "stalled"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in ("commit lanes, 100 streams", "init to first record, memory lane", "held for it"):
        assert row in done.stdout
