import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import (
    Pin,
    PinMetadata,
    PinType,
    mime_fits,
    mime_patterns,
    mimes_intersect,
    parse_size,
    violations,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        (512, 512),
        ("0", 0),
        ("10MB", 10_000_000),
        ("10 MB", 10_000_000),
        (" 1GiB ", 1 << 30),
        ("4Gi", 4 << 30),
        ("1.5K", 1500),
        ("2k", 2000),
        ("3Tb", 3 * 10**12),
        ("7B", 7),
        ("0.1GB", 100_000_000),
        ("999999999999999999", 999_999_999_999_999_999),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "ten", "-1", -1, "1e3", "10i", "1,5MB", "٣MB", "9" * 30]
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(Invalid) as refused:
        parse_size(text)
    assert refused.value.code == Code.MANIFEST_BAD_SIZE
    assert "GiB" in refused.value.hint


@given(st.integers(0, 10**18 - 1), st.sampled_from(["", "B", "k", "K", "M", "G", "T"]))
def test_decimal_and_binary_sizes_are_exact(number: int, unit: str) -> None:
    power = " KMGT".index(unit.upper() if unit not in ("", "B") else " ")
    assert parse_size(f"{number}{unit}") == number * 1000**power
    if power:
        assert parse_size(f"{number}{unit}i") == number * 1024**power


@given(st.text())
def test_no_text_crashes_the_size_parser(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert parse_size(text) >= 0


def test_patterns() -> None:
    assert mime_patterns(None) == mime_patterns("") == mime_patterns(" , ;") == frozenset()
    assert mime_patterns("Image/JPEG; q=1, audio/*") == {"image/jpeg", "audio/*"}


@pytest.mark.parametrize(
    ("mime", "patterns", "fits"),
    [
        ("image/png", "image/*", True),
        ("IMAGE/PNG; a=b", "image/png", True),
        ("image/png", "image/jpeg,audio/*", False),
        ("text/html", "", True),
        ("text/html", "*/*", True),
        ("imagex/png", "image/*", False),
    ],
)
def test_one_type_in_a_set(mime: str, patterns: str, fits: bool) -> None:
    assert mime_fits(mime, mime_patterns(patterns)) is fits


@pytest.mark.parametrize(
    ("a", "b", "meet"),
    [
        ("image/*", "image/png", True),
        ("image/png", "image/*,audio/wav", True),
        ("image/*", "image/*", True),
        ("*/*", "video/mp4", True),
        ("", "video/mp4", True),
        ("image/png", "image/jpeg", False),
        ("image/*", "audio/*", False),
    ],
)
def test_sets_that_meet(a: str, b: str, meet: bool) -> None:
    assert mimes_intersect(mime_patterns(a), mime_patterns(b)) is meet
    assert mimes_intersect(mime_patterns(b), mime_patterns(a)) is meet


MIMES = st.sampled_from(["image/png", "image/jpeg", "audio/wav", "video/mp4", "text/plain"])
PATTERNS = st.frozensets(MIMES | st.sampled_from(["image/*", "audio/*", "*/*"]), max_size=4)


@given(MIMES, PATTERNS, PATTERNS)
def test_a_type_in_both_sets_is_a_proof_that_they_meet(
    mime: str, a: frozenset[str], b: frozenset[str]
) -> None:
    if mime_fits(mime, a) and mime_fits(mime, b):
        assert mimes_intersect(a, b)


FOUND: dict[str, Any] = {
    "mimeType": "video/mp4",
    "width": 640,
    "height": 480,
    "fps": 30000 / 1001,
    "duration": 10.0,
    "sampleRate": 16000,
    "channels": 1,
}


@pytest.mark.parametrize(
    ("constraint", "code", "path"),
    [
        (PinMetadata(mime_type="image/*"), Code.MEDIA_TYPE_MISMATCH, "/metadata/mimeType"),
        (PinMetadata(max_size="1kB"), Code.MEDIA_TOO_LARGE, "/size"),
        (PinMetadata(max_duration=9.9), Code.MEDIA_TOO_LONG, "/metadata/duration"),
        (PinMetadata(duration=5, max_duration=50), Code.MEDIA_TOO_LONG, "/metadata/duration"),
        (PinMetadata(width=320), Code.MEDIA_CONSTRAINT, "/metadata/width"),
        (PinMetadata(height=320), Code.MEDIA_CONSTRAINT, "/metadata/height"),
        (PinMetadata(fps=25.0), Code.MEDIA_CONSTRAINT, "/metadata/fps"),
        (PinMetadata(sample_rate=44100), Code.MEDIA_CONSTRAINT, "/metadata/sampleRate"),
        (PinMetadata(channels=2), Code.MEDIA_CONSTRAINT, "/metadata/channels"),
    ],
)
def test_a_broken_constraint_is_named(constraint: PinMetadata, code: Code, path: str) -> None:
    (problem,) = violations(constraint, size=1001, found=FOUND)
    assert (problem.code, problem.path) == (code, path)
    assert problem.message


def test_what_keeps_all_constraints_and_what_is_unknown_passes() -> None:
    constraint = PinMetadata(
        mime_type="video/*",
        max_size="1001",
        max_duration=10,
        width=640,
        fps=29.97,
        sample_rate=16000,
        encoding="h264",
    )
    assert list(violations(constraint, size=1001, found=FOUND)) == []
    assert list(violations(constraint, size=None, found={})) == []
    assert list(violations(constraint, size=1, found={"width": "wide", "duration": None})) == []


def test_several_broken_constraints_come_at_once() -> None:
    constraint = PinMetadata(mime_type="audio/*", max_size="1", channels=2)
    assert len(list(violations(constraint, size=2, found=FOUND))) == 3


def test_the_element_of_a_stream() -> None:
    assert Pin("a", PinType.STREAM).item_type is PinType.JSON
    frames = Pin("a", PinType.STREAM, metadata=PinMetadata(items=PinType.IMAGE))
    assert frames.item_type is PinType.IMAGE
    assert Pin("a", PinType.NUMBER).item_type is PinType.NUMBER
