"""A server that is killed in the middle of an upload; and servers that share a catalogue."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from blake3 import blake3
from tests.support.api import until
from tests.support.server import Up, up
from tests.support.uploads_site import BYTES, RESUMABLE, TUS

from mentatlab.protocol.errors import Code, Conflict, Fenced
from mentatlab.sqlite import Database
from mentatlab.storage.schema import SCHEMA
from mentatlab.storage.upload_leases import Leases
from mentatlab.storage.upload_rows import NO_QUOTA, UploadRow, UploadRows
from mentatlab.testing.clock import ManualClock

CHUNK = os.urandom(1 << 20)


def begin(server: Up, size: int) -> str:
    told = {**RESUMABLE, "Upload-Length": str(size)}
    answer = httpx2.post(server.url + TUS, headers=told)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def offset_of(server: Up, path: str) -> int:
    answer = httpx2.head(server.url + path, headers=RESUMABLE, timeout=60)
    assert answer.status_code == 200, answer.headers
    return int(answer.headers["upload-offset"])


def patch(server: Up, path: str, data: Iterator[bytes] | bytes, offset: int) -> httpx2.Response:
    told = {**BYTES, "Upload-Offset": str(offset)}
    return httpx2.patch(server.url + path, content=data, headers=told, timeout=120)


def result(server: Up, path: str) -> dict[str, str]:
    upload_id = path.rpartition("/")[2]
    answer = httpx2.get(f"{server.url}/api/v1/storage/uploads/{upload_id}").json()
    assert answer["state"] == "done"
    return answer["result"]["reference"]["ref"]


def mebibytes(first: int, last: int) -> Iterator[bytes]:
    """Each is different."""
    for number in range(first, last):
        yield number.to_bytes(8, "big") + CHUNK[8:]


def content_from(offset: int, mib: int) -> Iterator[bytes]:
    first, within = divmod(offset, 1 << 20)
    for number, piece in enumerate(mebibytes(first, mib)):
        yield piece[within:] if number == 0 else piece


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with up(home) as server:
        path = begin(server, 3 << 20)
        answer = patch(server, path, b"".join(mebibytes(0, 1)), 0)
        assert answer.headers["upload-offset"] == str(1 << 20)
        server.stop(signal.SIGKILL)
    with up(home) as server:
        assert offset_of(server, path) == 1 << 20
        answer = patch(server, path, b"".join(mebibytes(1, 3)), 1 << 20)
        assert answer.status_code == 204
        assert result(server, path)["blake3"] == blake3(b"".join(mebibytes(0, 3))).hexdigest()


def test_a_long_request_goes_on_at_its_last_checkpoint(tmp_path: Path) -> None:
    mib, sent = 96, threading.Event()
    home = tmp_path / "home"

    def until_killed() -> Iterator[bytes]:
        yield from mebibytes(0, 80)
        sent.set()
        released.wait(60)

    released = threading.Event()

    def send(server: Up) -> None:
        with pytest.raises(httpx2.HTTPError):
            answers.append(str(patch(server, path, until_killed(), 0).headers))

    answers: list[str] = []
    with up(home) as server:
        path = begin(server, mib << 20)
        upload_id = path.rpartition("/")[2]
        sending = threading.Thread(target=send, args=(server,))
        sending.start()
        assert sent.wait(60)
        state = f"{server.url}/api/v1/storage/uploads/{upload_id}"
        until(lambda: httpx2.get(state).json()["offset"] >= 64 << 20, "a checkpoint")
        server.stop(signal.SIGKILL)
        released.set()
        sending.join()
    assert answers == []
    with up(home) as server:
        offset = offset_of(server, path)
        assert 64 << 20 <= offset <= 80 << 20
        answer = patch(server, path, content_from(offset, mib), offset)
        assert answer.status_code == 204, answer.text
        whole = blake3()
        for piece in mebibytes(0, mib):
            whole.update(piece)
        assert result(server, path)["blake3"] == whole.hexdigest()


def test_a_client_that_comes_back_need_not_wait_for_its_dead_connection(tmp_path: Path) -> None:
    with up(tmp_path / "home") as server:
        path = begin(server, 2 << 20)
        address = urlsplit(server.url)
        assert address.hostname
        with socket.create_connection((address.hostname, address.port or 0)) as silent:
            told = {
                **BYTES,
                "Upload-Offset": "0",
                "Content-Length": str(2 << 20),
                "Host": "localhost",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
            silent.sendall(f"PATCH {path} HTTP/1.1\r\n{lines}\r\n".encode() + CHUNK)
            answer = httpx2.get(f"{server.url}/api/v1/storage/uploads/{path.rpartition('/')[2]}")
            assert answer.json()["state"] == "open"
            offset = offset_of(server, path)
            assert patch(server, path, content_from(offset, 2), offset).status_code in (204, 409)


# --- several processes


@pytest.fixture
async def rows(tmp_path: Path) -> AsyncIterator[UploadRows]:
    async with Database(tmp_path / "catalog.db", SCHEMA) as database:
        yield UploadRows(database, NO_QUOTA)


@pytest.fixture
async def row(rows: UploadRows) -> UploadRow:
    row = UploadRow(
        id="up_1",
        workspace="ws",
        mode="tus",
        ref="blob_1",
        key="ws/1",
        size=10,
        reserved=10,
        created_at=0,
        expires_at=4e9,
    )
    await rows.add(row)
    return row


def leases(rows: UploadRows, clock: ManualClock, **times: float) -> Leases:
    return Leases(rows, clock, keep_s=60, **times)


async def test_another_process_waits_for_the_end_of_a_lease(
    rows: UploadRows, row: UploadRow
) -> None:
    clock = ManualClock(1000.0)
    here, there = leases(rows, clock), leases(rows, clock)
    async with here.hold(row.id):
        waiting = asyncio.ensure_future(_held(there, row.id))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == 2


async def test_another_process_does_not_wait_for_ever(rows: UploadRows, row: UploadRow) -> None:
    clock = ManualClock(1000.0)
    there = leases(rows, clock, patience_s=0)
    async with leases(rows, clock).hold(row.id):
        with pytest.raises(Conflict) as error:
            await _held(there, row.id)
    assert error.value.code is Code.UPLOAD_LOCKED


async def test_a_process_that_was_stopped_is_fenced(rows: UploadRows, row: UploadRow) -> None:
    clock = ManualClock(1000.0)
    async with leases(rows, clock).hold(row.id) as stopped:
        clock.now += 3600
        async with leases(rows, clock).hold(row.id) as newer:
            await newer.record(offset=7)
        with pytest.raises(Fenced) as error:
            await stopped.record(offset=3)
        assert error.value.code is Code.UPLOAD_SUPERSEDED
    assert (await rows.get(row.id, workspace="ws", now=clock.now)).offset == 7


async def test_a_holder_that_could_not_renew_stops_by_itself(
    rows: UploadRows, row: UploadRow
) -> None:
    clock = ManualClock(1000.0)
    async with leases(rows, clock, lease_s=0.03).hold(row.id) as lease:
        lease.check()
        clock.now += 3600
        async with leases(rows, clock).hold(row.id), asyncio.timeout(20):
            while True:
                await asyncio.sleep(0.005)
                try:
                    lease.check()
                except Fenced:
                    break


async def test_a_lease_is_renewed(rows: UploadRows, row: UploadRow) -> None:
    clock = ManualClock(1000.0)
    async with leases(rows, clock, lease_s=0.03).hold(row.id) as lease:
        first = lease.valid_until
        async with asyncio.timeout(20):
            while lease.valid_until == first:
                await asyncio.sleep(0.005)
        lease.check()


async def test_what_a_dead_process_held_is_free_at_start(rows: UploadRows, row: UploadRow) -> None:
    clock = ManualClock(1000.0)
    assert await rows.lease(row.id, "dead", now=clock.now, until=clock.now + 1e6)
    await rows.break_leases()
    assert await _held(leases(rows, clock, patience_s=0), row.id) == 2


async def _held(leases: Leases, upload_id: str) -> int:
    """The fence."""
    async with leases.hold(upload_id) as lease:
        return lease.row.fence
