"""`mentatlab run`."""

from dataclasses import replace
from pathlib import Path

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.execute import execute
from mentatlab.cli.flows import flow_argument, read_flow
from mentatlab.cli.output import asynchronous, json_option

input_option = click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value, or @FILE for its content; media take a path. May be repeated.",
)
out_option = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the outputs into this folder, media included.",
)


@click.command(short_help="Run a flow.")
@flow_argument
@input_option
@out_option
@target_options
@json_option
@asynchronous
async def run(*, flow: Path, inputs: tuple[str, ...], out: Path | None, target: Target) -> None:
    """Run FLOW (a .mlab file, or - for stdin): live progress on stderr, its outputs on stdout.

    Uses the server of the home folder when one runs, else this process. Exit code 1 when the run
    did not succeed. Ctrl-C leaves the run as it is: a running server goes on with it, else the next
    one does; `mentatlab runs cancel` ends it.
    """
    async with connected(replace(target, recover=True)) as client:
        await execute(client, read_flow(flow), inputs, out=out)
