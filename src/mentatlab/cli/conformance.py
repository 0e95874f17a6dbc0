"""`mentatlab conformance`."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from mentatlab.cli.output import asynchronous, emit, json_option, note, table, wants_json
from mentatlab.conformance import VERBS, Result, load_cases, play_cases, selected, shipped_cases

OUTCOMES = ("passed", "failed", "skipped")


@click.command(short_help="Check a deployment against the streams protocol.")
@click.argument("url")
@click.option("--key", metavar="KEY", envvar="MENTATLAB_KEY", help="The server's API key.")
@click.option("--only", metavar="PATTERN", default="*", help="Cases or themes, e.g. 'sse*'.")
@click.option("--slow", is_flag=True, help="Also what waits for the protocol's own times.")
@click.option("--jobs", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--cases",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Cases of your own.  [default: the kit's]",
)
@json_option
@asynchronous
async def conformance(
    *, url: str, key: str | None, only: str, slow: bool, jobs: int, folder: Path | None
) -> None:
    """Play the conformance cases against the server at URL; exit code 1 when one fails."""
    cases = selected(load_cases(folder or shipped_cases(), VERBS), only)
    results = await play_cases(cases, url, key=key, slow=slow, jobs=jobs, told=_tell)
    counts = Counter(result.outcome for result in results)
    told = {"url": url, **{name: counts[name] for name in OUTCOMES}, "cases": results}
    emit(told, lambda: _report(results))
    if counts["failed"] or not counts["passed"]:
        raise click.exceptions.Exit(1)


def _tell(result: Result) -> None:
    if result.outcome == "failed" and not wants_json():
        note(f"failed: {result.theme}/{result.id}")


def _report(results: list[Result]) -> str:
    """A line a theme, then every failed case with its rule."""
    themes = sorted({result.theme for result in results})
    rows = [(theme, *_counted(r for r in results if r.theme == theme)) for theme in themes]
    total = ("all", *_counted(results))
    failed = [_described(result) for result in results if result.outcome == "failed"]
    return "\n\n".join([table(("theme", *OUTCOMES), [*rows, total]), *failed])


def _described(result: Result) -> str:
    rule = f"rule: {result.rule} ({result.section})"
    return f"{result.theme}/{result.id}\n  {rule}\n  {result.message}"


def _counted(results: Iterable[Result]) -> tuple[int, ...]:
    counts = Counter(result.outcome for result in results)
    return tuple(counts[name] for name in OUTCOMES)
