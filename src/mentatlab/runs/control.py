"""What a node's condition, branch, gate or schema says of the values that have come. Pure."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol, cast

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from mentatlab.flows import expressions
from mentatlab.flows.document import pointer
from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.errors import Code, Invalid, MentatError
from mentatlab.runs.events import Fault
from mentatlab.runs.signals import Prepared

_MAX_MISFITS = 20
_QUICK_BYTES = 4096


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be judged: a node's `when` and what it decides, and the values that have come.

    `variables`: the names that its expressions may use; what has not come is null. `item_pin`: the
    input that one item of a `forEach` stands on, which is `item` too.
    """

    type: str
    params: dict[str, Any]
    values: dict[str, Any]
    variables: tuple[str, ...] = ()
    when: str | None = None
    item_pin: str | None = None

    def named(self) -> dict[str, Any]:
        known = {"params": self.params, "item": self.values.get(self.item_pin or "")}
        known |= self.params  # constants of pins
        known["params"] = self.params
        known |= self.values
        return {name: known.get(name) for name in self.variables}


class Ruling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`timeout_s`: how long a gate waits, 0 = for ever."""

    verdict: Literal["run", "skip", "take", "ask", "fail"]
    taken: tuple[str, ...] = ()
    message: str = ""
    timeout_s: float = 0.0
    error: Fault | None = None


def prepare(
    node: PlanNode,
    inputs: Mapping[str, Any],
    *,
    at: float,
    item: int | None = None,
    attempt: int = 0,
) -> Prepared:
    """How the node (or item) goes on. Does not raise for what authors or agents do wrong.

    `inputs`: the node's values by input pin, as an agent would get them (references as objects);
    streams are left out, and so is what has not come. An item stands under its pin's name.
    """
    ruling = rule(case_of(node, inputs, item=item))
    return prepared(node, ruling, at=at, item=item, attempt=attempt)


def case_of(node: PlanNode, inputs: Mapping[str, Any], *, item: int | None = None) -> Case:
    return Case(
        type=node.type if node.kind == "control" else "",
        params=node.params,
        values=dict(inputs),
        variables=tuple(sorted(node.variables)),
        when=node.when,
        item_pin=None if item is None else node.for_each,
    )


def prepared(
    node: PlanNode, ruling: Ruling, *, at: float, item: int | None = None, attempt: int = 0
) -> Prepared:
    return Prepared(
        at=at,
        node=node.id,
        item=item,
        attempt=attempt,
        verdict=ruling.verdict,
        taken=ruling.taken,
        message=ruling.message,
        until=at + ruling.timeout_s if ruling.timeout_s else 0.0,
        error=ruling.error,
    )


def rule(case: Case) -> Ruling:
    try:
        if case.when is not None and not expressions.holds(case.when, case.named()):
            return Ruling(verdict="skip")
        return _decide(case)
    except MentatError as error:
        fault = Fault.told(error.code, error.message, error.hint, "permanent")
        return Ruling(verdict="fail", error=fault)


def _decide(case: Case) -> Ruling:
    params = case.params
    match case.type:
        case "core.if":
            branch = "then" if expressions.holds(params["condition"], case.named()) else "else"
            return Ruling(verdict="take", taken=(branch,))
        case "core.switch":
            named = case.named()
            true = (c["name"] for c in params["cases"] if expressions.holds(c["when"], named))
            branch = next(true, params.get("default"))
            return Ruling(verdict="take", taken=() if branch is None else (branch,))
        case "core.gate":
            message, timeout_s = params.get("message", ""), params.get("timeout_s", 0.0)
            return Ruling(verdict="ask", message=message, timeout_s=timeout_s)
        case "core.validate":
            _validate(params["schema"], case.values.get("value", params.get("value")))
            return Ruling(verdict="take", taken=("value",))
        case _:
            return Ruling(verdict="run")


def is_quick(case: Case) -> bool:
    """Whether the ruling is too short to be worth a process of its own."""
    named = case.named()
    own = [case.params.get("condition"), *(c["when"] for c in case.params.get("cases", ()))]
    conditions = [] if not case.type else [c for c in own if isinstance(c, str)]
    if case.when is not None:
        conditions.append(case.when)
    if case.type == "core.validate" and not _is_quick_schema(case):
        return False
    return all(expressions.is_quick(one, named) for one in conditions)


# JSON Schema

_formats = FormatChecker(("date", "email", "ipv4", "ipv6", "regex", "uuid"))


@_formats.checks("date-time", raises=msgspec.ValidationError)
def _is_moment(value: object) -> bool:
    """RFC 3339, with its offset."""
    return not isinstance(value, str) or msgspec.convert(value, datetime).tzinfo is not None


@_formats.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or _URI.fullmatch(value) is not None


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_NO_DOCUMENTS: Registry[Any] = Registry()
"""A schema refers to itself only: nothing is fetched."""


class _Checker(Protocol):
    """What is used of a validator, whose own types are not complete."""

    def iter_errors(self, instance: Any) -> Iterator[ValidationError]: ...


def _validate(schema: Any, value: Any) -> None:
    """`Invalid(SCHEMA_MISMATCH)` naming everything that does not fit, up to 20."""
    checker = Draft202012Validator(schema, registry=_NO_DOCUMENTS, format_checker=_formats)
    try:
        found = sorted(_misfits(cast(_Checker, checker).iter_errors(value)))
    except Unresolvable as error:
        found = [f"the schema refers to {error.ref!r}, which it does not hold"]
    except RecursionError:
        found = ["the schema refers to itself without end"]
    if found:
        more = len(found) - _MAX_MISFITS
        told = [*found[:_MAX_MISFITS], f"and {more} more"] if more > 0 else found
        raise Invalid(
            Code.SCHEMA_MISMATCH,
            f"the value does not fit the schema: {'; '.join(told)}",
            hint="change what gives the value, or the schema in `params.schema`",
        )


def _misfits(errors: Iterator[ValidationError]) -> Iterator[str]:
    for error in errors:
        place = pointer(*error.absolute_path) or "/"
        yield f"{place}: {error.message[:200]}"


def _is_quick_schema(case: Case) -> bool:
    """Neither large nor able to go on for long: patterns may backtrack, references multiply."""
    schema = msgspec.json.encode(case.params["schema"])
    value = msgspec.json.encode(case.values.get("value"))
    slow = b'"pattern' in schema or b'ef"' in schema or b'"regex"' in schema
    return not slow and len(schema) + len(value) <= _QUICK_BYTES
