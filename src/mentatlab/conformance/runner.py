"""Plays cases against a deployment, several at a time; each has streams of its own."""

import asyncio
import fnmatch
import time
from collections.abc import Callable, Iterable
from typing import Literal

import httpx2
import msgspec

from mentatlab.conformance.cases import Case
from mentatlab.conformance.match import UnboundError
from mentatlab.conformance.steps import play
from mentatlab.conformance.world import FailedError, Heard, World
from mentatlab.protocol.errors import Code, Unavailable

Outcome = Literal["passed", "failed", "skipped"]

TIMEOUT_S = 10.0
JOBS = 8


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`message`: what went wrong, or why it was not played."""

    id: str
    theme: str
    rule: str
    section: str
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


def selected(cases: Iterable[Case], pattern: str) -> list[Case]:
    """Those whose id, theme or `theme/id` fits the shell pattern."""
    return [
        case
        for case in cases
        if any(fnmatch.fnmatch(name, pattern) for name in (case.id, case.theme, _path(case)))
    ]


def _path(case: Case) -> str:
    return f"{case.theme}/{case.id}"


async def play_cases(
    cases: Iterable[Case],
    url: str,
    *,
    key: str | None = None,
    slow: bool = False,
    timeout_s: float = TIMEOUT_S,
    jobs: int = JOBS,
    told: Callable[[Result], object] = lambda _: None,
    heard: Heard = lambda _: None,
) -> list[Result]:
    """In the order of `cases`; `told` of each as it comes, `heard` of every message.

    `Unavailable(SERVER_UNREACHABLE)` when nobody answers at `url`.
    """
    waiting = asyncio.Semaphore(jobs)
    plain = {"Accept-Encoding": "identity"}
    async with httpx2.AsyncClient(headers=plain, timeout=None) as http:  # steps have their patience
        guarded = await _guarded(http, url)

        async def one(case: Case) -> Result:
            if reason := _not_played(case, guarded=guarded, slow=slow):
                result = _result(case, "skipped", reason)
            else:
                patience = case.timeout_s or timeout_s
                world = World(url, http, key=key, timeout_s=patience, heard=heard)
                async with waiting:
                    result = await _play(case, world)
            told(result)
            return result

        async with asyncio.TaskGroup() as group:
            playing = [group.create_task(one(case)) for case in cases]
        return [task.result() for task in playing]


async def _guarded(http: httpx2.AsyncClient, url: str) -> bool:
    """Whether the deployment asks callers for a credential."""
    try:
        answer = await http.get(f"{url.rstrip('/')}/api/v1/streams/st_nobody", timeout=TIMEOUT_S)
    except httpx2.TransportError as error:
        raise Unavailable(
            Code.SERVER_UNREACHABLE, f"{url}: {error}", hint="start it with `mentatlab up`"
        ) from error
    return answer.status_code == 401


def _not_played(case: Case, *, guarded: bool, slow: bool) -> str:
    if case.slow and not slow:
        return "waits for one of the protocol's own times: --slow"
    if case.needs is not None and (case.needs == "credentials") is not guarded:
        return f"this deployment asks for {'a' if guarded else 'no'} credential"
    return ""


async def _play(case: Case, world: World) -> Result:
    began = time.monotonic()
    try:
        async with world:
            await play(world, case.steps)
    except (FailedError, UnboundError, OSError, ValueError, EOFError, httpx2.HTTPError) as error:
        return _result(case, "failed", f"{error}" or repr(error), time.monotonic() - began)
    return _result(case, "passed", "", time.monotonic() - began)


def _result(case: Case, outcome: Outcome, message: str, seconds: float = 0.0) -> Result:
    return Result(
        id=case.id,
        theme=case.theme,
        rule=case.rule,
        section=case.section,
        outcome=outcome,
        message=message,
        seconds=round(seconds, 3),
    )
