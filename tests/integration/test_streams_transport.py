"""What carries streams: the hooks of uvicorn and picows, frames, TLS, kept connections, the end.

Everything that both transports promise is played on both, and on both event loops.
"""

import asyncio
import inspect
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
import uvicorn
import uvloop
from picows import picows
from tests.support.streams_server import SseReader, make_streams, stream_server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.asyncio.client import connect

from mentatlab.conformance.clients import WebSocket, closed
from mentatlab.conformance.frames import websocket_frame
from mentatlab.gateway.server import Tls, Transport
from mentatlab.gateway.stream_frames import MAX_MESSAGE_BYTES
from mentatlab.gateway.stream_picows import READ_BYTES
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.records import data_draft
from mentatlab.streams import StreamingConnectionManager, StreamSession, open_hub

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0
RECORD = b'{"payload":{"data":1}}'
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run it to its end, on either loop."""

    def run(story: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story, 30))

    return run


@pytest.fixture(params=["picows", "portable"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


Play = Callable[[Coroutine[Any, Any, None]], None]
Story = Callable[[StreamingConnectionManager, StreamSession, int], Awaitable[None]]


async def served(transport: Transport, story: Story, **timing: float) -> None:
    """The story on a server with one memory lane."""
    hub = await open_hub(None)
    async with stream_server(hub, transport=transport, **timing) as port:
        lane = await hub.create_stream("a", "p", durability="memory", external=True)
        await story(hub, lane, port)
    await hub.aclose()


def at(lane: StreamSession, port: int, query: str = "?from=start") -> str:
    return f"http://127.0.0.1:{port}/ws/streams/{lane.stream_id}{query}"


async def record(socket: WebSocket) -> Any:
    message = await socket.next()
    return message.get("payload", {}).get("data", message)


# ---------------------------------------------------------------------- the hooks


def test_uvicorn_still_hands_upgrades_over_as_we_take_them() -> None:
    """`ws=` gets three keywords; then come connection_made, data_received, set_protocol."""
    source = inspect.getsource(HttpToolsProtocol.handle_websocket_upgrade)
    steps = [
        "config=self.config",
        "server_state=self.server_state",
        "app_state=self.app_state",
        "protocol.connection_made(self.transport)",
        'protocol.data_received(b"".join(output))',
        "self.transport.set_protocol(protocol)",
    ]
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
    assert uvicorn.__version__.startswith("0.54.")


def test_uvicorn_still_parses_requests_as_we_look_at_them() -> None:
    """The `http=` class: what `_Http` overrides and reads is there."""
    for name in ("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_url"):
        assert name in vars(HttpToolsProtocol)
    attributes = inspect.getsource(HttpToolsProtocol.__init__)
    for name in ("self.cycle", "self.parser", "self.headers", "self.connections", "self.transport"):
        assert name in attributes
    assert "response_complete" in inspect.getsource(HttpToolsProtocol.on_message_complete)


async def test_picows_still_shakes_hands_and_parses_through_its_buffer() -> None:
    """A request is fed by get_buffer and buffer_updated; frames come to the listener, in order, the
    last of a read marked; a fault is told by `is_close_frame_sent`."""
    heard: list[tuple[int, bytes, bool]] = []

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            heard.append((frame.msg_type, frame.get_payload_as_bytes(), frame.last_in_buffer))

    made: list[Any] = []

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            made.append(transport)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Bare, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not made:
            await asyncio.sleep(0)

        protocol: Any = picows.WSProtocol(
            None, None, False, lambda _: Listener(), logging.LoggerAdapter(logging.getLogger()),
            True, None, False, 0, 0, picows.WSAutoPingStrategy.PING_WHEN_IDLE, False, 1000, None, 0,
        )  # fmt: skip
        protocol.connection_made(made[0])

        def feed(data: bytes) -> None:
            protocol.get_buffer(-1)[: len(data)] = data
            protocol.buffer_updated(len(data))

        feed(
            b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 1.3
        assert len(protocol.get_buffer(-1)) < 2048
        feed(websocket_frame(TEXT, b"a") + websocket_frame(BINARY, b"b", fin=False))
        assert heard == [(TEXT, b"a", False), (BINARY, b"b", True)]
        assert not protocol.transport.is_close_frame_sent
        feed(websocket_frame(TEXT, b"", length=1001))
        assert protocol.transport.is_close_frame_sent
        assert (await reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")
        writer.close()
        protocol.connection_lost(None)
        made[0].abort()


def test_picows_is_taken_when_it_is_there(play: Play) -> None:
    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        async with connect(at(lane, port).replace("http", "ws")) as socket:
            assert "Date" not in socket.response.headers  # picows answered

    play(served("auto", story))


# ---------------------------------------------------------------------- frames


def test_messages_go_both_ways(play: Play, transport: Transport) -> None:
    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        socket = await WebSocket.open(at(lane, port), {"Connection": "keep-alive, Upgrade"})
        assert (await socket.next())["type"] == "stream_start"
        socket.send(TEXT, RECORD)
        assert await record(socket) == 1
        big = b'{"payload":{"data":"%b"}}' % ("ä" * 300_000).encode()
        socket.send(TEXT, big)
        assert await record(socket) == "ä" * 300_000
        socket.send(PING, b"here?")
        assert await socket.next() == {"websocket_pong": "here?"}
        socket.send(CLOSE, (1000).to_bytes(2, "big") + b"bye")
        assert (await socket.next())["closed"]["code"] == 1000
        await socket.cut()

    play(served(transport, story))


def test_fragments_are_one_message(play: Play, transport: Transport) -> None:
    """A character may be cut in two, and control frames may come between."""

    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        socket = await WebSocket.open(at(lane, port), {})
        await socket.next()
        text = '{"payload":{"data":"ä"}}'.encode()
        cut = text.index("ä".encode()) + 1
        socket.write(
            websocket_frame(TEXT, text[:cut], fin=False)
            + websocket_frame(PING, b"between")
            + websocket_frame(CONTINUATION, b"", fin=False)
            + websocket_frame(CONTINUATION, text[cut:])
        )
        assert await socket.next() == {"websocket_pong": "between"}
        assert await record(socket) == "ä"
        await socket.cut()

    play(served(transport, story))


@pytest.mark.parametrize(
    ("frames", "codes"),
    [
        ([websocket_frame(TEXT, RECORD, rsv=4)], {1002}),
        ([websocket_frame(TEXT, RECORD, mask=False)], {1002}),
        ([websocket_frame(3, b"")], {1002}),
        ([websocket_frame(PING, b"", fin=False)], {1002}),
        ([websocket_frame(PING, b"x" * 126)], {1002}),
        ([websocket_frame(CONTINUATION, RECORD)], {1002}),
        ([websocket_frame(TEXT, b"{", fin=False), websocket_frame(TEXT, RECORD)], {1002}),
        ([websocket_frame(TEXT, b"\xff")], {1007}),
        ([websocket_frame(TEXT, b"\xc3", fin=False), websocket_frame(0, b"x")], {1007}),
        ([websocket_frame(CLOSE, b"\x03")], {1002}),
        ([websocket_frame(CLOSE, b"\x03\xe8\xff")], {1007, 1002}),
        ([websocket_frame(TEXT, b"", length=MAX_MESSAGE_BYTES + 1)], {1009}),
        (
            [websocket_frame(TEXT, b"x" * (1 << 20), fin=False)]
            + [websocket_frame(0, b"x" * (1 << 20), fin=False)] * 2,
            {1009},
        ),
    ],
)
def test_faults_have_their_codes(
    play: Play, transport: Transport, frames: list[bytes], codes: set[int]
) -> None:
    """And what came before them is published."""

    async def story(hub: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        socket = await WebSocket.open(at(lane, port), {})
        await socket.next()
        socket.send(TEXT, RECORD)
        assert await record(socket) == 1
        for frame in frames:
            socket.write(frame)
        end = await socket.next()
        assert end["closed"]["code"] in codes
        assert (await hub.lane(lane.stream_id)).chunks == 1
        await socket.cut()

    play(served(transport, story))


@pytest.mark.parametrize(
    ("path", "headers", "statuses"),
    [
        ("/ws/streams/x", {"Sec-WebSocket-Version": "8"}, {400, 426}),
        ("/ws/streams/x", {"Sec-WebSocket-Key": "short"}, {400}),
        ("/ws/streams/x", {"Sec-WebSocket-Key": ""}, {400, 426}),
        ("/ws/other", {}, {404, 403}),
        ("/ws/streams/x", {"Host": "evil.example"}, {403}),
        ("/ws/streams/x", {"Origin": "https://evil.example"}, {403}),
        ("/ws/streams/x", {"Authorization": "Bearer v1.x.y"}, {401}),
        ("/ws/streams/x", {"Authorization": "Basic x"}, {401}),
        ("/ws/streams/x?ticket=none", {}, {401}),
    ],
)
def test_refusals_are_answers_before_the_upgrade(
    play: Play, transport: Transport, path: str, headers: dict[str, str], statuses: set[int]
) -> None:
    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        socket = await WebSocket.open(f"http://127.0.0.1:{port}{path}", headers)
        assert socket.status in statuses
        assert await socket.next() == closed(1006)
        await socket.cut()

    play(served(transport, story))


# ---------------------------------------------------------------------- kept connections, the end


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, more: str = ""
) -> bytes:
    """One request on a connection that stays; the answer's head."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("upgrade", [True, False])
def test_a_kept_connection_is_handed_over(play: Play, transport: Transport, upgrade: bool) -> None:
    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _i in range(2):
            head = await _request(reader, writer, f"/api/v1/streams/{lane.stream_id}")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(size)
        if upgrade:
            more = (
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            )
            head = await _request(reader, writer, f"/ws/streams/{lane.stream_id}", more)
            assert head.startswith(b"HTTP/1.1 101 ")
        else:
            head = await _request(reader, writer, f"/api/v1/streams/{lane.stream_id}/sse")
            assert head.startswith(b"HTTP/1.1 200 ")
        assert b"stream_start" in await reader.readuntil(b'"attempt":1}')
        writer.close()

    play(served(transport, story))


def test_a_pipelined_sse_request_waits_for_its_turn(play: Play, transport: Transport) -> None:
    async def story(_: StreamingConnectionManager, lane: StreamSession, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        look = f"GET /api/v1/streams/{lane.stream_id}"
        writer.write(
            f"{look} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            f"{look}/sse HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).lower().count(b"application/json") == 1
        assert b"text/event-stream" in await reader.readuntil(b"hello")
        writer.close()

    play(served(transport, story))


def test_the_end_of_the_server_is_told_and_readers_resume(play: Play, transport: Transport) -> None:
    async def story() -> None:
        hub = await open_hub(None)
        async with stream_server(hub, transport=transport) as port:
            lane = await hub.create_stream("a", "p", durability="memory", external=True)
            socket = await WebSocket.open(at(lane, port), {})
            await socket.next()
            events = await SseReader.open(port, f"/api/v1/streams/{lane.stream_id}/sse")
            for name in ("hello", "stream_start"):
                assert ((await events.event()) or [""])[0] == name
        assert (await socket.next())["closed"]["code"] == 1012
        assert await events.event() is None
        await socket.cut()
        await hub.aclose()

    play(story())


def test_who_takes_nothing_makes_little_wait(play: Play, transport: Transport) -> None:
    """However much is published: the rest is in the log, and goes on from there."""

    async def story() -> None:
        hub = await open_hub(None)
        streams = make_streams(hub, stall_s=60)
        async with stream_server(hub, transport=transport, streams=streams) as port:
            lane = await hub.create_stream("a", "p", durability="memory", external=True)
            socket = await WebSocket.open(at(lane, port), {}, window=4096)
            events = await SseReader.open(port, f"/api/v1/streams/{lane.stream_id}/sse")
            await socket.next()
            most = 0
            for _ in range(60):  # 18 MB: more than kernels hold for two connections
                await hub.publish(lane.stream_id, [data_draft("x" * 60_000) for _ in range(5)])
                await asyncio.sleep(0)
                most = max(most, streams.connections.statistics().most_held)
            assert 0 < most <= 256 * 1024
            await hub.end_stream(lane.stream_id)
            for number in range(2, 302):
                assert (await socket.next())["sequence"] == number
            found = [name for name, *_ in await events.events()]
            assert found.count("stream_data") == 300
            await socket.cut()
        await hub.aclose()

    play(story())


# ---------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Tls:
    found = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(found.key)
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(found.certificate, append=number > 0)
    return found


def test_everything_works_over_tls(
    play: Play, transport: Transport, authority: trustme.CA, tls: Tls
) -> None:
    async def story() -> None:
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        hub = await open_hub(None)
        async with (
            stream_server(hub, transport=transport, tls=tls) as port,
            httpx2.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust) as http,
        ):
            body = {"agent_id": "a", "pin_name": "p", "durability": "memory"}
            opened = (await http.post("/api/v1/streams/init", json=body)).json()
            url = f"wss://127.0.0.1:{port}{opened['ws_url']}?from=start"
            async with connect(url, ssl=trust) as socket:
                await socket.recv()
                large = "x" * 200_000
                await socket.send(json.dumps({"payload": {"data": large}}))
                assert json.loads(await socket.recv())["payload"]["data"] == large
                await socket.send('{"type":"stream_end"}')
                await socket.recv()
            plain = {"Accept-Encoding": "identity"}
            answer = await http.get(opened["sse_url"], headers=plain)
            assert answer.status_code == 200
            assert [line for line in answer.text.split("\n") if line.startswith("event")] == [
                "event: hello", "event: stream_start", "event: stream_data", "event: stream_end",
            ]  # fmt: skip
        await hub.aclose()

    play(story())


async def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate")
    hub = await open_hub(None)
    with pytest.raises(Invalid) as raised:
        async with stream_server(hub, tls=Tls(tmp_path / "x", tmp_path / "x")):
            raise AssertionError
    assert raised.value.code is Code.BAD_SETTING
    await hub.aclose()


def test_reads_are_bounded() -> None:
    assert READ_BYTES <= 128 * 1024
