"""The servers that are measured, and how a client speaks to each."""

import http.client
import json
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.support.server import up

from benchmarks.cores import CORES, SERVER
from benchmarks.peers import fetch, servers
from benchmarks.peers.servers import Server
from benchmarks.streams_peers.drive import Plan
from benchmarks.streams_peers.wire import (
    BINARY,
    Channel,
    Dialogue,
    Step,
    frame,
    get,
    record,
    say,
    upgrade,
)

SIZE = 256  # bytes of a message's own text
MSP = "msp.v1+json"
BOUNDLESS = 1 << 50  # bytes of credit
Channels = Callable[[int, int], list[Channel]]
Kind = Literal["ws", "sse"]
Client = Literal["plain", "msp", "sse"]


class Running(NamedTuple):
    pid: int
    port: int
    channels: Channels
    """Makes so many streams with so many subscribers each."""


class Hub(NamedTuple):
    name: str
    start: Callable[[], AbstractContextManager[Running]]


OURS = "MentatLab"
CPLUSPLUS = "uWebSockets.js (C++)"
BARE = "bare picows"
"""The least that a hub in Python costs."""


def ours(client: Client, *, durability: str = "memory") -> Hub:
    """A real `mentatlab up`, read by `client`. `plain` publishes as the peers' publishers do,
    without acknowledgements (a token that may only publish gets nothing back); all else by msp."""
    return Hub(f"{OURS}, {client}", partial(_ours, client, durability))


def peers(kind: Kind, plan: Plan, troubles: dict[str, str]) -> list[Hub]:
    """Those that can be had; why the others cannot is added to `troubles`."""
    if plan.alone:
        return []
    websocket = partial(hub_channels, kind)
    known = [
        ("FastAPI", fetch.fastapi, servers.hub, websocket),
        ("aiohttp", fetch.aiohttp, servers.hub, websocket),
        ("Node ws" if kind == "ws" else "Node http", fetch.ws, servers.hub, websocket),
        (CPLUSPLUS, fetch.uwebsockets, servers.hub, websocket),
    ]
    if kind == "ws":
        known += [
            (BARE, fetch.picows, servers.hub, websocket),
            ("NATS, no JSON", fetch.nats, servers.nats, _nats_channels),
            ("Redis, no JSON, no WS", fetch.redis, servers.redis, _redis_channels),
        ]
    found: list[Hub] = []
    for name, command, start, channels in known:
        try:
            found.append(Hub(name, partial(_peer, start, command(), channels)))
        except fetch.PeerMissingError as error:
            troubles[name] = f"cannot be had: {error}"
    return found


@contextmanager
def _peer(
    start: Callable[[list[str], int], AbstractContextManager[Server]],
    command: list[str],
    channels: Channels,
) -> Generator[Running]:
    with start(command, CORES[0]) as server:
        yield Running(server.pid, server.port, channels)


@contextmanager
def _ours(client: Client, durability: str) -> Generator[Running]:
    with (
        tempfile.TemporaryDirectory() as home,
        up(Path(home), env={"MENTATLAB_RATE": "0"}, within=SERVER) as server,
    ):
        port = int(server.url.rpartition(":")[2])
        channels = partial(_our_channels, port, client, durability)
        yield Running(server.process.pid, port, channels)


def _our_channels(
    port: int, client: Client, durability: str, streams: int, readers: int
) -> list[Channel]:
    message, made = frame(record(SIZE)), list[Channel]()
    for opened in _opened(port, streams, durability):
        id_, token = opened["stream_id"], opened["pub_token"]
        publisher = _plain_publisher(id_, token) if client == "plain" else msp(id_)
        made.append(Channel(publisher, [reader(id_, client)] * readers, message))
    return made


def _plain_publisher(stream: str, token: str) -> Dialogue:
    return [Step(upgrade(f"/ws/streams/{stream}", bearer=token), b"101 Switching Protocols")]


def init(port: int, streams: int, durability: str, **more: Any) -> list[str]:
    """Their ids."""
    return [opened["stream_id"] for opened in _opened(port, streams, durability, **more)]


def _opened(port: int, streams: int, durability: str, **more: Any) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    answers: list[dict[str, Any]] = []
    for number in range(streams):
        body = {"agent_id": "bench", "pin_name": f"out{number}", "durability": durability, **more}
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/api/v1/streams/init", json.dumps(body), head)
        answer = connection.getresponse()
        if answer.status not in (200, 201):
            raise RuntimeError(f"init: {answer.status} {answer.read().decode()}")
        answers.append(json.load(answer))
    connection.close()
    return answers


def msp(stream: str, *more: Step) -> Dialogue:
    hello = Step(upgrade(f"/ws/streams/{stream}", protocol=MSP), b'"welcome"')
    return [hello, *more]


def reader(stream: str, client: Client) -> Dialogue:
    match client:
        case "plain":
            return [Step(upgrade(f"/ws/streams/{stream}"), b'"stream_start"')]
        case "sse":
            return [Step(get(f"/api/v1/streams/{stream}/sse"), b"event: stream_start")]
        case "msp":
            return msp(stream, subscription(stream))


def subscription(stream: str) -> Step:
    return Step(say(type="subscribe", id=stream, max_bytes=BOUNDLESS), b'"subscribed"')


def hub_channels(kind: Kind, streams: int, readers: int) -> list[Channel]:
    message = frame(record(SIZE))
    switched = b"101 Switching Protocols"
    made: list[Channel] = []
    for number in range(streams):
        socket = Step(upgrade(f"/sub/s{number}"), switched)
        events = Step(get(f"/sse/s{number}"), b"retry: 1500")
        publisher = [Step(upgrade(f"/pub/s{number}"), switched)]
        reader = [socket if kind == "ws" else events]
        made.append(Channel(publisher, [reader] * readers, message))
    return made


def _nats_channels(streams: int, readers: int) -> list[Channel]:
    hello = Step(upgrade("/"), b"INFO")
    connect = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
    publisher = [hello, Step(frame(connect + b"PING\r\n", BINARY), b"PONG")]
    data = record(SIZE)
    made: list[Channel] = []
    for number in range(streams):
        subscribe = connect + b"SUB s%d 1\r\nPING\r\n" % number
        reader = [hello, Step(frame(subscribe, BINARY), b"PONG")]
        message = frame(b"PUB s%d %d\r\n%b\r\n" % (number, len(data), data), BINARY)
        made.append(Channel(publisher, [reader] * readers, message))
    return made


def _redis_channels(streams: int, readers: int) -> list[Channel]:
    data = record(SIZE)
    made: list[Channel] = []
    for number in range(streams):
        name = b"s%d" % number
        reader = [Step(b"SUBSCRIBE %b\r\n" % name, b":1\r\n")]
        words = [b"PUBLISH", name, data]
        message = b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)
        made.append(Channel([Step(b"PING\r\n", b"PONG")], [reader] * readers, message))
    return made
