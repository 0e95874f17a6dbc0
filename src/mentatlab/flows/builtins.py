"""Node types that are no agents: what a run is given, what it shows, and control."""

import mimetypes
from collections.abc import Iterator, Mapping
from typing import Any

from mentatlab.flows.document import array
from mentatlab.protocol.pins import Pin, PinMetadata, PinType

INPUT_PINS = {"ui.prompt": "text", "ui.file-upload": "file", "ui.audio-recorder": "audio"}
OUTPUT_TYPES = frozenset({"ui.console", "ui.stream-viewer", "ui.chatPanel"})
ADAPTER_TYPES = frozenset({"core.once", "core.collect"})

NOT_RUNNABLE = {
    "core.if": "branch inside an agent for now",
    "core.switch": "branch inside an agent for now",
    "core.gate": "split the flow in two at the gate for now",
    "core.flow": "put the nodes of the sub-flow into this flow for now",
    "core.validate": "validate inside an agent for now",
    "for_each": "put `forEach: <input pin>` on the node that the body names",
    "conditional": "use core.switch",
}
"""Types that load and are checked but do not run here yet → what to do instead."""

BUILTIN_TYPES = (*INPUT_PINS, *sorted(OUTPUT_TYPES), *sorted(ADAPTER_TYPES), *NOT_RUNNABLE)

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


def accepted_mimes(accept: object) -> Iterator[str]:
    """The MIME types of an HTML `accept`: `"video/*"`, `".mp4,.mov"`, or a list of those."""
    parts = accept.split(",") if isinstance(accept, str) else array(accept)
    for part in parts:
        text = str(part).strip().lower()
        mime = _EXTENSIONS.guess_type("x" + text)[0] if text.startswith(".") else text
        if mime:
            yield mime
