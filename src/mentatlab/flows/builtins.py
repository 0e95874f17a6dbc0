"""Node types that are no agents: what a run is given, what it shows, and control."""

import mimetypes
from collections.abc import Iterator, Mapping
from typing import Any

from mentatlab.flows.document import array
from mentatlab.protocol.pins import Pin, PinMetadata, PinType
from mentatlab.protocol.values import is_object

INPUT_PINS = {"ui.prompt": "text", "ui.file-upload": "file", "ui.audio-recorder": "audio"}
OUTPUT_TYPES = frozenset({"ui.console", "ui.stream-viewer", "ui.chatPanel"})
ADAPTER_TYPES = frozenset({"core.once", "core.collect"})

CONTROL_PARAMS = {
    "core.if": ("condition",),
    "core.switch": ("cases", "default"),
    "core.gate": ("message", "timeout_s"),
    "core.validate": ("schema",),
}
"""Types whose outputs pass on what their pin `value` is given → the parameters that they take."""

SUBFLOW = "core.flow"

NOT_RUNNABLE = {
    "for_each": "put `forEach: <input pin>` on the node that the body names",
    "conditional": "use core.if or core.switch",
}
"""Types of older files that load and are checked but do not run here → what to do instead."""

BUILTIN_TYPES = (
    *INPUT_PINS,
    *sorted(OUTPUT_TYPES),
    *sorted(ADAPTER_TYPES),
    *CONTROL_PARAMS,
    SUBFLOW,
)

_EXTENSIONS = mimetypes.MimeTypes()  # the built-in table, not the machine's, and the same on each
for _extension, _mime in {
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mkv": "video/x-matroska",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".webp": "image/webp",
}.items():
    _EXTENSIONS.add_type(_mime, _extension)
_FAMILIES = {"audio": PinType.AUDIO, "image": PinType.IMAGE, "video": PinType.VIDEO}


def input_pin(node_type: str, params: Mapping[str, Any], default: Any) -> Pin:
    """What an input node gives; `default` None = the run must be given a value."""
    name, required = INPUT_PINS[node_type], default is None
    if node_type == "ui.prompt":
        return Pin(name, PinType.STRING, required, default)
    if node_type == "ui.audio-recorder":
        return Pin(name, PinType.AUDIO, required, default)
    mimes = list(accepted_mimes(params.get("accept")))
    families = {mime.split("/")[0] for mime in mimes}
    type_ = _FAMILIES.get(families.pop(), PinType.BINARY) if len(families) == 1 else PinType.BINARY
    metadata = PinMetadata(mime_type=",".join(mimes) or None)
    return Pin(name, type_, required, default, metadata=metadata)


def branches(node_type: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """The output pins of a control node, one of which is taken."""
    match node_type:
        case "core.if":
            return ("then", "else")
        case "core.gate":
            return ("approved", "rejected")
        case "core.validate":
            return ("value",)
        case _:
            named = [c.get("name") for c in array(params.get("cases")) if is_object(c)]
            names = [n for n in (*named, params.get("default")) if isinstance(n, str)]
            return tuple(dict.fromkeys(names))


def accepted_mimes(accept: object) -> Iterator[str]:
    """The MIME types of an HTML `accept`: `"video/*"`, `".mp4,.mov"`, or a list of those."""
    parts = accept.split(",") if isinstance(accept, str) else array(accept)
    for part in parts:
        text = str(part).strip().lower()
        mime = _EXTENSIONS.guess_type("x" + text)[0] if text.startswith(".") else text
        if mime:
            yield mime
