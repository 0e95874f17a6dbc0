"""A whole server in process, on each of the three stores."""

import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Literal

from tests.support.seaweed import SeaweedProcess

from mentatlab import app

StoreName = Literal["local", "memory", "s3"]
STORES: tuple[StoreName, ...] = ("local", "memory", "s3")
Seaweed = Callable[[], SeaweedProcess]


def environment_of(store: StoreName, seaweed: Seaweed) -> dict[str, str]:
    """The S3 server is only asked for when it is needed. Each server has a bucket of its own."""
    if store != "s3":
        return {"MENTATLAB_STORAGE": store}
    return {**seaweed().environment, "S3_BUCKET": f"home-{secrets.token_hex(6)}"}


@contextlib.asynccontextmanager
async def server_on(
    store: StoreName, home: Path, seaweed: Seaweed, **more: str
) -> AsyncGenerator[app.App]:
    environ = {**environment_of(store, seaweed), **more}
    settings = app.read_settings(environ, home=home, host="127.0.0.1", port=0)
    async with app.running(settings) as running:
        yield running
