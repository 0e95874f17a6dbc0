"""What every command shares: `--json`, errors, asyncio.

Data goes to stdout, everything else to stderr.
"""

import asyncio
import errno
import functools
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, ParamSpec

import click
import msgspec

from mentatlab.protocol.errors import Code, Invalid, MentatError, OutOfSpace, Problem, Unavailable

P = ParamSpec("P")
_JSON = "mentatlab.json"


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`: answers (and errors) as JSON, for programs."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_JSON] = value

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print JSON, for programs.",
    )(command)


def wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def emit(value: Any, text: Callable[[], str]) -> None:
    """`value` as JSON under `--json`, else what `text` makes of it, if anything, to stdout."""
    if said := encode(value) if wants_json() else text():
        click.echo(said)


def emit_line(value: Any) -> None:
    """One record of an endless answer: compact JSON, at once."""
    click.echo(msgspec.json.encode(value).decode())


def encode(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def note(text: str, *, newline: bool = True) -> None:
    click.echo(text, err=True, nl=newline)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns that line up; "" when there are no rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    lines = [[*headings], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def asynchronous(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A click command from a coroutine function."""

    @functools.wraps(command)
    def start(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(command(*args, **kwargs))

    return start


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # part of the server extra, not of the client
    except ImportError:
        return None
    return uvloop.new_event_loop


class Failure(click.ClickException):
    """A `MentatError` on its way out."""

    def __init__(self, error: MentatError) -> None:
        super().__init__(str(error))
        self.error = error
        self._as_json = wants_json()

    def show(self, file: Any = None) -> None:
        if self._as_json:
            click.echo(encode({"error": error_body(self.error)}), err=True)
        else:
            click.echo(error_text(self.error), err=True)


def error_body(error: MentatError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "problems": msgspec.to_builtins(_problems(error)),
        "details": msgspec.to_builtins(error.details, enc_hook=str),
    }


def error_text(error: MentatError) -> str:
    lines = [f"error: {error.code}: {error.message}"]
    problems = _problems(error)
    for found in problems:
        lines.append(f"  {found.path or '/'}: {found.code}: {found.message}")
        if found.hint:
            lines.append(f"    hint: {found.hint}")
    if error.hint and error.hint not in {found.hint for found in problems}:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def _problems(error: MentatError) -> list[Problem]:
    return getattr(error, "problems", [])


def translate(error: BaseException) -> MentatError | None:
    """The one error to tell: task groups wrap theirs, missing extras are import errors."""
    match error:
        case MentatError():
            return error
        case BaseExceptionGroup():
            found = [translate(inner) for inner in error.exceptions]
            return next((inner for inner in found if inner is not None), None)
        case ModuleNotFoundError() if error.name and not error.name.startswith("mentatlab"):
            return Unavailable(
                Code.MISSING_EXTRA,
                f"this needs the package {error.name}, which is not installed",
                hint="pip install 'mentatlab[server]'",
            )
        case BrokenPipeError():
            return None
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return OutOfSpace(Code.DISK_FULL, "the disk is full", hint="free some space")
        case OSError(filename=str(name), strerror=str(reason)):
            return Invalid(
                Code.INVALID_REQUEST, f"{name}: {reason}", hint="give a path that you may use"
            )
        case _:
            return None


class MentatGroup(click.Group):
    """Where errors of all commands become output."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # the reader of our stdout has gone (`| head`): not an error, and nothing to flush to
            sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue] — ends flushing at exit
            raise click.exceptions.Exit(1) from None
        except BaseException as error:
            known = translate(error)
            if known is None:
                raise
            raise Failure(known) from error
