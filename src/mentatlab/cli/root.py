"""The tree of commands. A command's module is imported when it is used: `--help` stays fast."""

import importlib

import click

import mentatlab
from mentatlab.cli.output import MentatGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("mentatlab.cli.up:up", "Start the server: gateway, engine, streams, storage."),
    "run": ("mentatlab.cli.run:run", "Run a flow and print what comes out."),
    "validate": ("mentatlab.cli.flows:validate", "Check a flow: every problem at once."),
    "plan": ("mentatlab.cli.flows:plan", "Show how a flow would be executed."),
    "agents": ("mentatlab.cli.agents:agents", "List, add and show agents."),
    "agent": ("mentatlab.cli.agent:agent", "Make an agent, run one alone."),
    "runs": ("mentatlab.cli.runs:runs", "List, show, watch, steer and delete runs."),
    "test": ("mentatlab.cli.test:test", "Run suites of end-to-end tests."),
    "storage": ("mentatlab.cli.storage:storage", "Put, get and look after media."),
    "streams": ("mentatlab.cli.streams:streams", "Follow streams, publish to them, replay them."),
    "conformance": (
        "mentatlab.cli.conformance:conformance",
        "Check a deployment against the streams protocol.",
    ),
    "keys": ("mentatlab.cli.keys:keys", "Make, list and revoke API keys."),
    "schedules": ("mentatlab.cli.schedules:schedules", "Run stored flows at certain times."),
    "webhooks": (
        "mentatlab.cli.webhooks:webhooks",
        "Addresses that start stored flows, or are told of runs' ends.",
    ),
    "secrets": ("mentatlab.cli.secrets:secrets", "Set, list and remove secrets."),
    "openapi": ("mentatlab.cli.openapi:openapi", "Print the HTTP API's description."),
    "doctor": ("mentatlab.cli.doctor:doctor", "Say what this installation has and lacks."),
}
"""Name → where the command is, and its line in the help."""


class LazyGroup(MentatGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mentatlab.__version__, prog_name="mentatlab")
def cli() -> None:
    """Run flows of multimodal AI agents: typed media pins, live streams, durable runs."""
