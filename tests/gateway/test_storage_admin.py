"""Housekeeping on demand, and what /metrics says of it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2

from mentatlab.app import App


async def put(http: httpx2.AsyncClient, body: bytes) -> str:
    return (await http.post("/api/v1/storage/upload", content=body)).json()["ref"]


async def file_of(app: App, ref: str) -> Path:
    storage = app.services.storage
    path = storage.local_path(await storage.get(ref, workspace="default"))
    assert path is not None
    return path


async def scrubbed(app: App, admin: httpx2.AsyncClient) -> dict[str, Any]:
    begun = await admin.post("/api/v1/storage/scrub")
    assert (begun.status_code, begun.json()["running"]) == (202, True)
    async with asyncio.timeout(30):
        while app.services.storage.life.scrub.report.running:
            await asyncio.sleep(0)
    return (await admin.get("/api/v1/storage/scrub")).json()


async def test_gc_says_what_it_removed(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient
) -> None:
    lost = await put(http, b"one")
    (await file_of(app, lost)).unlink()
    answer = await admin.post("/api/v1/storage/gc")
    assert answer.status_code == 200
    assert answer.json() == {"blobs": 0, "orphans": 0, "missing": 1, "uploads": 0, "foreign": False}
    refused = await http.get(f"/api/v1/storage/{lost}")
    assert (refused.status_code, refused.json()["code"]) == (500, "REFERENCE_CORRUPT")
    metrics = (await http.get("/metrics")).text
    assert "\nmentatlab_storage_blobs 1\n" in metrics
    assert "\nmentatlab_storage_blobs_corrupt 1\n" in metrics
    assert "\nmentatlab_storage_bytes 3\n" in metrics
    assert "\nmentatlab_storage_corrupted_total 1\n" in metrics
    assert '\nmentatlab_storage_swept_total{kind="blob"} 0.0\n' in metrics


async def test_a_scrub_finds_flipped_bytes(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient
) -> None:
    right, wrong = await put(http, b"right"), await put(http, b"wrong")
    path = await file_of(app, wrong)
    path.chmod(0o600)
    path.write_bytes(b"gnorw")
    report = await scrubbed(app, admin)
    assert (report["total"], report["checked"], report["bytes"]) == (2, 2, 10)
    assert (report["corrupt_count"], report["corrupt"]) == (1, [wrong])
    assert (await http.get(f"/api/v1/storage/{right}")).content == b"right"
    refused = await http.get(f"/api/v1/storage/{wrong}")
    assert (refused.status_code, refused.json()["code"]) == (500, "REFERENCE_CORRUPT")
    path.write_bytes(b"wrong")  # from a backup
    report = await scrubbed(app, admin)
    assert (report["corrupt_count"], report["healed"]) == (0, 1)
    assert (await http.get(f"/api/v1/storage/{wrong}")).content == b"wrong"


async def test_only_admins_keep_house(http: httpx2.AsyncClient) -> None:
    for method, path in (("POST", "gc"), ("POST", "scrub"), ("GET", "scrub")):
        refused = await http.request(method, f"/api/v1/storage/{path}")
        assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
