"""What bytes are, from their first 4 KiB. Pure.

A declared MIME type is only a hint: this table decides. Sources: the WHATWG MIME sniffing standard,
the ISO base media brand registry (mp4ra.org), RFC 8794 (EBML), RFC 3533 (Ogg).
"""

import re

from mentatlab.protocol.pins import PinType

HEAD = 4096  # bytes that `sniff` wants to see
UNKNOWN = "application/octet-stream"

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"#!AMR", "audio/amr"),
    (b"\x00\x00\x01\xba", "video/mpeg"),
    (b"\x00\x00\x01\xb3", "video/mpeg"),
    (b"FLV\x01", "video/x-flv"),
    (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel", "video/x-ms-asf"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
)
_RIFF = {
    b"WAVE": "audio/wav",
    b"WEBP": "image/webp",
    b"AVI ": "video/x-msvideo",
}
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heic",
    b"msf1": "image/heic",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"M4P ": "audio/mp4",
    b"qt  ": "video/quicktime",
}
_AV_CONTAINERS = frozenset(
    {
        "video/3gpp",
        "video/mp2t",
        "video/mp4",
        "video/mpeg",
        "video/ogg",
        "video/quicktime",
        "video/webm",
        "video/x-flv",
        "video/x-matroska",
        "video/x-ms-asf",
    }
)
"""Containers that may also hold sound alone, which their first bytes need not tell."""

_MARKUP = re.compile(
    rb"<(?:(!doctype\s+html|html|head|body|script|iframe|h1|div|font|table|a\s|style|title|b>|br|p>"
    rb"|!--)|(!doctype\s+svg|svg)|(\?xml|!doctype))",
    re.IGNORECASE,
)
_SVG = re.compile(rb"<(?:!doctype\s+)?(?:\w+:)?svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype\s+)?(?:\w+:)?html[\s>]", re.IGNORECASE)


def sniff(head: bytes) -> str:
    """The MIME type, `application/octet-stream` when unknown. Plain text is unknown too."""
    for prefix, mime in _PREFIXES:
        if head.startswith(prefix):
            return mime
    return (
        _riff(head)
        or _iso_media(head)
        or _ebml(head)
        or _ogg(head)
        or _aiff(head)
        or _bitmap(head)
        or _transport_stream(head)
        or _mpeg_audio(head)
        or _markup(head)
        or UNKNOWN
    )


def family(mime: str) -> PinType:
    """The pin type that such bytes have by themselves; svg is a document here, not an image."""
    top = mime.split("/")[0]
    if top in ("image", "audio", "video") and not mime.endswith("+xml"):
        return PinType(top)
    return PinType.BINARY


def may_be(mime: str, pin: PinType) -> bool:
    """Whether bytes of this type can stand on a pin: same family, `binary` takes all, and a
    container that may hold sound alone is possible on an audio pin."""
    if pin is PinType.BINARY or family(mime) is pin:
        return True
    return pin is PinType.AUDIO and is_av_container(mime)


def is_av_container(mime: str) -> bool:
    return mime in _AV_CONTAINERS


def as_audio(mime: str) -> str:
    """The name of an audio/video container that holds sound alone."""
    return "audio/" + mime.partition("/")[2]


def _riff(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
        return _RIFF.get(head[8:12])
    return None


def _iso_media(head: bytes) -> str | None:
    """ISO base media: the major brand decides; a generic one asks the compatible brands."""
    box = head[4:8]
    if box in (b"moov", b"mdat", b"wide", b"free", b"skip") and head[:1] == b"\x00":
        return "video/quicktime"  # files older than the brand box
    if box != b"ftyp":
        return None
    major, size = head[8:12], int.from_bytes(head[:4], "big")
    if major[:3] in (b"3gp", b"3g2"):
        return "video/3gpp"
    brands = [head[i : i + 4] for i in range(16, min(size, len(head)), 4)]
    if major in (b"mif1", b"msf1") and b"avif" in brands:
        return "image/avif"
    return _BRANDS.get(major, "video/mp4")


def _ebml(head: bytes) -> str | None:
    """EBML DocType webm or matroska; codec names in the head tell sound alone."""
    if not head.startswith(b"\x1aE\xdf\xa3"):
        return None
    mime = "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    sound_alone = set(_CODEC_ID.findall(head)) == {b"A"}
    return as_audio(mime) if sound_alone else mime


_CODEC_ID = re.compile(rb"([AV])_[A-Z]{2}")  # A_OPUS, V_VP9


def _ogg(head: bytes) -> str | None:
    """The first page of each logical stream names its codec; all of them stand in front."""
    if not head.startswith(b"OggS"):
        return None
    video = any(mark in head for mark in (b"\x80theora", b"BBCD\x00", b"\x01video\x00"))
    return "video/ogg" if video else "audio/ogg"


def _aiff(head: bytes) -> str | None:
    return "audio/aiff" if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC") else None


def _bitmap(head: bytes) -> str | None:
    """`BM`, reserved zeros, and a header size that some version of the format has."""
    known = head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _DIB_SIZES
    return "image/bmp" if known else None


_DIB_SIZES = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}


def _transport_stream(head: bytes) -> str | None:
    """Sync bytes every 188 bytes, three of them."""
    return "video/mp2t" if len(head) > 376 and head[0:377:188] == b"GGG" else None


def _mpeg_audio(head: bytes) -> str | None:
    """A frame header without ID3: 11 sync bits; the layer bits tell ADTS (0) from MPEG audio."""
    if len(head) < 4 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "audio/aac"
    plausible = (
        head[1] & 0xE0 == 0xE0  # sync
        and head[1] & 0x18 != 0x08  # version 01 is reserved
        and head[1] & 0x06 in (0x02, 0x04)  # layer III or II; I would take in UTF-16's mark
        and head[2] & 0xF0 not in (0x00, 0xF0)  # bit rate
        and head[2] & 0x0C != 0x0C  # sample rate
    )
    return "audio/mpeg" if plausible else None


def _markup(head: bytes) -> str | None:
    """html, svg, xml: behind a byte order mark, spaces and comments, in any case."""
    text = _text(head)
    match = _MARKUP.match(text)
    if match is None:
        return None
    if match[2] or _SVG.search(text):
        return "image/svg+xml"
    return "text/html" if match[1] or _HTML.search(text) else "text/xml"


def _text(head: bytes) -> bytes:
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            return head[2:].decode(encoding, "ignore").encode().lstrip()
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
