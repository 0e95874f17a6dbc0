"""tus 1.0.0 (https://tus.io/protocols/resumable-upload) over real sockets: each MUST of what we
speak, and the SHOULDs that a client can see."""

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from blake3 import blake3
from tests.support.uploads_site import (
    BYTES,
    RESUMABLE,
    TUS,
    Site,
    begin,
    head,
    patch,
    uploads_site,
)

Check = Callable[[Site], Awaitable[None]]
MUSTS: dict[str, Check] = {}
METADATA = "filename d29ybGQucGRm,is_confidential"


def must(what: str) -> Callable[[Check], Check]:
    def listed(check: Check) -> Check:
        assert what not in MUSTS
        MUSTS[what] = check
        return check

    return listed


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with uploads_site(tmp_path, max_bytes=1 << 20) as site:
        yield site


@pytest.mark.parametrize("what", MUSTS)
async def test_tus(what: str, site: Site) -> None:
    await MUSTS[what](site)


def test_the_table_is_whole() -> None:
    """Of each part of the protocol that OPTIONS announces."""
    parts = {what.partition(":")[0] for what in MUSTS}
    assert parts == {
        *("headers", "HEAD", "PATCH", "OPTIONS", "creation", "creation-with-upload"),
        *("creation-defer-length", "expiration", "checksum", "termination"),
    }


# --- headers


@must("headers: Tus-Resumable stands in every answer but that to OPTIONS, also in errors")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    answers = [
        await head(site, path),
        await head(site, TUS + "up_none"),
        await patch(site, path, b"x", 3),
        await patch(site, path, b"12345", 0),
        await site.client.delete(path, headers=RESUMABLE),
        await site.client.put(path, headers=RESUMABLE),
        await site.client.head(path),
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 404, 409, 204, 204, 405, 412]
    for answer in answers:
        assert answer.headers["tus-resumable"] == "1.0.0"


@must("headers: another version is 412 with Tus-Version, and nothing is done")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    for version in ({"Tus-Resumable": "0.2.2"}, {}):
        for answer in (
            await site.client.post(TUS, headers={"Upload-Length": "5", **version}),
            await site.client.head(path, headers=version),
            await site.client.delete(path, headers=version),
            await site.client.patch(
                path,
                content=b"12345",
                headers={
                    "Content-Type": BYTES["Content-Type"],
                    "Upload-Offset": "0",
                    **version,
                },
            ),
        ):
            assert answer.status_code == 412
            assert answer.headers["tus-version"] == "1.0.0"
    assert (await head(site, path)).headers["upload-offset"] == "0"


@must("headers: lengths and offsets are non-negative integers")
async def _(site: Site) -> None:
    for wrong in ("-1", "1.5", "x", "", "+1", "1_0", "9" * 30):
        told = {**RESUMABLE, "Upload-Length": wrong}
        assert (await site.client.post(TUS, headers=told)).status_code == 400
    path = await begin(site, 5)
    for wrong in ("-1", "x", ""):
        answer = await site.client.patch(
            path, content=b"12345", headers={**BYTES, "Upload-Offset": wrong}
        )
        assert answer.status_code == 400
    assert (await site.client.patch(path, content=b"1", headers=BYTES)).status_code == 400


@must("headers: X-HTTP-Method-Override is the method, and the real one is ignored")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    told = {**BYTES, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = await site.client.post(path, content=b"12345", headers=told)
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "5")
    told = {**RESUMABLE, "X-HTTP-Method-Override": "DELETE"}
    assert (await site.client.get(path, headers=told)).status_code == 204
    assert (await head(site, path)).status_code == 404


# --- HEAD


@must("HEAD: Upload-Offset always, also 0 and when it is complete; Upload-Length when known")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    for data, offset in ((b"", 0), (b"123", 3), (b"45", 5)):
        if data:
            await patch(site, path, data, offset - len(data))
        answer = await head(site, path)
        assert answer.status_code == 200
        assert answer.headers["upload-offset"] == str(offset)
        assert answer.headers["upload-length"] == "5"


@must("HEAD: an unknown upload is 404 without Upload-Offset")
async def _(site: Site) -> None:
    answer = await head(site, TUS + "up_none")
    assert answer.status_code == 404
    assert "upload-offset" not in answer.headers


@must("HEAD: Cache-Control: no-store")
async def _(site: Site) -> None:
    assert (await head(site, await begin(site, 5))).headers["cache-control"] == "no-store"


@must("HEAD: Upload-Metadata as the client wrote it")
async def _(site: Site) -> None:
    path = await begin(site, 5, **{"Upload-Metadata": METADATA})
    assert (await head(site, path)).headers["upload-metadata"] == METADATA
    assert "upload-metadata" not in (await head(site, await begin(site, 5))).headers


# --- PATCH


@must("PATCH: 204 with the new offset, the sum of the old one and what was taken")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    for data, offset, after in ((b"12", 0, "2"), (b"", 2, "2"), (b"345", 2, "5")):
        answer = await patch(site, path, data, offset)
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, after)
        assert not answer.content


@must("PATCH: another Content-Type is 415")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    for wrong in ("application/octet-stream", "application/offset+octet-streams"):
        answer = await patch(site, path, b"12345", 0, **{"Content-Type": wrong})
        assert answer.status_code == 415
    assert (await head(site, path)).headers["upload-offset"] == "0"


@must("PATCH: another offset is 409 and changes nothing")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    await patch(site, path, b"12", 0)
    for offset in (0, 1, 3, 5, 99):
        assert (await patch(site, path, b"345", offset)).status_code == 409
    assert (await head(site, path)).headers["upload-offset"] == "2"


@must("PATCH: an unknown upload is 404")
async def _(site: Site) -> None:
    assert (await patch(site, TUS + "up_none", b"12345", 0)).status_code == 404


@must("PATCH: more than Upload-Length is 413 and changes nothing")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    assert (await patch(site, path, b"123456", 0)).status_code == 413
    assert (await head(site, path)).headers["upload-offset"] == "0"


@must("PATCH: what came through is the file")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    await patch(site, path, b"12", 0)
    answer = await patch(site, path, b"345", 2)
    ref = answer.headers["mentat-ref"]
    reader = await site.storage.open(await site.storage.get(ref, workspace="default"))
    assert b"".join([chunk async for chunk in reader]) == b"12345"
    await reader.aclose()


# --- OPTIONS


@must("OPTIONS: 204 with Tus-Version; extensions, greatest size, checksum algorithms")
async def _(site: Site) -> None:
    for path in (TUS, TUS + "up_none"):
        answer = await site.client.options(path)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == "1.0.0"
        assert answer.headers["tus-max-size"] == str(1 << 20)
        assert set(answer.headers["tus-extension"].split(",")) == {
            *("creation", "creation-with-upload", "creation-defer-length"),
            *("checksum", "expiration", "termination"),
        }
        assert answer.headers["tus-checksum-algorithm"].split(",")[0] == "sha1"


@must("OPTIONS: Tus-Resumable of the client is ignored")
async def _(site: Site) -> None:
    answer = await site.client.options(TUS, headers={"Tus-Resumable": "0.1.0"})
    assert answer.status_code == 204


# --- creation


@must("creation: 201 with the Location of an upload that is empty")
async def _(site: Site) -> None:
    for address in (TUS, TUS.rstrip("/")):
        answer = await site.client.post(address, headers={**RESUMABLE, "Upload-Length": "5"})
        assert answer.status_code == 201
        at = await head(site, answer.headers["location"])
        assert at.headers["upload-offset"] == "0"


@must("creation: exactly one of Upload-Length and Upload-Defer-Length, whose value is 1")
async def _(site: Site) -> None:
    both = {"Upload-Length": "5", "Upload-Defer-Length": "1"}
    for told in ({}, both, {"Upload-Defer-Length": "2"}, {"Upload-Defer-Length": ""}):
        assert (await site.client.post(TUS, headers={**RESUMABLE, **told})).status_code == 400


@must("creation: over Tus-Max-Size is 413")
async def _(site: Site) -> None:
    told = {**RESUMABLE, "Upload-Length": str((1 << 20) + 1)}
    assert (await site.client.post(TUS, headers=told)).status_code == 413


@must("creation: keys of Upload-Metadata are unique and not empty, values are base64")
async def _(site: Site) -> None:
    for wrong in ("a YQ==,a YQ==", "a ?", "a YQ== YQ==", "a YQ==,,b YQ=="):
        told = {**RESUMABLE, "Upload-Length": "5", "Upload-Metadata": wrong}
        assert (await site.client.post(TUS, headers=told)).status_code == 400, wrong
    await begin(site, 5, **{"Upload-Metadata": "a,b YQ==,c"})


@must("creation: an upload of no bytes is complete")
async def _(site: Site) -> None:
    told = {**RESUMABLE, "Upload-Length": "0"}
    answer = await site.client.post(TUS, headers=told)
    assert answer.status_code == 201
    assert answer.headers["mentat-ref"].startswith("blob_")
    at = (await head(site, answer.headers["location"])).headers
    assert (at["upload-offset"], at["upload-length"]) == ("0", "0")


@must("creation: concatenation, which is not announced, is not done half")
async def _(site: Site) -> None:
    told = {**RESUMABLE, "Upload-Length": "5", "Upload-Concat": "partial"}
    assert (await site.client.post(TUS, headers=told)).status_code == 400


# --- creation-with-upload


@must("creation-with-upload: 201 with the offset behind the bytes that were taken")
async def _(site: Site) -> None:
    for data in (b"123", b"12345"):
        told = {**BYTES, "Upload-Length": "5"}
        answer = await site.client.post(TUS, content=data, headers=told)
        assert answer.status_code == 201
        assert answer.headers["upload-offset"] == str(len(data))
        assert ("mentat-ref" in answer.headers) == (len(data) == 5)
        assert (await head(site, answer.headers["location"])).headers["upload-offset"] == str(
            len(data)
        )


@must("creation-with-upload: another Content-Type is 415, too many bytes are 413; nothing stays")
async def _(site: Site) -> None:
    told = {**BYTES, "Upload-Length": "5"}
    wrong = {**told, "Content-Type": "text/plain"}
    assert (await site.client.post(TUS, content=b"12345", headers=wrong)).status_code == 415
    assert (await site.client.post(TUS, content=b"123456", headers=told)).status_code == 413
    assert (await site.storage.uploads.usage("default")).reserved_count == 0


# --- creation-defer-length


@must("creation-defer-length: HEAD says Upload-Defer-Length: 1 until the length is told, once")
async def _(site: Site) -> None:
    path = await begin(site, None)
    await patch(site, path, b"12", 0)
    at = (await head(site, path)).headers
    assert at["upload-defer-length"] == "1"
    assert "upload-length" not in at
    answer = await patch(site, path, b"3", 2, **{"Upload-Length": "5"})
    assert answer.status_code == 204
    at = (await head(site, path)).headers
    assert at["upload-length"] == "5"
    assert "upload-defer-length" not in at
    assert (await patch(site, path, b"4", 3, **{"Upload-Length": "6"})).status_code == 400
    answer = await patch(site, path, b"45", 3, **{"Upload-Length": "5"})
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "5")


@must("creation-defer-length: a length over Tus-Max-Size, or below the offset, is refused")
async def _(site: Site) -> None:
    path = await begin(site, None)
    await patch(site, path, b"12", 0)
    for length, status in (("1", 400), (str(2 << 20), 413)):
        answer = await patch(site, path, b"", 2, **{"Upload-Length": length})
        assert answer.status_code == status
    assert "upload-length" not in (await head(site, path)).headers


# --- expiration


@must("expiration: Upload-Expires at the creation and with every PATCH, as HTTP writes dates")
async def _(site: Site) -> None:
    told = {**RESUMABLE, "Upload-Length": "5"}
    created = await site.client.post(TUS, headers=told)
    patched = await patch(site, created.headers["location"], b"12", 0)
    for answer in (created, patched):
        text = answer.headers["upload-expires"]
        assert text.endswith(" GMT")
        assert parsedate_to_datetime(text).tzinfo is not None


@must("expiration: an upload that has expired is 410, and 404 when it is forgotten")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    uploads, later = site.storage.uploads, 10 * 86_400.0
    now = uploads._clock()
    uploads._clock = lambda: now + later
    assert (await head(site, path)).status_code == 410
    assert (await patch(site, path, b"12345", 0)).status_code == 410
    assert await uploads.sweep() == 1
    assert (await head(site, path)).status_code == 404


# --- checksum


def checksum(algorithm: str, data: bytes) -> dict[str, str]:
    hash_ = blake3(data) if algorithm == "blake3" else hashlib.new(algorithm, data)
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(hash_.digest()).decode()}"}


@must("checksum: the right one is 204; sha1 above all")
async def _(site: Site) -> None:
    for algorithm in ("sha1", "sha256", "md5", "blake3"):
        path = await begin(site, 11)
        answer = await patch(site, path, b"hello world", 0, **checksum(algorithm, b"hello world"))
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, "11")
    known = {"Upload-Checksum": "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="}
    assert (await patch(site, await begin(site, 11), b"hello world", 0, **known)).status_code == 204


@must("checksum: a wrong one is 460; the bytes are dropped and the offset stays")
async def _(site: Site) -> None:
    path = await begin(site, 9)
    await patch(site, path, b"1234", 0)
    for algorithm in ("sha1", "sha256", "md5", "blake3"):
        answer = await patch(site, path, b"56789", 4, **checksum(algorithm, b"other"))
        assert answer.status_code == 460
        assert (await head(site, path)).headers["upload-offset"] == "4"
    answer = await patch(site, path, b"56789", 4, **checksum("sha1", b"56789"))
    assert answer.headers["upload-offset"] == "9"


@must("checksum: an unknown algorithm, or what is no checksum, is 400; the bytes are dropped")
async def _(site: Site) -> None:
    path = await begin(site, 5)
    for wrong in ("crc32 AAAA", "SHA1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=", "sha1 YQ==", "sha1", ""):
        answer = await patch(site, path, b"12345", 0, **{"Upload-Checksum": wrong})
        assert answer.status_code == 400, wrong
    assert (await head(site, path)).headers["upload-offset"] == "0"


@must("checksum: with a creation too; a wrong one creates nothing")
async def _(site: Site) -> None:
    told = {**BYTES, "Upload-Length": "5"}
    right = {**told, **checksum("sha1", b"12345")}
    assert (await site.client.post(TUS, content=b"12345", headers=right)).status_code == 201
    wrong = {**told, **checksum("sha1", b"54321")}
    assert (await site.client.post(TUS, content=b"12345", headers=wrong)).status_code == 460
    assert (await site.storage.uploads.usage("default")).reserved_count == 0


# --- termination


@must("termination: 204, and the upload is 404 from then on; finished ones too")
async def _(site: Site) -> None:
    for data in (b"", b"123", b"12345"):
        path = await begin(site, 5)
        if data:
            await patch(site, path, data, 0)
        assert (await site.client.delete(path, headers=RESUMABLE)).status_code == 204
        assert (await head(site, path)).status_code == 404
        assert (await patch(site, path, b"1", 0)).status_code == 404
        assert (await site.client.delete(path, headers=RESUMABLE)).status_code == 404
    assert (await site.storage.uploads.usage("default")).count == 0
