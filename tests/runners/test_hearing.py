import pytest

from mentatlab.protocol.events import Heartbeat, Log
from mentatlab.runners.hearing import FloodError, Stderr, admit
from mentatlab.runners.mailbox import LogBudget


def test_stderr_in_any_pieces() -> None:
    stderr = Stderr()
    lines = [*stderr.feed(b"one\ntw"), *stderr.feed(b"o\n\nthr"), *stderr.end()]
    assert lines == ["one", "two", "", "thr"]
    assert stderr.last_words == "thr"
    assert Stderr().last_words == ""
    assert list(Stderr().end()) == []


def test_a_line_without_an_end_comes_in_pieces() -> None:
    stderr = Stderr()
    assert [len(x) for x in stderr.feed(b"x" * 100_000)] == [100_000]
    assert list(stderr.feed(b"\xff\n")) == ["\ufffd"]


def test_only_logs_are_budgeted() -> None:
    budget = LogBudget(keep=10, flood=30)
    assert admit(Heartbeat(), 1000, budget) == Heartbeat()
    log = Log(message="x")
    assert admit(log, 10, budget) == log
    notice = admit(log, 10, budget)
    assert isinstance(notice, Log)
    assert notice.level == "warning"
    assert admit(log, 10, budget) is None
    with pytest.raises(FloodError):
        admit(log, 10, budget)
