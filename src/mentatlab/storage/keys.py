"""Names in the blob store. Pure.

{workspace}/{flow}/{execution}/{node}/{pin}_{timestamp_ms}.{ext}      what a run made
{workspace}/_uploads/{yyyymmdd}/{ref}.{ext}                           what came from outside
{workspace}/_previews/{ref of the source}/{ref}.{ext}                 small pictures of those
"""

import time
from urllib.parse import quote, unquote

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_ref_id

MAX_SEGMENT = 200  # bytes once percent-encoded; file systems take 255
_SHORT = 150  # encoded bytes that a name of ours keeps of a caller's word

_EXTENSIONS = {
    "application/gzip": "gz",
    "application/json": "json",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "audio/aac": "aac",
    "audio/aiff": "aiff",
    "audio/amr": "amr",
    "audio/flac": "flac",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/wav": "wav",
    "audio/webm": "weba",
    "audio/x-matroska": "mka",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/jpeg": "jpg",
    "image/jp2": "jp2",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tif",
    "image/webp": "webp",
    "image/x-icon": "ico",
    "text/html": "html",
    "text/plain": "txt",
    "text/xml": "xml",
    "video/3gpp": "3gp",
    "video/mp2t": "ts",
    "video/mp4": "mp4",
    "video/mpeg": "mpg",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-flv": "flv",
    "video/x-matroska": "mkv",
    "video/x-ms-asf": "wmv",
    "video/x-msvideo": "avi",
}


def extension(mime: str) -> str:
    """Without the dot; `bin` for what has no well-known one."""
    return _EXTENSIONS.get(mime.split(";")[0].strip().lower(), "bin")


def generate_key(
    workspace_id: str,
    flow_id: str,
    execution_id: str,
    node_id: str,
    pin_name: str,
    ext: str,
    *,
    timestamp_ms: int,
) -> str:
    folders = [_segment(word) for word in (workspace_id, flow_id, execution_id, node_id)]
    return "/".join([*folders, f"{_segment(pin_name)}_{timestamp_ms}.{_segment(ext, 16)}"])


def upload_key(workspace_id: str, ref_id: str, ext: str, *, now: float) -> str:
    """`now` in Unix seconds; the day is UTC."""
    day = time.strftime("%Y%m%d", time.gmtime(now))
    return f"{_segment(workspace_id)}/_uploads/{day}/{ref_id}.{_segment(ext, 16)}"


def preview_key(workspace_id: str, source: str, ref_id: str, ext: str) -> str:
    """`source` and `ref_id`: ref ids of what is shown, and of the preview itself."""
    return f"{_segment(workspace_id)}/_previews/{source}/{ref_id}.{ext}"


def is_preview(key: str) -> bool:
    """No run has such a key, whatever its flow is called: a run id stands third there."""
    match key.split("/"):
        case [_, "_previews", source, _]:
            return is_ref_id(source)
        case _:
            return False


def beside(key: str, suffix: str) -> str:
    """The key to take when `key` is taken: `pin_1.jpg` → `pin_1-3fa9.jpg`."""
    folder, slash, name = key.rpartition("/")
    stem, dot, ext = name.rpartition(".")
    if not stem:
        return f"{key}-{suffix}"
    return f"{folder}{slash}{stem}-{suffix}{dot}{ext}"


def encode(key: str) -> tuple[str, ...]:
    """File names of a key's segments: percent-encoded, never beginning with a dot.

    `Invalid(INVALID_REQUEST)` for empty, `.` and `..` segments and those over 200 bytes.
    """
    return tuple(_encode_segment(segment, key) for segment in key.split("/"))


def decode(names: tuple[str, ...]) -> str:
    return "/".join(unquote(name, errors="strict") for name in names)


def _encode_segment(segment: str, key: str) -> str:
    name = quote(segment, safe=" +,=@()", errors="replace")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if segment in ("", ".", "..") or len(name) > MAX_SEGMENT:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{key[:80]!r} is not a storage key",
            hint=f"segments between slashes have 1 to {MAX_SEGMENT} bytes and are not '.' or '..'",
        )
    return name


def _segment(word: str, limit: int = _SHORT) -> str:
    """A caller's word as one segment: no slash, not empty, short."""
    clean = word.encode(errors="replace").decode().replace("/", "_").strip(".")[:limit]
    while len(quote(clean)) > limit:
        clean = clean[:-1]
    return clean or "_"
