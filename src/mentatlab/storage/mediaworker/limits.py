"""What the process may use. The parent adds the wall clock."""

import contextlib
import resource

_ADDRESS_SPACE = 1 << 30  # bytes
_FILES = 32  # open at once


def limit_process() -> None:
    """Once, at the start: 1 GiB of address space, no core, nothing written to any file."""
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))


def limit_cpu(seconds: int) -> None:
    """From now: the system's limit counts the whole life of the process. Over it, SIGXCPU ends
    it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    whole = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (whole, resource.RLIM_INFINITY))
