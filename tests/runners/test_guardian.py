"""What the guardian hears and whom it ends; as a process of its own it is tested in
`tests/integration/test_runner_process.py`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.runners import guardian

WAITING = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")


def heard(text: bytes) -> set[int]:
    """What lives by the words of a host that has then gone."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text)
        os.close(writer)
        return guardian.watch(os.getppid(), reader)
    finally:
        os.close(reader)


@given(st.lists(st.tuples(st.booleans(), st.integers(2, 9)), max_size=40))
def test_the_groups_that_were_not_taken_back_live(words: list[tuple[bool, int]]) -> None:
    living: set[int] = set()
    for began, pgid in words:
        (living.add if began else living.discard)(pgid)
    text = "".join(f"{'+' if began else '-'}{pgid}\n" for began, pgid in words)
    assert heard(text.encode()) == living


def test_long_news_come_in_pieces() -> None:
    assert heard(b"".join(b"+%d\n" % n for n in range(2, 3000))) == set(range(2, 3000))


def test_half_a_line_says_nothing() -> None:
    assert heard(b"+7\n+8") == {7}


def test_another_parent_is_no_host() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"+7\n")
        assert guardian.watch(os.getppid() + 1, reader) == set()
    finally:
        os.close(reader)
        os.close(writer)


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with the mark `here.1.`."""
    env = {guardian.MARK: "here.1."}
    with subprocess.Popen(
        WAITING, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout
        process.stdout.readline()  # it runs
        yield process
        process.kill()


def test_a_group_is_killed_and_a_gone_one_is_no_error(waiting: subprocess.Popen[bytes]) -> None:
    guardian.kill_group(waiting.pid)
    assert waiting.wait(10) == -9
    guardian.kill_group(waiting.pid)


@needs_proc
def test_what_carries_the_mark_is_killed_and_nothing_else(
    waiting: subprocess.Popen[bytes],
) -> None:
    assert guardian.marked("here.") == [waiting.pid]
    guardian.kill_marked("there.")
    guardian.kill_marked("here.2.")
    assert waiting.poll() is None
    guardian.kill_marked("here.1.")
    assert waiting.wait(10) == -9
    assert guardian.marked("here.") == []
