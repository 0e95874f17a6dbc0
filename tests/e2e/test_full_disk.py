"""A disk that is full for a while: the server lives, says so, shows nothing half-written, and works
again when there is room.

Two kinds of full: a small file system of the server's own (a tmpfs in a user namespace, which needs
no root but a kernel that allows it), and a limit on the size of files, as a quota sets one.
"""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from tests.e2e.test_disconnects import COUNTER, COUNTER_MAIN, listen
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.api import (
    Api,
    Json,
    api_of,
    assert_explained,
    flow_of,
    processes_of,
    refused,
    until,
)
from tests.support.server import COMMAND, environment, up

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o size=48m none "$1" && shift && exec "$@"'


class Disk(NamedTuple):
    """A server, its home folder as seen from here, its disk's two states, and the codes of the full
    one."""

    api: Api
    home: Path
    codes: set[str]
    fill: Callable[[], None]
    empty: Callable[[], None]


@contextlib.contextmanager
def small_disk(home: Path, agents: Path) -> Generator[Disk]:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    home.mkdir()
    within = [*NAMESPACE, "sh", "-c", MOUNT, "sh", str(home)]
    with up(home, "--agents", agents, within=within) as server, api_of(server) as api:
        seen = Path(f"/proc/{server.process.pid}/root{home}")
        filler = seen / "filler"
        yield Disk(api, seen, {"DISK_FULL"}, lambda: _fill(filler), filler.unlink)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@contextlib.contextmanager
def small_quota(home: Path, agents: Path) -> Generator[Disk]:
    def limit(size: int) -> None:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    with up(home, "--agents", agents) as server, api_of(server) as api:
        codes = {"DISK_FULL", "DATABASE_ERROR"}  # SQLite does not tell a limit from a broken disk
        yield Disk(api, home, codes, lambda: limit(0), lambda: limit(resource.RLIM_INFINITY))


@pytest.fixture(params=[small_disk, small_quota])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Disk]:
    write_agent(tmp_path / "agents" / "echo")
    write_agent(tmp_path / "agents" / "counter", COUNTER, COUNTER_MAIN)
    with request.param(tmp_path / "home", tmp_path / "agents") as disk:
        disk.api.is_well()
        yield disk
        disk.api.is_well()


def stored(api: Api) -> list[Json]:
    return api.http.get("/api/v1/storage").raise_for_status().json()["items"]


def test_an_upload(disk: Disk):
    data = os.urandom(1 << 20)
    ref, before = disk.api.upload(data), stored(disk.api)
    disk.fill()
    for _ in range(3):
        answer = disk.api.http.post("/api/v1/storage/upload", content=os.urandom(6 << 20))
        refused(answer, 507, "DISK_FULL")
    assert stored(disk.api) == before
    assert disk.api.http.get(f"/api/v1/storage/{ref}").content == data
    assert disk.api.http.get("/healthz").status_code == 200
    disk.empty()
    assert disk.api.upload(data) != ref
    assert len(stored(disk.api)) == len(before) + 1


TUS = "/api/v1/storage/tus/"
SPOKEN = {"Tus-Resumable": "1.0.0"}


def patch(disk: Disk, url: str, data: bytes, *, offset: int) -> httpx2.Response:
    headers = {
        **SPOKEN,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    return disk.api.http.patch(url, content=data, headers=headers)


def offset_of(disk: Disk, url: str) -> int:
    answer = disk.api.http.head(url, headers=SPOKEN).raise_for_status()
    return int(answer.headers["upload-offset"])


def test_a_resumable_upload(disk: Disk):
    data, before = os.urandom(12 << 20), stored(disk.api)
    length = {**SPOKEN, "Upload-Length": str(len(data))}
    url = disk.api.http.post(TUS, headers=length).raise_for_status().headers["location"]
    assert patch(disk, url, data[: 5 << 20], offset=0).status_code == 204
    disk.fill()
    for _ in range(2):
        answer = patch(disk, url, data[5 << 20 :], offset=5 << 20)
        found = refused(answer, answer.status_code, answer.json()["code"])
        assert found["code"] in disk.codes
    assert stored(disk.api) == before
    assert disk.api.http.get("/healthz").status_code == 200
    disk.empty()
    offset = offset_of(disk, url)
    assert offset >= 5 << 20
    answer = patch(disk, url, data[offset:], offset=offset)
    assert answer.status_code == 204
    ref = answer.headers["mentat-ref"]
    assert disk.api.http.get(f"/api/v1/storage/{ref}").content == data
    assert list((disk.home / "blobs" / ".staging").iterdir()) == []


def test_a_resumable_upload_that_is_given_up(disk: Disk):
    length = {**SPOKEN, "Upload-Length": str(12 << 20)}
    url = disk.api.http.post(TUS, headers=length).raise_for_status().headers["location"]
    assert patch(disk, url, os.urandom(5 << 20), offset=0).status_code == 204
    disk.fill()
    assert patch(disk, url, os.urandom(7 << 20), offset=5 << 20).status_code >= 500
    disk.empty()
    assert disk.api.http.delete(url, headers=SPOKEN).status_code == 204
    assert list((disk.home / "blobs" / ".staging").iterdir()) == []
    assert len(disk.api.upload(b"works again")) > 0


def test_a_new_run(disk: Disk):
    runs = disk.api.http.get("/api/v1/runs").json()["runs"]
    disk.fill()
    answer = disk.api.post("runs", {"flow": ECHO_FLOW, "inputs": {"words": "x"}})
    found = refused(answer, answer.status_code, answer.json()["code"])
    assert found["code"] in disk.codes
    assert found["status"] in (500, 507)
    assert disk.api.http.get("/api/v1/runs").json()["runs"] == runs
    stream = disk.api.post("streams/init", {"agent_id": "me", "pin_name": "out"})
    assert stream.json()["code"] in disk.codes
    disk.empty()


def test_a_run_that_is_under_way(disk: Disk, tmp_path: Path):
    api, gate = disk.api, tmp_path / "gate"
    run_id = api.submit(flow_of("test.counter"), **{"it.gate": str(gate)})
    path, early = f"/api/v1/streams/{api.look(run_id)['streams'][0]['stream_id']}/sse", list[Json]()
    listen(api, path, None, early, upto=52)  # hello, the start, 50 numbers
    disk.fill()
    gate.touch()
    until(lambda: not processes_of(run_id), "the agent is gone")
    assert api.http.get("/healthz").status_code == 200
    disk.empty()
    view = api.ended(run_id)
    assert view["state"] == "failed", view
    assert view["error"]["code"] in disk.codes
    assert_explained(view["error"], view["error"]["code"], view["error"]["message"])
    records = list[Json]()
    listen(api, path, None, records, upto=1000)
    log = [record for record in records if "type" in record]
    assert [record["sequence"] for record in log] == list(range(1, len(log) + 1))
    numbers = [r["payload"]["data"] for r in log if r["type"] == "stream_data"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert log[-1]["type"] == "stream_error"


def test_a_server_that_starts_on_a_full_disk(tmp_path: Path):
    home = tmp_path / "home"
    command = ["prlimit", "--fsize=0", *COMMAND, "up", "--port", "0"]
    answer = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: DISK_FULL: ")
    assert "hint: " in answer.stderr
    with up(home) as server:  # nothing half-written stands in its way
        assert server.key.startswith("ml_")
    assert not list(home.glob(".key.*"))
