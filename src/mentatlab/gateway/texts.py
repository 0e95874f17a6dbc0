"""Texts that not every database and client can hold: with NUL, or with half a surrogate pair, which
JSON can write (`"\\ud800"`) and UTF-8 cannot. Refused at the border. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import msgspec

from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.protocol.values import is_object

BAD_TEXT = "bad_text"
BAD_TEXT_SAYS = "a text holds NUL or half a surrogate pair"
HINT = "send text without NUL, and characters beyond U+FFFF whole"


def bad_text(body: Mapping[str, Any]) -> str | None:
    """The JSON pointer of the first text that is none: half a surrogate pair anywhere, NUL in a
    text of the body itself (further inside is data)."""
    for name, value in body.items():
        if isinstance(value, str) and "\0" in value:
            return f"/{_escaped(name)}"
    try:
        msgspec.json.encode(body)
    except UnicodeEncodeError:
        return next(_broken(body, ""), "")
    return None


def _broken(value: object, place: str) -> Iterator[str]:
    if isinstance(value, str):
        if not _is_whole(value):
            yield place
    elif is_object(value):
        for name, inner in value.items():
            if not _is_whole(name):
                yield place
            yield from _broken(inner, f"{place}/{_escaped(name)}")
    elif isinstance(value, list):
        for index, inner in enumerate(cast(list[object], value)):
            yield from _broken(inner, f"{place}/{index}")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def check_address(path: str, query: bytes) -> None:
    """`path` is percent-decoded, `query` is not. `ValidationFailed(INVALID_TEXT)`"""
    if "\0" in path or "\ufffd" in path:  # decoding has put it where there was no UTF-8
        raise refused("/path")
    if b"%" in query and _NO_TEXT.search(unquote_to_bytes(query)):
        raise refused("/query")


_NO_TEXT = re.compile(rb"\0|\xed[\xa0-\xbf]")
"""NUL, or what a half of a surrogate pair would be in UTF-8."""


def refused(place: str) -> ValidationFailed:
    problem = Problem(Code.INVALID_TEXT, place, BAD_TEXT_SAYS, hint=HINT)
    return ValidationFailed(Code.INVALID_TEXT, f"{place}: {BAD_TEXT_SAYS}", [problem])
