"""A program's side of HTTP and server-sent events (extra `client`).

    async with AsyncClient("http://127.0.0.1:7070") as client:
        photo = await client.upload(Path("cat.jpg"))
        run = await client.submit(flow, {"photo": photo["reference"]})
        async for event in client.events(run["run_id"]):
            print(event["type"])
        print(await client.outputs(run["run_id"]))

Answers are the JSON of the API as dicts; error answers are raised as the `MentatError`s they were.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from mentatlab.protocol.errors import Code, MentatError, RateLimited, Unavailable
from mentatlab.protocol.media import ref_id_of
from mentatlab.protocol.records import Producer, RecordType, StreamChunk
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.control import Controls
from mentatlab.sdk.downloading import Downloader
from mentatlab.sdk.following import (
    Element,
    Following,
    Gap,
    Reset,
    StreamFailed,
    TruncatedStream,
)
from mentatlab.sdk.server import CutOff, Server
from mentatlab.sdk.streaming import StreamConnection
from mentatlab.sdk.streaming.connection import GIVE_UP_S, Renew
from mentatlab.sdk.upload_plan import Progress, Tally
from mentatlab.sdk.upload_sources import source_of
from mentatlab.sdk.uploading import Uploader

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "AsyncClient",
    "Element",
    "Gap",
    "Progress",
    "Reset",
    "StreamFailed",
    "TruncatedStream",
]

_SILENCE_S = 45.0  # three missed marks
_CONTROL = ("message", "hello", "mark", "gap")  # no progress

Answer = dict[str, Any]


class _Event(NamedTuple):
    name: str
    id: str
    data: str


class AsyncClient(Controls):
    """One server. `key` is an API key or a stream token; use as a context manager, or `aclose()`.

    `Unavailable(SERVER_UNREACHABLE)` when nobody answers: at once, or where what was begun is tried
    again (following, publishing as a producer) after `give_up_s` without success. `transport` is
    for servers in process.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        give_up_s: float = 60.0,
        transport: "httpx2.AsyncBaseTransport | None" = None,
    ) -> None:
        self._server = Server(base_url, key, transport)
        self._give_up_s = give_up_s

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._server.aclose()

    # ------------------------------------------------------------------ server, agents, keys

    async def health(self) -> Answer:
        return await self._call("GET", "/healthz")

    async def agents(self) -> Answer:
        """`{"agents": […], "broken": […]}`."""
        return await self._call("GET", "/api/v1/agents")

    async def agent(self, agent_id: str) -> Answer:
        """One agent by `id` or `id:version`."""
        return await self._call("GET", f"/api/v1/agents/{_part(agent_id)}")

    async def add_agent(self, directory: Path | str) -> Answer:
        """Register a manifest folder of the server's machine; needs an admin key."""
        body = {"directory": await asyncio.to_thread(_absolute, directory)}
        return await self._call("POST", "/api/v1/agents", json=body)

    async def keys(self) -> list[Answer]:
        return (await self._call("GET", "/api/v1/keys"))["keys"]

    async def add_key(
        self,
        *,
        name: str = "",
        workspace: str = "default",
        scopes: Sequence[str] | None = None,
        role: str | None = None,
    ) -> Answer:
        """The answer's `key` is shown this once. `scopes` or a `role`; neither: `read`, `run`,
        `publish`."""
        given = list(scopes) if scopes is not None else None
        body = _given({"name": name, "workspace": workspace, "scopes": given, "role": role})
        return await self._call("POST", "/api/v1/keys", json=body)

    async def revoke_key(self, key_id: str) -> None:
        await self._call("DELETE", f"/api/v1/keys/{_part(key_id)}")

    # ------------------------------------------------------------------ flows and runs

    async def validate(self, flow: Answer | str) -> Answer:
        """`{"valid": …, "problems": […]}`; a flow is a document, or the text of a `.mlab` file."""
        return await self._call("POST", "/api/v1/flows/validate", json={"flow": flow})

    async def plan(self, flow: Answer | str) -> Answer:
        return await self._call("POST", "/api/v1/flows/plan", json={"flow": flow})

    async def submit(
        self,
        flow: Answer | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Start a run of a flow document. The same idempotency key is the same run."""
        body = {"flow": flow, "inputs": dict(inputs or {}), "idempotency_key": idempotency_key}
        return await self._call("POST", "/api/v1/runs", json=body)

    async def submit_stored(
        self,
        flow_id: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Start a run of a flow that the server has stored."""
        body = {
            "flow_id": flow_id,
            "inputs": dict(inputs or {}),
            "idempotency_key": idempotency_key,
        }
        return await self._call("POST", "/api/v1/runs", json=body)

    async def run(self, run_id: str) -> Answer:
        return await self._call("GET", f"/api/v1/runs/{_part(run_id)}")

    async def runs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        limit: int = 50,
        before: str | None = None,
        **filters: str | float | None,
    ) -> Answer:
        """`{"runs": […], "next": …}`, newest first; `next` is the `before` of the next page.

        `filters`: `flow_id`, `since`, `until` (RFC 3339 or Unix seconds), `trigger`, `origin`, `q`.
        """
        query = {"state": state, "limit": limit, "before": before, **filters}
        return await self._call("GET", "/api/v1/runs", params=_given(query))

    async def cancel(self, run_id: str) -> Answer:
        return await self._call("POST", f"/api/v1/runs/{_part(run_id)}/cancel")

    async def pause(self, run_id: str) -> Answer:
        """Nothing new starts; what runs goes on to its end."""
        return await self._call("POST", f"/api/v1/runs/{_part(run_id)}/pause")

    async def resume(self, run_id: str) -> Answer:
        return await self._call("POST", f"/api/v1/runs/{_part(run_id)}/resume")

    async def decide_gate(
        self, run_id: str, node_id: str, *, approve: bool, comment: str = ""
    ) -> Answer:
        """Approve or reject what the gate `node_id` waits for."""
        path = f"/api/v1/runs/{_part(run_id)}/gates/{_part(node_id)}"
        return await self._call("POST", path, json={"approve": approve, "comment": comment})

    async def rerun(
        self,
        run_id: str,
        *,
        from_node: str | None = None,
        params: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Answer:
        """A new run of the same; `from_node`: what stands before it is taken over. `params`: node →
        parameters to be changed."""
        body = _given({"from_node": from_node, "params": params})
        return await self._call("POST", f"/api/v1/runs/{_part(run_id)}/rerun", json=body)

    async def replay(
        self, run_id: str, *, speed: float = 1.0, from_: str | int = "start"
    ) -> AsyncGenerator[Answer]:
        """The record of an ended run, told again at `speed` times its pace; nothing is executed.

        Every record of its streams in one order, over any number of reconnects, with its `cursor`
        (a `from_` for another time); the run's own events are those of the node `_run`. What is not
        kept any more is told as `{"type": "gap", …}`.
        """
        await self._call("POST", f"/api/v1/runs/{_part(run_id)}/replay", json={"speed": speed})
        query = urlencode({"from": from_, "rate": speed})
        path = f"/api/v1/streams/{_part(run_id)}/sse?{query}"
        async with contextlib.aclosing(self._follow(path)) as found:
            async for event in found:
                if event.name == "gap" or event.name.startswith("stream_"):
                    told = msgspec.json.decode(event.data)
                    yield {"type": event.name, **told, "cursor": event.id}

    async def timeline(self, run_id: str, *, items: int = 100) -> Answer:
        """When everything happened; of `forEach` nodes the first `items` items one by one."""
        path = f"/api/v1/runs/{_part(run_id)}/timeline"
        return await self._call("GET", path, params={"items": items})

    async def lineage(
        self,
        run_id: str,
        output: str | None = None,
        *,
        node: str | None = None,
        pin: str | None = None,
        seq: int | None = None,
    ) -> Answer:
        """Where an output, or what is on a node's pin, comes from; `seq`: a record, an element."""
        path = f"/api/v1/runs/{_part(run_id)}/lineage"
        query = {"output": output, "node": node, "pin": pin, "seq": seq}
        return await self._call("GET", path, params=_given(query))

    async def delete_run(self, run_id: str) -> None:
        """A run that has ended, with its events and streams."""
        await self._call("DELETE", f"/api/v1/runs/{_part(run_id)}")

    async def outputs(self, run_id: str) -> Answer:
        """`{"run_id", "state", "outputs"}`."""
        return await self._call("GET", f"/api/v1/runs/{_part(run_id)}/outputs")

    async def logs(
        self, run_id: str, node_id: str, *, item: int | None = None, attempt: int | None = None
    ) -> list[Answer]:
        path = f"/api/v1/runs/{_part(run_id)}/nodes/{_part(node_id)}/logs"
        query = _given({"item": item, "attempt": attempt})
        return (await self._call("GET", path, params=query))["logs"]

    async def follow_logs(
        self, run_id: str, node_id: str, *, item: int | None = None, attempt: int | None = None
    ) -> AsyncGenerator[Answer]:
        """What a node's agents log, from the first line on, until the run is over."""
        query = urlencode(_given({"follow": "true", "item": item, "attempt": attempt}))
        path = f"/api/v1/runs/{_part(run_id)}/nodes/{_part(node_id)}/logs?{query}"
        seen = 0
        async with contextlib.aclosing(self._follow(path)) as found:
            count = 0
            async for event in found:
                if event.name == "end":
                    return
                count = 0 if event.name == "begin" else count + (event.name == "log")
                if event.name == "log" and count > seen:
                    seen = count
                    yield msgspec.json.decode(event.data)

    async def events(self, run_id: str, *, after: int = 0) -> AsyncGenerator[Answer]:
        """Every event of a run with `seq` > `after`, each once, until the run is over."""
        path = f"/api/v1/runs/{_part(run_id)}/events?after={after}"
        async with contextlib.aclosing(self._follow(path)) as found:
            async for event in found:
                if not event.data:
                    continue
                told = msgspec.json.decode(event.data)
                yield told
                if told.get("type") == "run_finished":
                    return  # without asking the server whether that was all

    # ------------------------------------------------------------------ storage

    async def upload(
        self,
        source: Path | bytes | AsyncIterable[bytes],
        *,
        filename: str | None = None,
        mime_type: str | None = None,
        type_: Literal["audio", "image", "video", "binary"] | None = None,
        ttl: Literal["ephemeral", "execution", "pinned"] | None = None,
        progress: Progress | None = None,
        resume: str | None = None,
        started: Callable[[str], None] | None = None,
        parallel: int = 4,
    ) -> Answer:
        """Store bytes or a file; `{"ref", "metadata", "reference"}`.

        `type_` is the pin's type, when it must be of that family; `ttl` a class of life time.
        Up to 4 MiB go in one request. More is sent as the server wants it, straight to its store
        in `parallel` parts for instance, and goes on after cuts where it stood; `Unavailable` after
        `give_up_s` without progress. `started` is told the upload's id, and a later call, also of
        another process, goes on with it: `resume`, with the same file.
        `progress`: never less than before, all of it only when it is stored.
        """
        found = await asyncio.to_thread(source_of, source)
        name = filename or (source.name if isinstance(source, Path) else None)
        asked = {"filename": name, "type": type_, "mimeType": mime_type, "ttl": ttl}
        tally = Tally(found.size, progress)
        if resume is None and ttl is None and (small := await found.small()) is not None:
            with contextlib.suppress(CutOff):
                return await self._upload_small(small, asked, tally)
        uploader = Uploader(
            self._server, found, backoff=self._backoff(), tally=tally, parallel=parallel
        )
        upload = await (uploader.resume(resume) if resume else uploader.begin(asked))
        if started is not None:
            started(upload.upload_id)
        return await uploader.run(upload)

    async def _upload_small(self, data: bytes, asked: Answer, tally: Tally) -> Answer:
        """`CutOff` when the line was cut: nobody knows what has arrived."""
        headers = {"Content-Type": asked["mimeType"] or "application/octet-stream"}
        query = _given({"filename": asked["filename"], "type": asked["type"]})
        path = f"/api/v1/storage/upload?{urlencode(query)}"
        answer = await self._call("POST", path, headers=headers, content=data, timeout=None)
        tally.done(len(data))
        return answer

    async def download(self, ref: object) -> AsyncGenerator[bytes]:
        """The bytes of a medium; `ref` is an id, a `mentat://` URL or a reference.

        Goes on after cuts, and through the server where its store or its CDN cannot be reached.
        """
        downloader = Downloader(self._server, _blob_path(ref), backoff=self._backoff())
        async with contextlib.aclosing(downloader.stream()) as blocks:
            async for block in blocks:
                yield block

    async def download_to(
        self,
        ref: object,
        destination: Path,
        *,
        progress: Progress | None = None,
        parallel: int = 4,
    ) -> Path:
        """Into a file, which appears when it is whole, verified by its hash (with the package
        blake3).

        What came of it before an error lies beside, as `….part`; a later call goes on behind that.
        """
        name = ref_id_of(ref)
        part = destination.with_name(f"{destination.name}.{name}.part")
        downloader = Downloader(self._server, _blob_path(ref), backoff=self._backoff())
        try:
            await downloader.into(part, parallel=parallel, progress=progress, name=name)
        except MentatError as error:
            if not error.retryable:
                await asyncio.to_thread(part.unlink, missing_ok=True)
            raise
        return await asyncio.to_thread(part.replace, destination)

    async def blob(self, ref: object) -> Answer:
        """`{"ref", "size", "blake3", "mime_type", "filename"}` of one medium."""
        downloader = Downloader(self._server, _blob_path(ref), backoff=self._backoff())
        return {"ref": ref_id_of(ref), **(await downloader.facts())._asdict()}

    async def blobs(self, *, limit: int = 50, before: str | None = None) -> Answer:
        """`{"items": […], "next": …}`, newest first."""
        query = _given({"limit": limit, "before": before})
        return await self._call("GET", "/api/v1/storage", params=query)

    async def delete_blob(self, ref: object) -> None:
        await self._call("DELETE", _blob_path(ref))

    async def storage_usage(self) -> Answer:
        """`{"bytes", "count", "reserved_bytes", "quota_bytes", …}` of the workspace."""
        return await self._call("GET", "/api/v1/storage/usage")

    async def sweep_storage(self) -> Answer:
        """Remove what nobody needs: `{"blobs", "orphans", …}`. Needs the scope `admin`."""
        return await self._call("POST", "/api/v1/storage/gc")

    async def scrub_storage(self) -> Answer:
        """Begin to read everything again; how far that is as of `scrub_report`."""
        return await self._call("POST", "/api/v1/storage/scrub")

    async def scrub_report(self) -> Answer:
        """`{"running", "total", "checked", "corrupt", …}`. Needs the scope `admin`."""
        return await self._call("GET", "/api/v1/storage/scrub")

    # ------------------------------------------------------------------ streams

    async def open_stream(
        self, agent_id: str, pin_name: str, *, idempotency_key: str | None = None, **options: Any
    ) -> Answer:
        """A stream of one's own (`mime_type`, `durability`, `ttl_s`, `retain_s`, `max_bytes` …).

        The answer has id, URLs and tokens. The same idempotency key opens the same stream.
        """
        body = {"agent_id": agent_id, "pin_name": pin_name, **options}
        headers = _given({"Idempotency-Key": idempotency_key})
        return await self._call("POST", "/api/v1/streams/init", json=body, headers=headers)

    async def publish(
        self,
        stream_id: str,
        values: Sequence[Any] = (),
        *,
        end: bool = False,
        producer: Producer | None = None,
    ) -> Answer:
        """Append JSON values (at most 255), all or none, and the end of the stream when `end`.

        With a `producer` (its `seq` is that of the first value) a call that got no answer is
        repeated, and nothing is appended twice.
        """
        records: list[Answer] = [{"type": RecordType.DATA, "payload": {"data": v}} for v in values]
        if end:
            records.append({"type": RecordType.END, "payload": {"reason": "complete"}})
        body: Answer = {"records": records}
        if producer is not None:
            body["producer"] = msgspec.to_builtins(producer)
        path = f"/api/v1/streams/{_part(stream_id)}/records"
        backoff = self._backoff()
        while True:
            try:
                return await self._call("POST", path, json=body)
            except (Unavailable, RateLimited) as error:
                wait = None if producer is None else backoff.wait(time.monotonic())
                if wait is None:
                    raise
                asked = error.retry_after_s if isinstance(error, RateLimited) else 0.0
                await asyncio.sleep(max(wait, asked))

    async def stream(
        self, stream_id: str, from_: str | int = "start", *, rate: float | None = None
    ) -> AsyncGenerator[Element]:
        """The data records of a stream, over any number of reconnects, none lost and none twice.

        Server-sent events: one stream, text; a binary record is a `ref` for `record_bytes`. Several
        streams, bytes and credit: `connect_streams`, whose `subscribe` says what `from_`, `rate`
        and the elements are.
        """
        query = urlencode(_given({"from": from_, "rate": rate}))
        following = Following(stream_id, whole=from_ == "start")
        path = f"/api/v1/streams/{_part(stream_id)}/sse?{query}"
        async with contextlib.aclosing(self._follow(path)) as found:
            async for event in found:
                if event.name == "gap":
                    gap = msgspec.json.decode(event.data)
                    yield following.miss(gap["reason"], gap["next"])
                if not event.name.startswith("stream_"):
                    continue
                record = msgspec.json.decode(event.data, type=StreamChunk)
                if (told := following.feed(record)) is not None:
                    yield told
                if following.ended:
                    return
        following.finish()

    def connect_streams(
        self, *, renew: Renew | None = None, give_up_s: float = GIVE_UP_S
    ) -> StreamConnection:
        """Streams over one WebSocket: subscriptions, publishers, bytes. A context manager.

        `renew`: when this client's key is a token, gives the next one before it ends.
        `give_up_s`: how long it may be impossible to reach the server before that is an error.
        """
        return StreamConnection(
            self._server.base_url, self._server.key, renew=renew, give_up_s=give_up_s
        )

    async def stream_info(self, stream_id: str) -> Answer:
        """`head`, `cursor`, `state`, … of a stream; of a run also its `streams`."""
        return await self._call("GET", f"/api/v1/streams/{_part(stream_id)}")

    async def record_bytes(self, stream_id: str, sequence: int) -> bytes:
        """The payload of a binary record; of another one its JSON."""
        path = f"/api/v1/streams/{_part(stream_id)}/records/{sequence}"
        async with self._server.ask("GET", path) as answer:
            await self._server.check(answer)
            return await answer.aread()

    async def cancel_stream(self, stream_id: str) -> Answer:
        """End it for everybody, as cancelled; what has ended stays as it is."""
        return await self._call("POST", f"/api/v1/streams/{_part(stream_id)}/cancel")

    async def stream_token(
        self, stream_id: str, capabilities: Sequence[str] = ("sub",), *, lifetime_s: int = 3600
    ) -> Answer:
        """`{"token", "expires"}` for others: `sub`, `pub`, `cancel` of this stream or run alone."""
        body = {"capabilities": list(capabilities), "lifetime_s": lifetime_s}
        return await self._call("POST", f"/api/v1/streams/{_part(stream_id)}/tokens", json=body)

    async def stream_ticket(self, stream_id: str) -> Answer:
        """`{"ticket", "expires"}`: lets one reader in, once, within a minute (`?ticket=`)."""
        return await self._call("POST", f"/api/v1/streams/{_part(stream_id)}/tickets")

    # ------------------------------------------------------------------ how it is done

    async def _call(self, method: str, path: str, **more: Any) -> Any:
        return await self._server.call(method, path, **more)

    async def _follow(self, path: str) -> AsyncGenerator[_Event]:
        """Events of an SSE address until the server says 204; resumed by the last id."""
        last_id, backoff = "", self._backoff()
        while True:
            ending = Unavailable(
                Code.SERVER_UNREACHABLE,
                f"{self._server.base_url} ends the answer again and again before its end",
                hint="look at what stands between, a proxy for instance; then try again",
            )
            try:
                async with contextlib.aclosing(self._connect(path, last_id)) as events:
                    async for event in events:
                        last_id = event.id or last_id
                        if event.name not in _CONTROL:
                            backoff.progress()
                        yield event
            except _OverError:
                return
            except (Unavailable, RateLimited) as error:
                ending = error
            wait = backoff.wait(time.monotonic())
            if wait is None:
                raise ending
            await asyncio.sleep(wait)

    def _backoff(self) -> Backoff:
        return Backoff(give_up_s=self._give_up_s, uniform=random.uniform)

    async def _connect(self, path: str, last_id: str) -> AsyncGenerator[_Event]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        async with self._server.ask("GET", path, headers=headers, timeout=_SILENCE_S) as answer:
            await self._server.check(answer)
            if answer.status_code == 204:
                raise _OverError
            async for event in self._server.event_source(answer):
                yield _Event(event.event, event.id, event.data)


class _OverError(Exception):
    """The server has nothing more to send, ever."""


def _absolute(path: Path | str) -> str:
    return str(Path(path).absolute())


def _part(text: str) -> str:
    return quote(text, safe=":")


def _blob_path(ref: object) -> str:
    return f"/api/v1/storage/{ref_id_of(ref)}"


def _given(query: Answer) -> Answer:
    return {name: value for name, value in query.items() if value is not None}
