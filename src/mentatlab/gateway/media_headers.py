"""Headers for bytes that came from outside: they must never run in our origin."""

import re
from urllib.parse import quote

INLINE = frozenset(
    {
        *("audio/aac", "audio/flac", "audio/mp4", "audio/mpeg", "audio/ogg", "audio/wav"),
        *("audio/webm", "image/avif", "image/bmp", "image/gif", "image/jpeg", "image/png"),
        *("image/webp", "video/mp4", "video/ogg", "video/quicktime", "video/webm"),
    }
)
"""Types that a browser shows and cannot run. All else is downloaded."""

_MIME = re.compile(r"[\w.+-]+/[\w.+-]+( *; *[\w.-]+=(\"[\w .,:/+-]*\"|[\w.:/+-]+))*", re.ASCII)


def content_type(mime_type: str) -> str:
    """The type as a header can say it; that of unknown bytes for what is none."""
    return mime_type if _MIME.fullmatch(mime_type) else "application/octet-stream"


def safe_headers(mime_type: str, filename: str = "", wish: str = "") -> dict[str, str]:
    """`wish`: `attachment` has everything saved."""
    shown = wish != "attachment" and mime_type.partition(";")[0].strip().lower() in INLINE
    kind = "inline" if shown else "attachment"
    return {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Content-Disposition": content_disposition(kind, filename),
    }


def clean_name(name: str) -> str:
    """The last part of a path, without control characters, at most 200 characters."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[:200].strip()


def content_disposition(kind: str, filename: str) -> str:
    """RFC 6266; the name also in UTF-8 (RFC 8187) when ASCII cannot say it. Nothing breaks out."""
    name = clean_name(filename)
    if not name:
        return kind
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    header = f'{kind}; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"
