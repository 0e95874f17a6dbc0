"""Where one case lives: the deployment it talks to, its connections, what it remembers."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from mentatlab.conformance.clients import Client, Message, WebSocket
from mentatlab.conformance.match import Bound, fill, match

Heard = Callable[[Message], object]


class FailedError(Exception):
    """The deployment does not do what the case says."""


class World(contextlib.AsyncExitStack):
    """`key`: sent with every request that names no credential of its own; `timeout_s`: patience
    with one step; `heard` is told every message."""

    def __init__(
        self,
        url: str,
        http: httpx2.AsyncClient,
        *,
        key: str | None,
        timeout_s: float,
        heard: Heard,
    ) -> None:
        super().__init__()
        self.url, self.http, self.timeout_s = url.rstrip("/"), http, timeout_s
        self._key, self._heard = key, heard
        self.bound: Bound = {"unique": secrets.token_hex(8)}
        self._clients: dict[str, Client] = {}

    def fill(self, template: Any) -> Any:
        return fill(template, self.bound)

    def check(self, pattern: Any, value: Any) -> None:
        if fault := match(pattern, value, self.bound):
            raise FailedError(fault)

    def headers(self, headers: Mapping[str, Any], auth: str | None) -> dict[str, str]:
        """`auth`: a credential, `none`, or not said: the key, if there is one."""
        credential = self._key if auth is None else self.fill(auth)
        bearer = {} if credential in (None, "none") else {"Authorization": f"Bearer {credential}"}
        return {**bearer, **{name: str(self.fill(value)) for name, value in headers.items()}}

    def add(self, name: str, client: Client) -> None:
        self._clients[name] = client
        self.push_async_callback(client.cut)

    def client(self, name: str) -> Client:
        if name in self._clients:
            return self._clients[name]
        raise FailedError(f"there is no connection {name!r}")

    async def next(self, name: str) -> Message:
        message = await self.client(name).next()
        self._heard(message)
        return message

    def socket(self, name: str) -> WebSocket:
        client = self.client(name)
        if isinstance(client, WebSocket):
            return client
        raise FailedError(f"{name!r} is not a WebSocket")

    async def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        response = await self.http.request(method, self.url + path, **options)
        while await asked_to_wait(response.status_code, response.headers):
            response = await self.http.request(method, self.url + path, **options)
        return response


async def asked_to_wait(status: int, headers: Mapping[str, str]) -> bool:
    """True after the wait that a 429 asks for: a deployment gets the pace that it wants."""
    if status != 429:
        return False
    await asyncio.sleep(float(headers["retry-after"]))
    return True


def answer_of(response: httpx2.Response) -> dict[str, Any]:
    """An answer as patterns see it: JSON and lines only where they are."""
    body = response.content
    found: dict[str, Any] = {
        "status": response.status_code,
        "headers": dict(response.headers),
        "size": len(body),
        "hex": body[:4096].hex(),
    }
    kind = response.headers.get("content-type", "")
    if "ndjson" in kind:
        found["lines"] = [json.loads(line) for line in body.splitlines()]
    elif "json" in kind:
        found["json"] = json.loads(body)
    return found
