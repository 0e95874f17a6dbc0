"""Uploads behind the whole gateway: who may, from which pages, with which bodies."""

import time

import httpx2
import pytest
from starlette.types import Message
from tests.gateway.conftest import client_of
from tests.support.api import refused
from tests.support.uploads_site import BYTES, RESUMABLE, TUS, UPLOADS

from mentatlab.app import App
from mentatlab.gateway.tus_routes import TusMiddleware
from mentatlab.protocol.tokens import Capability, Claims, mint
from mentatlab.storage.port import Storage
from mentatlab.storage.upload_rows import Usage

PAGE = "http://localhost:5173"
LENGTH = {**RESUMABLE, "Upload-Length": "5"}


def token(app: App, *capabilities: Capability, workspace: str = "default") -> str:
    claims = Claims(
        subject="rn_1/node/0/1",
        capabilities=capabilities,
        workspace=workspace,
        expires=int(time.time()) + 60,
    )
    return mint(claims, app.admission.rules.token_secret)


async def owned_by(storage: Storage, ref: str, owner: str) -> bool:
    """Whether nobody else needs it."""
    await storage.release(owner)
    database = storage._catalog.database  # type: ignore[attr-defined]
    row = await database.read(
        lambda db: db.execute("SELECT orphaned_at FROM blobs WHERE id = ?", (ref,)).fetchone()
    )
    return row[0] is not None


# --- attempts


async def test_an_attempt_uploads_by_every_way_for_its_run(app: App) -> None:
    async with client_of(app, token(app, "put")) as http:
        one = await http.post("/api/v1/storage/upload", content=b"12345")
        single = (await http.post(UPLOADS, json={"size": 5})).json()
        two = await http.put(single["url"], content=b"12345")
        created = await http.post(TUS, headers=LENGTH)
        path = created.headers["location"]
        assert (await http.head(path, headers=RESUMABLE)).headers["upload-offset"] == "0"
        three = await http.patch(path, content=b"12345", headers={**BYTES, "Upload-Offset": "0"})
        told = await http.get(f"{UPLOADS}/{path.rpartition('/')[2]}")
        assert told.json()["state"] == "done"
    refs = [one.json()["ref"], two.json()["ref"], three.headers["mentat-ref"]]
    for ref in refs:
        assert await owned_by(app.services.storage, ref, "run:rn_1")


async def test_an_attempt_reads_nothing_by_that(app: App) -> None:
    async with client_of(app, token(app, "put")) as http:
        ref = (await http.post("/api/v1/storage/upload", content=b"12345")).json()["ref"]
        for path in (f"/api/v1/storage/{ref}", "/api/v1/storage", "/api/v1/storage/usage"):
            refused(await http.get(path), 403, "FORBIDDEN")
        assert (await http.delete(f"/api/v1/storage/{ref}")).status_code == 403


async def test_an_attempt_of_another_workspace_sees_no_upload(app: App) -> None:
    async with client_of(app) as http:
        path = (await http.post(TUS, headers=LENGTH)).headers["location"]
    async with client_of(app, token(app, "put", workspace="other")) as http:
        assert (await http.head(path, headers=RESUMABLE)).status_code == 404


@pytest.mark.parametrize("capabilities", [("sub",), ("pub", "cancel")])
async def test_other_tokens_upload_nothing(app: App, capabilities: tuple[Capability, ...]) -> None:
    async with client_of(app, token(app, *capabilities)) as http:
        refused(await http.post(TUS, headers=LENGTH), 403, "FORBIDDEN")
        refused(await http.post(UPLOADS, json={"size": 5}), 403, "FORBIDDEN")
        refused(await http.post("/api/v1/storage/upload", content=b"1"), 403, "FORBIDDEN")


async def test_a_reader_uploads_nothing(app: App, admin: httpx2.AsyncClient) -> None:
    body = {"name": "reader", "scopes": ["read"]}
    key = (await admin.post("/api/v1/keys", json=body)).json()["key"]
    async with client_of(app, key) as http:
        refused(await http.post(TUS, headers=LENGTH), 403, "FORBIDDEN")
        refused(await http.post(UPLOADS, json={"size": 5}), 403, "FORBIDDEN")
        assert (await http.get("/api/v1/storage/usage")).status_code == 200


async def test_an_error_of_admission_says_the_version_too(app: App) -> None:
    async with client_of(app, "nonsense") as http:
        answer = await http.post(TUS, headers=LENGTH)
        assert answer.status_code == 401
        assert answer.headers["tus-resumable"] == "1.0.0"


# --- pages


async def test_a_page_of_an_allowed_origin_may_upload(http: httpx2.AsyncClient) -> None:
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type,tus-resumable,upload-offset,authorization",
    }
    preflight = await http.options(f"{TUS}up_1", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in (PAGE, "*")
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    for name in ("tus-resumable", "upload-offset", "content-type", "authorization"):
        assert name in allowed
    created = await http.post(TUS, headers={**LENGTH, "Origin": PAGE})
    assert created.status_code == 201
    exposed = created.headers["access-control-expose-headers"].lower().split(", ")
    for name in ("location", "upload-offset", "upload-length", "upload-expires", "mentat-ref"):
        assert name in exposed
    for name in created.headers:
        if name.startswith(("tus-", "upload-", "mentat-")):
            assert name in exposed


async def test_a_page_of_another_origin_may_not(http: httpx2.AsyncClient) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = await http.options(TUS, headers=asked)
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    answer = await http.post(TUS, headers={**LENGTH, "Origin": "https://evil.example"})
    refused(answer, 403, "FORBIDDEN_HOST")


async def test_what_a_tus_client_asks_first(http: httpx2.AsyncClient) -> None:
    answer = await http.options(TUS, headers={"Origin": PAGE})
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["access-control-allow-origin"] in (PAGE, "*")


# --- bodies


async def test_only_files_may_be_large(http: httpx2.AsyncClient) -> None:
    large = b'{"size": 5, "filename": "' + b"x" * (9 << 20) + b'"}'
    answer = await http.post(UPLOADS, content=large, headers={"Content-Type": "application/json"})
    refused(answer, 413, "PAYLOAD_TOO_LARGE")
    assert (await http.post("/api/v1/storage/upload", content=large)).status_code == 201
    told = {**RESUMABLE, "Upload-Length": str(len(large))}
    path = (await http.post(TUS, headers=told)).headers["location"]
    answer = await http.patch(path, content=large, headers={**BYTES, "Upload-Offset": "0"})
    assert answer.status_code == 204


async def test_other_protocols_pass_the_middleware_untouched() -> None:
    seen: list[object] = []

    async def inner(scope: object, receive: object, send: object) -> None:
        seen.append(scope)

    async def nothing() -> dict[str, object]:
        raise AssertionError

    scope = {"type": "websocket", "path": TUS}
    await TusMiddleware(inner)(scope, nothing, inner)  # type: ignore[arg-type]
    assert seen == [scope]


# --- a client that leaves


@pytest.mark.parametrize("way", ["tus", "upload"])
async def test_who_leaves_before_he_knows_the_address_leaves_nothing(app: App, way: str) -> None:
    sent: list[Message] = []
    coming = [{"type": "http.request", "body": b"x" * 5000, "more_body": True}]

    async def receive() -> Message:
        return coming.pop() if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    path = TUS if way == "tus" else "/api/v1/storage/upload"
    headers = {**BYTES, "Host": "127.0.0.1", "Upload-Length": "9000", "Content-Length": "9000"}
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "http_version": "1.1", "root_path": "", "scheme": "http",
        "headers": [(n.lower().encode(), v.encode()) for n, v in headers.items()],
        "client": ("127.0.0.1", 1), "server": None,
    }  # fmt: skip
    await app.asgi(scope, receive, send)
    assert sent[0]["status"] == 499
    storage = app.services.storage
    assert await storage.uploads.usage("default") == Usage(0, 0, 0, 0)
    assert [upload async for upload in storage._store.list_stale_uploads(before=1e12)] == []  # pyright: ignore[reportPrivateUsage]
