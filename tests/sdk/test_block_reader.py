"""Media by HTTP ranges, from real servers: good ones, bad lines and hostile ones."""

import io
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.range_server import Asked, Handler, Object, serving

from mentatlab.protocol.errors import Code
from mentatlab.sdk import AgentError, backoff
from mentatlab.sdk.block_reader import AHEAD, BLOCK, KEPT, BlockReader, open_url

DATA = random.Random(7).randbytes(12 * BLOCK + 17)
SMALL = DATA[:1000]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)


@pytest.fixture
def medium() -> Object:
    return Object(DATA)


@pytest.fixture
def url(medium: Object) -> Iterator[str]:
    with serving(medium) as url:
        yield url


def test_it_is_a_file(url: str) -> None:
    with open_url(url) as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.read(10) == DATA[:10]
        assert file.seek(-17, os.SEEK_END) == len(DATA) - 17
        assert file.read() == DATA[-17:]
        assert file.seek(BLOCK + 5) == BLOCK + 5
        assert file.read(4) == DATA[BLOCK + 5 : BLOCK + 9]
        assert file.seek(3, os.SEEK_CUR) == file.tell() == BLOCK + 12
        target = bytearray(BLOCK)
        assert file.readinto(target) == BLOCK  # type: ignore[attr-defined]
        assert target == DATA[BLOCK + 12 : 2 * BLOCK + 12]
        file.seek(0)
        assert file.read() == DATA
        file.seek(len(DATA) + 5)
        assert file.read() == b""
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_a_jump_to_the_end_and_back_asks_for_two_blocks(url: str, medium: Object) -> None:
    with open_url(url) as file:
        file.read(100)
        file.seek(-10, os.SEEK_END)
        file.read()
        file.seek(200)
        file.read(100)
    assert [asked.start // BLOCK for asked in medium.asked] == [0, 12]


def test_reading_on_and_on_reads_ahead_and_every_block_once(url: str, medium: Object) -> None:
    with open_url(url) as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == DATA
    assert sorted(asked.start for asked in medium.asked) == list(range(0, len(DATA), BLOCK))


def test_what_is_kept_is_bounded(url: str) -> None:
    with BlockReader(url) as reader:
        for index in [*range(12), 0, 1, 2]:
            reader.seek(index * BLOCK)
            assert reader.readinto(bytearray(1)) == 1
            assert len(reader._blocks) <= KEPT
    assert AHEAD < KEPT


def test_threads_may_share_it(url: str) -> None:
    wrong: list[int] = []

    def read(reader: BlockReader, index: int) -> None:
        if reader._block(index) != DATA[index * BLOCK : (index + 1) * BLOCK]:
            wrong.append(index)

    with BlockReader(url) as reader:
        threads = [threading.Thread(target=read, args=(reader, n % 13)) for n in range(26)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_connections_are_kept(medium: Object) -> None:
    seen: set[object] = set()

    def count(handler: Handler, _: Asked, __: int) -> bool:
        seen.add(handler.client_address)
        return False

    medium.answers = count
    with serving(medium) as url, open_url(url) as file:
        assert file.read() == DATA
    assert len(seen) <= 1 + AHEAD


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "seek", "end", "back"]), st.integers(0, len(DATA))),
    max_size=20,
)


def test_it_reads_as_bytes_do(url: str) -> None:
    file, model = open_url(url), io.BytesIO(DATA)

    @given(STEPS)
    def same(steps: list[tuple[str, int]]) -> None:
        for step, number in steps:
            match step:
                case "read":
                    assert file.read(number % (2 * BLOCK)) == model.read(number % (2 * BLOCK))
                case "seek":
                    assert file.seek(number) == model.seek(number)
                case "end":
                    assert file.seek(-number, os.SEEK_END) == model.seek(-number, os.SEEK_END)
                case _:
                    model.seek(max(0, model.tell() - number % BLOCK))
                    assert file.seek(model.tell()) == model.tell()

    with file:
        same()


# --- bad lines


def test_a_line_that_cuts(url: str, medium: Object) -> None:
    dice = random.Random(3)

    def cut(handler: Handler, asked: Asked, _: int) -> bool:
        handler.answer_part(asked.start, asked.stop, sent=dice.randrange(300_000))
        return True

    medium.answers = cut
    with open_url(url) as file:
        assert file.read() == DATA
    starts = [asked.start for asked in medium.asked]
    assert len(starts) == len(set(starts))  # nothing that had come was asked for again


def test_short_answers_are_taken_as_they_are(url: str, medium: Object) -> None:
    medium.answers = lambda handler, asked, _: (
        handler.answer_part(asked.start, min(asked.stop, asked.start + 500_000)) or True
    )
    with open_url(url) as file:
        assert file.read() == DATA


@pytest.mark.parametrize("status", [429, 502, 503])
def test_what_passes_is_waited_for(url: str, medium: Object, status: int) -> None:
    medium.answers = lambda handler, _, number: (
        number in (1, 3) and (handler.answer(status, b"", {"Retry-After": "0"}) or True)
    )
    with open_url(url) as file:
        assert file.read() == DATA


def test_it_gives_up(url: str, medium: Object) -> None:
    medium.answers = lambda handler, *_: handler.answer(503, b"") or True
    with pytest.raises(AgentError) as gave_up:
        open_url(url, give_up_s=0.05)
    assert (gave_up.value.code, gave_up.value.retryable) == (Code.UNAVAILABLE, True)


def test_nobody_there() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(AgentError, match="broke off") as nobody:
            open_url(f"http://127.0.0.1:{taken.getsockname()[1]}/", give_up_s=0.02)
    assert (nobody.value.code, nobody.value.retryable) == (Code.SERVER_UNREACHABLE, True)


def test_after_an_error_it_can_be_read_on(url: str, medium: Object) -> None:
    with open_url(url, give_up_s=0.02) as file:
        medium.answers = lambda handler, *_: handler.answer(503, b"") or True
        file.seek(3 * BLOCK)
        with pytest.raises(AgentError):
            file.read(1)
        medium.answers = lambda *_: False
        assert file.read(1) == DATA[3 * BLOCK : 3 * BLOCK + 1]


def test_closing_ends_what_is_being_read(url: str, medium: Object) -> None:
    asked, go = threading.Event(), threading.Event()

    def hang(*_: object) -> bool:
        asked.set()
        return not go.wait(60)

    with BlockReader(url) as reader:
        medium.answers = hang
        block = reader._threads.submit(reader._source.read_block, 5)
        assert asked.wait(30)
    with pytest.raises(AgentError):
        block.result(timeout=30)
    go.set()


# --- hostile ones

Answer = Callable[[Handler, Asked, int], object]
HOSTILE: dict[str, tuple[Answer, Code, bool]] = {
    "200 instead of 206": (
        lambda h, a, n: h.answer(200, DATA, {"ETag": '"b3-x"'}),
        Code.UNAVAILABLE,
        True,
    ),
    "another part than asked": (
        lambda h, a, n: h.answer_part(a.start + 1, a.stop),
        Code.UNAVAILABLE,
        True,
    ),
    "more than asked": (
        lambda h, a, n: h.answer_part(a.start, a.stop + BLOCK),
        Code.UNAVAILABLE,
        True,
    ),
    "no Content-Range": (lambda h, a, n: h.answer(206, b"x"), Code.UNAVAILABLE, True),
    "nonsense": (
        lambda h, a, n: h.answer(206, b"x", {"Content-Range": "bytes 9-1/5"}),
        Code.UNAVAILABLE,
        True,
    ),
    "another ETag": (
        lambda h, a, n: h.answer_part(a.start, a.stop, etag='"b3-y"'),
        Code.REFERENCE_CORRUPT,
        False,
    ),
    "another size": (
        lambda h, a, n: h.answer_part(a.start, a.stop, total=len(DATA) + 1),
        Code.REFERENCE_CORRUPT,
        False,
    ),
    "a redirect in a circle": (
        lambda h, a, n: h.answer(307, b"", {"Location": h.path}),
        Code.UNAVAILABLE,
        True,
    ),
    "a redirect to nowhere": (lambda h, a, n: h.answer(307, b""), Code.INVALID_REQUEST, False),
    "gone": (lambda h, a, n: h.answer(410, b""), Code.INVALID_REQUEST, False),
    "its time is over": (
        lambda h, a, n: h.answer(410, b'{"code": "SIGNATURE_EXPIRED"}'),
        Code.SIGNATURE_EXPIRED,
        True,
    ),
    "unknown": (lambda h, a, n: h.answer(404, b""), Code.INVALID_REQUEST, False),
    "over": (lambda h, a, n: h.answer(403, b""), Code.INVALID_REQUEST, True),
    "nothing left": (lambda h, a, n: h.answer(416, b""), Code.INVALID_REQUEST, False),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_wrong_bytes_are_never_read(url: str, medium: Object, how: str) -> None:
    """In the middle of reading; an error with a code, within bounds."""
    answer, code, retryable = HOSTILE[how]
    with open_url(url, give_up_s=0.05) as file:
        assert file.read(5) == DATA[:5]
        medium.answers = lambda h, a, n: answer(h, a, n) or True
        file.seek(3 * BLOCK)
        with pytest.raises(AgentError) as refused:
            file.read(5)
        assert (refused.value.code, refused.value.retryable) == (code, retryable)


def test_an_empty_object() -> None:
    with serving(Object(b"")) as url, open_url(url) as file:
        assert file.read() == b""
        assert file.seek(0, os.SEEK_END) == 0


def test_a_small_object_may_come_whole() -> None:
    small = Object(SMALL)
    small.answers = lambda h, *_: h.answer(200, SMALL) or True
    with serving(small) as url, open_url(url) as file:
        assert file.read() == SMALL


def test_a_wrong_status_of_an_error_page_is_told(url: str, medium: Object) -> None:
    problem = b'{"code": "REFERENCE_EXPIRED", "detail": "it is over", "hint": "ask again"}'
    medium.answers = lambda h, *_: h.answer(410, problem) or True
    with pytest.raises(AgentError, match="it is over") as expired:
        open_url(url)
    assert (expired.value.code, expired.value.hint) == (Code.REFERENCE_EXPIRED, "ask again")


# --- where a store or a CDN has the bytes


def test_a_redirect_is_followed_once(url: str, medium: Object) -> None:
    with serving(medium) as store:
        gateway = Object(b"")
        gateway.answers = lambda h, *_: h.answer(307, b"", {"Location": f"{store}?s=1"}) or True
        with serving(gateway) as given, open_url(given) as file:
            assert file.read() == DATA
    assert len(gateway.asked) == 1


def test_a_dead_store_is_read_through_the_gateway(medium: Object) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/data"
        medium.answers = lambda h, asked, _: (
            "via=gateway" not in asked.path and (h.answer(307, b"", {"Location": dead}) or True)
        )
        with serving(medium) as url, open_url(f"{url}?s=1") as file:
            assert file.read() == DATA
    assert medium.asked[-1].path == "/data?s=1&via=gateway"


def test_a_store_that_refuses_late_is_read_through_the_gateway(medium: Object) -> None:
    """The signature is over; the gateway gives a new one, which the store refuses as well."""
    store = Object(DATA, etag='"the-stores-own"')
    store.answers = lambda h, _, number: number > 4 and (h.answer(403, b"<Error/>") or True)
    with serving(store) as there:
        medium.answers = lambda h, asked, _: (
            "via=gateway" not in asked.path and (h.answer(307, b"", {"Location": there}) or True)
        )
        with serving(medium) as url, open_url(url) as file:
            assert file.read() == DATA
