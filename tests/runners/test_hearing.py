import pytest

from mentatlab.protocol.events import AgentEvent, Heartbeat, Log, Metric, Output, Progress
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


REMARKS = [
    Log(message="x"),
    Progress(percent=1),
    Metric(name="n", value=1),
    Output(key="k", value=1),
]


@pytest.mark.parametrize("remark", REMARKS)
def test_remarks_are_budgeted(remark: AgentEvent) -> None:
    budget = LogBudget(keep=10, flood=30)
    assert admit(Heartbeat(), 1000, budget) == Heartbeat()
    assert admit(remark, 10, budget) == remark
    notice = admit(remark, 10, budget)
    assert isinstance(notice, Log)
    assert notice.level == "warning"
    assert admit(remark, 10, budget) is None
    with pytest.raises(FloodError):
        admit(remark, 10, budget)
