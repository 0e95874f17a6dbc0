"""Which JSON values a pin takes."""

from typing import Any, TypeGuard

from mentatlab.protocol.media import is_ref_id, is_url
from mentatlab.protocol.pins import BY_REFERENCE, PinType


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """A JSON object, for a value that was decoded from JSON or YAML with text keys."""
    return isinstance(value, dict)


def fits(value: object, type_: PinType) -> bool:
    """Whether a value may stand on a pin of this type.

    Media by reference of that type (any type on a binary pin), or by the reference's id or URL. A
    reference also stands for a json or string value that is too large to stand inline.
    """
    match type_:
        case PinType.STRING:
            return isinstance(value, str) or _refers_to(value, type_)
        case PinType.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case PinType.BOOLEAN:
            return isinstance(value, bool)
        case PinType.STREAM:
            return is_object(value) and value.get("type") == "stream"
        case PinType.JSON:
            return True
        case _:
            return _names_blob(value) or _refers_to(value, type_)


def _refers_to(value: object, type_: PinType) -> bool:
    match value:
        case {"type": str(kind), "ref": {"url": str(name)} | str(name)} if _names_blob(name):
            return kind == type_ or (type_ is PinType.BINARY and kind in BY_REFERENCE)
        case _:
            return False


def _names_blob(value: object) -> bool:
    return isinstance(value, str) and (is_ref_id(value) or is_url(value))
