"""Failures around a process: it did not start, or the kernel took it."""

import errno
from pathlib import Path

from mentatlab.protocol.errors import Code
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import failed

_SHORT_OF = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def start_failure(invocation: Invocation, error: OSError | ValueError) -> Outcome:
    program = invocation.program
    name = program.command[0]
    match error:
        case FileNotFoundError() if not program.directory.is_dir():
            why, hint = "its folder is missing", f"restore {program.directory}"
        case FileNotFoundError():
            why, hint = f"there is no program {name}", "install it, or correct `command`"
        case PermissionError():
            why, hint = f"{name} may not be executed", "make it executable, or name an interpreter"
        case OSError(errno=int(number)) if number in _SHORT_OF:
            return failed(
                "infra",
                Code.AGENT_START_FAILED,
                f"{program.id} did not start: {error.strerror}",
                hint="run fewer agents at a time, or raise the server's limits (`ulimit -a`)",
            )
        case _:
            why, hint = str(error), "correct `command` or `env` in the manifest"
    return failed(
        "permanent", Code.AGENT_START_FAILED, f"{program.id} did not start: {why}", hint=hint
    )


def oom_kills() -> int:
    """How often this machine's kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) for x in lines if x.startswith("oom_kill ")), 0)
