"""A real film of a gigabyte, and five gigabytes of nothing: in by every way, out, and gone."""

import json
import os
import random
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from blake3 import blake3
from tests.support.api import Api, api_of
from tests.support.long_clip import FPS, HEIGHT, WIDTH, Clip, decodes_at, long_clip
from tests.support.seaweed import seaweed_server
from tests.support.sending import Part, send_file, send_until_cut
from tests.support.server import up
from tests.support.watching import watched

from mentatlab.sdk.client import AsyncClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BLOCK = 1 << 20
FIVE_GB = 5 * 10**9
"""What one object may have, unless the server is told otherwise."""
LOCAL_GROWTH, S3_GROWTH = 64 << 20, 96 << 20
LEFT_OVER = 32 << 20  # bytes of databases and logs
CUTS = 6
MOST_LOST = 64 << 20  # bytes that may have to be sent again after a cut
_TUS = {"Tus-Resumable": "1.0.0"}
_PATCH = {**_TUS, "Content-Type": "application/offset+octet-stream"}


class Film(NamedTuple):
    clip: Clip
    blake3: str


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Film]:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    clip = long_clip(path, 10**9)
    yield Film(clip, blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())
    path.unlink()


@pytest.fixture
def zeros(tmp_path: Path) -> Iterator[Path]:
    """A file that is all hole."""
    path = tmp_path / "zeros"
    path.touch()
    os.truncate(path, FIVE_GB)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("home")
    with up(home, env={"MENTATLAB_RATE": "0"}) as server, api_of(server) as api:
        api.http.delete(f"/api/v1/storage/{api.upload(b'warm')}").raise_for_status()
        yield api
    shutil.rmtree(home)


@pytest.fixture
def s3_api(tmp_path: Path) -> Iterator[Api]:
    """Its objects are in a bucket of a real S3 server, whose disk is not looked at."""
    with seaweed_server(tmp_path / "s3") as s3:
        settings = {"MENTATLAB_RATE": "0", **s3.environment}
        with up(tmp_path / "home", env=settings) as server, api_of(server) as api:
            api.upload(b"warm")
            yield api
    shutil.rmtree(tmp_path / "s3")


def test_the_film_is_one(film: Film) -> None:
    assert film.clip.size >= 10**9
    for second in _places(film):
        decodes_at(str(film.clip.path), second)


def test_a_film_goes_in_by_http_and_out_again(api: Api, film: Film) -> None:
    url = f"{api.server.url}/api/v1/storage/upload?type=video&filename=film.mp4"
    with watched(api.server, growth=LOCAL_GROWTH):
        answer = send_file("POST", url, Part(film.clip.path, 0, film.clip.size))
    assert answer.status == 201, answer
    _comes_out_again(api, json.loads(answer.body), film)


def test_a_film_goes_in_by_tus_over_a_line_that_is_cut(api: Api, film: Film) -> None:
    size = film.clip.size
    url = _created(api, size, type="video", filename="film.mp4")
    sent, cuts = 0, sorted(random.Random(4).sample(range(size), CUTS))
    with watched(api.server, growth=LOCAL_GROWTH):
        for cut in [*cuts, None]:
            sent += _patch(api, url, film.clip.path, size, cut)
    assert sent <= size + CUTS * MOST_LOST
    _comes_out_again(api, _finished(api, url), film)


def test_five_gigabytes_by_tus(api: Api, zeros: Path) -> None:
    url = _created(api, FIVE_GB)
    with watched(api.server, growth=LOCAL_GROWTH):
        _patch(api, url, zeros, FIVE_GB, None)
    _are_zeros(api, _finished(api, url))


def test_five_gigabytes_by_http(api: Api, zeros: Path) -> None:
    url = f"{api.server.url}/api/v1/storage/upload"
    with watched(api.server, growth=LOCAL_GROWTH):
        answer = send_file("POST", url, Part(zeros, 0, FIVE_GB))
    assert answer.status == 201, answer
    _are_zeros(api, json.loads(answer.body))


async def test_a_film_goes_in_as_the_client_negotiates(api: Api, film: Film) -> None:
    with watched(api.server, growth=LOCAL_GROWTH):
        stored = await _uploaded(api, film)
    _comes_out_again(api, stored, film)


async def test_a_film_goes_straight_into_a_bucket(s3_api: Api, film: Film) -> None:
    """In signed parts; and out of it by a redirection."""
    with watched(s3_api.server, growth=S3_GROWTH):
        stored = await _uploaded(s3_api, film)
    _comes_out_again(s3_api, stored, film)


def test_a_film_goes_into_a_bucket_through_the_gateway(s3_api: Api, film: Film) -> None:
    url = f"{s3_api.server.url}/api/v1/storage/upload?type=video&filename=film.mp4"
    with watched(s3_api.server, growth=S3_GROWTH):
        answer = send_file("POST", url, Part(film.clip.path, 0, film.clip.size))
    assert answer.status == 201, answer
    stored = json.loads(answer.body)
    with watched(s3_api.server, growth=S3_GROWTH):
        assert _downloaded(s3_api, stored["ref"], via="gateway") == film.blake3
    _leaves_nothing(s3_api, stored["ref"])


async def _uploaded(api: Api, film: Film) -> Any:
    async with AsyncClient(api.server.url) as client:
        return await client.upload(film.clip.path, type_="video")


# --- tus


def _created(api: Api, size: int, **metadata: str) -> str:
    words = ",".join(f"{k} {b64encode(v.encode()).decode()}" for k, v in metadata.items())
    headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": words}
    answer = api.http.post("/api/v1/storage/tus/", headers=headers)
    assert answer.status_code == 201, answer.text
    return str(api.http.base_url.join(answer.headers["location"]))


def _patch(api: Api, url: str, source: Path, size: int, cut: int | None) -> int:
    """From where the server has it, to its end or to the cut; how many bytes were sent."""
    while True:
        offset = _offset(api, url)
        part, headers = Part(source, offset, size), {**_PATCH, "Upload-Offset": str(offset)}
        if cut is not None:
            send_until_cut("PATCH", url, part, max(cut, offset), headers)
            return max(cut, offset) - offset
        answer = send_file("PATCH", url, part, headers)
        if answer.status == 204:
            return size - offset
        assert answer.status in (409, 423), answer  # the one before has not quite let go


def _offset(api: Api, url: str) -> int:
    return int(api.http.head(url, headers=_TUS).raise_for_status().headers["upload-offset"])


def _finished(api: Api, url: str) -> Any:
    """What the upload became."""
    upload = url.rpartition("/")[2]
    told = api.http.get(f"/api/v1/storage/uploads/{upload}").raise_for_status().json()
    return told["result"]


# --- what came


def _comes_out_again(api: Api, stored: Any, film: Film) -> None:
    """Probed, byte for byte, playable from any place by its address; and no trace when deleted."""
    found = {"mimeType": "video/mp4", "width": WIDTH, "height": HEIGHT}
    assert found.items() <= stored["metadata"].items(), stored
    assert abs(stored["metadata"]["duration"] - film.clip.seconds) < 1
    assert stored["reference"]["ref"]["blake3"] == film.blake3
    with watched(api.server, growth=LOCAL_GROWTH):
        assert _downloaded(api, stored["ref"]) == film.blake3
    for second in _places(film):
        decodes_at(f"{api.server.url}/api/v1/storage/{stored['ref']}", second)
    _leaves_nothing(api, stored["ref"])


def _are_zeros(api: Api, stored: Any) -> None:
    assert stored["reference"]["ref"]["size"] == FIVE_GB
    headers = {"Range": f"bytes={FIVE_GB - BLOCK}-"}
    answer = api.http.get(f"/api/v1/storage/{stored['ref']}", headers=headers)
    assert (answer.status_code, answer.content) == (206, bytes(BLOCK))
    _leaves_nothing(api, stored["ref"])


def _downloaded(api: Api, ref: str, **query: str) -> str:
    """The hash of what comes."""
    hash_, path = blake3(), f"/api/v1/storage/{ref}"
    with api.http.stream("GET", path, params=query, follow_redirects=True) as answer:
        answer.raise_for_status()
        for block in answer.iter_raw(BLOCK):
            hash_.update(block)
    return hash_.hexdigest()


def _leaves_nothing(api: Api, ref: str) -> None:
    api.http.delete(f"/api/v1/storage/{ref}").raise_for_status()
    files = [path for path in api.server.home.rglob("*") if path.is_file()]
    assert sum(path.lstat().st_blocks * 512 for path in files) < LEFT_OVER


def _places(film: Film) -> tuple[float, ...]:
    """Seconds: start, middle, end."""
    return (0, film.clip.seconds / 2, film.clip.seconds - 1 / FPS)
