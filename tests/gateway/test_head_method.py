"""HEAD answers as GET does, without the body, and without the work that the body would be."""

import asyncio

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.head_method import HeadMiddleware


async def opened(http: httpx2.AsyncClient) -> str:
    """The path of a stream with one record more than its start, still open."""
    body = {"agent_id": "me", "pin_name": "out"}
    stream = (await http.post("/api/v1/streams/init", json=body)).json()["stream_id"]
    path = f"/api/v1/streams/{stream}"
    assert (await http.post(f"{path}/records", json={"data": 1})).status_code == 200
    return path


def facts(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


@pytest.mark.parametrize("of_stream", ["", "/log", "/log?from=2", "/records/2", "/records/9"])
async def test_of_a_stream(http: httpx2.AsyncClient, of_stream: str) -> None:
    path = await opened(http) + of_stream
    head, get = await http.head(path), await http.get(path)
    assert (head.status_code, facts(head)) == (get.status_code, facts(get))
    assert (head.content, get.content != b"") == (b"", True)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/", "/docs", "/api/v1/runs", "/api/v1/runs/rn_no", "/nowhere"]
)
async def test_of_the_rest(http: httpx2.AsyncClient, path: str) -> None:
    head, get = await http.head(path), await http.get(path)
    assert (head.status_code, facts(head)) == (get.status_code, facts(get))
    assert head.content == b""


async def test_what_has_no_get_has_no_head(http: httpx2.AsyncClient) -> None:
    answer = await http.head("/api/v1/streams/init/records")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_what_is_followed_ends_with_its_headers(http: httpx2.AsyncClient) -> None:
    answer = await http.head(await opened(http) + "/sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_timeout_of_the_answer_itself_is_not_swallowed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError(scope["method"])

    async def nothing() -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "HEAD", "path": "/healthz"}
    with pytest.raises(TimeoutError, match="GET"):
        await HeadMiddleware(app)(scope, nothing, nothing)  # pyright: ignore[reportArgumentType] -- neither is called
