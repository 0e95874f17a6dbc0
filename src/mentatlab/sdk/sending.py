"""Outputs of an agent that shares no folder with its host: over HTTP, resumed after cuts.

With the standard library alone, from a thread. A program's own uploads are `uploading`.
"""

import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, MentatError, RateLimited, Unavailable
from mentatlab.sdk.answers import error_of
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.plain_http import FAILURES, Body, Connections
from mentatlab.sdk.upload_plan import CHUNK, Upload, goes_on

GIVE_UP_S = 60.0
_BLOCK = 1 << 20
_TIMEOUT_S = 120.0  # the last answer comes when all of it is stored
_PATH = "/api/v1/storage/uploads"
_TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


class Server(NamedTuple):
    url: str
    token: str  # of the attempt: it may put


class _Told(NamedTuple):
    offset: int
    body: bytes


def send(
    server: Server,
    source: bytes | Path,
    *,
    filename: str,
    mime_type: str = "",
    give_up_s: float = GIVE_UP_S,
) -> dict[str, Any]:
    """`{"ref", "metadata", "reference"}`. `MentatError`: `Unavailable` after `give_up_s` without
    progress, or what the server refuses it for."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    asked = {"size": size, "filename": filename, "mimeType": mime_type, "modes": ["single", "tus"]}
    sending = _Sending(server, source, size, Backoff(give_up_s=give_up_s, uniform=random.uniform))
    try:
        return sending.run(asked)
    finally:
        sending.close()


class _Sending:
    def __init__(self, server: Server, source: bytes | Path, size: int, backoff: Backoff) -> None:
        self._server, self._source, self._size = server, source, size
        self._backoff = backoff
        self._connections = Connections(_TIMEOUT_S)

    def close(self) -> None:
        self._connections.close()

    def run(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        upload: Upload | None = None
        while True:
            try:
                upload = self._state(upload) if upload else self._negotiate(asked)
                self._send(upload)
                told = self._call("POST", f"{_PATH}/{upload.upload_id}/complete")
                return msgspec.json.decode(told.body)
            except MentatError as error:
                self._pause(error)

    def _pause(self, error: MentatError) -> None:
        asked = error.retry_after_s if isinstance(error, RateLimited) else 0.0
        wait = self._backoff.wait(time.monotonic(), asked) if goes_on(error) else None
        if wait is None:
            raise error
        time.sleep(wait)

    def _negotiate(self, asked: Mapping[str, Any]) -> Upload:
        headers = {"Content-Type": "application/json"}
        told = self._call("POST", _PATH, headers, msgspec.json.encode(asked))
        return msgspec.json.decode(told.body, type=Upload)

    def _state(self, upload: Upload) -> Upload:
        told = self._call("GET", f"{_PATH}/{upload.upload_id}")
        upload = msgspec.json.decode(told.body, type=Upload)
        if upload.mode == "tus" and upload.state == "open":
            offset = self._call("HEAD", upload.url or "", _TUS).offset
            upload = msgspec.structs.replace(upload, offset=offset)
        return upload

    def _send(self, upload: Upload) -> None:
        if upload.state != "open":
            return
        url, offset = upload.url or "", upload.offset
        if upload.mode == "single":
            self._put("PUT", url, {}, 0, self._size)
            return
        while offset < self._size:
            headers = {**_TUS, "Upload-Offset": str(offset)}
            stop = min(offset + CHUNK, self._size)
            offset = self._put("PATCH", url, headers, offset, stop).offset
            self._backoff.progress()

    def _put(
        self, method: str, url: str, headers: Mapping[str, str], start: int, stop: int
    ) -> _Told:
        headers = {**headers, "Content-Length": str(stop - start)}
        return self._call(method, url, headers, self._blocks(start, stop))

    def _blocks(self, start: int, stop: int) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield self._source[start:stop]
            return
        with self._source.open("rb") as file:
            file.seek(start)
            while start < stop and (block := file.read(min(_BLOCK, stop - start))):
                start += len(block)
                yield block

    def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Body = b""
    ) -> _Told:
        url, token = self._server.url.rstrip("/") + path, self._server.token
        sent = {**(headers or {}), "Authorization": f"Bearer {token}"}
        try:
            with self._connections.request(method, url, sent, body or None) as answer:
                content, status, told = answer.read(), answer.status, answer.headers
        except FAILURES as error:
            raise Unavailable(
                Code.SERVER_UNREACHABLE,
                f"{self._server.url} does not answer: {error or type(error).__name__}",
                hint="can the agent reach the server's address (MENTAT_URL)?",
            ) from error
        if status >= 400:
            raise error_of(status, content, retry_after=told.get("Retry-After"))
        return _Told(int(told.get("Upload-Offset", "0")), content)
