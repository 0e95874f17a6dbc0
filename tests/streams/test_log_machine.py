"""Any way to use a log: memory and SQLite give equal answers, whatever is sealed and reopened.

Every answer and every error of every call is compared, and all that can be read afterwards.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mentatlab.protocol import frames
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import (
    Draft,
    Producer,
    data_draft,
    end_draft,
    error_draft,
    start_draft,
)
from mentatlab.streams import MemoryStreamLog, SqliteStreamLog, StreamLog
from mentatlab.streams.port import KEEP, Entry, Lane, Retention
from mentatlab.streams.sealing import Limits
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, lane

NAMES = st.sampled_from("abc")
RETENTION = {
    "a": KEEP,
    "b": Retention(max_bytes=3000, ttl_s=20),
    "c": Retention(max_bytes=90_000, retain_s=10),
}
DRAFTS: dict[str, Draft] = {
    "text": data_draft("a few words"),
    "long": data_draft("x" * 20_000),
    "binary": Draft(body=b"\x00\xff" * 100, flags=frames.KEY, pts_us=5),
    "media": Draft(body=b"\x01\x02" * 20_000, item=3),
}


async def answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except MentatError as error:
        return type(error), error.code, error.details


def comparable(found: Lane) -> Lane:
    return msgspec.structs.replace(found, epoch=0)


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.now = NOW
        self.memory = MemoryStreamLog()
        self.sqlite = self.opened()

    def opened(self) -> SqliteStreamLog:
        limits = Limits(age_s=5, min_bytes=0)
        opening = open_sqlite(self.folder / "streams.db", limits=limits, roll_bytes=50_000)
        return self.runner.run(opening)

    def both(self, call: Callable[[StreamLog], Awaitable[Any]]) -> Any:
        one, other = (self.runner.run(answer(call(log))) for log in (self.memory, self.sqlite))
        if isinstance(one, Lane):
            one, other = comparable(one), comparable(other)
        assert one == other
        return one

    @rule(name=NAMES)
    def open(self, name: str) -> None:
        wanted = lane(name, retention=RETENTION[name])
        entries = [
            self.runner.run(log.open(wanted, start_draft(), now=self.now)).entries
            for log in (self.memory, self.sqlite)
        ]
        assert entries[0] == entries[1]

    @rule(name=NAMES, kinds=st.lists(st.sampled_from(sorted(DRAFTS)), min_size=1, max_size=4))
    def append(self, name: str, kinds: list[str]) -> None:
        drafts = [DRAFTS[kind] for kind in kinds]
        self.both(lambda log: log.append(lane(name).stream_id, drafts, now=self.now))

    @rule(
        name=NAMES,
        epoch=st.integers(1, 3),
        seq=st.integers(1, 6),
        kinds=st.lists(st.sampled_from(sorted(DRAFTS)), min_size=1, max_size=3),
    )
    def append_as(self, name: str, epoch: int, seq: int, kinds: list[str]) -> None:
        drafts = [DRAFTS[kind] for kind in kinds]
        by = Producer(id="p", epoch=epoch, seq=seq)
        self.both(lambda log: log.append(lane(name).stream_id, drafts, now=self.now, producer=by))

    @rule(name=NAMES)
    def fence(self, name: str) -> None:
        self.both(lambda log: log.fence(lane(name).stream_id, "p"))

    @rule(name=NAMES, attempt=st.integers(1, 4), resume_from=st.integers(0, 8))
    def start_attempt(self, name: str, attempt: int, resume_from: int) -> None:
        start = start_draft(attempt=attempt, resume_from=resume_from)
        self.both(lambda log: log.append(lane(name).stream_id, [start], now=self.now))

    @rule(name=NAMES, complete=st.booleans())
    def end(self, name: str, complete: bool) -> None:
        last = end_draft("complete", chunks=0) if complete else error_draft("agent_error", "no")
        self.both(lambda log: log.append(lane(name).stream_id, [last], now=self.now))

    @rule(seconds=st.sampled_from([-3.0, 0.25, 1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Clocks may go back."""
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        """As the hub does."""
        due = self.runner.run(self.memory.due(self.now))
        other = self.runner.run(self.sqlite.due(self.now))
        assert {x.stream_id for x in due} == {x.stream_id for x in other}
        for found in due:
            self.both(lambda log, found=found: self.carry_out(log, found))

    async def carry_out(self, log: StreamLog, due: Lane) -> Any:
        if due.state != "open":
            return await log.expire(due.stream_id)
        last = end_draft("expired", chunks=0)
        return await log.append(due.stream_id, [last], now=self.now)

    @rule()
    def tidy(self) -> None:
        self.runner.run(self.sqlite.tidy(self.now))

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.sqlite.aclose())
        self.sqlite = self.opened()

    @rule()
    def delete_run(self) -> None:
        self.both(lambda log: log.delete_run("rn_1"))

    @invariant()
    def everything_reads_the_same(self) -> None:
        lanes = [
            [comparable(x) for x in self.runner.run(log.lanes("rn_1"))]
            for log in (self.memory, self.sqlite)
        ]
        assert lanes[0] == lanes[1]
        for found in lanes[0]:
            self.lane_reads_the_same(found)
        self.both(order)
        for at in (0, int(NOW * 1000), int(self.now * 1000)):
            for id_ in ("st_rn_1_a", "st_rn_1_b"):
                self.both(lambda log, id_=id_, at=at: log.at_time(id_, at))

    def lane_reads_the_same(self, found: Lane) -> None:
        id_ = found.stream_id
        self.both(lambda log: log.get(id_))
        self.both(lambda log: log.producer(id_, "p"))
        for after in {0, 1, found.floor - 1, found.head // 2, found.head}:
            self.both(lambda log, after=after: log.read(id_, after, max_records=3))
            self.both(lambda log, after=after: log.read(id_, after, max_bytes=21_000))

    def teardown(self) -> None:
        self.runner.run(self.sqlite.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


async def order(log: StreamLog) -> tuple[int, list[Entry]]:
    found, after = list[Entry](), 0
    while more := await log.read_run("rn_1", after, max_records=5):
        found += more
        after = more[-1].rseq or 0
    return (await log.run("rn_1")).head, found


class TestLogMachine(LogMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=25)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestManyLongWays(LogMachine.TestCase):
    settings = settings(max_examples=300, stateful_step_count=60)
