"""A server that is killed before the steps that an upload takes on the disk: what it acknowledged
is there, nothing partial can be read, uploads go on, and one sweep leaves nothing behind.

A whole server for every second step; tests/integration/test_storage_kills.py takes each one of
them, in a process that starts in no time.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.support.api import Api, api_of, until
from tests.support.server import up

DOOMED = (
    sys.executable,
    "-c",
    "from tests.support.kill_steps import kill_this_server; kill_this_server();"
    "from mentatlab.cli import main; main()",
)
ROOT = Path(__file__).parents[2]
DATA = bytes(range(256)) * (6 << 12)  # 6 MiB: two batches
HALF = 5 << 20
TUS = {"Tus-Resumable": "1.0.0"}
DAYS = 2 * 86_400

STRIDE = 2  # every second step
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def killed_servers(home: Path) -> Iterator[Api]:
    """Servers that die one (or some) steps later each time, the last one does not."""
    with up(home):
        marker = home / "blobs" / "_mentatlab" / "catalog"
        until(marker.exists, "what is done once only is done")
    step = 1
    while True:
        env = {"KILL_AT": str(step), "PYTHONPATH": str(ROOT)}
        with up(home, command=DOOMED, env=env) as server, api_of(server) as api:
            yield api
            if server.process.poll() != -signal.SIGKILL:
                return
        step += STRIDE


def stored(api: Api) -> dict[str, bytes]:
    items = api.http.get("/api/v1/storage").raise_for_status().json()["items"]
    return {i["ref"]: api.http.get(f"/api/v1/storage/{i['ref']}").content for i in items}


def sweep(home: Path, api: Api) -> None:
    """As in two days; then only what is listed is there."""
    old = time.time() - DAYS
    for path in (home / "blobs").rglob("*"):
        os.utime(path, (old, old))
    key = {"Authorization": f"Bearer {api.server.key}"}
    api.http.post("/api/v1/storage/gc", headers=key).raise_for_status()
    left = [path for path in (home / "blobs").rglob("*") if path.is_file()]
    objects = [p for p in left if "_mentatlab" not in p.parts and not p.name.startswith(".")]
    sidecars = [p for p in left if "_mentatlab" not in p.parts and p.name.startswith(".")]
    assert len(objects) == len(sidecars) == len(stored(api))


def patched(api: Api, url: str, data: bytes, *, offset: int) -> httpx2.Response:
    headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    answer = api.http.patch(url, content=data, headers=TUS | headers)
    assert answer.status_code == 204, answer.text
    return answer


def test_an_upload_in_one_go(tmp_path: Path):
    home, acknowledged = tmp_path / "home", set[str]()
    for api in killed_servers(home):
        try:
            acknowledged.add(api.upload(DATA))
        except httpx2.TransportError:
            api.server.process.wait(20)
        else:
            api.server.stop()
        with up(home) as server, api_of(server) as after:
            found = stored(after)
            assert acknowledged <= set(found)
            assert set(found.values()) <= {DATA}
            sweep(home, after)
            assert stored(after) == found
    assert acknowledged


def test_a_resumable_upload(tmp_path: Path):
    home, whole = tmp_path / "home", 0
    for api in killed_servers(home):
        url, offset = "", 0
        try:
            length = {"Upload-Length": str(len(DATA))}
            created = api.http.post("/api/v1/storage/tus/", headers=TUS | length)
            url = created.raise_for_status().headers["location"]
            patched(api, url, DATA[:HALF], offset=0)
            offset = HALF
            patched(api, url, DATA[HALF:], offset=offset)
            offset = len(DATA)
        except httpx2.TransportError:
            api.server.process.wait(20)
        else:
            api.server.stop()
        with up(home) as server, api_of(server) as after:
            assert set(stored(after).values()) <= {DATA}
            if url:
                head = after.http.head(url, headers=TUS).raise_for_status()
                found = int(head.headers["upload-offset"])
                assert found >= offset
                if found < len(DATA):
                    patched(after, url, DATA[found:], offset=found)
                whole += 1
            assert len(stored(after)) == whole
            sweep(home, after)
            assert list(stored(after).values()) == [DATA] * whole
    assert whole
