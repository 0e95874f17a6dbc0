"""The `mentatlab` command. Every command is a thin call of the public API."""

import importlib.util
import sys


def main() -> None:
    """The console script. Exit codes: 0 done, 1 it failed, 2 the command line is wrong."""
    if importlib.util.find_spec("click") is None:
        sys.exit(
            "mentatlab: MISSING_EXTRA: the command line is not part of the base install\n"
            "hint: pip install 'mentatlab[client]' to talk to a server, "
            "'mentatlab[server]' to run one"
        )
    from mentatlab.cli.root import cli

    cli(prog_name="mentatlab")
