"""Settings → adapters → engine → gateway: the only wiring."""

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mentatlab.gateway.admission import is_loopback
from mentatlab.protocol.errors import Code, Conflict, Invalid

DEFAULT_PORT = 7070
_PACKAGE = Path(__file__).resolve().parent


def bundled_agents() -> Path:
    """The agents of the wheel, or of the checkout that this is."""
    wheel = _PACKAGE / "_agents"
    return wheel if wheel.is_dir() else _PACKAGE.parents[1] / "agents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the environment and the command line may decide, read once."""

    home: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0 = a free one
    agent_dirs: tuple[Path, ...] = field(default_factory=lambda: (bundled_agents(),))
    multimodal: bool = True
    streaming: bool = True
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    rate: float = 200.0  # requests a second and key, 0 = no limit
    burst: float = 400.0

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def read_settings(
    environ: Mapping[str, str] = os.environ,
    *,
    home: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    agent_dirs: tuple[Path, ...] = (),
) -> Settings:
    """Options win over `MENTATLAB_HOME _HOST _PORT _AGENTS _HOSTS _ORIGINS _RATE _BURST` and
    `ENABLE_MULTIMODAL ENABLE_STREAMING`; `Invalid(BAD_SETTING)` names the variable that is wrong.

    Agents are looked for in `agent_dirs`, `MENTATLAB_AGENTS`, `<home>/agents`, the bundled folder.
    """
    place = home or Path(environ.get("MENTATLAB_HOME") or Path.home() / ".mentatlab").expanduser()
    named = [Path(p).expanduser() for p in _split(environ.get("MENTATLAB_AGENTS"), os.pathsep)]
    return Settings(
        home=place.absolute(),
        host=host or environ.get("MENTATLAB_HOST") or "127.0.0.1",
        port=_number(environ, "MENTATLAB_PORT", DEFAULT_PORT, most=65535) if port is None else port,
        agent_dirs=(*agent_dirs, *named, place / "agents", bundled_agents()),
        multimodal=_flag(environ, "ENABLE_MULTIMODAL"),
        streaming=_flag(environ, "ENABLE_STREAMING"),
        hosts=frozenset(_split(environ.get("MENTATLAB_HOSTS"), ",")),
        origins=frozenset(_split(environ.get("MENTATLAB_ORIGINS"), ",")),
        rate=_number(environ, "MENTATLAB_RATE", 200),
        burst=_number(environ, "MENTATLAB_BURST", 400),
    )


def _split(text: str | None, separator: str) -> list[str]:
    return [part.strip() for part in (text or "").split(separator) if part.strip()]


def _number(environ: Mapping[str, str], name: str, default: int, *, most: int = 10**9) -> int:
    text = environ.get(name) or str(default)
    if text.isascii() and text.isdigit() and int(text) <= most:
        return int(text)
    raise _bad_setting(name, text, f"write a number from 0 to {most}")


_YES, _NO = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def _flag(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "true"
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise _bad_setting(name, text, "write true or false")


def _bad_setting(name: str, text: str, hint: str) -> Invalid:
    return Invalid(Code.BAD_SETTING, f"{name}={text!r} is not usable", hint=hint)


def bind(settings: Settings) -> socket.socket:
    """A bound socket, not yet listening; `Conflict(PORT_IN_USE)`, `Invalid(BAD_SETTING)`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise _bad_setting("host", settings.host, "give an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_bind(settings, error) from error
    return listener


def _cannot_bind(settings: Settings, error: OSError) -> Conflict | Invalid:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            Code.PORT_IN_USE,
            f"another program listens on {where}",
            hint="choose another port with --port (0 = any free one)",
        )
    return Invalid(
        Code.BAD_SETTING,
        f"cannot listen on {where}: {error.strerror}",
        hint="choose another --host or --port",
    )
