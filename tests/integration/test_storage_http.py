"""Storage through a real server: httpx2 where a client library will do, else bare sockets."""

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from fastapi import FastAPI, Request
from PIL import Image

from mentatlab.gateway import problems
from mentatlab.gateway.media_headers import clean_name, content_disposition
from mentatlab.gateway.server import serving
from mentatlab.gateway.signed_urls import NO_KEYS
from mentatlab.gateway.storage_download import Access, Downloads, download_router
from mentatlab.gateway.storage_routes import storage_router
from mentatlab.gateway.uploader import Uploader
from mentatlab.storage import StorageManager, open_local, open_memory

UPLOAD = "/api/v1/storage/upload"
BIG = os.urandom(1 << 20) * 9


class Site(NamedTuple):
    client: httpx2.AsyncClient
    storage: StorageManager
    blobs: Path
    port: int


def storage_app(storage: StorageManager) -> FastAPI:
    """Without admission: the caller says whose blobs are meant."""

    def workspace_of(request: Request) -> str:
        return request.headers.get("x-ws", "default")

    app = FastAPI()
    problems.install(app)
    app.include_router(storage_router(storage, workspace_of, lambda r: Uploader(workspace_of(r))))
    downloads = Downloads(storage, lambda request: Access(workspace_of(request)))
    app.include_router(download_router(downloads, NO_KEYS))
    return app


@asynccontextmanager
async def site_at(folder: Path, **settings: Any) -> AsyncIterator[Site]:
    blobs = folder / "blobs"
    async with open_local(blobs, folder / "catalog.db", **settings) as storage:
        app = storage_app(storage)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            async with (
                serving(app, listener, drain=nothing),
                httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
            ):
                yield Site(client, storage, blobs, port)


async def nothing() -> None:
    pass


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_at(tmp_path, max_bytes=20 << 20) as site:
        yield site


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


async def put(site: Site, data: bytes, query: str = "", **headers: str) -> str:
    response = await site.client.post(UPLOAD + query, content=data, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()["ref"]


def assert_nothing_stored(site: Site) -> None:
    assert [p for p in site.blobs.rglob("*") if p.is_file()] == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def raw(site: Site, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def abort(writer: asyncio.StreamWriter) -> None:
    """A reset, as from a process that was killed."""
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


# --- upload


async def test_a_raw_upload_comes_back(site: Site) -> None:
    data = png()
    response = await site.client.post(
        f"{UPLOAD}?type=image&filename=a.png&sha256=1",
        content=data,
        headers={"Content-Type": "image/gif"},
    )
    assert response.status_code == 201
    body = response.json()
    assert body["metadata"] == {
        "declaredMimeType": "image/gif",
        "mimeType": "image/png",
        "width": 40,
        "height": 30,
        "codec": "png",
    }
    reference = body["reference"]
    assert (reference["type"], reference["ref"]["size"]) == ("image", len(data))
    assert reference["ref"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert reference["ref"]["url"] == f"mentat://default/{body['ref']}"
    download = await site.client.get(f"/api/v1/storage/{body['ref']}")
    assert download.content == data
    assert (
        dict(download.headers).items()
        >= {
            "content-type": "image/png",
            "content-length": str(len(data)),
            "etag": f'"b3-{reference["ref"]["blake3"]}"',
            "accept-ranges": "bytes",
            "cache-control": "private, max-age=31536000, immutable",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox",
            "content-disposition": 'inline; filename="a.png"',
        }.items()
    )


async def test_a_chunked_upload_of_many_batches(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 100_000):
            yield BIG[start : start + 100_000]

    response = await site.client.post(UPLOAD, content=pieces())
    assert response.status_code == 201
    assert (await site.client.get(f"/api/v1/storage/{response.json()['ref']}")).content == BIG


async def test_a_form_upload(site: Site) -> None:
    response = await site.client.post(
        UPLOAD,
        data={"type": "image", "sha256": "true", "other": "x"},
        files={"file": ("Käfer.png", png(), "image/x-png")},
    )
    assert response.status_code == 201, response.text
    body = response.json()
    assert body["metadata"]["declaredMimeType"] == "image/x-png"
    assert body["reference"]["ref"]["sha256"]
    download = await site.client.get(f"/api/v1/storage/{body['ref']}")
    assert download.content == png()
    assert download.headers["content-disposition"].endswith("filename*=UTF-8''K%C3%A4fer.png")


async def test_a_big_form_upload(site: Site) -> None:
    tricky = BIG + b"\r\n--boundary\r\n--" + BIG[:100] + b"\r\n"
    response = await site.client.post(UPLOAD, files={"file": ("x.bin", tricky)})
    assert (await site.client.get(f"/api/v1/storage/{response.json()['ref']}")).content == tricky


async def test_a_form_may_name_the_file_in_a_field(site: Site) -> None:
    form = {"data": {"filename": "b.txt"}, "files": {"file": ("a.txt", b"x")}}
    ref = (await site.client.post(UPLOAD, **form)).json()["ref"]
    head = await site.client.head(f"/api/v1/storage/{ref}")
    assert head.headers["content-disposition"] == 'attachment; filename="b.txt"'


FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ndata\r\n'
LATE = b'--B\r\nContent-Disposition: form-data; name="type"\r\n\r\nimage\r\n'
LONG = b'--B\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 70_000 + b"\r\n"
END = b"--B--\r\n"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (FILE + FILE + END, "more than one file"),
        (LATE + END, "no file"),
        (END, "no file"),
        (b"", "no file"),
        (FILE + LATE + END, "stands after the file"),
        (FILE, "before its last boundary"),
        (FILE[:-20], "no file"),
        (b"not a form", ""),
        (LONG + FILE + END, "more than 65536 bytes"),
        (LATE.replace(b"type", b"t") * 65 + FILE + END, "more than 64 fields"),
        (FILE + b"--B garbage", ""),
    ],
)
async def test_forms_that_are_wrong(site: Site, body: bytes, detail: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    response = await site.client.post(UPLOAD, content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "FORM_INVALID"
    assert detail in response.json()["detail"]
    assert_nothing_stored(site)


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 999}"]
)
async def test_forms_without_a_usable_boundary(site: Site, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = await site.client.post(UPLOAD, content=FILE + END, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "FORM_INVALID")


async def test_fields_after_the_file_that_say_nothing_are_fine(site: Site) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    body = FILE + LATE.replace(b'"type"', b'"note"') + END
    assert (await site.client.post(UPLOAD, content=body, headers=headers)).status_code == 201


@pytest.mark.parametrize(
    ("query", "data", "status", "code"),
    [
        ("?type=image", b"<html><body>", 415, "MEDIA_TYPE_MISMATCH"),
        ("?type=image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "MEDIA_TYPE_MISMATCH"),
        ("?type=video", png(), 415, "MEDIA_TYPE_MISMATCH"),
        ("?type=image", b"", 400, "EMPTY_MEDIA"),
        ("?type=number", b"1", 422, "INVALID_REQUEST"),
    ],
)
async def test_what_the_pin_does_not_take(
    site: Site, query: str, data: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "image/png"}
    response = await site.client.post(
        f"{UPLOAD}{query}&filename=x.png", content=data, headers=headers
    )
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert_nothing_stored(site)


async def test_a_sha256_that_is_told_is_compared(site: Site) -> None:
    right, wrong = hashlib.sha256(b"data").hexdigest(), hashlib.sha256(b"dada").hexdigest()

    async def answers(told: str) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        file = {"file": ("x", b"data")}
        for sending in (
            site.client.post(UPLOAD, params={"sha256": told}, content=b"data"),
            site.client.post(UPLOAD, params={"sha256": told}, files=file),
            site.client.post(UPLOAD, data={"sha256": told}, files=file),
        ):
            answer = await sending
            yield answer.status_code, answer.json()

    async for status, body in answers(right.upper()):
        assert (status, body["reference"]["ref"]["sha256"]) == (201, right)
    async for status, body in answers("no"):
        assert (status, "sha256" in body["reference"]["ref"]) == (201, False)
    async for status, body in answers(wrong):
        assert (status, body["code"]) == (400, "DIGEST_MISMATCH")
    async for status, body in answers("abc"):
        assert (status, body["code"]) == (400, "INVALID_REQUEST")


async def test_the_digest_of_a_form_is_refused_instead_of_forgotten(site: Site) -> None:
    response = await site.client.post(
        UPLOAD, files={"file": ("x", b"data")}, headers={"Content-Digest": digest(b"data")}
    )
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")


async def test_a_wrong_method_is_told_all_that_work(site: Site) -> None:
    """They are those of two routers."""
    response = await site.client.put(f"/api/v1/storage/{await put(site, b'x')}")
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, GET, HEAD")


async def test_a_forms_type_is_checked(site: Site) -> None:
    response = await site.client.post(UPLOAD, data={"type": "number"}, files={"file": ("x", b"1")})
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
async def test_digests(site: Site, header: str) -> None:
    value = f"sha-512=:AAAA:, {digest(b'data')}"
    await put(site, b"data", **{header: value})
    wrong = await site.client.post(UPLOAD, content=b"dada", headers={header: value})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "DIGEST_MISMATCH")
    for bad in ("sha-256=:AAAA:", "sha-256=:%%%:"):
        broken = await site.client.post(UPLOAD, content=b"data", headers={header: bad})
        assert (broken.status_code, broken.json()["code"]) == (400, "INVALID_REQUEST")
    await put(site, b"data", **{header: "md5=:AAAA:"})


async def test_too_large_by_its_own_word(site: Site) -> None:
    request = f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(request.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_too_large_when_counted(site: Site) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(25):
            yield bytes(1 << 20)

    response = await site.client.post(UPLOAD, content=endless())
    assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert_nothing_stored(site)


@pytest.mark.parametrize("form", [False, True])
async def test_a_client_that_leaves_in_mid_upload_leaves_nothing(site: Site, form: bool) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    kind = "multipart/form-data; boundary=B" if form else "image/png"
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 19999999"
    writer.write(head.encode() + b"\r\n\r\n" + (FILE[:-2] if form else b"") + BIG)
    staging = site.blobs / ".staging"
    await until(lambda: any(p.stat().st_size for p in staging.iterdir()))
    await abort(writer)
    await until(lambda: not any(staging.iterdir()))
    assert_nothing_stored(site)
    assert (await site.client.get("/api/v1/storage")).json() == {"items": [], "next": None}


async def test_a_full_disk_is_507(tmp_path: Path) -> None:
    async with site_at(tmp_path, min_free_bytes=1 << 60) as site:
        response = await site.client.post(UPLOAD, content=BIG)
        assert (response.status_code, response.json()["code"]) == (507, "DISK_FULL")
        assert_nothing_stored(site)


async def test_uploads_at_once(site: Site) -> None:
    refs = await asyncio.gather(*(put(site, bytes([n]) * 300_000) for n in range(8)))
    for n, ref in enumerate(refs):
        assert (await site.client.get(f"/api/v1/storage/{ref}")).content == bytes([n]) * 300_000


# --- download


@pytest.mark.parametrize(
    ("headers", "status", "start", "stop"),
    [
        ({}, 200, 0, 10),
        ({"Range": "bytes=2-4"}, 206, 2, 5),
        ({"Range": "bytes=-3"}, 206, 7, 10),
        ({"Range": "bytes=8-"}, 206, 8, 10),
        ({"Range": "bytes=0-99"}, 206, 0, 10),
        ({"Range": "bytes=4-2"}, 200, 0, 10),
        ({"Range": "lines=1-2"}, 200, 0, 10),
        ({"Range": "bytes=0-1,4-5"}, 200, 0, 10),
        ({"Range": "bytes=10-"}, 416, 0, 0),
        ({"Range": "bytes=-0"}, 416, 0, 0),
        ({"Range": "bytes=2-4", "If-Range": "ETAG"}, 206, 2, 5),
        ({"Range": "bytes=2-4", "If-Range": '"other"'}, 200, 0, 10),
        ({"If-None-Match": 'W/"x", W/ETAG'}, 304, 0, 0),
        ({"If-None-Match": '"other"'}, 200, 0, 10),
        ({"If-Match": '"other"'}, 412, 0, 0),
        ({"If-Match": "ETAG"}, 200, 0, 10),
    ],
)
async def test_ranges_and_conditions(
    site: Site, headers: dict[str, str], status: int, start: int, stop: int
) -> None:
    data = b"0123456789"
    url = f"/api/v1/storage/{await put(site, data)}"
    etag = (await site.client.head(url)).headers["etag"]
    sent = {name: value.replace("ETAG", etag) for name, value in headers.items()}
    response = await site.client.get(url, headers=sent)
    assert response.status_code == status
    if status in (200, 206):
        assert response.content == data[start:stop]
        assert response.headers["content-length"] == str(stop - start)
    if status == 206:
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/10"
    else:
        expected = "bytes */10" if status == 416 else None
        assert response.headers.get("content-range") == expected
    if status == 412:
        assert response.json()["code"] == "PRECONDITION_FAILED"
    if status == 304:
        assert response.content == b""
        assert response.headers["etag"] == etag


async def test_a_range_across_read_chunks(site: Site) -> None:
    ref = await put(site, BIG)
    headers = {"Range": "bytes=1000000-3999999"}
    response = await site.client.get(f"/api/v1/storage/{ref}", headers=headers)
    assert (response.status_code, response.content) == (206, BIG[1_000_000:4_000_000])


async def test_nothing_at_all(site: Site) -> None:
    url = f"/api/v1/storage/{await put(site, b'')}"
    response = await site.client.get(url)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == "0"
    suffix = await site.client.get(url, headers={"Range": "bytes=-5"})
    assert (suffix.status_code, suffix.content) == (200, b"")
    first = await site.client.get(url, headers={"Range": "bytes=0-"})
    assert (first.status_code, first.headers["content-range"]) == (416, "bytes */0")


async def test_head_says_the_same_without_the_bytes(site: Site) -> None:
    ref = await put(site, png())
    lines = ["HEAD /api/v1/storage/" + ref + " HTTP/1.1", "Host: x", "Range: bytes=0-1"]
    request = "\r\n".join([*lines, "Connection: close", "", ""])
    head, _, body = (await raw(site, request.encode())).partition(b"\r\n\r\n")
    assert body == b""
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"content-length: {len(png())}".encode() in head
    download = await site.client.get(f"/api/v1/storage/{ref}")
    short = await site.client.head(f"/api/v1/storage/{ref}")
    assert {n: v for n, v in short.headers.items() if n != "date"} == {
        n: v for n, v in download.headers.items() if n != "date"
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<html><script>alert(1)</script>", "attachment"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "attachment"),
        (b"%PDF-1.7", "attachment"),
        (b"text", "attachment"),
        (png(), "inline"),
    ],
)
async def test_only_media_are_shown(site: Site, data: bytes, kind: str) -> None:
    response = await site.client.get(f"/api/v1/storage/{await put(site, data)}")
    assert response.headers["content-disposition"] == kind


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("a.png", 'inline; filename="a.png"'),
        ("", "inline"),
        ("a b.png", 'inline; filename="a b.png"'),
        ('a"; evil="1', "inline; filename=\"a_; evil=_1\"; filename*=UTF-8''a%22%3B%20evil%3D%221"),
        ("a\r\nX-Evil: 1", 'inline; filename="aX-Evil: 1"'),
        ("../../etc/passwd", 'inline; filename="passwd"'),
        ("C:\\x\\y.png", 'inline; filename="y.png"'),
        ("猫.png", "inline; filename=\"_.png\"; filename*=UTF-8''%E7%8C%AB.png"),
        ("a\u202egnp.exe", 'inline; filename="agnp.exe"'),
    ],
)
async def test_names_cannot_break_out(site: Site, filename: str, expected: str) -> None:
    assert content_disposition("inline", filename) == expected
    response = await site.client.post(UPLOAD, params={"filename": filename}, content=png())
    download = await site.client.get(f"/api/v1/storage/{response.json()['ref']}")
    assert download.headers["content-disposition"] == expected
    assert "x-evil" not in download.headers


def test_names_are_cut() -> None:
    assert len(clean_name("x" * 999)) == 200


async def test_a_client_that_leaves_in_mid_download_frees_the_file(site: Site) -> None:
    ref = await put(site, BIG)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    writer.write(f"GET /api/v1/storage/{ref} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert await reader.readexactly(1000)
    assert open_blobs(site) == 1
    await abort(writer)
    await until(lambda: open_blobs(site) == 0)


def open_blobs(site: Site) -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += str(site.blobs) in str(link.readlink())
        except FileNotFoundError:
            continue
    return found


# --- who, list, delete


async def test_unknown_and_foreign_are_404(site: Site) -> None:
    ref = await put(site, b"x")
    foreign = await site.client.get(f"/api/v1/storage/{ref}", headers={"x-ws": "other"})
    unknown = await site.client.get(f"/api/v1/storage/blob_{'0' * 26}")
    nonsense = await site.client.get("/api/v1/storage/nonsense")
    for response in (foreign, unknown, nonsense):
        assert (response.status_code, response.json()["code"]) == (404, "REFERENCE_NOT_FOUND")


async def test_expired_is_410(tmp_path: Path) -> None:
    now = [1000.0]
    async with site_at(tmp_path, clock=lambda: now[0]) as site:

        async def one() -> AsyncIterator[bytes]:
            yield b"x"

        blob = await site.storage.store(one(), workspace="default", ttl_s=5)
        now[0] += 5
        response = await site.client.get(f"/api/v1/storage/{blob.id}")
        assert (response.status_code, response.json()["code"]) == (410, "REFERENCE_EXPIRED")


async def test_pages(site: Site) -> None:
    refs = sorted([await put(site, b"x", "?filename=x.txt") for _ in range(5)], reverse=True)
    first = (await site.client.get("/api/v1/storage?limit=3")).json()
    assert [item["ref"] for item in first["items"]] == refs[:3]
    assert first["items"][0]["filename"] == "x.txt"
    rest = (await site.client.get(f"/api/v1/storage?limit=3&before={first['next']}")).json()
    assert [item["ref"] for item in rest["items"]] == refs[3:]
    assert rest["next"] is None


async def test_delete(site: Site) -> None:
    ref = await put(site, b"x")
    await site.storage.add_owner(ref, "run:1")
    refused = await site.client.delete(f"/api/v1/storage/{ref}")
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
    await site.storage.release("run:1")
    gone = await site.client.delete(f"/api/v1/storage/{ref}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await site.client.get(f"/api/v1/storage/{ref}")).status_code == 404
    assert_nothing_stored(site)


async def test_the_memory_store_behind_the_same_routes() -> None:
    async with open_memory() as storage:
        app = storage_app(storage)
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            ref = (await client.post(UPLOAD, content=BIG)).json()["ref"]
            answer = await client.get(f"/api/v1/storage/{ref}", headers={"Range": "bytes=5-9"})
            assert answer.content == BIG[5:10]


async def test_openapi_tells_the_calls() -> None:
    async with open_memory() as storage:
        app = storage_app(storage)
        paths = app.openapi()["paths"]
    ref = "/api/v1/storage/{ref}"
    assert set(paths) == {UPLOAD, "/api/v1/storage", ref, f"{ref}/sign"}
    assert "multipart/form-data" in paths[UPLOAD]["post"]["requestBody"]["content"]
