"""Suites against a server: files uploaded, runs submitted and followed, what came out judged."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mentatlab.protocol.errors import Code, Invalid, MentatError
from mentatlab.protocol.records import StreamChunk
from mentatlab.protocol.values import is_object
from mentatlab.sdk.client import AsyncClient, Reset
from mentatlab.suites.checks import Failure, Outcome, judge
from mentatlab.suites.plan import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """`error`: it could not be run; `seconds` of the whole test."""

    name: str
    seconds: float
    run_id: str | None = None
    state: str | None = None
    failures: tuple[Failure, ...] = ()
    error: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def passed(self) -> bool:
        return not self.failures and not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    name: str
    cases: tuple[CaseResult, ...]
    stand_ins: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)


async def run_suite(
    client: AsyncClient,
    name: str,
    cases: Sequence[Case],
    *,
    folder: Path,
    stand_ins: Mapping[str, str] | None = None,
    tell: Callable[[CaseResult], None] = lambda _: None,
) -> SuiteResult:
    """One test after the other; files and flows are looked for in `folder`. `tell` hears each
    result at once."""
    results: list[CaseResult] = []
    for case in cases:
        results.append(await run_case(client, case, folder=folder))
        tell(results[-1])
    return SuiteResult(name=name, cases=tuple(results), stand_ins=stand_ins or {})


async def run_case(client: AsyncClient, case: Case, *, folder: Path) -> CaseResult:
    """Its run is cancelled when it takes longer than it may."""
    begun, run_id = time.monotonic(), ""
    try:
        flow = case.flow if isinstance(case.flow, dict) else await _text(folder / case.flow)
        uploads = {name: await _upload(client, folder / p) for name, p in case.files.items()}
        run_id = (await client.submit(flow, {**case.inputs, **uploads}))["run_id"]
        late = not await _ended(client, run_id, case.timeout_s)
        outcome = await _outcome(client, run_id)
    except MentatError as error:
        problems = "".join(f"; {p.path}: {p.message}" for p in getattr(error, "problems", []))
        hint = f"; hint: {error.hint}" if error.hint else ""
        return CaseResult(
            name=case.name,
            seconds=time.monotonic() - begun,
            run_id=run_id or None,
            error=f"{error.code}: {error.message}{problems}{hint}",
        )
    return CaseResult(
        name=case.name,
        seconds=time.monotonic() - begun,
        run_id=run_id,
        state=outcome.run["state"],
        failures=tuple(judge(case.expects, outcome)),
        error=f"it took longer than its {case.timeout_s:g} s" if late else "",
        outputs={**outcome.outputs, **outcome.streams},
    )


async def _text(path: Path) -> str:
    try:
        return await asyncio.to_thread(path.read_text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path) from error


async def _upload(client: AsyncClient, path: Path) -> Any:
    if not await asyncio.to_thread(path.is_file):
        raise _unreadable(path)
    return (await client.upload(path))["reference"]


def _unreadable(path: Path) -> Invalid:
    return Invalid(
        Code.SUITE_INVALID, f"{path} cannot be read", hint="paths begin at the suite's folder"
    )


async def _ended(client: AsyncClient, run_id: str, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            async for _ in client.events(run_id):
                pass
    except TimeoutError:
        await client.cancel(run_id)
        async for _ in client.events(run_id):
            pass
        return False
    return True


async def _outcome(client: AsyncClient, run_id: str) -> Outcome:
    outputs = (await client.outputs(run_id))["outputs"]
    streams = {
        name: await _elements(client, value["stream_id"])
        for name, value in outputs.items()
        if is_object(value) and value.get("type") == "stream"
    }
    return Outcome(
        run=await client.run(run_id),
        outputs=outputs,
        timeline=await client.timeline(run_id, items=0),
        streams=streams,
    )


async def _elements(client: AsyncClient, stream_id: str) -> list[Any]:
    """What stands in an ended stream; of one that broke off what there is."""
    found: list[tuple[int, Any]] = []
    try:
        async for record in client.stream(stream_id):
            match record:
                case StreamChunk():
                    value = record.payload.get("ref", record.payload.get("data"))
                    found.append((record.sequence, value))
                case Reset(keep):
                    found = [(sequence, value) for sequence, value in found if sequence <= keep]
                case _:
                    pass
    except MentatError:
        pass  # the run's state tells
    return [value for _, value in found]
