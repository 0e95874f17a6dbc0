"""What is another workspace's does not exist: on every route that names a blob, an upload or a run.

The routes are those of the app itself, so that a new one is tried too.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.gateway.conftest import client_of
from tests.gateway.test_api import submit

from mentatlab.app import App

TUS = {"Tus-Resumable": "1.0.0"}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PUT", "/api/v1/storage/uploads/{upload_id}/content"): {"content": b"x"},
    ("POST", "/api/v1/storage/uploads/{upload_id}/parts"): {"json": {"numbers": [1]}},
    ("POST", "/api/v1/runs/{run_id}/gates/{node_id}"): {"json": {"approve": True}},
    ("HEAD", "/api/v1/storage/tus/{upload_id}"): {"headers": TUS},
    ("DELETE", "/api/v1/storage/tus/{upload_id}"): {"headers": TUS},
    ("PATCH", "/api/v1/storage/tus/{upload_id}"): {
        "headers": {
            **TUS,
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
        },
        "content": b"x",
    },
}
QUERIES = ["", "?preview=thumb", "?follow=1", "?via=gateway"]
UNKNOWN = {"REFERENCE_NOT_FOUND", "UPLOAD_NOT_FOUND", "RUN_NOT_FOUND"}
NAMED = ("ref", "upload_id", "run_id")


class Mine(NamedTuple):
    """What the other one would like to have."""

    ref: str
    upload_id: str
    run_id: str
    stream_ids: list[str]


async def client_in(app: App, workspace: str) -> httpx2.AsyncClient:
    key = await app.services.keys.create(
        workspace=workspace, scopes=("read", "run", "publish", "admin"), name="", now=1.0
    )
    return client_of(app, key.plaintext)


@pytest.fixture
async def mine(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    async with await client_in(app, "mine") as client:
        yield client


@pytest.fixture
async def theirs(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    """An admin, but elsewhere."""
    async with await client_in(app, "theirs") as client:
        yield client


@pytest.fixture
async def secret(mine: httpx2.AsyncClient) -> Mine:
    ref = (await mine.post("/api/v1/storage/upload", content=b"secret")).json()["ref"]
    asked = {"size": 10_000_000, "modes": ["tus"]}
    upload = (await mine.post("/api/v1/storage/uploads", json=asked)).json()
    run = await submit(mine, inputs={"words": "x"})
    streams = [stream["stream_id"] for stream in run["streams"]]
    return Mine(ref, upload["upload_id"], run["run_id"], streams)


def routes(app: App) -> list[tuple[str, str]]:
    """(method, path) of all that name something of a workspace's."""
    found = [
        (method.upper(), path)
        for path, methods in app.asgi.openapi()["paths"].items()
        for method in methods
        if any(f"{{{name}}}" in path for name in NAMED)
    ]
    return [*found, ("HEAD", "/api/v1/storage/{ref}")]


async def test_every_route_says_that_it_is_unknown(
    app: App, theirs: httpx2.AsyncClient, mine: httpx2.AsyncClient, secret: Mine
) -> None:
    tried = routes(app)
    assert len(tried) > 15
    for method, path in tried:
        where = path.format(
            ref=secret.ref, upload_id=secret.upload_id, run_id=secret.run_id, node_id="echo"
        )
        answer = await theirs.request(method, where, **BODIES.get((method, path), {}))
        assert answer.status_code == 404, (method, path, answer.text)
        if method != "HEAD":
            assert answer.json()["code"] in UNKNOWN, (method, path)
    assert (await mine.get(f"/api/v1/storage/{secret.ref}")).content == b"secret"
    assert (await mine.get(f"/api/v1/storage/uploads/{secret.upload_id}")).status_code == 200
    assert (await mine.get(f"/api/v1/runs/{secret.run_id}")).status_code == 200


@pytest.mark.parametrize("query", QUERIES)
async def test_in_no_form(theirs: httpx2.AsyncClient, secret: Mine, query: str) -> None:
    answer = await theirs.get(f"/api/v1/storage/{secret.ref}{query}")
    assert (answer.status_code, answer.json()["code"]) == (404, "REFERENCE_NOT_FOUND")


async def test_streams_are_not_told_either(theirs: httpx2.AsyncClient, secret: Mine) -> None:
    for stream in (secret.run_id, *secret.stream_ids):
        for path in ("", "/sse"):
            answer = await theirs.get(f"/api/v1/streams/{stream}{path}")
            assert answer.status_code in (403, 404), (path, answer.text)


async def test_lists_and_sums_are_ones_own(theirs: httpx2.AsyncClient, secret: Mine) -> None:
    assert (await theirs.get("/api/v1/storage")).json()["items"] == []
    assert (await theirs.get("/api/v1/runs")).json()["runs"] == []
    used = (await theirs.get("/api/v1/storage/usage")).json()
    assert (used["bytes"], used["count"], used["reserved_bytes"]) == (0, 0, 0)


@pytest.mark.parametrize("form", ["id", "url", "object", "own url"])
async def test_a_run_cannot_be_given_it(
    theirs: httpx2.AsyncClient, secret: Mine, form: str
) -> None:
    url = f"mentat://mine/{secret.ref}"
    value: Any = {
        "id": secret.ref,
        "url": url,
        "object": {"type": "binary", "ref": {"url": url, "size": 6}},
        "own url": f"mentat://theirs/{secret.ref}",
    }[form]
    flow = {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "steal", "name": "steal", "version": "0.1.0"},
        "graph": {
            "nodes": [
                {"id": "file", "type": "ui.file-upload"},
                {"id": "out", "type": "ui.console"},
            ],
            "edges": [{"from": "file.file", "to": "out.file"}],
        },
    }
    refused = await theirs.post("/api/v1/runs", json={"flow": flow, "inputs": {"file": value}})
    assert (refused.status_code, refused.json()["code"]) == (404, "REFERENCE_NOT_FOUND")


async def test_a_signed_address_is_for_its_own_workspace(
    app: App, mine: httpx2.AsyncClient, secret: Mine
) -> None:
    signed = (await mine.post(f"/api/v1/storage/{secret.ref}/sign", json={})).json()["url"]
    async with client_of(app) as nobody:
        assert (await nobody.get(signed)).content == b"secret"
        forged = await nobody.get(signed.replace("w=mine", "w=theirs"))
        assert forged.status_code == 403


async def test_the_key_in_the_store_says_whose_it_is(app: App, secret: Mine) -> None:
    blob = await app.services.storage.get(secret.ref, workspace="mine")
    assert blob.key.startswith("mine/")
