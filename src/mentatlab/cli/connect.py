"""Where a command finds its server: told, the home's running one, or one of its own meanwhile."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from mentatlab import home
from mentatlab.cli.output import note, wants_json
from mentatlab.sdk.client import AsyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`server` and `key` as told; `home` as told or None for the default."""

    server: str | None = None
    key: str | None = None
    home: Path | None = None
    agent_dirs: tuple[Path, ...] = ()
    quiet: bool = False  # say nothing of a server that was started for the command
    recover: bool = False  # a server of our own goes on with the runs that were left


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--server --key --home`, given to the command as one `target`."""

    def wrapped(
        *args: Any, server: str | None, key: str | None, home: Path | None, **kwargs: Any
    ) -> Any:
        return command(*args, target=Target(server=server, key=key, home=home), **kwargs)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # pyright: ignore[reportFunctionMemberAccess] — click's own way
    options = (
        click.option("--server", metavar="URL", envvar="MENTATLAB_SERVER", help="Use this server."),
        click.option("--key", metavar="KEY", envvar="MENTATLAB_KEY", help="The server's API key."),
        home_option,
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MENTATLAB_HOME",
    help="The home folder.  [default: ~/.mentatlab]",
)


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncGenerator[AsyncClient]:
    """A client of the server that the target means; when none runs, of one in this process.

    Every command goes the same way, through HTTP, whoever serves.
    """
    async with contextlib.AsyncExitStack() as stack:
        url, key = await _find(target, stack)
        yield await stack.enter_async_context(AsyncClient(url, key=key))


def place_of(target: Target) -> Path:
    return target.home or home.default_home()


async def _find(target: Target, stack: contextlib.AsyncExitStack) -> tuple[str, str | None]:
    if target.server:
        return target.server, target.key
    place = place_of(target)
    if info := home.running_server(place):
        return info.url, target.key or home.home_key(place)
    from mentatlab import app  # heavy, and not needed to talk to a server

    settings = app.read_settings(home=place, host="127.0.0.1", port=0, agent_dirs=target.agent_dirs)
    if not (target.quiet or wants_json()):
        note(f"no server runs on {place}; starting one for this command")
    running = await stack.enter_async_context(
        app.running(replace(settings, recover=target.recover))
    )
    return running.url, running.key
