"""Conditions in CEL (`when`, `core.if`, `core.switch`): checked before a run, evaluated in it.
Pure.

The library bounds nesting (32 levels) and iterations (10,000 an evaluation); the sizes of the
expression and of its values are bounded here. What may still be slow, because it loops or is given
much, is not `is_quick` and belongs where it can be stopped.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs] — it has them inside

from mentatlab.protocol.errors import Code, Invalid, TooLarge

MAX_EXPRESSION_BYTES = 4096
MAX_VALUES_BYTES = 1 << 20
"""Of everything that one evaluation is given, as JSON."""
_QUICK = {0: (256, 4096), 1: (160, 1024)}
"""Loops → characters of the expression, bytes of its values. The worst of these sizes takes some
30 ms, what people write 10 to 50 µs."""

_RESERVED = (
    "as|break|const|continue|else|false|for|function|if|import|in|let|loop|namespace|null|package"
    "|return|true|var|void|while"
)
_NAME = re.compile(rf"(?!({_RESERVED})\Z)[A-Za-z_][A-Za-z0-9_]*")
_LOOPS = re.compile(r"\b(all|exists|exists_one|filter|map)\b")
_COMPLAINT = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_NOISE = re.compile(r" \(in container '.*?'\)| \[[A-Z_]+\]$| expecting \{.*")


def variables(names: Iterable[str]) -> frozenset[str]:
    """Those of the names that an expression can write."""
    return frozenset(n for n in names if _NAME.fullmatch(n))


def problem_of(expression: str, names: Collection[str]) -> str:
    """What is wrong with it as a condition over these variables; empty = nothing."""
    if len(expression.encode()) > MAX_EXPRESSION_BYTES:
        return f"an expression takes at most {MAX_EXPRESSION_BYTES} bytes"
    try:
        type_ = _compiled(expression, frozenset(names)).return_type()
    except Exception as error:  # noqa: BLE001 — the library raises nothing more specific
        return _complaint(str(error))
    if type_ not in (cel.Type.BOOL, cel.Type.DYN):
        return f"gives {type_.name().lower()}, not true or false"
    return ""


def is_quick(expression: str, values: Mapping[str, Any]) -> bool:
    """Whether its evaluation is too short to be worth a process of its own."""
    characters, size = _QUICK.get(len(_LOOPS.findall(expression)), (0, 0))
    return len(expression) <= characters and _size(values) <= size


def holds(expression: str, values: Mapping[str, Any]) -> bool:
    """Whether the condition is true. `Invalid(EXPRESSION_ERROR)`, `TooLarge(EXPRESSION_ERROR)`."""
    if _size(values) > MAX_VALUES_BYTES:
        raise TooLarge(
            Code.EXPRESSION_ERROR,
            f"`{_short(expression)}` is given more than {MAX_VALUES_BYTES} bytes",
            hint="decide in an agent, and hand on what the condition needs",
        )
    try:
        found = _compiled(expression, frozenset(values)).eval(data=dict(values))
    except Exception as error:
        raise _failed(expression, _complaint(str(error))) from error
    answer: object = found.value()
    if not isinstance(answer, bool):
        text = str(answer) if found.type() == cel.Type.ERROR else f"gives {answer!r}"
        raise _failed(expression, text)
    return answer


def _failed(expression: str, what: str) -> Invalid:
    return Invalid(
        Code.EXPRESSION_ERROR,
        f"`{_short(expression)}`: {what[:500]}",
        hint="has(a.b) asks whether a field is there; whole numbers and others do not mix: 2.0 * x",
    )


@lru_cache(maxsize=128)
def _environment(names: frozenset[str]) -> cel.Env:
    return cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DYN))


@lru_cache(maxsize=1024)
def _compiled(expression: str, names: frozenset[str]) -> cel.Expression:
    return _environment(names).compile(expression)


def _complaint(text: str) -> str:
    """`INVALID_ARGUMENT: ERROR: <input>:1:3: undeclared reference …` → its readable parts."""
    found = [
        f"line {line}, column {column}: {said}" if int(line) > 0 else said
        for line, column, said in _COMPLAINT.findall(text)
    ]
    told = found or [text.partition("\n")[0]]
    return "; ".join(_NOISE.sub("", one) for one in told)


def _size(values: Mapping[str, Any]) -> int:
    return len(msgspec.json.encode(values))


def _short(expression: str) -> str:
    return expression if len(expression) <= 80 else f"{expression[:77]}…"
