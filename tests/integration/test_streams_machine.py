"""The invariants of a stream as a state machine: every log, through real sockets, against a model.

1 dense · 2 prefix · 3 no phantom · 4 acknowledged is durable · 5 exactly once · 6 one terminal
record, last · 9 credit · 11 resuming twice gives the same suffix · 12 another epoch is a gap ·
14 cancel · 15 WebSocket (text and binary), SSE and log agree · 16 every log gives the same trace.
The numbers are those of the design; 7, 8, 10 and 13 have tests of their own.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.redis import RedisProcess, redis_server
from tests.support.streams_server import SseReader, stream_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from mentatlab.protocol import frames
from mentatlab.protocol.records import timestamp
from mentatlab.streams import StreamingConnectionManager, open_hub
from mentatlab.streams.redis import open_redis_log

T = TypeVar("T")
MSP = Subprotocol("msp.v1+json")
ID = "st_1"
NOW = 1_700_000_000.0
Trace = list[dict[str, Any]]


def clock() -> float:
    return NOW


class Backend:
    """One log behind one server; `reopen` is a crash as far as this process can have one."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place
        self.hub: StreamingConnectionManager
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        match self.name:
            case "redis":
                url, _, prefix = self.place.partition("?")
                log = await open_redis_log(url, prefix=prefix)
                self.hub = StreamingConnectionManager(log, clock=clock)
            case "sqlite":
                self.hub = await open_hub(Path(self.place) / "streams.db", clock=clock)
            case _:
                self.hub = await open_hub(None, clock=clock)
        self._stack = AsyncExitStack()
        self.port = await self._stack.enter_async_context(stream_server(self.hub))
        self.http = await self._stack.enter_async_context(
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}")
        )

    async def aclose(self) -> None:
        await self._stack.aclose()
        await self.hub.aclose()

    @asynccontextmanager
    async def socket(self) -> AsyncGenerator[ClientConnection]:
        url = f"ws://127.0.0.1:{self.port}/ws/streams/{ID}"
        async with connect(url, subprotocols=[MSP], compression=None) as socket:
            assert msgspec.json.decode(await socket.recv())["type"] == "welcome"
            yield socket

    # ------------------------------------------------------------------ the four ways to read

    async def by_log(self, from_: str, head: int) -> Trace:
        answer = await self.http.get(f"/api/v1/streams/{ID}/log", params={"from": from_})
        assert answer.status_code == 200, answer.text
        lines = [msgspec.json.decode(line) for line in answer.text.splitlines()]
        return [await self._resolved(line) for line in lines]

    async def by_sse(self, from_: str, head: int) -> Trace:
        reader = await SseReader.open(self.port, f"/api/v1/streams/{ID}/sse?from={from_}")
        found: Trace = []
        while not found or found[-1].get("sequence", 0) < head:
            event = await reader.event()
            assert event is not None
            if event[0].startswith("stream_") or event[0] == "gap":
                said = msgspec.json.decode(event[2])
                found.append({"type": "gap", **said} if event[0] == "gap" else said)
        await reader.aclose()
        return [await self._resolved(record) for record in found]

    async def by_socket(self, from_: str, head: int) -> Trace:
        """Records as text, binary ones as frames, granted in small steps: credit loses nothing."""
        async with self.socket() as socket:
            granted = 0
            said: dict[str, Any] = {
                "type": "subscribe",
                "id": ID,
                "from": from_,
                "max_bytes": granted,
            }
            await socket.send(msgspec.json.encode(said).decode())
            subscribed = msgspec.json.decode(await socket.recv())
            assert subscribed["type"] == "subscribed", subscribed
            found: Trace = []
            while not found or found[-1].get("sequence", 0) < head:
                granted += 700
                credit = {"type": "credit", "id": ID, "max_bytes": granted}
                await socket.send(msgspec.json.encode(credit).decode())
                found += await self._received(socket, subscribed)
            return found

    async def _received(self, socket: ClientConnection, subscribed: dict[str, Any]) -> Trace:
        """What one grant brings: up to the answer of a ping that was sent behind it."""
        await socket.send('{"type":"ping"}')
        found: Trace = []
        while True:
            message = await socket.recv()
            if isinstance(message, bytes):
                found.append(_of_frame(frames.decode(message), subscribed))
                continue
            for line in message.split("\n"):
                told = msgspec.json.decode(line)
                if told["type"] == "pong":
                    return found
                if told["type"].startswith("stream_") or told["type"] == "gap":
                    found.append(told)

    async def _resolved(self, record: dict[str, Any]) -> dict[str, Any]:
        """A binary record's reference is fetched."""
        ref = record.get("payload", {}).get("ref")
        if ref is None:
            return record
        answer = await self.http.get(ref["url"])
        assert answer.status_code == 200
        payload = {"bytes": answer.content, "metadata": record["payload"]["metadata"]}
        return {**record, "payload": payload}


def _of_frame(frame: frames.Frame, subscribed: dict[str, Any]) -> dict[str, Any]:
    assert frame.lane == subscribed["lane"]
    extension = frame.extension
    optional = {
        "rseq": extension.rseq,
        "pts_us": frame.pts_us,
        "attempt": extension.attempt,
        "item": extension.item,
    }
    return {
        "type": "stream_data",
        "stream_id": ID,
        "run_id": "rn_1",
        "node_id": "agent",
        "pin_name": "out",
        "sequence": frame.sequence,
        "timestamp": timestamp(NOW + frame.delta_ms / 1000),
        "payload": {"bytes": frame.body, "metadata": extension.metadata},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _of_any_epoch(record: dict[str, Any]) -> dict[str, Any]:
    """Of a gap what all logs say alike."""
    return {k: record[k] for k in record.keys() - {"id", "to", "next"}}


def _value(record: dict[str, Any]) -> Any:
    if record["type"] != "stream_data":
        return None
    payload = record["payload"]
    return payload["data"] if "data" in payload else payload["bytes"]


class StreamMachine(RuleBasedStateMachine):
    redis: RedisProcess

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.mkdtemp()
        prefix = os.urandom(6).hex()
        self.backends = [
            Backend("memory", ""),
            Backend("sqlite", self.folder),
            Backend("redis", f"{self.redis.url}?{prefix}:"),
        ]
        for backend in self.backends:
            self.run_(backend.open())
            self.run_(self.create(backend))
        self.values: list[Any] = [None]  # of each record; None for starts and ends
        self.producers: dict[str, tuple[int, int]] = {}
        self.sent: dict[tuple[str, int, int], int] = {}
        self.attempt, self.ended, self.counter = 1, "", 0
        self.kept: set[int] = set()

    def run_(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    async def create(self, backend: Backend) -> None:
        await backend.hub.create_stream("agent", "out", run_id="rn_1", stream_id=ID, external=True)

    def all(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """What every server answers to the same request: it must be the same, but for the epoch."""

        async def one(backend: Backend) -> tuple[int, dict[str, Any]]:
            answer = await backend.http.request(method, f"/api/v1/streams/{ID}{path}", **more)
            said = answer.json()
            return answer.status_code, {k: said[k] for k in said.keys() - {"epoch", "cursor"}}

        answers = [self.run_(one(backend)) for backend in self.backends]
        assert answers[0] == answers[1] == answers[2]
        return answers[0]

    def next_values(self, count: int) -> list[int]:
        self.counter += count
        return list(range(self.counter - count, self.counter))

    def add(self, values: list[Any]) -> None:
        for value in values:
            self.values.append(value)
            self.kept.add(len(self.values))

    # ------------------------------------------------------------------ publishing

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        values = self.next_values(count)
        status, _ = self.all("POST", "/records", json={"records": [{"data": v} for v in values]})
        assert status == (409 if self.ended else 200)
        if not self.ended:
            self.add(values)

    @rule(
        body=st.binary(max_size=600),
        pts=st.integers(-(1 << 40), 1 << 40),
        item=st.none() | st.integers(0, 9),
    )
    def publish_bytes(self, body: bytes, pts: int, item: int | None) -> None:
        query = {"pts_us": pts, "key": 1} | ({} if item is None else {"item": item})
        status, _ = self.all(
            "POST",
            "/records",
            content=body,
            params=query,
            headers={"Content-Type": "application/octet-stream"},
        )
        assert status == (409 if self.ended else 200)
        if not self.ended:
            self.add([body])

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
        body = {
            "records": [{"data": value} for value in values],
            "producer": {"id": who, "epoch": epoch, "seq": seq},
        }
        status, said = self.all("POST", "/records", json=body)
        if epoch < known_epoch:
            assert (status, said["code"]) == (403, "STREAM_FENCED")
        elif seq > last + 1:
            assert (status, said["details"]) == (409, {"expected": last + 1})
        elif seq + count - 1 <= last:
            assert (status, said["duplicate"]) == (200, True)
        elif self.ended:
            assert (status, said["code"]) == (409, "STREAM_ENDED")
        else:
            self.add(values[last + 1 - seq :])
            self.producers[who] = (epoch, seq + count - 1)
            for at, value in enumerate(values):
                self.sent[who, epoch, seq + at] = value

    @rule(step=st.integers(0, 1), back=st.integers(0, 6))
    def start_attempt(self, step: int, back: int) -> None:
        """Only the run's own host can."""
        if self.ended:
            return
        keep = max(0, len(self.values) - back)
        self.attempt += step
        for backend in self.backends:
            call = backend.hub.start_attempt(ID, attempt=self.attempt, resume_from=keep)
            assert self.run_(call).duplicate == (step == 0)
        if step:
            self.values.append(None)
            self.kept = {sequence for sequence in self.kept if sequence <= keep}

    @rule(cancel=st.booleans())
    def end(self, cancel: bool) -> None:
        """Cancelling is idempotent; a second end is refused. Exactly one terminal record."""
        if cancel:
            status, _ = self.all("POST", "/cancel")
            assert status == 200
        else:
            status, _ = self.all("POST", "/records", json={"type": "stream_end"})
            assert status == (409 if self.ended else 200)
        if not self.ended:
            self.values.append(None)
            self.ended = "cancelled" if cancel else "complete"

    # ------------------------------------------------------------------ restarts

    @rule()
    def restart(self) -> None:
        """Durable logs go on where they were; the readers' cursors hold."""
        for backend in self.backends[1:]:
            self.run_(backend.aclose())
            self.run_(backend.open())

    # ------------------------------------------------------------------ reading

    def read(self, from_: str) -> Trace:
        """By every transport of every backend; they agree."""
        head = len(self.values)
        traces: list[Trace] = []
        for backend in self.backends:
            epoch = self.run_(backend.hub.lane(ID)).epoch
            place = from_.replace("EPOCH", str(epoch))
            ways = (backend.by_log, backend.by_sse, backend.by_socket)
            traces += [self.run_(way(place, head)) for way in ways]
        traces = [[_of_any_epoch(record) for record in trace] for trace in traces]
        assert all(each == traces[0] for each in traces[1:])
        return traces[0]

    @precondition(lambda self: len(self.values) > 1)
    @rule(data=st.data())
    def resume_twice(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(1, len(self.values) - 1))
        first, second = self.read(f"EPOCH:{after}"), self.read(f"EPOCH:{after}")
        assert first == second == self.read("start")[after:]

    @rule()
    def another_epoch(self) -> None:
        gap, *records = self.read("999999:1")
        assert (gap["type"], gap["reason"], gap["from"]) == ("gap", "epoch", "999999:1")
        assert records == self.read("start")

    @invariant()
    def every_reader_sees_the_model(self) -> None:
        records = self.read("start")
        assert [r["sequence"] for r in records] == list(range(1, len(self.values) + 1))
        assert [_value(record) for record in records] == self.values
        terminal = [r for r in records if r["type"] in ("stream_end", "stream_error")]
        assert terminal == ([records[-1]] if self.ended else [])
        _, info = self.all("GET", "")
        assert (info["chunks"], info["head"]) == (len(self.kept), len(self.values))
        if self.ended:
            end = records[-1]["payload"]
            assert (end["reason"], end["chunks"]) == (self.ended, len(self.kept))

    def teardown(self) -> None:
        for backend in self.backends:
            self.run_(backend.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module", autouse=True)
def redis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with redis_server(tmp_path_factory.mktemp("redis")) as StreamMachine.redis:
        yield


class TestStreamMachine(StreamMachine.TestCase):
    settings = settings(max_examples=6, stateful_step_count=12, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestManyLongWays(StreamMachine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
