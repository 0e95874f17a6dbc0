"""Agents import the SDK: it brings neither the client nor its packages along."""

import subprocess
import sys

import pytest

LATE = ("websockets", "httpx2")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mentatlab.sdk", (*LATE, "mentatlab.sdk.client", "mentatlab.sdk.streaming")),
        ("mentatlab.sdk.client", LATE),
    ],
)
def test_what_an_import_leaves_out(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout == b"[]\n"
