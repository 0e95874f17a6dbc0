"""Programs that people use: tus-js-client and Uppy under Node, tuspy; over a line that is cut."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import requests
from tests.support.cutting import cutting
from tests.support.node_clients import drive
from tests.support.uploads_site import TUS, Site, uploads_site
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

SIZE = 5 << 20
MOST_BYTES = 1 << 20
"""Of a connection, before it is cut; half of it on average."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with uploads_site(tmp_path) as site:
        yield site


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clip.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


async def assert_whole(site: Site, url: str, file: Path) -> None:
    expected = await asyncio.to_thread(file.read_bytes)
    row = await site.storage.uploads.find(url.rpartition("/")[2], workspace="default")
    assert row.state == "done"
    reader = await site.storage.open(await site.storage.uploads.result(row))
    async with contextlib.aclosing(reader):
        assert b"".join([chunk async for chunk in reader]) == expected


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("tus.mjs", {}),
        ("tus.mjs", {"chunkSize": 400_000}),
        ("tus.mjs", {"chunkSize": 400_000, "deferred": True}),
        ("tus.mjs", {"chunkSize": 300_000, "withCreation": True}),
        ("uppy.mjs", {}),
        ("uppy.mjs", {"chunkSize": 700_000, "type": "video/mp4"}),
    ],
)
async def test_clients_of_node_over_a_line_that_is_cut(
    site: Site, file: Path, script: str, options: dict[str, object]
) -> None:
    async with cutting(site.url, seed=len(str(options)), most_bytes=MOST_BYTES) as (url, cutter):
        told = await drive(script, endpoint=url + TUS, file=str(file), **options)
    assert cutter.cuts > 3
    await assert_whole(site, told["url"], file)


@pytest.mark.parametrize(("chunk", "checksum"), [(None, False), (500_000, False), (200_000, True)])
async def test_tuspy_over_a_line_that_is_cut(
    site: Site, file: Path, chunk: int | None, checksum: bool
) -> None:
    def upload(endpoint: str) -> str:
        chunks = {} if chunk is None else {"chunk_size": chunk}
        with file.open("rb") as stream:
            uploader = TusClient(endpoint).uploader(
                file_stream=stream, retries=200, retry_delay=0, upload_checksum=checksum, **chunks
            )
            while not uploader.url:  # it does not try again to create
                with contextlib.suppress(TusCommunicationError, requests.RequestException):
                    uploader.set_url(uploader.create_url())
            uploader.offset = 0
            uploader.upload()
            return uploader.url

    async with cutting(site.url, seed=3, most_bytes=MOST_BYTES) as (url, cutter):
        address = await asyncio.to_thread(upload, url + TUS)
    assert cutter.cuts > 3
    await assert_whole(site, address, file)


async def test_what_clients_say_of_a_file_is_kept(site: Site, file: Path) -> None:
    metadata = {"filename": "näme.bin", "filetype": "application/x-thing"}
    told = await drive("tus.mjs", endpoint=site.url + TUS, file=str(file), metadata=metadata)
    upload_id = told["url"].rpartition("/")[2]
    row = await site.storage.uploads.find(upload_id, workspace="default")
    blob = await site.storage.uploads.result(row)
    assert blob.filename == "näme.bin"
    assert blob.metadata["declaredMimeType"] == "application/x-thing"


async def test_uppy_names_a_file_and_its_type(site: Site, file: Path) -> None:
    told = await drive("uppy.mjs", endpoint=site.url + TUS, file=str(file), type="video/mp4")
    upload_id = told["url"].rpartition("/")[2]
    row = await site.storage.uploads.find(upload_id, workspace="default")
    blob = await site.storage.uploads.result(row)
    assert (blob.filename, blob.metadata["declaredMimeType"]) == ("clip.bin", "video/mp4")
