"""Which pin type and MIME type bytes get. Pure: head and probe finding in, a decision out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mentatlab.protocol.errors import Code, Invalid, UnsupportedMedia
from mentatlab.protocol.pins import MEDIA_TYPES, PinType
from mentatlab.storage import sniff

_LARGE_VALUES = {PinType.JSON: "application/json", PinType.STRING: "text/plain; charset=utf-8"}


class Kind(NamedTuple):
    type: PinType
    mime: str


def first_kind(head: bytes, expect: PinType | None) -> Kind:
    """From the first 4 KiB, before anything is stored; `expect` is the pin's type."""
    if expect is not None and (mime := _LARGE_VALUES.get(expect)):
        return Kind(expect, mime)
    mime = sniff.sniff(head)
    if expect is None or expect is PinType.BINARY:
        return Kind(expect or sniff.family(mime), mime)
    if expect not in MEDIA_TYPES:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"a {expect} is a value, not a file",
            hint="files are audio, image, video or binary",
        )
    if not head:
        raise Invalid(Code.EMPTY_MEDIA, f"0 bytes are no {expect}", hint="send the file's content")
    if not sniff.may_be(mime, expect):
        raise _mismatch(f"the bytes are {_words(mime)}", expect)
    return Kind(expect, mime)


def final_kind(kind: Kind, expect: PinType | None, found: Mapping[str, Any]) -> Kind:
    """After probing: a container such as mp4 or webm shows only now whether it holds pictures.

    A failed probe decides nothing: then the pin is believed.
    """
    if not sniff.is_av_container(kind.mime):
        return kind
    if "probeError" in found:
        believed = kind.type is PinType.AUDIO
        return Kind(kind.type, sniff.as_audio(kind.mime) if believed else kind.mime)
    if expect is PinType.VIDEO and "width" not in found:
        raise _mismatch(f"the {kind.mime} file holds no video stream", expect)
    if expect is PinType.AUDIO and "width" in found:
        raise _mismatch(f"the {kind.mime} file holds a video stream", expect)
    if "width" in found or "sampleRate" not in found:
        return kind
    return Kind(expect or PinType.AUDIO, sniff.as_audio(kind.mime))


def _mismatch(what: str, expect: PinType) -> UnsupportedMedia:
    return UnsupportedMedia(
        Code.MEDIA_TYPE_MISMATCH,
        f"{what}; the pin takes {expect}",
        hint=f"send a file of a known {expect} format; its name and declared type do not count",
    )


def _words(mime: str) -> str:
    return "of no known media type" if mime == sniff.UNKNOWN else mime
