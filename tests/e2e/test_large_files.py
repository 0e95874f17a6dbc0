"""A gigabyte through a real server, whose memory stays small."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.api import Api, api_of
from tests.support.server import up

BLOCK = os.urandom(1 << 20)
BLOCKS = 1024
ALLOWED_GROWTH = 50 << 20


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """Of its own: a gigabyte is not left behind."""
    home = tmp_path / "home"
    with up(home) as server, api_of(server) as api:
        yield api
    shutil.rmtree(home)


class Watched:
    """Blocks on their way, hashed; and the server's largest memory meanwhile."""

    def __init__(self, api: Api) -> None:
        self._api, self.hash, self.size, self.peak = api, hashlib.sha256(), 0, 0

    def take(self, block: bytes) -> None:
        self.hash.update(block)
        self.size += len(block)
        self.peak = max(self.peak, self._api.memory())

    def sending(self) -> Iterator[bytes]:
        for number in range(BLOCKS):
            block = number.to_bytes(4, "big") + BLOCK[4:]
            self.take(block)
            yield block


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gigabyte_comes_back_whole_and_the_server_stays_small(api: Api) -> None:
    api.upload(b"warm")
    before = api.memory()
    sent, got = Watched(api), Watched(api)
    answer = api.http.post("/api/v1/storage/upload", content=sent.sending())
    assert answer.status_code == 201, answer.text
    with api.http.stream("GET", f"/api/v1/storage/{answer.json()['ref']}") as download:
        assert download.headers["content-length"] == str(BLOCKS << 20)
        for block in download.iter_bytes(1 << 20):
            got.take(block)
    assert (got.size, got.hash.digest()) == (BLOCKS << 20, sent.hash.digest())
    assert max(sent.peak, got.peak) - before < ALLOWED_GROWTH
