"""`mentatlab doctor`."""

import asyncio
import importlib
import importlib.metadata
import os
import platform
import sqlite3
from typing import Any
from urllib.parse import urlsplit

import click

import mentatlab
from mentatlab import home
from mentatlab.cli.connect import Target, place_of, target_options
from mentatlab.cli.output import emit, json_option
from mentatlab.protocol.errors import MentatError

PARTS = {
    "client": ("click", "httpx2"),
    "server": ("fastapi", "uvicorn", "websockets", "pydantic", "PyYAML", "blake3", "Pillow", "av"),
    "redis": ("redis",),
    "s3": ("obstore",),
    "agents": ("mentatlab-models", "onnxruntime", "faster-whisper", "numpy"),
}
"""Extra → the packages that tell whether it is there."""


@click.command(short_help="Say what this installation has and lacks.")
@target_options
@json_option
def doctor(*, target: Target) -> None:
    """Say what this installation has and lacks, and which server runs on the home folder."""
    place = place_of(target)
    server = home.running_server(place)
    found: dict[str, Any] = {
        "mentatlab": mentatlab.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "home": str(place),
        "server": server.url if server else None,
        "streams": _streams(os.environ.get("MENTATLAB_LOG") or "sqlite"),
        "storage": _storage(),
        "missing": {part: lacking for part, names in PARTS.items() if (lacking := _lacking(names))},
    }
    emit(found, lambda: _describe(found))


def _streams(log: str) -> str:
    """Where a server that starts here keeps them; without a password."""
    if log == "sqlite":
        return "in the home"
    address = urlsplit(log)
    place = f"{address.hostname or ''}{f':{address.port}' if address.port else ''}{address.path}"
    return f"{address.scheme}://{place}, shared by its servers; all else is in the home"


def _storage() -> str:
    """Where a server that starts here keeps media, and why it cannot."""
    try:
        opening = importlib.import_module("mentatlab.storage.opening")
        return asyncio.run(opening.describe(opening.read_choice(os.environ)))
    except ModuleNotFoundError as error:
        return f"not usable: {error}"
    except MentatError as error:
        return f"not usable: {error.message}; {error.hint}"


def _lacking(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _describe(found: dict[str, Any]) -> str:
    lines = [f"{name:<10} {found[name]}" for name in ("mentatlab", "python", "sqlite", "home")]
    lines.append(f"server     {found['server'] or 'none runs'}")
    lines.append(f"streams    {found['streams']}")
    lines.append(f"storage    {found['storage']}")
    for part in PARTS:
        lacking = found["missing"].get(part)
        state = f"lacks {', '.join(lacking)}: pip install 'mentatlab[{part}]'" if lacking else "ok"
        lines.append(f"{part:<10} {state}")
    return "\n".join(lines)
