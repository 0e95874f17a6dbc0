"""Rulings that may take long are made in a process of their own, which can be stopped."""

import asyncio
import contextlib
import resource
import sys

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.runs import control
from mentatlab.runs.control import Case, Ruling
from mentatlab.runs.events import Fault

LIMIT_S = 10.0
"""Of processor time, and of time in all."""
MAX_MEMORY = 1 << 30  # bytes of address space; text + text, over and over, needs no time


async def judge(case: Case, *, limit_s: float = LIMIT_S) -> Ruling:
    if control.is_quick(case):
        return control.rule(case)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(limit_s):
            answer, _ = await process.communicate(msgspec.json.encode(case))
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return msgspec.json.decode(answer, type=Ruling) if answer else _too_long(limit_s)


def _too_long(limit_s: float) -> Ruling:
    error = Fault(
        Code.EXPRESSION_ERROR,
        f"its condition or schema took more than {limit_s:g} s, or 1 GiB of memory",
        "make it simpler, give it less, or decide in an agent",
    )
    return Ruling(verdict="fail", error=error)


def main() -> None:
    """The process: a case comes in, its ruling goes out."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT_S), int(LIMIT_S)))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    case = msgspec.json.decode(sys.stdin.buffer.read(), type=Case)
    sys.stdout.buffer.write(msgspec.json.encode(control.rule(case)))


if __name__ == "__main__":
    main()
