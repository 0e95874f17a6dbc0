"""Both kinds of conversation, spoken with a link that keeps what it is told: no network."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.links import SECRET, Talk, authority, talk

from mentatlab.gateway.stream_msp import PROTOCOL
from mentatlab.gateway.stream_wire import MAX_MESSAGE_BYTES
from mentatlab.protocol import frames
from mentatlab.protocol.frames import Extension, Frame
from mentatlab.protocol.records import MAX_RECORD_BYTES, Draft, data_draft
from mentatlab.protocol.tokens import Capability, Claims, mint
from mentatlab.streams import StreamingConnectionManager, open_hub


@pytest.fixture(params=["memory", "sqlite"])
async def hub(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(tmp_path / "streams.db" if request.param == "sqlite" else None)
    yield hub
    await hub.aclose()


async def opened(hub: StreamingConnectionManager, **more: Any) -> str:
    return (await hub.create_stream("me", "out", **more)).stream_id


def token(stream_id: str, *capabilities: Capability, expires: float | None = None) -> str:
    until = int(time.time() + 600 if expires is None else expires)
    claims = Claims(
        subject=stream_id, capabilities=capabilities, workspace="default", expires=until
    )
    return mint(claims, SECRET)


def record(value: Any, seq: int | None = None, **more: Any) -> str:
    message = {"type": "stream_data", "payload": {"data": value}, **more}
    if seq is not None:
        message["producer"] = {"id": "p", "epoch": 0, "seq": seq}
    return json.dumps(message)


async def settled(hub: StreamingConnectionManager, stream_id: str, head: int) -> None:
    """Until the stream has so many records."""
    async with hub.subscribe(stream_id, from_=head) as subscription:
        await anext(subscription)


# -- plain clients


async def test_a_plain_client_follows_to_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("a"), data_draft("b")])
    async with talk(hub, stream_id, query={"from": "start"}) as client:
        await client.all_heard("stream_start", "stream_data", "stream_data")
        await hub.end_stream(stream_id)
        assert (await client.heard("stream_end"))["sequence"] == 4
        assert await client.closed() == 1000
        assert len(client.link.frames) == 4  # one record a frame
    assert hub.statistics().subscriptions == 0


async def test_what_a_plain_client_sends_is_a_record(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, mime_type="image/png")
    async with talk(hub, stream_id) as client:
        client.send('{"data": {"n": 1}}', b"\x00\xff")
        await client.heard("stream_start")
        assert (await client.heard("stream_data"))["payload"]["data"] == {"n": 1}
        ref = (await client.heard("stream_data"))["payload"]["ref"]
        assert (ref["size"], ref["metadata"]) == (2, {"mimeType": "image/png"})
    assert (await hub.lane(stream_id)).state == "open"


async def test_what_is_said_before_leaving_is_published(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id) as client:
        client.send(*(json.dumps({"data": n}) for n in range(50)))
    await settled(hub, stream_id, 51)


async def test_a_gap_is_told_and_the_start_comes_first(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft(n) for n in range(3)])
    epoch = (await hub.lane(stream_id)).epoch
    async with talk(hub, stream_id, query={"from": f"{epoch + 1}:2"}) as client:
        gap = await client.heard("gap")
        assert (gap["id"], gap["reason"], gap["next"]) == (stream_id, "epoch", f"{epoch}:0")
        await client.heard("stream_start")
    async with talk(hub, stream_id, query={"from": "3"}) as client:
        assert (await client.heard("stream_start"))["sequence"] == 1
        assert (await client.heard("stream_data"))["sequence"] == 3


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 4100),
        ("[]", 4100),
        ("", 4100),
        ("[" * 100_000, 4100),
        ('{"type": "dance"}', 4100),
        ('{"type": "stream_start"}', 4100),
        ('{"data": 1, "producer_seq": 1}', 4100),
        ('{"data": 1, "producer": {"id": "", "epoch": 0, "seq": 1}}', 4100),
        ("x" * (MAX_MESSAGE_BYTES + 1), 4113),
        (b"x" * (MAX_RECORD_BYTES + 1), 4113),
        (record("x" * MAX_RECORD_BYTES), 4113),
        (record(1, seq=7), 4109),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_record_closes(
    hub: StreamingConnectionManager, message: str | bytes, code: int
) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id) as client:
        client.send('{"data": "before"}', message, '{"data": "after"}')
        assert await client.closed() == code
    assert (await hub.lane(stream_id)).chunks == 1


@pytest.mark.parametrize(
    ("id_", "from_", "code"), [("st_nobody", "start", 4104), (None, "yesterday", 4100)]
)
async def test_what_cannot_be_followed(
    hub: StreamingConnectionManager, id_: str | None, from_: str, code: int
) -> None:
    async with talk(hub, id_ or await opened(hub), query={"from": from_}) as client:
        assert await client.closed() == code
        assert client.link.reason.split(":")[0] in ("STREAM_UNKNOWN", "STREAM_CURSOR_INVALID")


async def test_who_may_publish_only_reads_nothing(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    who = await authority(hub, token(stream_id, "pub"))
    async with talk(hub, stream_id, query={"from": "start"}, who=who) as client:
        client.send('{"data": 1}')
        await settled(hub, stream_id, 2)
        assert client.link.said.empty()
        assert hub.statistics().subscriptions == 0
    who = await authority(hub, token(stream_id, "sub"))
    async with talk(hub, stream_id, who=who) as client:
        client.send('{"data": 1}')
        assert await client.closed() == 4103
    async with talk(hub, await opened(hub), who=who) as client:
        assert await client.closed() == 4103


# -- patience


async def test_one_that_takes_nothing_is_cut(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, query={"from": "start"}) as client:
        await client.heard("stream_start")
        client.tick(100)
        client.link.writable = False
        await hub.publish(stream_id, [data_draft("x" * 1000) for _ in range(1000)])
        client.tick(109)
        client.conversation.writable()  # it took something, if not all
        client.tick(118)
        assert not client.link.closed.done()
        client.tick(128)
        assert await client.closed() == 4000
        assert client.link.said.empty()
        assert hub.statistics().subscriptions == 0


async def test_one_that_takes_again_gets_the_rest(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, query={"from": "start"}) as client:
        await client.heard("stream_start")
        client.link.writable = False
        await hub.publish(stream_id, [data_draft(n) for n in range(3)])
        assert client.link.said.empty()
        client.link.writable = True
        client.conversation.writable()
        await client.all_heard("stream_data", "stream_data", "stream_data")


async def test_who_answers_no_ping_is_cut(hub: StreamingConnectionManager) -> None:
    async with talk(hub, await opened(hub), PROTOCOL) as client:
        await client.heard("welcome")
        for now in (100, 114, 115, 116):
            client.tick(now)
        assert client.link.pings == 2
        client.conversation.heard()
        for now in (117, 131):
            client.tick(now)
        assert client.link.pings == 2
        client.tick(146.9)
        assert not client.link.closed.done()
        client.tick(147)
        assert await client.closed() == 4001
        client.tick(200)  # once


async def test_who_is_not_read_cannot_be_heard(hub: StreamingConnectionManager) -> None:
    async with talk(hub, await opened(hub), PROTOCOL, stall_s=10**6) as client:
        await client.heard("welcome")
        client.tick(100)
        client.link.writable = False
        client.say("ping")
        assert not client.link.reading
        client.tick(1000)
        client.link.writable = True
        client.conversation.writable()
        assert client.link.reading
        client.tick(1014)
        assert not client.link.closed.done()


async def test_a_token_that_ends(hub: StreamingConnectionManager) -> None:
    stream_id, now = await opened(hub), time.time()
    who = await authority(hub, token(stream_id, "sub", expires=now + 100))
    for protocols in ((), (PROTOCOL,)):
        async with talk(hub, stream_id, *protocols, who=who) as client:
            client.tick(1, wall=now + 98)
            assert not client.link.closed.done()
            client.tick(2, wall=now + 101)
            assert await client.closed() == 4003


async def test_draining_says_come_back(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id) as plain, talk(hub, stream_id, PROTOCOL) as msp:
        await plain.heard("stream_start")
        await msp.heard("welcome")
        await hub.drain()
        assert (await plain.closed(), await msp.closed()) == (1012, 1012)
        assert (await msp.heard("bye"))["code"] == 1012
    async with talk(hub, stream_id) as late:
        assert await late.closed() == 1012


# -- the subprotocol: following


async def follow(client: Talk, stream_id: str, **more: Any) -> dict[str, Any]:
    client.say("subscribe", id=stream_id, **more)
    return await client.heard("subscribed")


async def test_a_welcome_then_records_and_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("x" * 40_000) for _ in range(4)])
    async with talk(hub, stream_id, PROTOCOL) as client:
        welcome = await client.heard("welcome")
        assert welcome["limits"]["streams"] == 128
        told = await follow(client, stream_id, **{"from": "start"})
        assert (told["lane"], told["head"], told["state"], told["recovered"]) == (
            1, 5, "open", False,
        )  # fmt: skip
        found = [await client.next() for _ in range(5)]
        assert [message["sequence"] for message in found] == [1, 2, 3, 4, 5]
        await hub.end_stream(stream_id)
        end = await client.heard("stream_end")
        mark = await client.heard("mark")
        assert mark["cursor"] == f"{told['epoch']}:{end['sequence']}"
        assert mark["state"] == "ended"
        again = await follow(client, stream_id, **{"from": mark["cursor"]})
        assert (again["state"], again["recovered"], again["lane"]) == ("ended", True, 2)
        assert (await client.heard("mark"))["state"] == "ended"


async def test_idle_streams_are_marked(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        await follow(client, stream_id)
        await client.heard("stream_start")
        client.tick(100)
        client.tick(114)
        assert client.link.said.empty()
        client.tick(115)
        assert (await client.heard("mark"))["state"] == "open"
        await hub.publish(stream_id, [data_draft(1)])
        await client.heard("stream_data")
        client.conversation.heard()
        client.tick(131)
        assert client.link.said.empty()


async def test_credit_bounds_what_is_delivered(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("x" * 1000) for _ in range(3)])
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        await follow(client, stream_id, max_bytes=1, **{"from": "start"})
        assert (await client.heard("stream_start"))["sequence"] == 1  # while any credit is left
        await client.settled()
        client.say("credit", id=stream_id, max_bytes=1 << 20)
        assert [(await client.next())["sequence"] for _ in range(3)] == [2, 3, 4]
        client.say("credit", id="st_other", max_bytes=1)
        await client.settled()


async def test_credit_may_come_in_the_same_read(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        subscribe = {"type": "subscribe", "id": stream_id, "from": "start", "max_bytes": 0}
        credit = {"type": "credit", "id": stream_id, "max_bytes": 5000}
        client.send(json.dumps(subscribe), json.dumps(credit))
        await client.all_heard("welcome", "subscribed", "stream_start")


async def test_acknowledgements_move_a_blocking_reader(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, durability="memory")
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        await follow(client, stream_id, policy="block", **{"from": "start"})
        for _ in range(256):
            await hub.publish(stream_id, [data_draft("x")])
        held = asyncio.create_task(hub.publish(stream_id, [data_draft("y")]))
        await client.settled()
        assert not held.done()
        client.say("ack", id=stream_id, cursor=f"{(await hub.lane(stream_id)).epoch}:100")
        await held
        client.say("ack", id=stream_id, cursor="nonsense")
        while (message := await client.next())["type"] != "error":
            pass
        assert message["close"] == 4100


async def test_a_filter_and_a_policy(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    epoch = (await hub.lane(stream_id)).epoch
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        here = {"from": f"{epoch}:1"}
        await follow(client, stream_id, filter={"item": [2]}, policy="latest", max_bytes=0, **here)
        for n in range(4):
            await hub.publish(stream_id, [data_draft(n, item=2)])
        client.say("credit", id=stream_id, max_bytes=10_000)
        gap = await client.heard("gap")
        assert (gap["from"], gap["to"], gap["reason"]) == (f"{epoch}:1", f"{epoch}:4", "dropped")
        assert (await client.heard("stream_data"))["sequence"] == 5
        await hub.publish(stream_id, [data_draft("other", item=1)])
        await hub.publish(stream_id, [data_draft("mine", item=2)])
        assert (await client.heard("stream_data"))["payload"]["data"] == "mine"


async def test_what_is_wrong_with_one_stream_leaves_the_others(
    hub: StreamingConnectionManager,
) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("subscribe", id="st_nobody")
        assert (await client.heard("error"))["code"] == "STREAM_UNKNOWN"
        await follow(client, stream_id)
        await client.heard("stream_start")
        client.say("subscribe", id=stream_id)
        assert (await client.heard("error"))["code"] == "CONFLICT"
        for _ in range(2):
            client.say("unsubscribe", id=stream_id)
        for wrong in (
            *({"from": "zz"}, {"rate": 0}, {"policy": "nice"}, {"filter": "all"}),
            {"filter": {"pinname": ["out"]}},
        ):
            client.say("subscribe", id=stream_id, **wrong)
            error = await client.heard("error")
            assert (error["id"], error["close"]) == (stream_id, 4100)
        client.say("cancel", id="st_nobody")
        assert (await client.heard("error"))["close"] == 4104
        client.say("cancel", id=stream_id)
        assert (await client.heard("mark"))["state"] == "ended"
        client.send(record(1, stream_id=stream_id))
        assert (await client.heard("error"))["code"] == "STREAM_ENDED"
    lane = await hub.lane(stream_id)
    assert (lane.state, lane.chunks) == ("ended", 0)


async def test_unsubscribed_before_it_began(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        client.send(
            json.dumps({"type": "subscribe", "id": stream_id, "from": "start"}),
            json.dumps({"type": "unsubscribe", "id": stream_id}),
            json.dumps({"type": "ping", "n": [1]}),
        )
        assert (await client.heard("pong"))["n"] == [1]
        await client.heard("welcome")
        await client.settled()
        assert hub.statistics().subscriptions == 0


@pytest.mark.parametrize(
    "text",
    ['{"type": "dance"}', "{", "7", '{"type": "credit", "max_bytes": 1}', '{"type": "hello"'],
)
async def test_what_names_no_stream_closes(hub: StreamingConnectionManager, text: str) -> None:
    async with talk(hub, await opened(hub), PROTOCOL) as client:
        client.send(text)
        assert await client.closed() == 4100


async def test_a_control_message_is_bounded(hub: StreamingConnectionManager) -> None:
    async with talk(hub, await opened(hub), PROTOCOL) as client:
        client.say("ping", text="x" * (64 * 1024))
        assert await client.closed() == 4113


async def test_a_connection_follows_a_bounded_number(hub: StreamingConnectionManager) -> None:
    run = (await hub.create_stream("me", "first", durability="memory")).run_id
    async with talk(hub, run, PROTOCOL) as client:
        await client.heard("welcome")
        for n in range(129):
            session = await hub.create_stream("me", f"p{n}", run_id=run, durability="memory")
            client.say("subscribe", id=session.stream_id, max_bytes=0, **{"from": "1"})
            if n < 128:
                assert (await client.heard("subscribed"))["lane"] == n + 1
        error = await client.heard("error")
        assert (error["code"], error["close"]) == ("RATE_LIMITED", 4129)


async def test_records_in_frames_and_in_a_run_as_json(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("me", "out", mime_type="image/png")
    stream_id = session.stream_id
    await hub.publish(stream_id, [data_draft(1), Draft(body=b"\x01", flags=frames.KEY)])
    await hub.publish(stream_id, [data_draft(2)])
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        lane = (await follow(client, stream_id, **{"from": "start"}))["lane"]
        await client.all_heard("stream_start", "stream_data")
        frame = await client.next()
        assert (frame.lane, frame.sequence, frame.body, frame.flags) == (lane, 3, b"\x01", 1)
        await client.heard("stream_data")
        await follow(client, session.run_id, **{"from": "start"})
        kinds = [set((await client.next())["payload"]) & {"data", "ref"} for _ in range(4)]
        assert kinds == [set(), {"data"}, {"ref"}, {"data"}]


# -- the subprotocol: publishing


async def test_acknowledgements_are_one_a_read(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, durability="memory")
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.send(record(0, seq=1))
        assert (await client.heard("published"))["durable"] is False
        client.send(*(record(n, seq=n) for n in range(2, 50)), record(1, seq=1))
        told = await client.heard("published")
        assert (told["producer_seq"], told["sequence"]) == (49, 50)
        client.send(record(9, seq=99))
        error = await client.heard("error")
        assert (error["close"], error["details"]) == (4109, {"expected": 50})
        await client.settled()


async def test_publish_tells_what_the_log_has(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("publish", id=stream_id, producer={"id": "p", "epoch": 3})
        told = await client.heard("publishing")
        assert (told["producer_seq"], told["sequence"], told["durable"]) == (0, 1, True)
        data = {"type": "stream_data", "data": 1}
        client.send(*(json.dumps({**data, "producer_seq": n}) for n in (1, 2)))
        assert (await client.heard("published"))["producer_seq"] == 2
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("publish", id=stream_id, producer={"id": "p", "epoch": 3})
        told = await client.heard("publishing")
        assert (told["producer_seq"], told["sequence"]) == (2, 3)
        client.say("publish", id=stream_id, producer={"id": "p", "epoch": 2})
        assert (await client.heard("error"))["code"] == "STREAM_FENCED"
        client.say("publish", id=stream_id, producer={"id": "", "epoch": 0})
        assert (await client.heard("error"))["close"] == 4100
        client.say("publish", id="st_nobody")
        assert (await client.heard("error"))["close"] == 4104
        client.send(json.dumps({**data, "stream_id": stream_id, "producer_seq": 3}))
        assert (await client.heard("error"))["close"] == 4100  # the outlet went with its refusal


async def test_records_behind_publish_in_the_same_read(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        publish = {"type": "publish", "id": stream_id, "producer": {"id": "p", "epoch": 0}}
        first = {"type": "stream_data", "data": 1, "producer_seq": 1}
        client.send(json.dumps(publish), json.dumps(first), '{"type": "stream_end"}')
        await client.all_heard("welcome", "publishing", "published")
        await settled(hub, stream_id, 3)


async def test_binary_frames_both_ways(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("publish", id=stream_id, producer={"id": "cam", "epoch": 0})
        lane = (await client.heard("publishing"))["lane"]
        epoch = (await hub.lane(stream_id)).epoch
        await follow(client, stream_id, **{"from": f"{epoch}:1"})
        sent = Frame(
            lane=lane, sequence=1, body=b"\x00\xff", flags=frames.KEY, pts_us=-5, dur_us=7, index=3,
            extension=Extension(item=5, metadata={"w": 640}),
        )  # fmt: skip
        client.send(frames.encode(sent))
        got = await client.next()
        if isinstance(got, dict):  # the acknowledgement may come first
            got = await client.next()
        assert (got.sequence, got.body, got.flags, got.pts_us) == (2, b"\x00\xff", 1, -5)
        assert (got.extension.item, got.extension.metadata) == (5, {"w": 640})
        client.send(frames.encode(Frame(lane=lane, sequence=9, body=b"")))
        error = await client.next()
        while error["type"] != "error":
            error = await client.next()
        assert (error["id"], error["details"]) == (stream_id, {"expected": 2})


async def test_numbered_frames_need_a_producer(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("publish", id=stream_id)
        lane = (await client.heard("publishing"))["lane"]
        client.send(frames.encode(Frame(lane=lane, sequence=1, body=b"")))
        assert (await client.heard("error"))["close"] == 4100
        client.send(frames.encode(Frame(lane=lane, sequence=0, body=b"")))
        assert (await client.heard("published"))["sequence"] == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 40, frames.encode(Frame(lane=7, sequence=0, body=b"")), b"\x01" * (2 << 20)],
    ids=["empty", "nonsense", "another lane", "too large"],
)
async def test_binary_messages_that_are_none(hub: StreamingConnectionManager, data: bytes) -> None:
    async with talk(hub, await opened(hub), PROTOCOL) as client:
        client.send(data)
        assert await client.closed() in (4100, 4113)


async def test_a_publishers_credit_grows(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("publish", id=stream_id)
        first = (await client.heard("publishing"))["max_bytes"]
        texts = [record("x" * 300_000) for _ in range(20)]
        client.send(*texts)
        assert not client.link.reading  # it has overdrawn
        told = dict[str, Any]()
        while told.get("type") != "published" or told["sequence"] < 21:
            told = await client.next()
            if told["type"] == "credit":
                assert told["max_bytes"] > first
                first = told["max_bytes"]
        while not client.link.said.empty():
            first = (await client.next()).get("max_bytes", first)
        assert first <= sum(map(len, texts)) + (1 << 20)
        assert client.link.reading


async def test_order_is_kept_over_lanes_of_all_kinds(hub: StreamingConnectionManager) -> None:
    run = (await hub.create_stream("me", "first")).run_id
    ids = [
        (await hub.create_stream("me", pin, run_id=run, external=True, durability=kind)).stream_id
        for pin, kind in (("a", "commit"), ("b", "memory"), ("c", "commit"))
    ]
    order: list[tuple[str, int]] = []
    async with talk(hub, run, PROTOCOL) as client:
        await client.heard("welcome")
        client.send(*(record(n, stream_id=ids[n % 3]) for n in range(90)))
        while len(order) < 3 or {n for _, n in order[-3:]} != {31}:
            told = await client.heard("published")
            order.append((told["id"], told["sequence"]))
    for id_ in ids:
        values = [sequence for each, sequence in order if each == id_]
        assert values == sorted(values)
        async with hub.subscribe(id_, from_=2) as subscription:
            records = [await anext(subscription) for _ in range(30)]
        found = [each.payload["data"] for each in records]
        assert found == list(range(ids.index(id_), 90, 3))


async def test_only_the_rate_of_a_key(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    who = await authority(hub, token(stream_id, "sub", "pub"), rate=1.0, burst=3.0)
    async with talk(hub, stream_id, PROTOCOL, who=who) as client:
        await client.heard("welcome")
        client.say("pong")
        client.say("credit", id=stream_id, max_bytes=1)
        for _ in range(4):
            client.say("ping")
        await client.all_heard("pong", "pong", "pong")
        assert 0 < (await client.heard("throttle"))["retry_after_ms"] <= 1000
        assert await client.closed() == 4005


async def test_who_publishes_too_much_is_not_read_for_a_while(
    hub: StreamingConnectionManager,
) -> None:
    stream_id = await opened(hub, durability="memory")
    who = await authority(hub, token(stream_id, "sub", "pub"), record_rate=100.0)
    async with talk(hub, stream_id, PROTOCOL, who=who) as client:
        await client.heard("welcome")
        client.send(*(record(n) for n in range(203)))
        await client.all_heard("published", "throttle")
        assert not client.link.reading
        async with asyncio.timeout(5):
            while not client.link.reading:
                await asyncio.sleep(0.005)
        assert (await hub.lane(stream_id)).chunks == 203


# -- the subprotocol: who it is


async def test_a_stranger_says_hello(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    nobody = await authority(hub, loopback=False)
    async with talk(hub, stream_id, PROTOCOL, who=nobody) as client:
        hello = {"type": "hello", "token": token(stream_id, "sub")}
        subscribe = {"type": "subscribe", "id": stream_id, "from": "start"}
        client.send(json.dumps(hello), json.dumps(subscribe))
        await client.all_heard("welcome", "subscribed", "stream_start")
        client.say("hello", token=token(stream_id, "sub", "pub"))
        client.send(record(1))
        await client.all_heard("stream_data", "published")


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "subscribe", "id": "x"}',
        '{"type": "hello"}',
        '{"type": "hello", "token": "v1.a.b"}',
        '{"data": 1}',
    ],
)
async def test_who_says_something_else_goes(hub: StreamingConnectionManager, text: str) -> None:
    stream_id = await opened(hub)
    nobody = await authority(hub, loopback=False)
    async with talk(hub, stream_id, PROTOCOL, who=nobody) as client:
        client.send(text)
        assert await client.closed() == 4101
        assert client.link.said.empty()
    assert (await hub.lane(stream_id)).chunks == 0


async def test_a_stranger_has_five_seconds(hub: StreamingConnectionManager) -> None:
    nobody = await authority(hub, loopback=False)
    now = asyncio.get_running_loop().time()
    async with talk(hub, await opened(hub), PROTOCOL, who=nobody) as client:
        client.tick(now + 4)
        assert not client.link.closed.done()
        client.tick(now + 6)
        assert await client.closed() == 4101


async def test_a_token_is_renewed_in_band(hub: StreamingConnectionManager) -> None:
    stream_id, now = await opened(hub), time.time()
    who = await authority(hub, token(stream_id, "pub", expires=now + 50))
    async with talk(hub, stream_id, PROTOCOL, who=who) as client:
        await client.heard("welcome")
        client.say("subscribe", id=stream_id)
        assert (await client.heard("error"))["close"] == 4103
        client.say("auth", token=token(stream_id, "sub", expires=now + 500))
        assert (await client.heard("auth"))["expires"] == int(now + 500)
        client.tick(1, wall=now + 60)
        await follow(client, stream_id)
        client.say("auth", token="v1.a.b")
        while (message := await client.next())["type"] != "error":
            pass
        assert message["close"] == 4101
        client.tick(2, wall=now + 501)
        assert await client.closed() == 4003


async def test_one_who_leaves_leaves_nothing(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as client:
        await client.heard("welcome")
        await follow(client, stream_id)
        assert hub.statistics().subscriptions == 1
        assert client.connections.statistics().open == {"msp": 1}
    assert hub.statistics().subscriptions == 0
    assert client.connections.statistics().open == {}
    assert (await hub.lane(stream_id)).state == "open"


# -- anything

_BITS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40),
    st.builds(
        lambda kind, more: json.dumps({"type": kind, **more}),
        st.sampled_from(
            [
                "subscribe",
                "credit",
                "ack",
                "cancel",
                "publish",
                "hello",
                "auth",
                "stream_start",
                "x",
            ]
        ),
        st.dictionaries(
            st.sampled_from(["id", "from", "max_bytes", "cursor", "producer", "token", "rate"]),
            st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers())),
        ),
    ),
)


@settings(deadline=None, max_examples=200)
@given(said=st.lists(_BITS, min_size=1, max_size=4))
def test_anything_is_answered_and_changes_nothing(said: list[str | bytes]) -> None:
    """Text is UTF-8 when it comes to a conversation; a plain client's bytes are a record."""

    async def scenario() -> None:
        hub = await open_hub(None)
        stream_id = await opened(hub)
        async with talk(hub, stream_id, PROTOCOL) as client:
            client.send(
                *(s if isinstance(s, bytes) else s.encode(errors="ignore").decode() for s in said)
            )
            await client.heard("welcome") if not client.link.closed.done() else None
            client.send("no JSON")
            assert await client.closed() in (4100, 4101, 4113)  # 4101: hello with a bad token
            while not client.link.said.empty():
                told = await client.next()
                assert told["type"] in ("error", "auth", "pong", "welcome"), told
                assert told.get("close", 4100) in (4100, 4101, 4103, 4104, 4109, 4113)
        assert (await hub.lane(stream_id)).head == 1
        await hub.aclose()

    asyncio.run(scenario())


async def test_a_visitor_does_not_hold_a_run_back(hub: StreamingConnectionManager) -> None:
    own = await opened(hub, run_id="rn_1")
    guest = await opened(hub, run_id="rn_1", node_id="guest", external=True)
    async with talk(hub, own, PROTOCOL) as client:
        await client.heard("welcome")
        client.say("subscribe", id=own, policy="block")
        assert (await client.heard("error"))["code"] == "STREAM_FORBIDDEN"
        client.say("subscribe", id=guest, policy="block")
        await client.heard("subscribed")
