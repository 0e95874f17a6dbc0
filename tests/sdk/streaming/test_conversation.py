"""What a client says and hears, over connections that are cut anywhere: nothing is lost, doubled or
out of order, on either side."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Conflict, Fenced, MentatError, NotFound
from mentatlab.protocol.frames import Extension, Frame
from mentatlab.protocol.records import RecordType, StreamChunk
from mentatlab.sdk.following import Gap, Reset, TruncatedStream
from mentatlab.sdk.streaming.conversation import Conversation, Interrupted
from mentatlab.sdk.streaming.messages import MediaChunk
from mentatlab.sdk.streaming.publication import Publication, payload_of
from mentatlab.sdk.streaming.reading import Reading
from sdk.streaming.peer import NAMES, STARTED, STREAM, Connection, Log


def take_all(reading: Reading) -> tuple[list[Any], bool]:
    """What the application gets now; whether that was the complete end."""
    got: list[Any] = []
    try:
        while (element := reading.take()) is not None:
            got.append(element)
            reading.consumed()
    except StopAsyncIteration:
        return got, True
    return got, False


def values(elements: list[Any]) -> list[Any]:
    return [
        e if not isinstance(e, StreamChunk) else e.payload.get("bytes", e.payload.get("data"))
        for e in elements
    ]


class World:
    """A publisher and a subscriber of one stream on one conversation, and the network between."""

    def __init__(
        self,
        *,
        window: int = 1000,
        ring_credit: int = 500,
        on_reset: Callable[[int], None] | None = None,
    ) -> None:
        self.log, self.conversation = Log(), Conversation()
        self.reading = Reading(STREAM, from_="start", window=window)
        self.publication = Publication(STREAM, "me", 0, on_reset=on_reset)
        self.conversation.add_reading(self.reading)
        self.conversation.add_publication(self.publication)
        self._ring_credit = ring_credit
        self.got: list[Any] = []
        self.complete = False
        self.sent: list[Any] = []
        self.connect()

    def connect(self) -> None:
        self.connection = Connection(self.log, self.conversation, window=self._ring_credit)

    def cut(self) -> None:
        self.connection.cut()
        self.connect()

    def begin_anew(self) -> None:
        """The server has lost the stream."""
        self.conversation.remove_reading(self.reading)
        self.connection.cut()
        self.log = Log(epoch=2)
        self.connect()
        self.settle()

    def take(self) -> bool:
        """The application takes one element, when there is one."""
        said = self.reading.consumed()
        for message in said:
            self.conversation.say(message)
        try:
            element = self.reading.take()
        except StopAsyncIteration:
            self.complete = True
            return False
        if element is not None:
            self.got.append(element)
        return element is not None or bool(said)

    def publish(self, value: Any) -> bool:
        """As the application would: only when it has begun and there is room."""
        out = self.publication
        size = len(value) if isinstance(value, bytes) else len(payload_of({"data": value}))
        if out.already is None or not out.has_room(size) or out.ended:
            return False
        if isinstance(value, bytes):
            out.add_frame(Frame(lane=0, sequence=0, body=value, extension=Extension(item=1)))
        else:
            out.add(RecordType.DATA, payload_of({"data": value}))
        self.sent.append(value)
        return True

    def end(self) -> None:
        self.publication.add(RecordType.END, payload_of({"reason": "complete"}))

    def settle(self) -> None:
        """Everything that can happen happens."""
        steps = (
            self.connection.send,
            self.connection.serve,
            self.connection.deliver,
            self.connection.receive,
            self.take,
        )
        moved = True
        while moved:
            moved = False
            for step in steps:
                moved |= step()


STEP = st.sampled_from(["send", "serve", "deliver", "receive", "take", "publish", "cut"])


@given(
    steps=st.lists(STEP, min_size=80, max_size=400),
    window=st.sampled_from([1, 300, 1000, 1 << 20]),
    ring_credit=st.sampled_from([1, 200, 1 << 20]),
    binary=st.booleans(),
)
def test_exactly_once_over_any_cuts(
    steps: list[str], window: int, ring_credit: int, binary: bool
) -> None:
    world = World(window=window, ring_credit=ring_credit)
    for number, step in enumerate(steps):
        match step:
            case "publish":
                world.publish(b"\x00%d" % number if binary and number % 2 else number)
            case "cut":
                world.cut()
            case "take":
                world.take()
            case _:
                getattr(world.connection, step)()
        assert world.log.data == world.sent[: len(world.log.data)]
        assert values(world.got) == world.log.data[: len(world.got)]
        assert world.reading.held <= window + 1000
    world.settle()
    world.end()
    world.settle()
    assert world.log.data == world.sent
    assert values(world.got) == world.sent
    assert world.complete
    assert world.publication.complete
    assert not world.publication.active
    assert not world.reading.active


def test_credit_follows_consumption_and_not_arrival() -> None:
    world = World(window=1000)
    world.settle()
    for number in range(100):
        world.publish("x" * 90)
        while any([world.connection.send(), world.connection.serve(), world.connection.receive()]):
            pass
        if number % 10 == 0:
            while world.connection.deliver():
                pass
    world.connection.receive()
    while any([world.connection.deliver(), world.connection.receive()]):
        pass
    assert 1000 <= world.reading.held <= 1400  # one record more than the credit
    world.settle()
    assert len(world.got) == 100


def test_a_binary_record_is_told_whole() -> None:
    world = World()
    world.settle()
    frame = Frame(
        lane=0,
        sequence=0,
        body=b"\x01\x02",
        flags=3,
        pts_us=-5,
        dur_us=7,
        index=2,
        extension=Extension(item=4, metadata={"w": 1}),
    )
    world.publication.add_frame(frame)
    world.settle()
    assert world.got == [
        MediaChunk(
            type=RecordType.DATA,
            **NAMES,
            sequence=2,
            timestamp="2026-01-01T00:00:00.005Z",
            payload={"bytes": b"\x01\x02", "metadata": {"w": 1}},
            pts_us=-5,
            dur_us=7,
            item=4,
            key=True,
            end_of_item=True,
            index=2,
        )
    ]


def test_a_producer_that_comes_back_goes_on_where_the_log_stands() -> None:
    log = Log()
    log.publish("me", 1, {"type": "stream_data", "payload": {"data": "before"}})
    conversation, out = Conversation(), Publication(STREAM, "me", 0)
    conversation.add_publication(out)
    connection = Connection(log, conversation)
    while any([connection.send(), connection.serve(), connection.receive()]):
        pass
    assert (out.already, out.acknowledged) == (1, 1)
    out.add(RecordType.DATA, payload_of({"data": "after"}))
    while any([connection.send(), connection.serve(), connection.receive()]):
        pass
    assert log.data == ["before", "after"]
    assert out.statistics() == (0, 0, 2, 2, out.statistics().credit)


def test_what_the_log_has_lost_is_an_error() -> None:
    resets: list[int] = []
    world = World(on_reset=resets.append)  # the epoch is the same
    world.settle()
    world.publish(1)
    world.settle()
    world.log.known["me"] = 0
    world.cut()
    world.settle()
    assert world.publication.error is not None
    assert world.publication.error.code is Code.STREAM_LOST
    assert resets == []


def test_a_stream_that_has_begun_anew_is_an_error_for_who_does_not_ask_for_resets() -> None:
    world = World()
    world.settle()
    world.publish(1)
    world.settle()
    world.begin_anew()
    assert world.publication.error is not None
    assert world.publication.error.code is Code.STREAM_LOST
    assert world.log.data == []


@pytest.mark.parametrize("more", [[], [3, b"four"]])
def test_in_a_stream_that_has_begun_anew_a_publisher_goes_on(more: list[Any]) -> None:
    resets: list[int] = []
    world = World(on_reset=resets.append)
    world.settle()
    for value in (1, b"two"):
        world.publish(value)
    world.settle()
    for value in more:  # not acknowledged when the server goes
        world.publish(value)
    world.begin_anew()
    assert (resets, world.log.data, world.publication.acknowledged) == ([2], more, len(more))
    world.publish(5)
    world.cut()
    world.end()
    world.settle()
    assert (resets, world.log.data) == ([2], [*more, 5])
    assert world.publication.complete
    assert world.publication.statistics().bytes == 0


def test_two_under_one_name_are_an_error() -> None:
    world = World()
    world.settle()
    world.log.publish("me", 1, {"type": "stream_data", "payload": {"data": "theirs"}})
    world.cut()
    world.settle()
    assert isinstance(world.publication.error, Conflict)


def test_another_epoch_is_a_gap_and_is_read_from_its_start() -> None:
    world = World()
    world.settle()
    world.publish("old")
    world.settle()
    world.log = Log(epoch=9)
    world.log.publish("other", 1, {"type": "stream_data", "payload": {"data": "new"}})
    world.log.publish("other", 2, {"type": "stream_end", "payload": {"reason": "complete"}})
    world.cut()
    world.settle()
    assert values(world.got) == ["old", Gap("epoch", "9:0"), "new"]
    assert world.complete
    assert str(world.reading.reached) == "9:2"


def conversing() -> tuple[Conversation, Reading, Publication]:
    world = World()
    world.settle()
    return world.conversation, world.reading, world.publication


ERROR = '{"type":"error","id":"st_1","code":"%s","close":%d,"message":"m","hint":"h","details":{}}'


@pytest.mark.parametrize(
    ("code", "close", "kind", "reads", "publishes"),
    [
        ("STREAM_FENCED", 4109, Fenced, True, False),
        ("STREAM_ENDED", 4109, Conflict, True, False),
        ("STREAM_CURSOR_INVALID", 4100, MentatError, False, True),
        ("STREAM_UNKNOWN", 4104, NotFound, False, False),
        ("RATE_LIMITED", 4129, MentatError, False, False),
    ],
)
def test_one_streams_trouble(
    code: str, close: int, kind: type[MentatError], reads: bool, publishes: bool
) -> None:
    conversation, reading, publication = conversing()
    conversation.received(ERROR % (code, close))
    assert (reading.active, publication.active) == (reads, publishes)
    if not reads:
        with pytest.raises(kind, match=f"{code}: m"):
            take_all(reading)
    if not publishes:
        assert isinstance(publication.error, kind)
        assert publication.error.hint == "h"


@pytest.mark.parametrize("close", [1011, 1013, 4000, 4005])
def test_passing_trouble_interrupts(close: int) -> None:
    conversation, reading, publication = conversing()
    with pytest.raises(Interrupted) as interrupted:
        conversation.received(ERROR % ("UNAVAILABLE", close))
    assert interrupted.value.error.retryable
    assert reading.active
    assert publication.active


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[]",
        "{",
        '{"type":"credit"}',
        '{"type":"stream_data"}',
        b"",
        b"\x02" * 40,
        '{"type":"mark","id":"st_1","cursor":"x","state":"open"}',
    ],
)
def test_what_is_not_of_the_protocol_interrupts(message: str | bytes) -> None:
    conversation, _, _ = conversing()
    with pytest.raises(Interrupted):
        conversation.received(message)


@given(st.text() | st.binary())
def test_no_message_breaks_it(message: str | bytes) -> None:
    with contextlib.suppress(Interrupted):
        conversing()[0].received(message)


def test_words_of_a_newer_server_are_left_out() -> None:
    conversation, _, _ = conversing()
    assert conversation.received('{"type":"weather","id":"st_1","sun":true}') == 0
    assert conversation.received('{"type":"throttle","retry_after_ms":1500}') == 1.5
    assert conversation.received('{"type":"welcome","limits":{"streams":128}}') == 0
    assert conversation.received('{"type":"mark","id":"st_9","cursor":"1:1","state":"open"}') == 0
    assert conversation.received('{"type":"published","id":"st_9","sequence":1}') == 0


def record(sequence: int, type_: str = "data", **more: Any) -> str:
    body = {**NAMES, "type": f"stream_{type_}", "sequence": sequence, "timestamp": STARTED, **more}
    return str(body).replace("'", '"')


def reading_at(cursor: str, **options: Any) -> tuple[Conversation, Reading]:
    conversation, reading = Conversation(), Reading(STREAM, from_="latest", **options)
    conversation.add_reading(reading)
    conversation.opened()
    conversation.received(f'{{"type":"subscribed","id":"st_1","lane":0,"start":"{cursor}"}}')
    return conversation, reading


def test_a_late_reader_gets_the_start_beside_the_order() -> None:
    conversation, reading = reading_at("1:7")
    conversation.received(record(1, "start", payload={}))
    conversation.received(record(8, payload={"data": 8}) + "\n" + record(9, payload={"data": 9}))
    conversation.received(record(9, payload={"data": 9}))  # once more
    assert values(take_all(reading)[0]) == [8, 9]
    again = {"metadata": {"resume_from": 8}}
    conversation.received(record(10, "start", attempt=2, payload=again))
    assert take_all(reading)[0] == [Reset(8)]
    conversation.received(record(11, "end", payload={"reason": "complete", "chunks": 77}))
    assert take_all(reading) == ([], True)


def test_a_hole_is_an_error() -> None:
    conversation, reading = reading_at("1:7")
    conversation.received(record(9, payload={"data": 9}))
    with pytest.raises(TruncatedStream, match="between 1:7 and 9"):
        take_all(reading)


def test_a_filter_leaves_holes_and_marks_say_how_far_it_is() -> None:
    conversation, reading = reading_at("1:7", filter_={"item": [1]}, rate=2.0)
    conversation.received(record(9, payload={"data": 9}))
    conversation.received('{"type":"mark","id":"st_1","cursor":"1:30","state":"open"}')
    assert values(take_all(reading)[0]) == [9]
    conversation.lost()
    asked = reading.subscribe()
    assert asked["from"] == "1:30"
    assert (asked["filter"], asked["rate"]) == ({"item": [1]}, 2.0)


def test_a_filter_that_the_server_refuses_is_raised_and_not_waited_for() -> None:
    conversation, reading = reading_at("1:7", filter_={"pinname": ["out"]})
    conversation.received(
        '{"type":"error","id":"st_1","code":"STREAM_RECORD_INVALID","close":4100,'
        '"message":"unknown field `pinname`"}'
    )
    with pytest.raises(MentatError, match="pinname"):
        reading.take()


@pytest.mark.parametrize("state", ["ended", "errored"])
def test_a_mark_is_an_end_for_who_has_nothing_to_miss(state: str) -> None:
    conversation, reading = reading_at("1:7")
    conversation.received(f'{{"type":"mark","id":"st_1","cursor":"1:7","state":"{state}"}}')
    assert take_all(reading) == ([], True)


def test_a_mark_is_no_end_for_who_has_begun() -> None:
    conversation, reading = reading_at("1:7")
    conversation.received(record(8, payload={"data": 8}))
    conversation.received('{"type":"mark","id":"st_1","cursor":"1:8","state":"ended"}')
    assert reading.take() is not None
    with pytest.raises(TruncatedStream):
        reading.take()


def test_gaps_are_told_and_what_was_dropped_is_not_counted() -> None:
    conversation, reading = reading_at("1:7", policy="latest")
    gap = '{"type":"gap","id":"st_1","from":"1:7","to":"1:19","reason":"dropped","next":"1:19"}'
    conversation.received(gap)
    conversation.received(record(20, payload={"data": 20}))
    conversation.received(record(21, "end", payload={"reason": "complete", "chunks": 19}))
    assert values(take_all(reading)[0]) == [Gap("dropped", "1:19"), 20]
    assert take_all(reading) == ([], True)


def test_a_run_is_followed_by_its_own_order() -> None:
    conversation, reading = Conversation(), Reading("rs_1", from_="start")
    conversation.add_reading(reading)
    conversation.opened()
    conversation.received('{"type":"subscribed","id":"rs_1","lane":0,"start":"1:0"}')
    conversation.received(record(1, "start", rseq=1, payload={}))
    conversation.received(record(2, rseq=2, payload={"data": "a"}))
    conversation.received(record(3, "end", rseq=3, payload={"reason": "complete", "chunks": 1}))
    assert values(take_all(reading)[0]) == ["a"]
    assert reading.active
    conversation.received('{"type":"mark","id":"rs_1","cursor":"1:3","state":"ended"}')
    assert take_all(reading) == ([], True)


def test_a_run_and_its_stream_need_two_connections() -> None:
    conversation, reading = reading_at("1:7")
    run = Reading("rs_1", from_="start")
    conversation.add_reading(run)
    conversation.received('{"type":"subscribed","id":"rs_1","lane":1,"start":"1:0"}')
    conversation.received(record(8, rseq=8, payload={"data": 8}))
    assert values(take_all(reading)[0]) == [8]
    with pytest.raises(Conflict, match="once for both"):
        take_all(run)


def test_one_of_each_kind_for_a_stream() -> None:
    conversation, reading, publication = conversing()
    with pytest.raises(Conflict):
        conversation.add_reading(Reading(STREAM, from_="start"))
    with pytest.raises(Conflict):
        conversation.add_publication(Publication(STREAM, "other", 0))
    conversation.remove_reading(reading)
    conversation.remove_reading(reading)
    conversation.remove_publication(publication)
    conversation.remove_publication(publication)
    assert conversation.wanted is None
    assert conversation.next_message() == b'{"type":"unsubscribe","id":"st_1"}'


def test_the_answer_to_a_subscription_that_was_left_is_not_taken_for_the_next_ones() -> None:
    conversation, first = Conversation(), Reading(STREAM, from_="latest")
    conversation.add_reading(first)
    conversation.opened()
    conversation.remove_reading(first)
    second = Reading(STREAM, from_="start")
    conversation.add_reading(second)
    conversation.received('{"type":"subscribed","id":"st_1","lane":0,"start":"1:70"}')
    conversation.received(record(71, payload={"data": 71}))
    assert not second.live
    conversation.received(ERROR % ("STREAM_CURSOR_INVALID", 4100))
    said = [conversation.next_message() for _ in range(4)]
    assert said[2] == b'{"type":"ping","left":"st_1"}'
    conversation.received('{"type":"pong","left":"st_1"}')
    conversation.received('{"type":"subscribed","id":"st_1","lane":1,"start":"1:0"}')
    conversation.received(record(1, "start", payload={}))
    assert second.live
    assert second.active


def test_nothing_is_kept_of_a_reader_that_has_left() -> None:
    """A connection may live for months."""
    conversation, reading = Conversation(), Reading(STREAM, from_="start")
    conversation.opened()
    conversation.add_reading(reading)
    conversation.received('{"type":"subscribed","id":"st_1","lane":1,"start":"1:0"}')
    conversation.remove_reading(reading)
    left = weakref.ref(reading)
    del reading
    gc.collect()
    assert left() is None


def test_a_reader_that_holds_its_publisher_back_says_how_far_it_is() -> None:
    conversation, reading = reading_at("1:0", policy="block")
    conversation.received("\n".join(record(n, payload={"data": n}) for n in range(1, 4)))
    acknowledged: list[Any] = []
    for _ in range(4):
        acknowledged += [m["cursor"] for m in reading.consumed() if m["type"] == "ack"]
        reading.take()
    assert acknowledged == ["1:3"]


@pytest.mark.parametrize(
    ("code", "others_go_on"), [(Code.STREAM_UNKNOWN, True), (Code.UNAUTHENTICATED, False)]
)
def test_a_connection_that_is_refused(code: Code, others_go_on: bool) -> None:
    conversation, reading, publication = conversing()
    other = Reading("st_2", from_="start")
    conversation.add_reading(other)
    conversation.refused(STREAM, MentatError(code, "no"))
    assert not reading.active
    assert not publication.active
    assert other.active is others_go_on
    assert conversation.wanted == ("st_2" if others_go_on else None)


def test_progress_is_told_once() -> None:
    conversation, _, _ = conversing()
    assert conversation.lost()
    assert not conversation.lost()
    conversation.opened()
    assert not conversation.lost()
