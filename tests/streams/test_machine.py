"""The invariants of a stream, as a state machine over memory and SQLite against a model.

1 dense · 2 prefix · 3 no phantom · 5 exactly once · 6 one terminal record, last · 11 resuming twice
gives the same suffix · 16 every log gives the same trace. The numbers are those of the design.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mentatlab.protocol.errors import Conflict, Fenced, MentatError
from mentatlab.protocol.records import Producer, RecordType, StreamChunk, data_draft
from mentatlab.streams import Appended, StreamingConnectionManager, open_hub
from mentatlab.streams.lanes import standing

Trace = list[tuple[str, int, Any]]


def clock() -> float:
    return 1_700_000_000.0


def trace(records: list[StreamChunk]) -> Trace:
    return [(r.type.value, r.sequence, r.payload) for r in records]


class StreamMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.hubs = [self.run_(open_hub(None, clock=clock)), self.opened()]
        self.ids = [self.run_(self.create(hub)) for hub in self.hubs]
        self.values: list[int | None] = [None]  # of each record; None for starts and ends
        self.producers: dict[str, tuple[int, int]] = {}
        self.sent: dict[tuple[str, int, int], int] = {}
        self.attempt, self.ended, self.counter = 1, False, 0
        self.kept: set[int] = set()
        self.partial: Trace = []

    def run_(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def opened(self) -> StreamingConnectionManager:
        return self.run_(open_hub(self.folder / "streams.db", clock=clock))

    async def create(self, hub: StreamingConnectionManager) -> str:
        session = await hub.create_stream("agent", "out", run_id="rn_1", stream_id="st_1")
        return session.stream_id

    def both(self, call: Any) -> Appended | MentatError:
        """What every hub answers to the same call: it must be the same."""

        async def one(hub: StreamingConnectionManager) -> Appended | MentatError:
            try:
                return await call(hub)
            except MentatError as error:
                return error

        memory, sqlite = (self.run_(one(hub)) for hub in self.hubs)
        if isinstance(memory, MentatError):
            assert (type(memory), memory.code, memory.details) == (
                type(sqlite),
                sqlite.code,
                sqlite.details,
            )
        else:
            assert memory[:3] == sqlite[:3]
        return memory

    def next_values(self, count: int) -> list[int]:
        self.counter += count
        return list(range(self.counter - count, self.counter))

    def add(self, values: list[int]) -> None:
        for value in values:
            self.values.append(value)
            self.kept.add(len(self.values))

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        values = self.next_values(count)
        drafts = [data_draft(value) for value in values]
        answer = self.both(lambda hub: hub.publish("st_1", drafts))
        assert isinstance(answer, Conflict) == self.ended
        if not self.ended:
            self.add(values)

    @rule(
        who=st.sampled_from("ab"),
        epoch=st.integers(0, 2),
        seq=st.integers(1, 5),
        count=st.integers(1, 3),
    )
    def publish_as(self, who: str, epoch: int, seq: int, count: int) -> None:
        known_epoch, known = self.producers.get(who, (epoch, 0))
        last = known if epoch == known_epoch else 0
        fresh = self.next_values(count)
        values = [self.sent.get((who, epoch, seq + at), fresh[at]) for at in range(count)]
        drafts = [data_draft(value) for value in values]
        producer = Producer(id=who, epoch=epoch, seq=seq)
        answer = self.both(lambda hub: hub.publish("st_1", drafts, producer=producer))
        if epoch < known_epoch:
            assert isinstance(answer, Fenced)
        elif seq > last + 1:
            assert isinstance(answer, Conflict)
            assert answer.details == {"expected": last + 1}
        elif seq + count - 1 <= last:
            assert not isinstance(answer, MentatError)
            assert answer.duplicate
        elif self.ended:
            assert isinstance(answer, Conflict)
        else:
            self.add(values[last + 1 - seq :])
            self.producers[who] = (epoch, seq + count - 1)
            for at, value in enumerate(values):
                self.sent[who, epoch, seq + at] = value

    @rule(step=st.integers(0, 1), back=st.integers(0, 6))
    def start_attempt(self, step: int, back: int) -> None:
        keep = max(0, len(self.values) - back)
        attempt = self.attempt + step
        answer = self.both(lambda hub: hub.start_attempt("st_1", attempt=attempt, resume_from=keep))
        if step == 0:
            assert not isinstance(answer, MentatError)
            assert answer.duplicate
        elif not self.ended:
            self.values.append(None)
            self.kept = {sequence for sequence in self.kept if sequence <= keep}
            self.attempt = attempt

    @rule()
    def end(self) -> None:
        answer = self.both(lambda hub: hub.end_stream("st_1"))
        assert not isinstance(answer, MentatError)
        assert answer.duplicate == self.ended
        if not self.ended:
            self.values.append(None)
            self.ended = True

    @rule()
    def restart(self) -> None:
        """SQLite goes on where it was; readers hold cursors of the same epoch."""
        self.run_(self.hubs[1].aclose())
        self.hubs[1] = self.opened()

    async def read(self, hub: StreamingConnectionManager, from_: str | int) -> list[StreamChunk]:
        """All there is, in batches as a reader gets them."""
        found: list[StreamChunk] = []
        async with hub.subscribe("st_1", from_=from_) as subscription:
            head = (await hub.lane("st_1")).head
            while subscription.cursor.sequence < head:
                found += [item.entry.record for item in await subscription.batch()]
        return found

    @precondition(lambda self: len(self.values) > 1)
    @rule(data=st.data())
    def resume_twice(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(0, len(self.values)))
        for hub in self.hubs:
            epoch = self.run_(hub.lane("st_1")).epoch
            first, second = (trace(self.run_(self.read(hub, f"{epoch}:{after}"))) for _ in "12")
            assert first == second == trace(self.run_(self.read(hub, 1)))[after:]

    @invariant()
    def every_reader_sees_the_model(self) -> None:
        traces = [self.run_(self.read(hub, "start")) for hub in self.hubs]
        assert trace(traces[0]) == trace(traces[1])
        records = traces[0]
        assert [r.sequence for r in records] == list(range(1, len(self.values) + 1))
        assert [r.payload.get("data") for r in records] == self.values
        assert {r.sequence for r in standing(records)} == self.kept
        terminal = [r for r in records if r.terminal]
        assert terminal == ([records[-1]] if self.ended else [])
        lanes = [self.run_(hub.lane("st_1")) for hub in self.hubs]
        assert [lane.chunks for lane in lanes] == [len(self.kept)] * 2
        assert lanes[0].bytes == lanes[1].bytes
        if self.ended:
            assert records[-1].payload["chunks"] == len(self.kept)
            assert records[-1].type is RecordType.END

    def teardown(self) -> None:
        for hub in self.hubs:
            self.run_(hub.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


class TestStreamMachine(StreamMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20)


@pytest.mark.slow
@pytest.mark.timeout(400)
class TestManyLongWays(StreamMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=50)
