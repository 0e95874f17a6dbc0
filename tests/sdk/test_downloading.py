"""Downloads from real servers: bad lines, dead stores, hostile answers."""

import random
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import blake3
import pytest
from tests.support.range_server import Asked, Handler, Object, serving

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.sdk import backoff
from mentatlab.sdk.client import AsyncClient
from mentatlab.sdk.downloading import PIECE, filename_of

REF = "blob_01JABCDEFGHJKMNPQRSTVWXYZ0"
PATH = f"/api/v1/storage/{REF}"
DATA = random.Random(5).randbytes(5 * PIECE + 17)
ETAG = f'"b3-{blake3.blake3(DATA).hexdigest()}"'


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)


@pytest.fixture
def medium() -> Object:
    return Object(DATA, ETAG)


@pytest.fixture
def url(medium: Object) -> Iterator[str]:
    with serving(medium) as url:
        yield url.removesuffix("/data")


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url, give_up_s=0.2) as client:
        yield client


async def read(client: AsyncClient) -> bytes:
    return b"".join([block async for block in client.download(REF)])


async def test_whole_and_in_order(client: AsyncClient, medium: Object, tmp_path: Path) -> None:
    assert await read(client) == DATA
    told: list[int] = []
    path = tmp_path / "copy"
    done = await client.download_to(REF, path, progress=lambda sent, _: told.append(sent))
    assert done == path
    assert path.read_bytes() == DATA
    assert names(tmp_path) == ["copy"]
    assert told == sorted(set(told))
    assert told[-1] == len(DATA)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_line_that_cuts(
    client: AsyncClient, medium: Object, tmp_path: Path, whole: bool
) -> None:
    dice = random.Random(3)
    medium.answers = lambda handler, asked, _: (
        handler.answer_part(asked.start, asked.stop, sent=dice.randrange(1_000_000)) or True
    )
    got = (
        await read(client)
        if whole
        else (await client.download_to(REF, tmp_path / "copy")).read_bytes()
    )
    assert got == DATA


async def test_a_later_call_goes_on(client: AsyncClient, medium: Object, tmp_path: Path) -> None:
    medium.answers = lambda handler, asked, number: (
        asked.start >= 3 * PIECE and (handler.answer(503, b"") or True)
    )
    with pytest.raises(MentatError) as failed:
        await client.download_to(REF, tmp_path / "copy")
    assert failed.value.retryable
    assert names(tmp_path) == [f"copy.{REF}.part"]
    had = (tmp_path / f"copy.{REF}.part").stat().st_size
    assert had > 0
    medium.answers = lambda *_: False
    medium.asked.clear()
    path = await client.download_to(REF, tmp_path / "copy")
    assert path.read_bytes() == DATA
    assert min(asked.start for asked in medium.asked if asked.stop > 1) == had
    assert names(tmp_path) == ["copy"]


@pytest.mark.parametrize("kept", [b"something else", DATA + b"x"])
async def test_a_part_that_is_none(client: AsyncClient, tmp_path: Path, kept: bytes) -> None:
    """A beginning of other bytes is noticed at the end, one that is too long at once."""
    (tmp_path / f"copy.{REF}.part").write_bytes(kept)
    if len(kept) < len(DATA):
        with pytest.raises(MentatError) as corrupt:
            await client.download_to(REF, tmp_path / "copy")
        assert corrupt.value.code is Code.REFERENCE_CORRUPT
        assert names(tmp_path) == []
    assert (await client.download_to(REF, tmp_path / "copy")).read_bytes() == DATA


async def test_an_empty_one(tmp_path: Path) -> None:
    with serving(Object(b"")) as url:
        async with AsyncClient(url.removesuffix("/data")) as client:
            assert await read(client) == b""
            assert (await client.download_to(REF, tmp_path / "copy")).read_bytes() == b""


async def test_nobody_there_and_nothing_there(
    client: AsyncClient, medium: Object, tmp_path: Path
) -> None:
    medium.missing = True
    for reading in (read(client), client.download_to(REF, tmp_path / "copy")):
        with pytest.raises(MentatError) as unknown:
            await reading
        assert unknown.value.code is Code.REFERENCE_NOT_FOUND
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with AsyncClient(f"http://127.0.0.1:{taken.getsockname()[1]}") as nobody:
            with pytest.raises(MentatError) as unreachable:
                await read(nobody)
    assert unreachable.value.code is Code.SERVER_UNREACHABLE


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


Answer = Callable[[Handler, Asked, int], object]
HOSTILE: dict[str, tuple[Answer, Code]] = {
    "another ETag": (
        lambda h, a, n: h.answer_part(a.start, a.stop, etag='"b3-y"'),
        Code.REFERENCE_CORRUPT,
    ),
    "another size": (
        lambda h, a, n: h.answer_part(a.start, a.stop, total=len(DATA) + 1),
        Code.REFERENCE_CORRUPT,
    ),
    "the beginning again": (lambda h, a, n: h.answer(200, DATA, {"ETag": ETAG}), Code.UNAVAILABLE),
    "another part": (lambda h, a, n: h.answer_part(a.start + 1, a.stop), Code.UNAVAILABLE),
    "gone meanwhile": (lambda h, a, n: h.answer(410, b""), Code.INVALID_REQUEST),
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_wrong_bytes_are_never_given(client: AsyncClient, medium: Object, how: str) -> None:
    """After a cut in the middle."""
    answer, code = HOSTILE[how]

    def answers(handler: Handler, asked: Asked, number: int) -> bool:
        if number == 1:
            handler.answer_part(0, len(DATA), sent=PIECE)
        else:
            answer(handler, asked, number)
        return True

    medium.answers = answers
    got = bytearray()

    async def take() -> None:
        async for block in client.download(REF):
            got.extend(block)

    with pytest.raises(MentatError) as refused:
        await take()
    assert refused.value.code is code
    assert DATA.startswith(bytes(got))


async def test_bytes_of_another_medium_do_not_become_a_file(
    client: AsyncClient, medium: Object, tmp_path: Path
) -> None:
    medium.answers = lambda h, a, n: (
        a.start > 0 and (h.answer_part(a.stop - a.start, a.stop) or True)
    )
    medium.data = bytes(len(DATA))  # what the gateway's ETag does not fit
    with pytest.raises(MentatError):
        await client.download_to(REF, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("dead", [True, False])
async def test_a_store_that_gives_nothing_is_avoided(
    client: AsyncClient, medium: Object, tmp_path: Path, dead: bool
) -> None:
    """Nobody is there, or somebody who refuses."""
    store = Object(DATA)
    store.answers = lambda h, *_: h.answer(403, b"<Error/>") or True
    with serving(store) as refusing, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/data"
        target = nobody if dead else refusing
        medium.answers = lambda h, asked, _: (
            "via=gateway" not in asked.path and (h.answer(307, b"", {"Location": target}) or True)
        )
        assert await read(client) == DATA
        path = await client.download_to(REF, tmp_path / "copy")
        assert path.read_bytes() == DATA


async def test_a_store_never_sees_the_key(url: str, medium: Object) -> None:
    seen: list[str | None] = []

    def look(handler: Handler, *_: object) -> bool:
        seen.append(handler.headers.get("Authorization"))
        return False

    store = Object(DATA)
    store.answers = look
    with serving(store) as there:
        medium.answers = lambda h, *_: h.answer(307, b"", {"Location": f"{there}?s=1"}) or True
        async with AsyncClient(url, key="ml_secret") as client:
            assert await read(client) == DATA
    assert seen == [None]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="a b.png"', "a b.png"),
        ("inline; filename=\"k_se.png\"; filename*=UTF-8''k%C3%A4se.png", "käse.png"),
        ('attachment; filename="../../x"', "x"),
        ("attachment; filename*=UTF-8''..%2F..%5Cx", "x"),
        ("attachment", ""),
        ("", ""),
    ],
)
def test_names_of_files(header: str, name: str) -> None:
    assert filename_of(header) == name


async def test_without_the_package_blake3(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    assert (await client.download_to(REF, tmp_path / "copy")).read_bytes() == DATA
