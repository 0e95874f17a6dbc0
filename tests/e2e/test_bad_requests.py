"""Requests that no sane client sends, to a real server:
each gets a problem document, never a 500."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW
from tests.support.api import Api, Json, flow_of, refused
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

pytestmark = pytest.mark.usefixtures("well_afterwards")

JSON = {"Content-Type": "application/json"}
TOO_MUCH = 9 << 20
BODIES = {
    "nothing": b"",
    "cut off": b'{"flow": {"kind": ',
    "not utf-8": b'{"flow": "\xff\xfe"}',
    "a list": b"[1, 2]",
    "a text": b'"flow"',
    "null": b"null",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "half a surrogate": b'{"flow": "\\ud800", "agent_id": "\\ud800", "scopes": []}',
    "huge number": b'{"flow": 1' + b"0" * 5000 + b"}",
    "nul": b'{"flow": "\\u0000", "scopes": []}',
}
CALLS = ["runs", "flows", "flows/validate", "flows/plan", "streams/init", "agents", "keys"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_not_what_they_should_be(api: Api, call: str, body: bytes):
    key = {"Authorization": f"Bearer {api.server.key}"}
    answer = api.http.post(f"/api/v1/{call}", content=body, headers={**JSON, **key})
    refused(answer, answer.status_code, answer.json()["code"])
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "image/png", ""]
)
def test_a_body_under_another_type(api: Api, kind: str):
    body = json.dumps({"flow": flow_of("test.nobody")}).encode()
    answer = api.http.post("/api/v1/runs", content=body, headers={"Content-Type": kind})
    refused(answer, 422, "INVALID_REQUEST" if kind else answer.json()["code"])
    if kind:  # as from `curl -d`
        assert "application/json" in answer.json()["hint"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_that_is_too_large(api: Api, call: str, chunked: bool):
    def pieces() -> Iterator[bytes]:
        yield b'{"flow": "'
        for _ in range(TOO_MUCH >> 16):
            yield b"x" * (1 << 16)
        yield b'"}'

    headers = {**JSON, "Authorization": f"Bearer {api.server.key}"}
    body: Any = pieces() if chunked else b"".join(pieces())
    before = api.memory()
    answer = api.http.post(f"/api/v1/{call}", content=body, headers=headers)
    refused(answer, 413, "PAYLOAD_TOO_LARGE")
    assert api.memory() < before + (64 << 20)


@pytest.mark.parametrize(
    ("inputs", "status", "code"),
    [
        ({"words": "\x00"}, 201, ""),
        ({"words": "x" * 3_000_000}, 201, ""),
        ({"words": ["a"]}, 422, "RUN_INPUT_TYPE"),
        ({"words": None}, 422, "RUN_INPUT_MISSING"),
        ({"wor/d~s": 1, "words": "x"}, 422, "RUN_INPUT_UNKNOWN"),
        ([], 422, "INVALID_REQUEST"),
    ],
    ids=["nul", "long", "list", "null", "pointer", "no object"],
)
def test_inputs_that_are_odd(api: Api, inputs: Any, status: int, code: str):
    answer = api.post("runs", {"flow": ECHO_FLOW, "inputs": inputs})
    if status == 201:
        assert answer.status_code == 201
        assert api.ended(answer.json()["run_id"])["state"] in ("succeeded", "failed")
    else:
        refused(answer, status, code)


UNKNOWN = [
    ("GET", "/nowhere", 404, "NOT_FOUND"),
    ("GET", "/api/v1/nowhere", 404, "NOT_FOUND"),
    ("GET", "/api/v1/runs/../../etc/passwd", 404, "NOT_FOUND"),
    ("GET", "/api/v1/runs/%2e%2e%2f%2e%2e%2fetc", 404, "NOT_FOUND"),
    ("GET", "/api/v1/runs/rn_nothing", 404, "RUN_NOT_FOUND"),
    ("GET", "/api/v1/runs/%00", 422, "INVALID_TEXT"),
    ("GET", "/api/v1/runs/%ED%A0%80", 422, "INVALID_TEXT"),
    ("GET", "/api/v1/runs?q=%00", 422, "INVALID_TEXT"),
    ("GET", "/api/v1/runs/" + "x" * 1000, 404, "RUN_NOT_FOUND"),
    ("GET", "/api/v1/runs/" + "x" * 5000, 414, "URI_TOO_LONG"),
    ("GET", "/api/v1/runs/rn_nothing/events", 404, "RUN_NOT_FOUND"),
    ("GET", "/api/v1/runs/rn_nothing/outputs", 404, "RUN_NOT_FOUND"),
    ("GET", "/api/v1/runs/rn_nothing/nodes/a/logs", 404, "RUN_NOT_FOUND"),
    ("POST", "/api/v1/runs/rn_nothing/cancel", 404, "RUN_NOT_FOUND"),
    ("GET", "/api/v1/flows/nothing", 404, "NOT_FOUND"),
    ("DELETE", "/api/v1/flows/nothing", 404, "NOT_FOUND"),
    ("GET", "/api/v1/agents/nobody", 404, "UNKNOWN_AGENT"),
    ("GET", "/api/v1/storage/blob_nothing", 404, "REFERENCE_NOT_FOUND"),
    ("GET", "/api/v1/storage/blob_01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "REFERENCE_NOT_FOUND"),
    ("DELETE", "/api/v1/storage/%2fetc%2fpasswd", 404, ""),
    ("GET", "/api/v1/streams/st_nothing", 404, "STREAM_UNKNOWN"),
    ("GET", "/api/v1/streams/st_nothing/sse", 404, "STREAM_UNKNOWN"),
    ("POST", "/api/v1/streams/st_nothing/records", 404, "STREAM_UNKNOWN"),
    ("DELETE", "/api/v1/runs", 405, "METHOD_NOT_ALLOWED"),
    ("PUT", "/api/v1/storage/upload", 405, "METHOD_NOT_ALLOWED"),
    ("PATCH", "/api/v1/runs", 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/api/v1/runs?limit=0", 422, "INVALID_REQUEST"),
    ("GET", "/api/v1/runs?limit=many", 422, "INVALID_REQUEST"),
    ("GET", "/api/v1/storage?limit=-1", 422, "INVALID_REQUEST"),
    ("GET", "/api/v1/keys", 403, "FORBIDDEN"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), UNKNOWN)
def test_what_is_not_there(api: Api, method: str, path: str, status: int, code: str):
    answer = raw(api, method, path)
    refused(answer, status, code or answer.json()["code"])


def raw(api: Api, method: str, path: str) -> httpx2.Response:
    """The path as it is written: no client tidies it up."""
    where = urlsplit(api.server.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return httpx2.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    finally:
        connection.close()


# --- streams


@pytest.fixture
def stream(api: Api) -> Json:
    answer = api.post("streams/init", {"agent_id": "me", "pin_name": "out"})
    return answer.raise_for_status().json()


def publish(api: Api, stream: Json, body: Any) -> httpx2.Response:
    return api.post(f"streams/{stream['stream_id']}/records", body)


@pytest.mark.parametrize("cursor", ["x", "1:2:3", "-", "--1", "time:", "9" * 40, "1:x", "%00", "١"])
def test_a_cursor_that_is_none(api: Api, stream: Json, cursor: str):
    answer = api.http.get(stream["sse_url"], params={"from": cursor})
    refused(answer, 400, "STREAM_CURSOR_INVALID")
    if cursor.isascii():
        answer = api.http.get(stream["sse_url"], headers={"Last-Event-ID": cursor})
        refused(answer, 400, "STREAM_CURSOR_INVALID")
    with ws(api, stream["ws_url"], **{"from": cursor}) as socket:
        assert closed(socket) == (4100, "STREAM_CURSOR_INVALID")


@pytest.mark.parametrize("seen", ["x", "-1", "1:1", "9" * 40])
def test_an_event_id_that_is_none(api: Api, seen: str):
    run_id = api.submit(ECHO_FLOW, words="x")
    events = f"/api/v1/runs/{run_id}/events"
    refused(api.http.get(events, headers={"Last-Event-ID": seen}), 400, "INVALID_REQUEST")
    refused(api.http.get(events, params={"after": seen}), 422, "INVALID_REQUEST")


RECORDS: list[Any] = [
    [],
    [1],
    "text",
    None,
    {"type": "stream_data"},
    {"type": "nothing", "payload": {"data": 1}},
    {"type": "stream_data", "payload": {"data": 1, "ref": {}}},
    {"type": "stream_data", "payload": {"data": 1}, "pts_us": "soon"},
    {"records": [{"type": "stream_end"}, {"type": "stream_data", "payload": {"data": 1}}]},
    {"records": {}, "producer": {}},
    {"records": [], "producer": {"id": "", "epoch": 0, "seq": 1}},
    {
        "records": [{"type": "stream_data", "payload": {"data": 1}}],
        "producer": {"id": "a", "seq": -1},
    },
]


@pytest.mark.parametrize("body", RECORDS, ids=lambda body: json.dumps(body)[:40])
def test_records_that_are_none(api: Api, stream: Json, body: Any):
    refused(publish(api, stream, body), 400, "STREAM_RECORD_INVALID")
    head = api.http.get(f"/api/v1/streams/{stream['stream_id']}").json()["head"]
    assert head == 1  # all or none


def test_a_record_that_is_too_large(api: Api, stream: Json):
    record = {"type": "stream_data", "payload": {"data": "x" * (1 << 20)}}
    refused(publish(api, stream, record), 413, "STREAM_RECORD_TOO_LARGE")


def test_an_ended_stream_takes_no_more(api: Api, stream: Json):
    assert publish(api, stream, {"type": "stream_end"}).status_code == 200
    record = {"type": "stream_data", "payload": {"data": 1}}
    refused(publish(api, stream, record), 409, "STREAM_ENDED")


def test_a_runs_own_stream_is_only_read(api: Api):
    run_id = api.submit(ECHO_FLOW, words="x")
    api.ended(run_id)
    record = {"type": "stream_data", "payload": {"data": 1}}
    answer = api.post(f"streams/{run_id}/records", record)
    refused(answer, answer.status_code, answer.json()["code"])
    assert answer.status_code in (400, 403, 404)


def ws(api: Api, path: str, **query: str) -> Any:
    url = httpx2.URL(f"{api.server.url}{path}", params=query)
    return connect(str(url).replace("http", "ws", 1))


def closed(socket: Any) -> tuple[int, str]:
    """Code and error code of the server's close, whatever came before it."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(timeout=20)
    return socket.protocol.close_code, socket.protocol.close_reason.partition(":")[0]


def test_a_socket_on_nothing(api: Api):
    with ws(api, "/ws/streams/st_nothing") as socket:
        assert closed(socket) == (4104, "STREAM_UNKNOWN")
    with pytest.raises((InvalidStatus, InvalidMessage)), ws(api, "/ws/nowhere"):
        pass


MESSAGES: list[Any] = [
    "", "no json", "[1]", "[" * 100_000, "\x00", '{"type": "x"}', '{"payload": 1}',
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: repr(m)[:20])
def test_messages_that_are_no_records(api: Api, stream: Json, message: Any):
    with ws(api, stream["ws_url"]) as socket:
        socket.send(message)
        assert closed(socket) == (4100, "STREAM_RECORD_INVALID")
    with ws(api, stream["ws_url"]) as socket:  # the stream is as it was
        record = {"type": "stream_data", "payload": {"data": "fine"}}
        socket.send(json.dumps(record))
        seen = [json.loads(socket.recv(timeout=20)) for _ in range(2)]
        assert [one["type"] for one in seen] == ["stream_start", "stream_data"]


# --- below HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
    ids=["tls", "no version", "version", "length", "chunks", "long header"],
)
def test_bytes_that_are_no_http(api: Api, data: bytes):
    where = urlsplit(api.server.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # it may be cut while it is sent
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(100)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
