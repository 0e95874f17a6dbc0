import pytest

from mentatlab.protocol.errors import Code, Invalid, UnsupportedMedia
from mentatlab.protocol.pins import PinType
from mentatlab.storage.kinds import Kind, final_kind, first_kind
from mentatlab.storage.sniff import UNKNOWN

PNG = b"\x89PNG\r\n\x1a\n"
MP4 = b"\0\0\0\x14ftypisom\0\0\0\0mp42"
FILM = {"width": 64, "height": 64, "sampleRate": 48000}
SOUND = {"sampleRate": 48000}
A, I, V, B = PinType.AUDIO, PinType.IMAGE, PinType.VIDEO, PinType.BINARY  # noqa: E741


@pytest.mark.parametrize(
    ("head", "expect", "kind"),
    [
        (PNG, None, Kind(I, "image/png")),
        (PNG, I, Kind(I, "image/png")),
        (PNG, B, Kind(B, "image/png")),
        (MP4, A, Kind(A, "video/mp4")),
        (b"text", None, Kind(B, UNKNOWN)),
        (b"", None, Kind(B, UNKNOWN)),
        (b"", B, Kind(B, UNKNOWN)),
        (b"<svg>", None, Kind(B, "image/svg+xml")),
        (PNG, PinType.JSON, Kind(PinType.JSON, "application/json")),
        (b"", PinType.STRING, Kind(PinType.STRING, "text/plain; charset=utf-8")),
    ],
)
def test_first_kind(head: bytes, expect: PinType | None, kind: Kind) -> None:
    assert first_kind(head, expect) == kind


@pytest.mark.parametrize("expect", [A, I, V])
def test_nothing_is_no_medium(expect: PinType) -> None:
    with pytest.raises(Invalid) as error:
        first_kind(b"", expect)
    assert error.value.code is Code.EMPTY_MEDIA


@pytest.mark.parametrize(
    ("head", "expect"), [(PNG, V), (PNG, A), (MP4, I), (b"<html>", I), (b"<svg>", I), (b"text", A)]
)
def test_the_bytes_must_be_of_the_pins_family(head: bytes, expect: PinType) -> None:
    with pytest.raises(UnsupportedMedia) as error:
        first_kind(head, expect)
    assert error.value.code is Code.MEDIA_TYPE_MISMATCH


@pytest.mark.parametrize("expect", [PinType.NUMBER, PinType.BOOLEAN, PinType.STREAM])
def test_values_are_not_files(expect: PinType) -> None:
    with pytest.raises(Invalid):
        first_kind(b"1", expect)


@pytest.mark.parametrize(
    ("kind", "expect", "found", "final"),
    [
        (Kind(I, "image/png"), None, {"width": 1}, Kind(I, "image/png")),
        (Kind(V, "video/mp4"), None, FILM, Kind(V, "video/mp4")),
        (Kind(V, "video/mp4"), None, SOUND, Kind(A, "audio/mp4")),
        (Kind(V, "video/mp4"), None, {}, Kind(V, "video/mp4")),
        (Kind(V, "video/mp4"), V, FILM, Kind(V, "video/mp4")),
        (Kind(A, "video/webm"), A, SOUND, Kind(A, "audio/webm")),
        (Kind(A, "video/webm"), A, {"probeError": "?"}, Kind(A, "audio/webm")),
        (Kind(V, "video/webm"), V, {"probeError": "?"}, Kind(V, "video/webm")),
    ],
)
def test_final_kind(kind: Kind, expect: PinType | None, found: dict[str, int], final: Kind) -> None:
    assert final_kind(kind, expect, found) == final


@pytest.mark.parametrize(("expect", "found"), [(V, SOUND), (V, {}), (A, FILM)])
def test_a_container_must_hold_what_the_pin_takes(expect: PinType, found: dict[str, int]) -> None:
    with pytest.raises(UnsupportedMedia):
        final_kind(Kind(expect, "video/mp4"), expect, found)
