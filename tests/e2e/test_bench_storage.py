"""`make bench-storage`: ours alone, so that nothing is fetched."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_parts_print_their_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.storage_peers", "--quick", "--alone"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for row in (
        *("dd conv=fdatasync", "MentatLab, raw", "MentatLab, form", "MentatLab, tus, one PATCH"),
        *("Downloads, from the page cache", "Ranges of 64 KiB", "uploads of 100 KB"),
        *("S3, puts of", "S3, gets of", "signed parts", "upload, raw", "download, redirected"),
    ):
        assert row in done.stdout
