"""`mentatlab openapi`: what `schemas/openapi.json` is written with."""

import tempfile
from pathlib import Path

import click

from mentatlab.app import Settings, build
from mentatlab.cli.output import asynchronous, encode


@click.command(short_help="Print the HTTP API's description.")
@asynchronous
async def openapi() -> None:
    """Print the OpenAPI description of this version's HTTP API."""
    with tempfile.TemporaryDirectory(prefix="mentatlab-") as home:
        async with build(Settings(home=Path(home), agent_dirs=())) as app:
            click.echo(encode(app.asgi.openapi()))
