import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Invalid
from mentatlab.storage import keys

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def test_a_run_key_reads_as_the_contract_says() -> None:
    key = keys.generate_key("ws", "flow", "rn_1", "node", "image", "jpg", timestamp_ms=17)
    assert key == "ws/flow/rn_1/node/image_17.jpg"


def test_an_upload_key_has_its_day_in_utc() -> None:
    key = keys.upload_key("ws", "blob_1", "png", now=1795437754.8)
    assert key == "ws/_uploads/20261123/blob_1.png"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/pin_1.jpg", "a/pin_1-3fa9.jpg"),
        ("pin", "pin-3fa9"),
        ("a.b/pin", "a.b/pin-3fa9"),
        ("a/.bin", "a/.bin-3fa9"),
        ("a/x.tar.gz", "a/x.tar-3fa9.gz"),
    ],
)
def test_beside(key: str, expected: str) -> None:
    assert keys.beside(key, "3fa9") == expected


@pytest.mark.parametrize(
    ("mime", "expected"),
    [("image/jpeg", "jpg"), ("text/plain; charset=utf-8", "txt"), ("x/y", "bin"), ("", "bin")],
)
def test_extension(mime: str, expected: str) -> None:
    assert keys.extension(mime) == expected


@given(st.lists(st.text(max_size=300), min_size=6, max_size=6))
def test_whatever_the_words_a_key_is_storable(words: list[str]) -> None:
    key = keys.generate_key(*words, timestamp_ms=1)  # pyright: ignore[reportCallIssue]
    names = keys.encode(key)
    assert len(names) == 5
    assert all(len(name.encode()) <= keys.MAX_SEGMENT for name in names)
    assert keys.decode(names) == key


@given(st.lists(WORDS.filter(lambda w: "/" not in w and w not in (".", "..")), min_size=1))
def test_encoding_is_reversible_and_safe(words: list[str]) -> None:
    key = "/".join(words)
    try:
        names = keys.encode(key)
    except Invalid:
        return
    assert keys.decode(names) == key
    assert not any(name.startswith(".") or "/" in name or "\0" in name for name in names)


@given(st.lists(WORDS, min_size=2, max_size=2, unique=True))
def test_different_keys_have_different_files(pair: list[str]) -> None:
    try:
        first, second = (keys.encode(key) for key in pair)
    except Invalid:
        return
    assert first != second
