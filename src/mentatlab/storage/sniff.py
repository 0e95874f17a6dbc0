"""What bytes are, from their first 4 KiB. Pure.

A declared MIME type is only a hint: this table decides. What is text is no medium, whatever it
begins with. Sources: the WHATWG MIME sniffing standard, the ISO base media brand registry
(mp4ra.org), RFC 8794 (EBML), RFC 3533 (Ogg), RFC 9639 (FLAC), ISO 11172-3 and 13818-3 (MPEG audio).
"""

import codecs
import re

from mentatlab.protocol.pins import MEDIA_TYPES, PinType

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
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"fLaC\x00\x00\x00\x22", "audio/flac"),  # STREAMINFO, and other blocks behind it
    (b"fLaC\x80\x00\x00\x22", "audio/flac"),
    (b"#!AMR\n", "audio/amr"),
    (b"#!AMR-WB\n", "audio/amr"),
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
    b"avci": "image/avci",
    b"avcs": "image/avci",
    b"crx ": "image/x-canon-cr3",
    b"f4a ": "audio/mp4",
    b"f4b ": "audio/mp4",
    b"mif1": "image/heic",
    b"mj2s": "video/mj2",
    b"mjp2": "video/mj2",
    b"msf1": "image/heic",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "image/heic"),
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
    mime = _markup(head) or _binary(head)
    return UNKNOWN if family(mime) in MEDIA_TYPES and _is_text(head) else mime


_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")  # WHATWG: "binary data bytes"


def _is_text(head: bytes) -> bool:
    """All of it, in UTF-8; it may be cut off within a character."""
    if _CONTROL.search(head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _binary(head: bytes) -> str:
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
        or _id3(head)
        or _adts(head)
        or _mpeg_audio(head)
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
    mime = "video/webm" if _WEBM.search(head[:64]) else "video/x-matroska"
    sound_alone = set(_CODEC_ID.findall(head)) == {b"A"}
    return as_audio(mime) if sound_alone else mime


_WEBM = re.compile(rb"\x42\x82[\x81-\x88]webm")  # DocType, its size, its value
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
    """Three sync bytes, every 188 bytes, or every 192 behind a time stamp (BDAV)."""
    plain, stamped = head[0:377:188] == b"GGG", head[4:389:192] == b"GGG"
    return "video/mp2t" if plain or stamped else None


def _id3(head: bytes) -> str | None:
    """Version, revision, flags, and a length of four 7-bit bytes."""
    known = re.match(rb"ID3[\x02-\x04][^\xff][\x00-\xff][\x00-\x7f]{4}", head, re.DOTALL)
    return "audio/mpeg" if known else None


def _adts(head: bytes) -> str | None:
    """AAC's frame header, and another one where the frame ends."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    following = head[length : length + 2]
    fits = length >= 7 and (len(following) < 2 or following == head[:2])
    return "audio/aac" if fits else None


_KBIT_S = {  # by version 1 or not, and layer bits
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mpeg_audio(head: bytes) -> str | None:
    """A frame header of layer II or III without ID3, and another one where the frame ends."""
    length = _mpeg_frame(head)
    if length is None:
        return None
    following = head[length:]
    fits = len(following) < 4 or (_mpeg_frame(following) and following[1] == head[1])
    return "audio/mpeg" if fits else None


def _mpeg_frame(head: bytes) -> int | None:
    """Its length in bytes. (Layer I would take in UTF-16's mark.)"""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate, hz = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (1, 2) or rate in (0, 15) or hz == 3:
        return None
    bits = _KBIT_S[version == 3, layer][rate - 1] * 1000
    samples_8 = 72 if version != 3 and layer == 1 else 144  # in a frame, divided by 8
    return samples_8 * bits // _HZ[version][hz] + (head[2] >> 1 & 1)


def _markup(head: bytes) -> str | None:
    """html, svg, xml: behind a byte order mark, spaces and comments, in any case."""
    text = _text(head)
    match = _MARKUP.match(text)
    if match is None:
        return None
    if match[2] or _SVG.search(text):
        return "image/svg+xml"
    return "text/html" if match[1] or _HTML.search(text) else "text/xml"


_UTF_16 = (
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)


def _text(head: bytes) -> bytes:
    """In UTF-8, without what may stand in front."""
    for mark, encoding in _UTF_16:
        if head.startswith(mark):
            head = head.decode(encoding, "ignore").encode()
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
