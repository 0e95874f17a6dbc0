"""The static check's step for what decides at run time: conditions, gates, schemas, `needs`."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator, SchemaError

from mentatlab.flows import expressions
from mentatlab.flows.analysis import Analysis, ResolvedNode, choices, into
from mentatlab.flows.builtins import CONTROL_PARAMS
from mentatlab.flows.document import array
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import PinType
from mentatlab.protocol.values import is_object

MAX_MESSAGE = 4096  # characters that a gate may say


def check_conditions(a: Analysis, resolved: ResolvedNode) -> None:
    resolved.variables = _variables(a, resolved)
    if resolved.kind not in ("agent", "control", "opaque"):
        _refuse(a, resolved, "when", resolved.node.when is not None)
    elif resolved.node.when is not None and resolved.kind != "opaque":
        _check_expression(a, resolved, resolved.node.when, "when")
    if resolved.kind in ("input", "adapter"):
        _refuse(a, resolved, "needs", resolved.node.needs != "all")
    elif resolved.kind != "opaque":
        _check_needs(a, resolved)
    if resolved.kind == "control":
        _check_control(a, resolved)


def _refuse(a: Analysis, resolved: ResolvedNode, field: str, used: bool) -> None:
    if used:
        text = f"{resolved.id}: `{field}` does not belong to {resolved.node.type}"
        a.report(Code.BAD_PARAM, into(resolved.path, field), text, "take it away")


def _variables(a: Analysis, resolved: ResolvedNode) -> frozenset[str]:
    """Input pins that hold a value before the node starts, `params`, and in a map `item`."""
    streams = {w.target_pin for w in a.into[resolved.id] if w.fit and w.fit.kind == "stream"}
    streams |= {p.name for p in resolved.input_pins.values() if p.type is PinType.STREAM}
    further = {"params"} if resolved.node.for_each is None else {"params", "item"}
    return expressions.variables((resolved.input_pins.keys() - streams) | further)


def _check_needs(a: Analysis, resolved: ResolvedNode) -> None:
    needs, edges = resolved.node.needs, len(a.into[resolved.id])
    if needs == "all":
        return
    path = into(resolved.path, "needs")
    if resolved.node.for_each is not None:
        text = f"{resolved.id}: a node with `forEach` needs all of its inputs"
        a.report(Code.BAD_PARAM, path, text, "take `needs` away")
    elif (1 if needs == "any" else needs) > edges:
        text = f"{resolved.id} needs {needs}, but {edges} edges lead to it"
        a.report(Code.BAD_PARAM, path, text, "connect more, or take `needs` away")


def _check_expression(
    a: Analysis, resolved: ResolvedNode, expression: str, *place: str | int
) -> None:
    path = into(resolved.path, *place)
    if len(expression.encode()) > expressions.MAX_EXPRESSION_BYTES:
        text = (
            f"{resolved.id}: an expression takes at most {expressions.MAX_EXPRESSION_BYTES} bytes"
        )
        a.report(Code.FLOW_LIMIT, path, text, "decide in an agent")
    elif wrong := expressions.problem_of(expression, resolved.variables):
        a.report(Code.EXPRESSION_INVALID, path, f"{resolved.id}: {wrong}", _hint(resolved))


def _hint(resolved: ResolvedNode) -> str:
    """Which names an expression may use, and why a stream's is not among them."""
    names = choices("variables", sorted(resolved.variables))
    hidden = sorted(expressions.variables(resolved.input_pins) - resolved.variables)
    return f"{names}; {', '.join(hidden)}: a stream is no value" if hidden else names


# control nodes


def _check_control(a: Analysis, resolved: ResolvedNode) -> None:
    node, known = resolved.node, CONTROL_PARAMS[resolved.node.type]
    for name in node.params.keys() - {"value", *known}:
        text = f"{resolved.id}: {node.type} has no parameter {name!r}"
        hint = choices("parameters", known, instead_of=name)
        a.warn(Code.UNKNOWN_FIELD, into(resolved.path, "params", name), text, hint)
    match node.type:
        case "core.if":
            _check_condition(a, resolved, node.params.get("condition"), "params", "condition")
        case "core.switch":
            _check_cases(a, resolved)
        case "core.gate":
            _check_gate(a, resolved)
        case _:
            _check_schema(a, resolved)


def _check_condition(a: Analysis, resolved: ResolvedNode, given: object, *place: str | int) -> None:
    if isinstance(given, str):
        _check_expression(a, resolved, given, *place)
    else:
        _bad(a, resolved, f"`{place[-1]}` must be a CEL expression", 'write "value > 3"', *place)


def _bad(a: Analysis, resolved: ResolvedNode, what: str, hint: str, *place: str | int) -> None:
    a.report(Code.BAD_PARAM, into(resolved.path, *place), f"{resolved.id}: {what}", hint)


def _check_cases(a: Analysis, resolved: ResolvedNode) -> None:
    params = resolved.node.params
    cases = array(params.get("cases"))
    if not cases:
        hint = "write `cases: [{name: big, when: value > 3}]`"
        _bad(a, resolved, "`cases` must be a list of cases", hint, "params", "cases")
    seen: set[str] = set()
    for index, case in enumerate(cases):
        place = ("params", "cases", index)
        name = case.get("name") if is_object(case) else None
        if not _is_pin_name(name) or name in seen:
            what = "a case needs a name of its own, without dots and blanks"
            _bad(a, resolved, what, "an output of the node is called so", *place, "name")
            continue
        seen.add(cast(str, name))
        found = cast(dict[str, Any], case).get("when")
        _check_condition(a, resolved, found, *place, "when")
    if params.get("default") is not None and not _is_pin_name(params["default"]):
        what = "`default` must be a name without dots and blanks"
        _bad(a, resolved, what, "it is taken when no case is true", "params", "default")


def _is_pin_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 100 and not set(name) & set(". \t\r\n")


def _check_gate(a: Analysis, resolved: ResolvedNode) -> None:
    params: Mapping[str, Any] = resolved.node.params
    message, limit = params.get("message", ""), params.get("timeout_s", 1)
    if not isinstance(message, str) or len(message) > MAX_MESSAGE:
        what = f"`message` must be a text of at most {MAX_MESSAGE} characters"
        _bad(a, resolved, what, "say what is to be approved", "params", "message")
    if not isinstance(limit, int | float) or isinstance(limit, bool) or limit <= 0:
        what = "`timeout_s` must be a number of seconds greater than 0"
        _bad(a, resolved, what, "without it the gate waits for ever", "params", "timeout_s")


def _check_schema(a: Analysis, resolved: ResolvedNode) -> None:
    schema = resolved.node.params.get("schema")
    place: Iterable[str | int] = ("params", "schema")
    if not is_object(schema) and not isinstance(schema, bool):
        _bad(a, resolved, "`schema` must be a JSON Schema", "write {type: object, …}", *place)
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        what = f"`schema` is no JSON Schema (draft 2020-12): {error.message[:300]}"
        _bad(a, resolved, what, "see json-schema.org", *place, *error.absolute_path)
