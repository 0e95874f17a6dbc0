"""Which JSON values a pin takes."""

from typing import Any

from mentatlab.protocol.media import is_ref_id, is_reference
from mentatlab.protocol.pins import BY_REFERENCE, PinType


def fits(value: Any, type_: PinType) -> bool:
    """Whether a value may stand on a pin of this type (a reference stands for string and json too)."""
    match type_:
        case PinType.STRING:
            return isinstance(value, str) or is_reference(value)
        case PinType.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case PinType.BOOLEAN:
            return isinstance(value, bool)
        case PinType.STREAM:
            return isinstance(value, dict) and value.get("type") == "stream"
        case _ if type_ in BY_REFERENCE:
            return is_reference(value) or (isinstance(value, str) and _names_blob(value))
        case _:
            return True


def _names_blob(text: str) -> bool:
    return is_ref_id(text) or text.startswith("mentat://")
