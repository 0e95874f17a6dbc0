"""The limited process from within: its file of ranges, and how it answers."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.media import picture, sound

from mentatlab.storage.mediaworker import __main__ as worker
from mentatlab.storage.mediaworker import reading
from mentatlab.storage.mediaworker.reading import BLOCK, Ranges

Said = list[tuple[dict[str, Any], bytes]]


# --- a file of ranges

DATA = bytes(range(251)) * 20_000  # 5 MB: 20 blocks, of which 16 are kept
steps = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(0, len(DATA) + BLOCK), st.just(io.SEEK_SET)),
        st.tuples(st.just("seek"), st.integers(-BLOCK, BLOCK), st.just(io.SEEK_CUR)),
        st.tuples(st.just("seek"), st.integers(-len(DATA), 100), st.just(io.SEEK_END)),
        st.tuples(st.just("read"), st.integers(0, 3 * BLOCK), st.just(0)),
    ),
    max_size=30,
)


@given(steps)
def test_it_reads_as_a_file_does(steps: list[tuple[str, int, int]]) -> None:
    asked: list[tuple[int, int]] = []

    def fetch(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return DATA[offset : offset + length]

    ours, plain = io.BufferedReader(Ranges(len(DATA), fetch)), io.BytesIO(DATA)
    for what, number, whence in steps:
        if what == "read":
            assert ours.read(number) == plain.read(number)
        elif whence != io.SEEK_CUR or plain.tell() + number >= 0:
            assert ours.seek(number, whence) == plain.seek(number, whence)
        assert ours.tell() == plain.tell()
    assert all(offset % BLOCK == 0 and 0 < length <= BLOCK for offset, length in asked)


def test_a_position_before_the_start_is_an_error() -> None:
    ranges = Ranges(10, lambda offset, length: bytes(length))
    with pytest.raises(OSError, match="before the start"):
        ranges.seek(-1)


def test_a_block_is_asked_for_once_while_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_KEPT", 2)
    asked: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        asked.append(offset // BLOCK)
        return DATA[offset : offset + length]

    ranges = Ranges(len(DATA), fetch)
    for block in (0, 1, 0, 2, 0, 1):
        ranges.seek(block * BLOCK)
        ranges.read(10)
    assert asked == [0, 1, 2, 1]  # the one used longest ago went


# --- orders and answers


def conversation(orders: bytes, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the process says to these bytes, without its limits."""
    monkeypatch.setattr(worker, "limit_process", lambda: None)
    monkeypatch.setattr(worker, "limit_cpu", lambda seconds: None)
    answers = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(orders)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(answers))
    worker.main()
    answers.seek(0)
    said: Said = []
    while line := answers.readline():
        head = json.loads(line)
        said.append((head, answers.read(head.get("body", 0))))
    return said


def order(what: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**what, "cpu_s": 5, "size": 0, **more}).encode() + b"\n"


DRAW = {"preview": "thumb", "pixels": 64, "format": "png"}


def test_orders_are_answered_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, noise = tmp_path / "image", tmp_path / "noise"
    image.write_bytes(picture("PNG", 100))
    noise.write_bytes(sound(0.1))
    orders = [
        order({"probe": "image"}, path=str(image)),
        order(DRAW, path=str(image)),
        order({"probe": "audio"}, path=str(noise)),
        order(DRAW | {"preview": "waveform"}, path=str(noise)),
        order({"probe": "video"}, path=str(tmp_path / "none")),
        order({"probe": "image"}, path=str(noise)),
    ]
    said = conversation(b"".join(orders), monkeypatch)
    assert said[0][0]["found"] == {"width": 100, "height": 100, "codec": "png"}
    assert said[1][1].startswith(b"\x89PNG")
    assert said[2][0]["found"]["sampleRate"] == 8000
    assert said[3][0]["found"] == {"width": 64, "height": 16, "codec": "png"}
    assert said[4][0] == {"error": "FileNotFoundError: No such file or directory"}
    assert said[5][0] == {"error": "UnidentifiedImageError: cannot identify image file"}


def test_bytes_are_asked_for_by_range(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture("PNG", 100)
    first = order({"probe": "image"}, size=len(data))
    (asked, _), (answer, _) = conversation(first + data, monkeypatch)
    assert asked == {"read": [0, len(data)]}
    assert answer["found"]["width"] == 100


def test_a_parent_that_goes_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as left:
        conversation(order({"probe": "image"}, size=1000) + b"too little", monkeypatch)
    assert left.value.code == 0
