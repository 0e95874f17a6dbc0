"""`mentatlab test`."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.inputs import read_text, split_pairs
from mentatlab.cli.output import Failure, asynchronous, emit, json_option, note
from mentatlab.protocol.errors import MentatError
from mentatlab.sdk.client import AsyncClient
from mentatlab.suites import CaseResult, SuiteResult, load_suite, run_suite
from mentatlab.suites import model as suites
from mentatlab.suites.plan import Case, cases_of
from mentatlab.suites.reports import junit, report

_SHIPPED = Path(suites.__file__).with_name("steps.yaml")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Unusable(Failure):
    """As for a wrong command line."""

    exit_code = 2


@click.command(short_help="Run suites of end-to-end tests.")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=_file)
@click.option("--only", multiple=True, metavar="NAME", help="Only tests whose name has this part.")
@click.option("--steps", multiple=True, type=_file, help="A file with further steps.")
@click.option(
    "--with",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Where a step says NAME, use VALUE; the report says so.",
)
@click.option("--agents", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--junit", "junit_file", type=click.Path(path_type=Path), help="Write JUnit XML.")
@target_options
@json_option
@asynchronous
async def test(
    *,
    files: tuple[Path, ...],
    only: tuple[str, ...],
    steps: tuple[Path, ...],
    pairs: tuple[str, ...],
    agents: tuple[Path, ...],
    junit_file: Path | None,
    target: Target,
) -> None:
    """Run the suites in FILE…, against a server (--server, --home) or one of their own, in a home
    that is thrown away.

    Exit code 0 when every test passed, 1 when one did not, 2 when a suite cannot run at all.
    """
    stand_ins = split_pairs(pairs, what="a stand-in", hint="write --with NAME=VALUE")
    plans = {file: _cases(file, steps, stand_ins, only) for file in files}
    results: list[SuiteResult] = []
    async with _server(replace(target, agent_dirs=agents)) as client:
        for file, cases in plans.items():
            results.append(
                await run_suite(
                    client, file.stem, cases, folder=file.parent, stand_ins=stand_ins, tell=_tell
                )
            )
    if junit_file is not None:
        await asyncio.to_thread(junit_file.write_bytes, junit(results))
    emit(report(results), lambda: _summary(results))
    if not all(result.passed for result in results):
        raise click.exceptions.Exit(1)


def _cases(
    file: Path, steps: tuple[Path, ...], stand_ins: Mapping[str, str], only: tuple[str, ...]
) -> list[Case]:
    """Exit code 2 with every problem of the suite."""
    try:
        words = dict[str, suites.Word]()
        for library in (_SHIPPED, *steps):
            words |= suites.load_words(read_text(library), str(library))
        cases = cases_of(load_suite(read_text(file), str(file)), words, stand_ins)
    except MentatError as error:
        raise _Unusable(error) from error
    return [case for case in cases if not only or any(part in case.name for part in only)]


@contextlib.asynccontextmanager
async def _server(target: Target) -> AsyncGenerator[AsyncClient]:
    """The one that is named, else one of our own whose home is thrown away."""
    if target.server or target.home:
        async with connected(target) as client:
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="mentatlab-test-") as home:
        async with connected(replace(target, home=Path(home), quiet=True)) as client:
            yield client


def _tell(case: CaseResult) -> None:
    word = click.style("ok", fg="green") if case.passed else click.style("FAILED", fg="red")
    note(f"{word}  {case.name}  {case.seconds:.2f} s")
    for line in (case.error, *map(str, case.failures)):
        if line:
            note(f"    {line}")


def _summary(results: list[SuiteResult]) -> str:
    cases = [case for result in results for case in result.cases]
    failed = sum(not case.passed for case in cases)
    used = {pair for result in results for pair in result.stand_ins.items()}
    lines = [f"{name} is stood in for by {value}" for name, value in sorted(used)]
    return "\n".join([*lines, f"{len(cases)} tests, {failed} failed"])
