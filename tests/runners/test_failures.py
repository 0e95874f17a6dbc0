"""What is said when a program cannot be started."""

import re
from pathlib import Path

import pytest
from tests.support.agent_processes import Bench

from mentatlab.runners.failures import oom_kills, start_failure

VMSTAT = Path("/proc/vmstat")


@pytest.mark.parametrize(
    ("error", "folder_is_there", "why", "hint"),
    [
        (FileNotFoundError(2, "No such file"), False, "its folder is missing", "restore"),
        (FileNotFoundError(2, "No such file"), True, "there is no program prog", "install it"),
        (PermissionError(13, "Permission denied"), True, "may not be executed", "executable"),
        (OSError(8, "Exec format error"), True, "Exec format error", "correct `command`"),
        (ValueError("embedded null byte"), True, "embedded null byte", "correct `command`"),
    ],
)
def test_why_and_what_to_do(
    tmp_path: Path, error: OSError | ValueError, folder_is_there: bool, why: str, hint: str
) -> None:
    bench = Bench(tmp_path if folder_is_there else tmp_path / "gone")
    outcome = start_failure(bench.invocation(["prog", "--now"]), error)
    assert (outcome.status, outcome.error_class, outcome.code) == (
        "failed",
        "permanent",
        "AGENT_START_FAILED",
    )
    assert why in outcome.message
    assert hint in outcome.hint


@pytest.mark.skipif(not VMSTAT.exists(), reason="Linux counts them")
def test_the_kernels_own_count() -> None:
    counted = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    assert counted is not None
    assert oom_kills() == int(counted[1])
