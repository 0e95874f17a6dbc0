"""`--input name=value` → values by the type of the pin that they are for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_ref_id
from mentatlab.protocol.pins import BY_REFERENCE, PinType


class Upload(NamedTuple):
    """A file that becomes a media reference."""

    path: Path


def split_pairs(
    pairs: Sequence[str],
    *,
    what: str = "an input",
    hint: str = "write --input name=value, --input name=@file",
) -> dict[str, str]:
    """`name=value` each; the first `=` divides. `Invalid(INVALID_REQUEST)` for anything else."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise Invalid(
                Code.INVALID_REQUEST,
                f"{pair!r} is not {what}",
                hint=hint,
            )
        values[name] = value
    return values


def read_value(name: str, text: str, type_: PinType | None) -> Any:
    """The value that a text stands for on a pin of this type; `@file` is the file's content.

    Media pins take a path (with or without `@`), a ref id or a mentat:// URL. None = of unknown
    type: JSON when it parses, else the text.
    """
    if type_ in BY_REFERENCE:
        return _media(name, text)
    content = read_text(_existing(name, text[1:])) if text.startswith("@") else text
    match type_:
        case PinType.STRING:
            return content
        case None:
            return _json_or_text(content)
        case _:
            return _parsed(name, content, type_)


def _media(name: str, text: str) -> Any:
    if is_ref_id(text) or text.startswith(("mentat://", "s3://")):
        return text
    if text.startswith("{"):
        return _parsed(name, text, PinType.JSON)
    return Upload(_existing(name, text.removeprefix("@")))


def _existing(name: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise Invalid(Code.INVALID_REQUEST, f"input {name}: there is no file {path}")
    return found


def read_text(path: Path) -> str:
    """`Invalid(INVALID_REQUEST)` for a file that is not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{path} is not a text file",
            hint="media go to media pins; flows and text are UTF-8",
        ) from error


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


_FITS: dict[PinType, tuple[Callable[[Any], bool], str]] = {
    PinType.NUMBER: (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "a number, e.g. 0.5",
    ),
    PinType.BOOLEAN: (lambda v: isinstance(v, bool), "true or false"),
}


def _parsed(name: str, text: str, type_: PinType) -> Any:
    fits, wanted = _FITS.get(type_, (lambda _: True, "JSON"))
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise _wrong(name, text, wanted) from error
    if not fits(value):
        raise _wrong(name, text, wanted)
    return value


def _wrong(name: str, text: str, wanted: str) -> Invalid:
    return Invalid(Code.RUN_INPUT_TYPE, f"input {name}: {text[:60]!r} is not {wanted}")
