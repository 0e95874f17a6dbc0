"""The table against the `filetype` package, and the cases that package gets wrong."""

import io
from pathlib import Path

import av
import filetype
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mentatlab.protocol.pins import PinType
from mentatlab.storage.sniff import HEAD, UNKNOWN, as_audio, family, may_be, sniff

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
        (b"#!AMR\n", "audio/amr"),
        (b"\xff\xfb\x90\x44", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
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


@given(st.binary(max_size=HEAD))
def test_any_bytes_get_an_answer(head: bytes) -> None:
    assert "/" in sniff(head)
