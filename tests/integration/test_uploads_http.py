"""Negotiated uploads over real sockets: single, tus, and parts that go straight to a bucket."""

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from blake3 import blake3
from PIL import Image
from tests.support.api import refused
from tests.support.seaweed import SeaweedProcess
from tests.support.uploads_site import (
    BYTES,
    TUS,
    UPLOADS,
    Site,
    begin,
    head,
    patch,
    served,
    uploads_site,
)

from mentatlab.gateway.uploads_routes import choose_mode
from mentatlab.protocol.errors import Invalid
from mentatlab.storage import Quota
from mentatlab.storage.opening import open_storage
from mentatlab.storage.port import Caps
from mentatlab.storage.s3_login import Login
from mentatlab.storage.upload_rows import Mode

Json = dict[str, Any]
MIB = 1 << 20


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with uploads_site(tmp_path, max_bytes=20 << 20) as site:
        yield site


@pytest.fixture
async def bucket(tmp_path: Path, seaweed: SeaweedProcess) -> AsyncIterator[Site]:
    login = Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, "uploads")
    async with (
        open_storage(
            login, tmp_path, home_key="of all tests here", quota=Quota(bytes=200 * MIB)
        ) as opened,
        served(opened.manager) as site,
    ):
        yield site


async def negotiate(site: Site, **body: Any) -> Json:
    answer = await site.client.post(UPLOADS, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def state(site: Site, upload: Json) -> Json:
    answer = await site.client.get(f"{UPLOADS}/{upload['upload_id']}")
    return answer.raise_for_status().json()


async def post(site: Site, upload: Json, verb: str, body: Json | None = None) -> httpx2.Response:
    return await site.client.post(f"{UPLOADS}/{upload['upload_id']}/{verb}", json=body or {})


async def content(site: Site, ref: str) -> bytes:
    reader = await site.storage.open(await site.storage.get(ref, workspace="default"))
    async with aclosing(reader):
        return b"".join([chunk async for chunk in reader])


def png(side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(buffer, "PNG")
    return buffer.getvalue()


def sha256_header(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


# --- the choice


@pytest.mark.parametrize(
    ("modes", "size", "presigns", "chosen"),
    [
        (["direct", "tus", "single"], 100, True, "single"),
        (["direct", "tus", "single"], 4 * MIB, True, "single"),
        (["direct", "tus", "single"], 4 * MIB + 1, True, "tus"),
        (["direct", "tus", "single"], 16 * MIB + 1, True, "direct"),
        (["direct", "tus", "single"], 16 * MIB + 1, False, "tus"),
        (["direct", "tus", "single"], None, True, "tus"),
        (["direct", "single"], 100 * MIB, False, "single"),
        (["direct"], 17 * MIB, True, "direct"),
        (["tus"], 1, True, "tus"),
        (["single"], None, True, "single"),
        (["direct"], 1, True, None),
        (["direct"], 100 * MIB, False, None),
    ],
)
def test_the_best_way_that_both_can_go(
    modes: list[Mode], size: int | None, presigns: bool, chosen: Mode | None
) -> None:
    caps = Caps(presigns=presigns)
    if chosen is None:
        with pytest.raises(Invalid):
            choose_mode(modes, size, caps)
    else:
        assert choose_mode(modes, size, caps) == chosen


# --- single


async def test_a_small_file_in_one_request(site: Site) -> None:
    data = png()
    upload = await negotiate(
        site, size=len(data), filename="../a.png", type="image", mimeType="image/png", ttl="pinned"
    )
    assert upload["mode"] == "single"
    answer = await site.client.put(
        upload["url"], content=data, headers={"Content-Digest": sha256_header(data)}
    )
    assert answer.status_code == 200
    body = answer.json()
    assert body["ref"] == upload["ref"]
    assert body["metadata"]["width"] == 40
    assert await content(site, body["ref"]) == data
    assert (await post(site, upload, "complete")).json() == body
    told = await state(site, upload)
    assert (told["state"], told["result"]) == ("done", body)
    [item] = await site.storage.page("default", limit=2)
    assert (item.filename, item.sha256) == ("a.png", hashlib.sha256(data).hexdigest())


async def test_a_small_file_that_is_not_what_it_says(site: Site) -> None:
    upload = await negotiate(site, size=5)
    wrong = {"Repr-Digest": sha256_header(b"other")}
    answer = await site.client.put(upload["url"], content=b"12345", headers=wrong)
    refused(answer, 400, "DIGEST_MISMATCH")
    refused(await site.client.put(upload["url"], content=b"12345"), 404, "UPLOAD_NOT_FOUND")
    picture = await negotiate(site, size=10, type="image")
    answer = await site.client.put(picture["url"], content=b"no picture")
    refused(answer, 415, "MEDIA_TYPE_MISMATCH")
    short = await negotiate(site, size=5)
    refused(await site.client.put(short["url"], content=b"1234"), 409, "UPLOAD_INCOMPLETE")
    refused(await site.client.put(short["url"], content=b"123456"), 413, "PAYLOAD_TOO_LARGE")
    assert (await site.client.put(short["url"], content=b"12345")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"size": -1},
        {"size": 5, "type": "json"},
        {"size": 5, "sha256": "abc"},
        {"size": 5, "ttl": "for ever"},
        {"size": 5, "modes": []},
        {"size": 5, "modes": ["ftp"]},
    ],
)
async def test_what_cannot_be_meant(site: Site, body: Json) -> None:
    refused(await site.client.post(UPLOADS, json=body), 422, "INVALID_REQUEST")


# --- tus, negotiated


async def test_a_large_file_by_tus(site: Site) -> None:
    data = os.urandom(6 * MIB)
    digest = blake3(data).hexdigest()
    upload = await negotiate(site, size=len(data), blake3=digest, filename="b.bin")
    assert upload["mode"] == "tus"
    assert (await patch(site, upload["url"], data[:MIB], 0)).status_code == 204
    told = await state(site, upload)
    assert (told["state"], told["offset"], told["size"]) == ("open", MIB, len(data))
    refused(await post(site, upload, "complete"), 409, "UPLOAD_INCOMPLETE")
    answer = await patch(site, upload["url"], data[MIB:], MIB)
    assert answer.headers["mentat-ref"] == upload["ref"]
    body = (await post(site, upload, "complete")).json()
    assert body["reference"]["ref"]["blake3"] == digest
    refused(await post(site, upload, "parts", {"numbers": [1]}), 409, "CONFLICT")


async def test_an_upload_without_a_size_ends_when_it_is_said(site: Site) -> None:
    upload = await negotiate(site, modes=["tus"])
    await patch(site, upload["url"], b"12345", 0)
    answer = await post(site, upload, "complete", {"sha256": hashlib.sha256(b"12345").hexdigest()})
    assert answer.status_code == 200
    assert await content(site, upload["ref"]) == b"12345"
    assert (await head(site, upload["url"])).headers["mentat-ref"] == upload["ref"]


async def test_an_upload_is_abandoned(site: Site) -> None:
    upload = await negotiate(site, size=9 * MIB)
    await patch(site, upload["url"], b"12345", 0)
    address = f"{UPLOADS}/{upload['upload_id']}"
    assert (await site.client.delete(address)).status_code == 204
    refused(await site.client.get(address), 404, "UPLOAD_NOT_FOUND")
    refused(await site.client.get(address, headers={"x-ws": "other"}), 404, "UPLOAD_NOT_FOUND")


async def test_a_foreign_upload_looks_unknown(site: Site) -> None:
    upload = await negotiate(site, size=9 * MIB)
    foreign = {"x-ws": "other"}
    address = f"{UPLOADS}/{upload['upload_id']}"
    for answer in (
        await site.client.get(address, headers=foreign),
        await site.client.delete(address, headers=foreign),
        await site.client.post(f"{address}/complete", headers=foreign),
        await site.client.post(f"{address}/fallback", headers=foreign),
        await patch(site, upload["url"], b"1", 0, **foreign),
    ):
        refused(answer, 404, "UPLOAD_NOT_FOUND")
    assert (await state(site, upload))["offset"] == 0


async def test_a_digest_of_a_request_is_one_of_its_body(site: Site) -> None:
    path = await begin(site, 10, **{"Repr-Digest": sha256_header(b"1234567890")})
    answer = await patch(site, path, b"12345", 0, **{"Content-Digest": sha256_header(b"other")})
    refused(answer, 460, "UPLOAD_CHECKSUM_MISMATCH")
    answer = await patch(site, path, b"12345", 0, **{"Content-Digest": sha256_header(b"12345")})
    assert answer.headers["upload-offset"] == "5"
    refused(await patch(site, path, b"67891", 5), 400, "DIGEST_MISMATCH")


async def test_a_body_without_a_length_is_cut_at_what_was_announced(site: Site) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(MIB)

    path = await begin(site, 3 * MIB)
    refused(await patch(site, path, body(), 0), 413, "PAYLOAD_TOO_LARGE")
    offset = int((await head(site, path)).headers["upload-offset"])
    assert 2 * MIB <= offset <= 3 * MIB


# --- quota


async def test_quota_over_http(tmp_path: Path) -> None:
    async with uploads_site(tmp_path, quota=Quota(bytes=1000, count=3)) as site:
        announced = {"Upload-Length": str(5 * 10**9), "Tus-Resumable": "1.0.0"}
        refused(await site.client.post(TUS, headers=announced), 507, "QUOTA_EXCEEDED")
        answer = await site.client.post(UPLOADS, json={"size": 5 * 10**9})
        refused(answer, 507, "QUOTA_EXCEEDED")
        upload = await negotiate(site, size=600)
        used = (await site.client.get("/api/v1/storage/usage")).json()
        assert used == {
            "bytes": 0,
            "count": 0,
            "reserved_bytes": 600,
            "reserved_count": 1,
            "quota_bytes": 1000,
            "quota_count": 3,
        }
        one_go = "/api/v1/storage/upload"
        refused(await site.client.post(one_go, content=bytes(500)), 507, "QUOTA_EXCEEDED")
        form = {"file": ("a.bin", bytes(500))}
        refused(await site.client.post(one_go, files=form), 507, "QUOTA_EXCEEDED")
        assert (await site.client.post(one_go, content=bytes(400))).status_code == 201
        assert (await site.client.put(upload["url"], content=bytes(600))).status_code == 200
        assert (await site.client.post(one_go, content=b"")).status_code == 201
        refused(await site.client.post(one_go, content=b""), 507, "QUOTA_EXCEEDED")
        used = (await site.client.get("/api/v1/storage/usage")).json()
        assert (used["bytes"], used["count"], used["reserved_bytes"]) == (1000, 3, 0)


async def test_one_go_says_how_long_it_is_kept(site: Site) -> None:
    for ttl, seconds in (("ephemeral", 3600.0), ("execution", 7 * 86_400.0), ("pinned", None)):
        answers = [
            await site.client.post("/api/v1/storage/upload", params={"ttl": ttl}, content=b"x"),
            await site.client.post(
                "/api/v1/storage/upload", data={"ttl": ttl}, files={"file": ("a", b"x")}
            ),
        ]
        upload = await negotiate(site, size=1, ttl=ttl)
        answers.append(await site.client.put(upload["url"], content=b"x"))
        for answer in answers:
            blob = await site.storage.get(answer.json()["ref"], workspace="default")
            kept = None if blob.expires_at is None else blob.expires_at - blob.created_at
            assert kept == seconds


# --- straight to a bucket


async def send_parts(upload: Json, parts: list[Json], data: bytes) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        for part in parts:
            piece = data[part["offset"] : part["offset"] + part["size"]]
            (await client.put(part["url"], content=piece)).raise_for_status()


@pytest.mark.parametrize("claim", ["blake3", "sha256", "nothing"])
async def test_parts_go_straight_to_the_bucket(bucket: Site, claim: str) -> None:
    data = os.urandom(36 * MIB)
    upload = await negotiate(bucket, size=len(data), filename="c.bin", mimeType="text/html")
    assert upload["mode"] == "direct"
    assert upload["part_size"] == 16 * MIB
    assert [part["size"] for part in upload["parts"]] == [16 * MIB, 16 * MIB, 4 * MIB]
    await send_parts(upload, upload["parts"][:1], data)
    told = await state(bucket, upload)
    assert (told["state"], told["missing_parts"]) == ("open", [2, 3])
    problem = refused(await post(bucket, upload, "complete"), 409, "UPLOAD_INCOMPLETE")
    assert problem["details"]["missing_parts"] == [2, 3]
    fresh = (await post(bucket, upload, "parts", {"numbers": [2, 3]})).json()["parts"]
    await send_parts(upload, fresh, data)
    digests = {
        "blake3": {"blake3": blake3(data).hexdigest()},
        "sha256": {"sha256": hashlib.sha256(data).hexdigest()},
        "nothing": {},
    }
    answer = await post(bucket, upload, "complete", digests[claim])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["reference"]["ref"]["blake3"] == blake3(data).hexdigest()
    assert (await post(bucket, upload, "complete")).json() == body
    assert await content(bucket, upload["ref"]) == data
    used = await bucket.storage.uploads.usage("default")
    assert (used.bytes, used.reserved_bytes) == (len(data), 0)


async def test_a_picture_by_parts_is_judged_and_probed(bucket: Site) -> None:
    data = png(2500)
    upload = await negotiate(bucket, size=len(data), type="image", mimeType="image/png")
    assert upload["mode"] == "direct"
    await send_parts(upload, upload["parts"], data)
    body = (await post(bucket, upload, "complete")).raise_for_status().json()
    assert body["metadata"] | {"width": 2500, "mimeType": "image/png"} == body["metadata"]


async def test_wrong_bytes_by_parts_leave_nothing(bucket: Site) -> None:
    data = os.urandom(17 * MIB)
    for told, end, status, code in (
        ({"type": "image"}, {}, 415, "MEDIA_TYPE_MISMATCH"),
        ({}, {"sha256": "0" * 64}, 400, "DIGEST_MISMATCH"),
    ):
        upload = await negotiate(bucket, size=len(data), **told)
        await send_parts(upload, upload["parts"], data)
        refused(await post(bucket, upload, "complete", end), status, code)
        refused(await post(bucket, upload, "complete"), 404, "UPLOAD_NOT_FOUND")
        keys = [info.key async for info in bucket.storage._store.list("default/")]
        assert not [key for key in keys if upload["ref"] in key]
    used = await bucket.storage.uploads.usage("default")
    assert (used.bytes, used.count, used.reserved_bytes) == (0, 0, 0)


async def test_who_cannot_reach_the_bucket_falls_back_to_tus(bucket: Site) -> None:
    data = os.urandom(17 * MIB)
    upload = await negotiate(bucket, size=len(data), modes=["direct", "tus"])
    await send_parts(upload, upload["parts"][:1], data)
    fallen = (await post(bucket, upload, "fallback")).json()
    assert (fallen["upload_id"], fallen["ref"], fallen["mode"]) == (
        upload["upload_id"],
        upload["ref"],
        "tus",
    )
    assert (await post(bucket, upload, "fallback")).json()["url"] == fallen["url"]
    assert (await head(bucket, fallen["url"])).headers["upload-offset"] == "0"
    assert (await patch(bucket, fallen["url"], data[: 3 * MIB], 0)).status_code == 204
    answer = await patch(bucket, fallen["url"], data[3 * MIB :], 3 * MIB)
    assert answer.headers["mentat-ref"] == upload["ref"]
    assert await content(bucket, upload["ref"]) == data


async def test_tus_and_single_into_a_bucket(bucket: Site) -> None:
    data = os.urandom(20 * MIB)
    path = await begin(bucket, len(data))
    for start in range(0, len(data), 7 * MIB):
        answer = await patch(bucket, path, data[start : start + 7 * MIB], start)
        assert answer.status_code == 204
    assert await content(bucket, answer.headers["mentat-ref"]) == data
    upload = await negotiate(bucket, size=5)
    body = (await bucket.client.put(upload["url"], content=b"12345")).json()
    assert await content(bucket, body["ref"]) == b"12345"


async def test_two_ends_at_once_are_one(bucket: Site) -> None:
    data = os.urandom(17 * MIB)
    upload = await negotiate(bucket, size=len(data))
    await send_parts(upload, upload["parts"], data)
    answers = await asyncio.gather(*(post(bucket, upload, "complete") for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1


async def test_more_parts_than_there_are(bucket: Site) -> None:
    upload = await negotiate(bucket, size=17 * MIB)
    answer = await post(bucket, upload, "parts", {"numbers": [3]})
    assert answer.status_code == 400
    assert (await post(bucket, upload, "parts", {"numbers": [0]})).status_code == 422
    told = {**BYTES, "Upload-Offset": "0"}
    address = f"{TUS}{upload['upload_id']}"
    refused(await bucket.client.patch(address, content=b"x", headers=told), 409, "CONFLICT")
