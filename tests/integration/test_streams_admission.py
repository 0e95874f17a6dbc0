"""Every refusal on every edge of every transport, through real sockets: one table."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.support.guarded_server import (
    ELSEWHERE,
    HOME_KEY,
    NEVER,
    TOKEN_SECRET,
    Guarded,
    bearer,
    claims,
    guarded,
    ticket,
    token,
)

from mentatlab.gateway.server import Transport
from mentatlab.protocol.tokens import mint
from mentatlab.streams import StreamingConnectionManager, open_hub

EDGES = {
    "http": "/api/v1/streams/{id}",
    "log": "/api/v1/streams/{id}/log",
    "sse": "/api/v1/streams/{id}/sse",
    "ws": "/ws/streams/{id}",
    "msp": "/ws/streams/{id}",
}
Headers = Mapping[str, str]


class Answer(NamedTuple):
    """Of an HTTP answer its status and its problem's code; of a WebSocket 101 and how it closed."""

    status: int
    code: str
    headers: Headers = {}


async def ask(server: Guarded, edge: str, path: str, headers: Headers) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        said = {"Host": f"127.0.0.1:{server.port}", **_UPGRADE[edge], **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items() if value)
        writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        return await asyncio.wait_for(_answer(reader), 10)
    finally:
        writer.close()


_HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}
_UPGRADE: dict[str, dict[str, str]] = {
    "http": {},
    "log": {},
    "sse": {},
    "ws": _HANDSHAKE,
    "msp": {**_HANDSHAKE, "Sec-WebSocket-Protocol": "msp.v1+json"},
}


async def _answer(reader: asyncio.StreamReader) -> Answer:
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    status = int(status_line.split()[1])
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if status == 101:
        return Answer(101, await _how_it_closed(reader), headers)
    if "content-length" not in headers:
        return Answer(status, "", headers)
    body = await reader.readexactly(int(headers["content-length"]))
    is_problem = headers.get("content-type") == "application/problem+json"
    return Answer(status, json.loads(body)["code"] if is_problem else "", headers)


async def _how_it_closed(reader: asyncio.StreamReader) -> str:
    """The reason's code behind the close code, or "open" when something else comes first."""
    first, size = await reader.readexactly(2)
    if first != 0x88:
        return "open"
    body = await reader.readexactly(size)
    return f"{int.from_bytes(body[:2])} {body[2:].decode().partition(':')[0]}"


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


class Case(NamedTuple):
    """`expected` of HTTP, log, SSE and of a WebSocket's handshake; `closed` where a WebSocket is
    opened and then closed with that. `rules`: what is other than on a loopback server."""

    name: str
    expected: tuple[int, str]
    headers: Callable[[str], Headers] = lambda _: {}
    query: Callable[[str], str] = lambda _: ""
    closed: str = ""
    rules: Mapping[str, Any] = {}
    unknown: bool = False  # another id than the stream's
    only: tuple[str, ...] = tuple(EDGES)


CASES = [
    Case("foreign host", (403, "FORBIDDEN_HOST"), lambda _: {"Host": "evil.example"}),
    Case("no host", (403, "FORBIDDEN_HOST"), lambda _: {"Host": ""}),
    Case("broken host", (403, "FORBIDDEN_HOST"), lambda _: {"Host": "[broken"}),
    Case("foreign page", (403, "FORBIDDEN_HOST"), lambda _: {"Origin": "https://evil.example"}),
    Case("page of nowhere", (403, "FORBIDDEN_HOST"), lambda _: {"Origin": "null"}),
    Case("basic", (401, "UNAUTHENTICATED"), lambda _: {"Authorization": "Basic dTpw"}),
    Case("bearer of nothing", (401, "UNAUTHENTICATED"), lambda _: {"Authorization": "Bearer "}),
    Case("unknown key", (401, "UNAUTHENTICATED"), lambda _: bearer("ml_unknown")),
    Case("key of no ASCII", (401, "UNAUTHENTICATED"), lambda _: bearer("ml_\xfc")),
    Case("no token", (401, "TOKEN_INVALID"), lambda _: bearer("v1.a.b")),
    Case("token that ended", (401, "TOKEN_INVALID"), lambda id_: token(id_, "sub", seconds=-1)),
    Case("ticket as a key", (401, "UNAUTHENTICATED"), lambda id_: bearer(ticket(id_))),
    Case(
        "lookup that takes too long", (503, "UNAVAILABLE"), lambda _: bearer(NEVER)
    ),
    Case("token in the address", (401, "UNAUTHENTICATED"), query=lambda _: "token=v1.a.b"),
    Case("key in the address", (401, "UNAUTHENTICATED"), query=lambda _: f"from=1&key={HOME_KEY}"),
    Case("no ticket", (401, "TOKEN_INVALID"), query=lambda _: "ticket=t1.a.b",
         only=("log", "sse", "ws", "msp")),
    Case("empty ticket", (401, "TOKEN_INVALID"), query=lambda _: "ticket=",
         only=("log", "sse", "ws", "msp")),
    Case("ticket that ended", (401, "TOKEN_INVALID"),
         query=lambda id_: f"ticket={ticket(id_, seconds=-1)}", only=("log", "sse", "ws", "msp")),
    Case("ticket of another stream", (403, "STREAM_FORBIDDEN"),
         query=lambda _: f"ticket={ticket('st_other')}", closed="4103 STREAM_FORBIDDEN",
         only=("log", "sse", "ws", "msp")),
    Case("long query", (414, "URI_TOO_LONG"), query=lambda _: "x=" + "y" * 5000),
    Case("many headers", (431, "HEADERS_TOO_LARGE"),
         lambda _: {f"X-{n}": "x" for n in range(120)}),
    Case("long headers", (431, "HEADERS_TOO_LARGE"),
         lambda _: {f"X-{n}": "x" * 10_000 for n in range(7)}),
    Case("too many requests", (429, "RATE_LIMITED"), lambda _: bearer(HOME_KEY),
         rules={"rate": 0.001, "burst": 0.5}),
    Case("too many requests of a key", (429, "RATE_LIMITED"), lambda _: bearer("ml_reader_key"),
         rules={"rate": 0.001, "burst": 0.5}),
    Case("too many requests of a token", (429, "RATE_LIMITED"), lambda id_: token(id_, "sub"),
         rules={"rate": 0.001, "burst": 0.5}),
    Case("streaming is off", (403, "FEATURE_DISABLED"), rules={"streaming": False}),
    Case("nobody", (401, "UNAUTHENTICATED"), rules=ELSEWHERE, closed="4101 UNAUTHENTICATED",
         only=("http", "log", "sse", "ws")),
    Case("nobody asks for nothing", (401, "UNAUTHENTICATED"), rules=ELSEWHERE, unknown=True,
         closed="4101 UNAUTHENTICATED", only=("http", "log", "sse", "ws")),
    Case("key without the scope", (403, "FORBIDDEN"), lambda _: bearer("ml_writer_key"),
         only=("http", "log", "sse")),
    Case("unknown stream", (404, "STREAM_UNKNOWN"), unknown=True, closed="4104 STREAM_UNKNOWN"),
    Case("foreign stream", (404, "STREAM_UNKNOWN"), lambda _: bearer("ml_foreign_key"),
         closed="4104 STREAM_UNKNOWN"),
    Case("token of another workspace", (404, "STREAM_UNKNOWN"),
         lambda id_: token(id_, "sub", workspace="theirs"), closed="4104 STREAM_UNKNOWN"),
    Case("token of another stream", (403, "STREAM_FORBIDDEN"), lambda _: token("st_other", "sub"),
         closed="4103 STREAM_FORBIDDEN"),
    Case("token to publish", (403, "STREAM_FORBIDDEN"), lambda id_: token(id_, "pub"),
         only=("http", "log", "sse")),
]  # fmt: skip


@pytest.mark.parametrize("transport", ["picows", "portable"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
async def test_refused_on_every_edge(
    hub: StreamingConnectionManager, transport: Transport, case: Case,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "mentatlab.access")
    lane = (await hub.create_stream("a", "b", external=True)).lane
    async with guarded(hub, transport, **case.rules) as server:
        for edge in case.only:
            path = EDGES[edge].format(id="st_unknown" if case.unknown else lane.stream_id)
            query = case.query(lane.stream_id)
            caplog.clear()
            answer = await ask(
                server, edge, f"{path}?{query}" if query else path, case.headers(lane.stream_id)
            )
            if case.closed and edge in ("ws", "msp"):
                assert (answer.status, answer.code) == (101, case.closed), edge
            else:
                assert (answer.status, answer.code) == case.expected, edge
                _check_headers(answer)
                if case.name != "long headers":  # its path was not read to the end
                    told = [r.getMessage() for r in caplog.records if r.name == "mentatlab.access"]
                    assert len(told) == 1, edge
                    assert f" {path} {answer.status} " in told[0]
                    assert server.admission.book.requests[_edge(edge), answer.status] >= 1
    assert (await hub.lane(lane.stream_id)).head == 1


def _edge(name: str) -> Any:
    return {"msp": "ws", "log": "http"}.get(name, name)


def _check_headers(answer: Answer) -> None:
    assert ("www-authenticate" in answer.headers) == (answer.status == 401)
    assert ("retry-after" in answer.headers) == (answer.status in (429, 503))


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("transport", ["picows", "portable"])
async def test_long_paths_on_every_edge(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    async with guarded(hub, transport) as server:
        for edge, path in EDGES.items():
            answer = await ask(server, edge, path.format(id="x" * 3000), {})
            assert (answer.status, answer.code) == (414, "URI_TOO_LONG"), edge


@pytest.mark.parametrize("transport", ["picows", "portable"])
async def test_paths_that_are_no_text_on_every_edge(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    async with guarded(hub, transport) as server:
        for edge, path in EDGES.items():
            for id_ in ("st_%00", "st_%ED%A0%80"):
                answer = await ask(server, edge, path.format(id=id_), {})
                assert (answer.status, answer.code) == (422, "INVALID_TEXT"), edge


@pytest.mark.parametrize("transport", ["picows", "portable"])
async def test_who_may_comes_in_on_every_edge(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    """By each carrier; and the access log never has the query, where a ticket stands."""
    id_ = (await hub.create_stream("a", "b", external=True)).stream_id
    await hub.end_stream(id_)
    async with guarded(hub, transport, **ELSEWHERE) as server:
        for edge, path in EDGES.items():
            for headers in (token(id_, "sub"), bearer(HOME_KEY), bearer("ml_reader_key")):
                answer = await ask(server, edge, path.format(id=id_), headers)
                assert answer.status == (101 if edge in ("ws", "msp") else 200), edge
        for edge in ("ws", "msp"):
            offered = _UPGRADE[edge].get("Sec-WebSocket-Protocol")
            ours = f"bearer.{mint(claims(id_, 'sub'), TOKEN_SECRET)}"
            protocols = ours if offered is None else f"{offered}, {ours}"
            answer = await ask(server, edge, EDGES[edge].format(id=id_),
                                      {"Sec-WebSocket-Protocol": protocols})  # fmt: skip
            assert answer.status == 101
            assert answer.headers.get("sec-websocket-protocol") == offered


@pytest.mark.parametrize("transport", ["picows", "portable"])
@pytest.mark.parametrize("edge", ["log", "sse", "ws", "msp"])
async def test_a_ticket_opens_each_edge_once(
    hub: StreamingConnectionManager, transport: Transport, edge: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "mentatlab.access")
    id_ = (await hub.create_stream("a", "b", external=True)).stream_id
    await hub.end_stream(id_)
    async with guarded(hub, transport, **ELSEWHERE) as server:
        given = ticket(id_)
        path = f"{EDGES[edge].format(id=id_)}?from=1&ticket={given}"
        first, again = [await ask(server, edge, path, {}) for _ in range(2)]
    assert first.status == (101 if edge in ("ws", "msp") else 200)
    assert (again.status, again.code) == (401, "TOKEN_INVALID")
    assert given not in caplog.text


async def test_published_records_have_a_rate(hub: StreamingConnectionManager) -> None:
    """Whoever has published too many waits, and nothing of what is refused is appended."""
    id_ = (await hub.create_stream("a", "b", external=True)).stream_id
    async with guarded(hub, "auto", record_rate=1, burst=1000) as server:
        url = f"http://127.0.0.1:{server.port}/api/v1/streams/{id_}/records"
        async with httpx2.AsyncClient(headers=bearer(HOME_KEY)) as http:
            assert (await http.post(url, json=[{"data": n} for n in range(50)])).status_code == 200
            refused = await http.post(url, json={"data": 51})
        assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
        assert 40 < int(refused.headers["retry-after"]) <= 50
        async with httpx2.AsyncClient() as user:
            assert (await user.post(url, json={"data": 51})).status_code == 200
    assert (await hub.lane(id_)).head == 52
