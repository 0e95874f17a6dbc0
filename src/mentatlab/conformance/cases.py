"""Conformance cases as data: YAML files, one theme each.

cases:
  - id: publish-one
    rule: A record is appended, and answered with its sequence.
    section: Publish
    steps: [{init: {}}, {publish: [1]}]
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

import mentatlab
from mentatlab.protocol.errors import Code, Invalid

Step = dict[str, Any]


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rule`: what it proves, in a sentence; `section`: of the protocol's text, where that stands.

    `slow`: it waits for one of the protocol's own times. `needs`: it is of a deployment that asks
    for `credentials`, or of one on `loopback` that asks for none. `timeout_s`: the patience of
    each of its steps.
    """

    id: str
    rule: str
    section: str
    steps: list[Step]
    slow: bool = False
    needs: Literal["credentials", "loopback"] | None = None
    timeout_s: float | None = None
    theme: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    cases: list[Case]


def shipped_cases() -> Path:
    """The kit of the wheel, or of the checkout that this is."""
    package = Path(mentatlab.__file__).resolve().parent
    wheel = package / "_conformance"
    return wheel if wheel.is_dir() else package.parents[1] / "conformance" / "streams"


def load_cases(folder: Path, verbs: Mapping[str, Callable[..., Any]]) -> list[Case]:
    """Of all `*.yaml` in it. `Invalid` names the file and the case that is not well formed."""
    cases = [case for path in sorted(folder.glob("*.yaml")) for case in _load(path)]
    if not cases:
        raise Invalid(Code.INVALID_REQUEST, f"{folder} has no cases (*.yaml)")
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise _bad(case, "another case has this id")
        seen.add(case.id)
        check_steps(case, case.steps, verbs)
    return cases


def _load(path: Path) -> list[Case]:
    try:
        found = msgspec.convert(yaml.safe_load(path.read_bytes()), _File)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise Invalid(Code.INVALID_REQUEST, f"{path.name}: {error}") from error
    return [msgspec.structs.replace(case, theme=path.stem) for case in found.cases]


def check_steps(case: Case, steps: Iterable[Step], verbs: Mapping[str, Callable[..., Any]]) -> None:
    """Every step is one verb with options that it has."""
    for step in steps:
        verb = verb_of(step, verbs)
        if verb is None:
            raise _bad(case, f"a step has one verb of {', '.join(verbs)}: {step}")
        known = {option_name(name) for name in inspect.signature(verbs[verb]).parameters}
        if unknown := sorted(step.keys() - known - {verb}):
            raise _bad(case, f"{verb} has no option {unknown[0]!r}")
        for inner in _branches(verb, step):
            check_steps(case, inner, verbs)


def verb_of(step: Step, verbs: Mapping[str, Callable[..., Any]]) -> str | None:
    """Its first key: what follows are options."""
    first = next(iter(step), None)
    return first if first in verbs else None


def option_name(parameter: str) -> str:
    """`as` and `from` are no names in Python."""
    return parameter.rstrip("_")


def _branches(verb: str, step: Step) -> Iterable[list[Step]]:
    match verb:
        case "together":
            return step[verb]
        case "repeat":
            return [step["steps"]]
        case _:
            return [step["then"]] if "then" in step else []


def _bad(case: Case, message: str) -> Invalid:
    return Invalid(Code.INVALID_REQUEST, f"{case.theme}: {case.id}: {message}")
