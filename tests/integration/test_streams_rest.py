"""Streams over plain HTTP: bodies of every kind, log and records, cancel, tokens, tickets."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.streams_server import SECRET, stream_server

from mentatlab.protocol.records import Draft
from mentatlab.protocol.tokens import Claims, mint, verify
from mentatlab.streams import StreamingConnectionManager, StreamInitRequest, open_hub

NDJSON = {"Content-Type": "application/x-ndjson"}


class Rest:
    """The server under test, its hub and its clock, and an HTTP client."""

    def __init__(self, hub: StreamingConnectionManager, port: int, http: httpx2.AsyncClient):
        self.hub, self.port, self.http = hub, port, http

    async def init(self, **fields: Any) -> dict[str, Any]:
        body = {"agent_id": "me", "pin_name": "out", **fields}
        answer = await self.http.post("/api/v1/streams/init", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def opened(self, *values: Any, **fields: Any) -> str:
        """The path of a stream with these values."""
        path = f"/api/v1/streams/{(await self.init(**fields))['stream_id']}"
        if values:
            await self.publish(path, [{"data": value} for value in values])
        return path

    async def publish(self, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        more = more if body is None else {"json": body, **more}
        answer = await self.http.post(f"{path}/records", **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def log(self, path: str, **query: Any) -> tuple[list[dict[str, Any]], httpx2.Headers]:
        answer = await self.http.get(f"{path}/log", params=query)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()], answer.headers

    async def sequences(self, path: str, **query: Any) -> list[Any]:
        lines, _ = await self.log(path, **query)
        return [line.get("sequence", line["type"]) for line in lines]

    async def code(self, path: str, method: str = "GET", **more: Any) -> tuple[int, str]:
        answer = await self.http.request(method, path, **more)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["code"]


@pytest.fixture
def clock() -> list[float]:
    return [time.time()]


@pytest.fixture(params=["memory", "sqlite"])
async def hub(
    request: pytest.FixtureRequest, tmp_path: Path, clock: list[float]
) -> AsyncIterator[StreamingConnectionManager]:
    path = tmp_path / "streams.db" if request.param == "sqlite" else None
    hub = await open_hub(path, clock=lambda: clock[0])
    yield hub
    await hub.aclose()


@pytest.fixture
async def rest(hub: StreamingConnectionManager) -> AsyncIterator[Rest]:
    async with (
        stream_server(hub) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        yield Rest(hub, port, http)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class TestInit:
    async def test_what_is_said_stands_in_the_start_and_in_the_answer(self, rest: Rest):
        said = {
            "ttl_s": 600, "retain_s": 86400.5, "max_bytes": 200_000,
            "expected_chunks": 7, "codec": "pcm_s16le", "timebase": "1/48000",
        }  # fmt: skip
        path = await rest.opened(mime_type="audio/pcm", **said)
        (start,), _ = await rest.log(path)
        assert said.items() <= start["payload"]["metadata"].items()
        look = (await rest.http.get(path)).json()
        assert look["retention"] == {"ttl_s": 600, "retain_s": 86400.5, "max_bytes": 200_000}
        assert (look["floor"], look["state"]) == (2, "open")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ttl_s", 0), ("ttl_s", -1), ("ttl_s", "soon"), ("ttl_s", 1e12),
            ("retain_s", 0), ("retain_s", -0.1), ("max_bytes", 0), ("max_bytes", 1 << 60),
            ("max_bytes", 1.5), ("expected_chunks", -1), ("codec", ""), ("codec", "a\nb"),
            ("timebase", "48000"), ("timebase", "1/0"), ("durability", "never"),
        ],
    )  # fmt: skip
    async def test_bounds(self, rest: Rest, name: str, value: Any):
        answer = await rest.http.post(
            "/api/v1/streams/init", json={"agent_id": "a", "pin_name": "b", name: value}
        )
        assert answer.status_code == 422
        assert [problem["path"] for problem in answer.json()["problems"]] == [f"/body/{name}"]

    @pytest.mark.parametrize(
        ("name", "value", "other"),
        [
            ("agent_id", "a", "b"), ("pin_name", "a", "b"), ("node_id", "a", "b"),
            ("run_id", "rs_a", "rs_b"), ("mime_type", "a/b", "a/c"),
            ("durability", "memory", "relaxed"), ("ttl_s", 9, 8), ("retain_s", 9.5, 8),
            ("max_bytes", 9, 8), ("expected_chunks", 9, 8), ("codec", "a", "b"),
            ("timebase", "1/9", "1/8"),
        ],
    )  # fmt: skip
    async def test_a_key_with_another_body_is_a_conflict(
        self, rest: Rest, name: str, value: Any, other: Any
    ):
        async def code(**more: Any) -> str:
            body = {"agent_id": "me", "pin_name": "out", **more}
            headers = {"Idempotency-Key": "k"}
            answer = await rest.http.post("/api/v1/streams/init", json=body, headers=headers)
            return answer.json().get("code", "opened")

        said = [await code(**{name: value}) for _ in range(2)]
        assert [*said, await code(**{name: other}), await code(**{name: value})] == [
            *("opened", "opened", "IDEMPOTENCY_CONFLICT", "opened")
        ]
        if name not in ("agent_id", "pin_name"):
            assert await code() == "IDEMPOTENCY_CONFLICT"

    async def test_a_run_of_a_flow_that_has_ended_takes_no_new_stream(self, rest: Rest):
        events = await rest.hub.create_stream("run", "events", run_id="rn_1", node_id="_run")
        there = await rest.init(run_id="rn_1")
        await events.end()
        code = await rest.code(
            "/api/v1/streams/init",
            "POST",
            json={"agent_id": "me", "pin_name": "late", "run_id": "rn_1"},
        )
        assert code == (409, "RUN_TERMINAL")
        assert [lane.pin_name for lane in await rest.hub.lanes("rn_1")] == ["events", "out"]
        assert (await rest.init(run_id="rn_1"))["stream_id"] == there["stream_id"]

    async def test_a_run_of_clients_streams_goes_on(self, rest: Rest):
        one = await rest.init()
        await rest.hub.end_stream(one["stream_id"])
        assert (await rest.init(pin_name="b", run_id=one["run_id"]))["status"] == "open"

    async def test_every_field_of_the_body_is_tried_above(self, rest: Rest):
        fields = set(StreamInitRequest.model_fields)
        assert fields == {
            "agent_id", "pin_name", "node_id", "run_id", "mime_type", "durability", "ttl_s",
            "retain_s", "max_bytes", "expected_chunks", "codec", "timebase",
        }  # fmt: skip


class TestBodies:
    async def test_lines(self, rest: Rest):
        path = await rest.opened()
        body = b'{"data": 1}\n\n{"payload": {"data": 2}}\r\n{"type": "stream_end"}'
        answer = await rest.publish(path, content=body, headers=NDJSON)
        assert (answer["first"], answer["last"]) == (2, 4)
        assert await rest.code(f"{path}/records", "POST", content=b'{"data":', headers=NDJSON) == (
            400,
            "STREAM_RECORD_INVALID",
        )

    async def test_a_producer_in_the_first_line_or_the_headers(self, rest: Rest):
        path = await rest.opened()
        line = b'{"data": 1, "producer": {"id": "p", "epoch": 0, "seq": 1}}\n{"data": 2}\n'
        named = {"Producer-Id": "p", "Producer-Seq": "1", **NDJSON}
        first = await rest.publish(path, content=line, headers=NDJSON)
        again = await rest.publish(path, content=b'{"data": 1}\n{"data": 2}\n', headers=named)
        assert (first["duplicate"], again["duplicate"]) == (False, True)
        assert (first["first"], first["last"]) == (again["first"], again["last"]) == (2, 3)

    async def test_one_binary_record(self, rest: Rest):
        path = await rest.opened(mime_type="video/h264")
        query = "pts_us=-5&dur_us=40000&item=3&key=1&index=2&end_of_item=1"
        headers = {"Content-Type": "video/h264", "Producer-Id": "cam", "Producer-Seq": "1"}
        for duplicate in (False, True):
            answer = await rest.publish(path, content=b"\x00\xff", headers=headers, params=query)
            assert (answer["first"], answer["duplicate"]) == (2, duplicate)
        (_, record), _ = await rest.log(path)
        assert record["payload"]["ref"] == {
            "url": f"{path}/records/2",
            "size": 2,
            "metadata": {"mimeType": "video/h264"},
        }
        assert (record["pts_us"], record["dur_us"], record["item"]) == (-5, 40000, 3)
        assert await rest.sequences(path, **{"from": "key"}) == [2]

    @pytest.mark.parametrize(
        ("lane", "said", "told"),
        [
            ("image/png", "image/png", "image/png"),
            ("image/png", "application/octet-stream", "image/png"),
            ("image/png", "image/webp; q=1", "image/webp; q=1"),
            ("application/json", "application/octet-stream", "application/octet-stream"),
            ("audio/ö", "application/octet-stream", "application/octet-stream"),
        ],
    )
    async def test_the_type_of_the_bytes(self, rest: Rest, lane: str, said: str, told: str):
        path = await rest.opened(mime_type=lane)
        await rest.publish(path, content=b"x", headers={"Content-Type": said})
        assert (await rest.http.get(f"{path}/records/2")).headers["content-type"] == told

    @pytest.mark.parametrize(
        ("headers", "query", "body", "expected"),
        [
            ({}, "", b"", (400, "STREAM_RECORD_INVALID")),
            ({}, "", b'{"data": "\xff"}', (400, "STREAM_RECORD_INVALID")),
            (NDJSON, "", b"", (400, "STREAM_RECORD_INVALID")),
            (NDJSON, "", b'{"data": 1}\n' * 257, (413, "STREAM_RECORD_TOO_LARGE")),
            ({"Content-Type": "application/x-www-form-urlencoded"}, "", b"data=1",
             (415, "STREAM_RECORD_INVALID")),
            ({"Content-Type": "multipart/form-data; boundary=x"}, "", b"--x--",
             (415, "STREAM_RECORD_INVALID")),
            ({"Content-Type": "image/" + "x" * 300}, "", b"x", (400, "STREAM_RECORD_INVALID")),
            ({"Content-Type": "image/png"}, "?pts_us=soon", b"x", (422, "INVALID_REQUEST")),
            ({"Content-Type": "image/png"}, "?index=65536", b"x", (422, "INVALID_REQUEST")),
            ({"Content-Type": "image/png"}, "?dur_us=-1", b"x", (422, "INVALID_REQUEST")),
            ({"Content-Type": "image/png"}, "?key=2", b"x", (422, "INVALID_REQUEST")),
            ({"Content-Type": "image/png"}, "", bytes((1 << 20) + 1),
             (413, "STREAM_RECORD_TOO_LARGE")),
            ({"Content-Type": "image/png"}, "", bytes((8 << 20) + 1), (413, "PAYLOAD_TOO_LARGE")),
            ({"Content-Type": "image/png", "Producer-Id": "p"}, "", b"x",
             (400, "STREAM_RECORD_INVALID")),
            ({"Content-Type": "image/png", "Producer-Id": "p", "Producer-Seq": "2"}, "", b"x",
             (409, "STREAM_GAP_IN_PRODUCER")),
            ({"Content-Type": "image/png", "Producer-Id": "", "Producer-Seq": "1"}, "", b"x",
             (400, "STREAM_RECORD_INVALID")),
        ],
    )  # fmt: skip
    async def test_what_is_refused_changes_nothing(
        self, rest: Rest, headers: dict[str, str], query: str, body: bytes, expected: Any
    ):
        path = await rest.opened()
        found = await rest.code(f"{path}/records{query}", "POST", content=body, headers=headers)
        assert found == expected
        assert (await rest.http.get(path)).json()["head"] == 1


class TestLog:
    async def test_all_of_it(self, rest: Rest):
        path = await rest.opened(*range(5))
        lines, headers = await rest.log(path)
        epoch = (await rest.http.get(path)).json()["epoch"]
        assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert headers["content-type"] == "application/x-ndjson"
        assert {name: headers[f"stream-{name}"] for name in ("epoch", "head", "state", "next")} == {
            "epoch": str(epoch),
            "head": "6",
            "state": "open",
            "next": f"{epoch}:6",
        }

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({"from": "3"}, [3, 4, 5, 6]),
            ({"from": "3", "to": 4}, [3, 4]),
            ({"from": "4", "to": 3}, []),
            ({"from": "latest"}, []),
            ({"from": "-2"}, [5, 6]),
            ({"from": "-2", "limit": 1}, [5]),
            ({"to": 0}, []),
            ({"to": 99, "limit": 99}, [1, 2, 3, 4, 5, 6]),
            ({"limit": 1}, [1]),
            ({"from": "99"}, []),
            ({"from": "time:2000-01-01T00:00:00Z", "limit": 2}, [1, 2]),
            ({"from": "time:32503680000"}, []),
            ({"from": "key", "limit": 1}, [1]),
        ],
    )
    async def test_ranges(self, rest: Rest, query: dict[str, Any], expected: list[int]):
        path = await rest.opened(*range(5))
        assert await rest.sequences(path, **query) == expected

    async def test_page_by_page(self, rest: Rest):
        path, found, at = await rest.opened(*range(20)), list[int](), "start"
        while True:
            lines, headers = await rest.log(path, **{"from": at, "limit": 4})
            found += [line["sequence"] for line in lines]
            at = headers["stream-next"]
            if not lines:
                break
        assert found == list(range(1, 22))

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("to=end", (422, "INVALID_REQUEST")),
            ("to=-1", (422, "INVALID_REQUEST")),
            ("limit=0", (422, "INVALID_REQUEST")),
            ("from=yesterday", (400, "STREAM_CURSOR_INVALID")),
            ("from=time:never", (400, "STREAM_CURSOR_INVALID")),
        ],
    )
    async def test_bad_ranges(self, rest: Rest, query: str, expected: tuple[int, str]):
        assert await rest.code(f"{await rest.opened()}/log?{query}") == expected

    async def test_a_run_is_read_by_rseq(self, rest: Rest):
        one = await rest.init()
        two = await rest.init(run_id=one["run_id"], pin_name="other")
        await rest.publish(f"/api/v1/streams/{two['stream_id']}", [{"data": 1}, {"data": 2}])
        run = f"/api/v1/streams/{one['run_id']}"
        lines, headers = await rest.log(run, **{"from": "2", "limit": 2})
        assert [line["rseq"] for line in lines] == [2, 3]
        assert headers["stream-next"].endswith(":3")
        assert headers["stream-state"] == "open"
        for opened in (one, two):
            await rest.http.post(f"/api/v1/streams/{opened['stream_id']}/cancel")
        assert (await rest.log(run))[1]["stream-state"] == "ended"
        assert (await rest.code(f"{run}/log?from=key"))[1] == "STREAM_CURSOR_INVALID"

    async def test_what_retention_took_is_a_gap(self, rest: Rest):
        path = await rest.opened(max_bytes=10_000)
        for n in range(10):
            await rest.publish(path, {"data": f"{n}" * 3000})
        epoch = (await rest.http.get(path)).json()["epoch"]
        floor = (await rest.http.get(path)).json()["floor"]
        lines, headers = await rest.log(path)
        assert [line["type"] for line in lines[:3]] == ["stream_start", "gap", "stream_data"]
        gap = {name: lines[1][name] for name in ("from", "to", "reason", "next")}
        end = f"{epoch}:{floor - 1}"
        assert gap == {"from": f"{epoch}:1", "to": end, "reason": "retention", "next": end}
        assert lines[2]["sequence"] == floor > 2
        assert headers["stream-next"] == f"{epoch}:11"
        two, headers = await rest.log(path, limit=2)
        assert [line["type"] for line in two] == ["stream_start", "gap", "stream_data"]
        assert headers["stream-next"] == f"{epoch}:{floor}"
        cut, headers = await rest.log(path, to=3)
        assert cut[1]["to"] == cut[1]["next"] == headers["stream-next"] == f"{epoch}:3"
        assert await rest.code(f"{path}/records/2") == (410, "STREAM_EXPIRED")
        assert (await rest.http.get(f"{path}/records/{floor}")).status_code == 200

    async def test_a_cursor_of_another_epoch_is_a_gap(self, rest: Rest):
        path = await rest.opened(1)
        lines, _ = await rest.log(path, **{"from": "99:7"})
        assert (lines[0]["type"], lines[0]["reason"], lines[0]["from"]) == ("gap", "epoch", "99:7")
        assert [line["sequence"] for line in lines[1:]] == [1, 2]

    async def test_expired(self, rest: Rest, clock: list[float]):
        path = await rest.opened(1, retain_s=60)
        await rest.publish(path, {"type": "stream_end"})
        clock[0] += 61
        await rest.hub.sweep()
        assert (await rest.http.get(path)).json()["state"] == "expired"
        for what in ("/log", "/records/1"):
            assert await rest.code(path + what) == (410, "STREAM_EXPIRED")
        posted = await rest.code(f"{path}/records", "POST", json={"data": 1})
        assert posted == (410, "STREAM_EXPIRED")

    async def test_retention_is_kept_beside_everything(
        self,
        rest: Rest,
        clock: list[float],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ):
        path = await rest.opened(1, ttl_s=60)
        sweep, failed = rest.hub.sweep, asyncio.Event()

        async def fails_once() -> int:
            if failed.is_set():
                return await sweep()
            failed.set()
            raise OSError("the log is away")

        monkeypatch.setattr(rest.hub, "sweep", fails_once)
        sweeping = asyncio.create_task(rest.hub.sweep_forever(every_s=0))
        async with rest.hub.subscribe(path.rpartition("/")[2]) as records:
            clock[0] += 61
            reasons = [record.payload.get("reason") async for record in records]
        sweeping.cancel()
        assert reasons == [None, None, "expired"]
        assert "the log is away" in caplog.text

    async def test_gzip_is_flushed_per_piece(self, rest: Rest):
        """What was decoded before the last byte has come is all that was sent."""
        path = await rest.opened(*["x" * 1000] * 200)
        headers = {"Accept-Encoding": "gzip;q=0.5, identity;q=0.1"}
        async with rest.http.stream("GET", f"{path}/log", headers=headers) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            assert "Accept-Encoding" in answer.headers["vary"]
            raw = [piece async for piece in answer.aiter_raw()]
        text = gzip.decompress(b"".join(raw))
        assert len(text.splitlines()) == 201
        part = zlib.decompressobj(31).decompress(b"".join(raw)[:-8])
        assert part == text
        plain = await rest.http.get(f"{path}/log", headers={"Accept-Encoding": "gzip;q=0, *"})
        assert "content-encoding" not in plain.headers
        assert plain.content == text

    async def test_a_slow_reader_costs_no_memory(self, rest: Rest):
        """A log of 30 MB is not read ahead of who takes it."""
        session = await rest.hub.create_stream("a", "b", durability="memory", external=True)
        for _ in range(30):
            await rest.hub.publish(session.stream_id, [Draft(body=bytes(1_000_000))])
            await rest.hub.publish(session.stream_id, [Draft(payload={"data": "x" * 1_000_000})])
        path = f"/api/v1/streams/{session.stream_id}/log"
        reader, writer = await asyncio.open_connection("127.0.0.1", rest.port, limit=4096)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert rest.hub.statistics().held_bytes <= 2_000_000
        writer.close()
        await writer.wait_closed()
        while rest.hub.statistics().subscriptions:
            await asyncio.sleep(0)


class TestRecord:
    async def test_text_is_json(self, rest: Rest):
        path = await rest.opened({"n": 1})
        answer = await rest.http.get(f"{path}/records/2", headers={"Accept": "image/png"})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == (await rest.log(path, **{"from": "2"}))[0][0]

    async def test_binary_is_its_bytes(self, rest: Rest):
        path = await rest.opened(mime_type="image/png")
        facts = {"pts_us": 12, "dur_us": 5, "item": 2, "key": "true"}
        headers = {"Content-Type": "image/png"}
        await rest.publish(path, content=b"\x89PNG", headers=headers, params=facts)
        answer = await rest.http.get(f"{path}/records/2")
        assert answer.content == b"\x89PNG"
        told = {k: v for k, v in answer.headers.items() if k.startswith("stream-")}
        assert told.pop("stream-epoch")
        assert told.pop("stream-timestamp").endswith("Z")
        assert told == {
            "stream-sequence": "2",
            "stream-pts-us": "12",
            "stream-dur-us": "5",
            "stream-item": "2",
            "stream-key": "1",
        }
        asked = {"Accept": "text/html, application/json;q=0.9"}
        as_json = (await rest.http.get(f"{path}/records/2", headers=asked)).json()
        assert as_json["payload"]["ref"]["size"] == 4

    @pytest.mark.parametrize(
        ("mime", "disposition"),
        [("image/png", "inline"), ("text/html", "attachment"), ("image/svg+xml", "attachment")],
    )
    async def test_nothing_runs_in_our_origin(self, rest: Rest, mime: str, disposition: str):
        path = await rest.opened()
        await rest.publish(path, content=b"<script>", headers={"Content-Type": mime})
        headers = (await rest.http.get(f"{path}/records/2")).headers
        assert headers["content-disposition"] == disposition
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "sandbox"

    @pytest.mark.parametrize(
        ("sequence", "expected"),
        [
            ("3", (404, "NOT_FOUND")),
            ("0", (422, "INVALID_REQUEST")),
            ("-1", (422, "INVALID_REQUEST")),
            ("first", (422, "INVALID_REQUEST")),
        ],
    )
    async def test_what_is_not_there(self, rest: Rest, sequence: str, expected: tuple[int, str]):
        assert await rest.code(f"{await rest.opened(1)}/records/{sequence}") == expected


class TestCancel:
    async def test_ends_once(self, rest: Rest):
        path = await rest.opened(1)
        for _ in range(2):
            assert (await rest.http.post(f"{path}/cancel")).json()["state"] == "ended"
        lines, _ = await rest.log(path)
        assert [line["type"] for line in lines] == ["stream_start", "stream_data", "stream_end"]
        assert lines[-1]["payload"]["reason"] == "cancelled"

    async def test_an_errored_stream_stays(self, rest: Rest):
        path = await rest.opened()
        error = {"code": "agent_error", "message": "broke"}
        await rest.publish(path, {"type": "stream_error", "payload": {"error": error}})
        assert (await rest.http.post(f"{path}/cancel")).json()["state"] == "errored"

    async def test_a_nodes_stream_is_its_runs(self, rest: Rest):
        session = await rest.hub.create_stream("agent", "out", run_id="rn_1", node_id="n")
        path = f"/api/v1/streams/{session.stream_id}"
        assert await rest.code(f"{path}/cancel", "POST") == (403, "STREAM_FORBIDDEN")
        assert await rest.code("/api/v1/streams/rn_1/cancel", "POST") == (404, "STREAM_UNKNOWN")


class TestTokens:
    async def token(self, rest: Rest, path: str, by: str | None = None, **body: Any) -> str:
        headers = bearer(by) if by else {}
        answer = await rest.http.post(f"{path}/tokens", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["token"]

    async def test_a_key_mints_what_it_may(self, rest: Rest):
        path = await rest.opened()
        token = await self.token(rest, path, capabilities=["pub"], lifetime_s=60)
        await rest.publish(path, {"data": 1}, headers=bearer(token))
        forbidden = (403, "STREAM_FORBIDDEN")
        assert await rest.code(path, headers=bearer(token)) == forbidden
        assert await rest.code(f"{path}/cancel", "POST", headers=bearer(token)) == forbidden
        claims = verify(token, SECRET, now=time.time())
        assert 50 < claims.expires - time.time() <= 60

    async def test_by_default_a_key_mints_sub_and_a_token_its_own(self, rest: Rest):
        opened = await rest.init()
        path = f"/api/v1/streams/{opened['stream_id']}"
        own = verify(await self.token(rest, path), SECRET, now=0)
        assert own.capabilities == ("sub",)
        passed_on = await self.token(rest, path, by=opened["pub_token"])
        assert verify(passed_on, SECRET, now=0).capabilities == ("pub", "cancel")

    async def test_a_token_hands_on_no_more_than_it_has(self, rest: Rest):
        opened = await rest.init()
        path = f"/api/v1/streams/{opened['stream_id']}"
        short = await self.token(rest, path, lifetime_s=30)
        longer = await self.token(rest, path, by=short, lifetime_s=3600)
        ends = [verify(token, SECRET, now=0).expires for token in (short, longer)]
        assert ends[0] == ends[1]
        for capabilities in (["pub"], ["sub", "cancel"]):
            found = await rest.code(
                f"{path}/tokens", "POST", json={"capabilities": capabilities}, headers=bearer(short)
            )
            assert found == (403, "STREAM_FORBIDDEN")

    async def test_a_runs_token_reaches_its_open_streams(self, rest: Rest):
        opened = await rest.init()
        run, path = (f"/api/v1/streams/{opened[name]}" for name in ("run_id", "stream_id"))
        token = await self.token(rest, run, capabilities=["sub", "pub"])
        await rest.publish(path, {"data": 1}, headers=bearer(token))
        assert (await rest.http.get(f"{run}/log", headers=bearer(token))).status_code == 200

    async def test_no_token_reaches_what_belongs_to_a_run(self, rest: Rest):
        session = await rest.hub.create_stream("agent", "out", run_id="rn_1", node_id="n")
        token = await self.token(rest, "/api/v1/streams/rn_1", capabilities=["pub"])
        path = f"/api/v1/streams/{session.stream_id}"
        found = await rest.code(f"{path}/records", "POST", json={"data": 1}, headers=bearer(token))
        assert found == (403, "STREAM_FORBIDDEN")
        minted = await rest.code(f"{path}/tokens", "POST", json={"capabilities": ["pub"]})
        assert minted == (403, "STREAM_FORBIDDEN")

    @pytest.mark.parametrize(
        "body",
        [{"lifetime_s": 0}, {"lifetime_s": 3601}, {"capabilities": []}, {"capabilities": ["put"]}],
    )
    async def test_bounds(self, rest: Rest, body: dict[str, Any]):
        path = await rest.opened()
        assert await rest.code(f"{path}/tokens", "POST", json=body) == (422, "INVALID_REQUEST")

    async def test_a_token_that_has_ended(self, rest: Rest):
        opened = await rest.init()
        claims = Claims(
            subject=opened["stream_id"], capabilities=("sub",), workspace="default", expires=1
        )
        path = f"/api/v1/streams/{opened['stream_id']}"
        assert await rest.code(path, headers=bearer(mint(claims, SECRET))) == (401, "TOKEN_INVALID")


class TestTickets:
    async def ticket(self, rest: Rest, path: str) -> str:
        answer = await rest.http.post(f"{path}/tickets")
        assert 0 < answer.json()["expires"] - time.time() <= 60
        return answer.json()["ticket"]

    async def test_opens_once(self, rest: Rest):
        path = await rest.opened(1)
        ticket = await self.ticket(rest, path)
        answers = await asyncio.gather(
            *(rest.http.get(f"{path}/log", params={"ticket": ticket}) for _ in range(5))
        )
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]

    async def test_is_for_its_stream(self, rest: Rest):
        ticket = await self.ticket(rest, await rest.opened())
        other = await rest.opened(pin_name="other")
        assert await rest.code(f"{other}/log?ticket={ticket}") == (403, "STREAM_FORBIDDEN")

    async def test_is_no_token_and_a_token_no_ticket(self, rest: Rest):
        opened = await rest.init()
        path = f"/api/v1/streams/{opened['stream_id']}"
        ticket = await self.ticket(rest, path)
        assert await rest.code(path, headers=bearer(ticket)) == (401, "UNAUTHENTICATED")
        found = await rest.code(f"{path}/log?ticket={opened['sub_token']}")
        assert found == (401, "TOKEN_INVALID")

    async def test_does_nothing_where_it_does_not_belong(self, rest: Rest):
        """A record by its sequence can be asked for with headers."""
        path = await rest.opened()
        ticket = await self.ticket(rest, path)
        assert (await rest.http.get(f"{path}?ticket={ticket}")).status_code == 200
        assert (await rest.http.get(f"{path}/log?ticket={ticket}")).status_code == 200

    async def test_only_who_may_read_gets_one(self, rest: Rest):
        opened = await rest.init()
        path = f"/api/v1/streams/{opened['stream_id']}"
        found = await rest.code(f"{path}/tickets", "POST", headers=bearer(opened["pub_token"]))
        assert found == (403, "STREAM_FORBIDDEN")
