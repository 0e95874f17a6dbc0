"""Manifest rules beyond the shape of the document, each a plug-in of one form."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec

from mentatlab.flows.document import array, pointer, read_document
from mentatlab.flows.manifest import (
    PROFILES,
    Manifest,
    is_old,
    load_manifest,
    manifest_problems,
    mime_problems,
    parse_env,
    pins_of,
    size_problems,
)
from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.protocol.values import is_object

Rule = Callable[[Mapping[str, Any]], Iterable[Problem]]
"""A manifest's document → what is wrong with it. Fields of a wrong shape are the model's matter."""


class ValidationMode(StrEnum):
    STRICT = "strict"  # everything as it is found
    LENIENT = "lenient"  # what only a rule refuses is a warning
    OFF = "off"  # nothing is reported; what cannot be loaded still raises


class ManifestValidator:
    """`validate` reports every problem at once; `load` raises when one is an error."""

    def __init__(self, mode: ValidationMode = ValidationMode.STRICT) -> None:
        self.mode = mode
        self._rules: list[Rule] = [
            duplicate_pins,
            bad_sizes,
            warm_service,
            old_env,
            unknown_profiles,
        ]

    def add_rule(self, rule: Rule) -> Self:
        if rule not in self._rules:
            self._rules.append(rule)
        return self

    def add_multimodal_rules(self) -> Self:
        return self.add_rule(media_types)

    def validate(self, source: Manifest | Mapping[str, Any] | str | bytes) -> list[Problem]:
        """Text raises `Invalid(MANIFEST_SYNTAX)` when it is no document at all."""
        if self.mode is ValidationMode.OFF:
            return []
        document = _document(source)
        found = [problem for rule in self._rules for problem in rule(document)]
        if self.mode is ValidationMode.LENIENT:
            found = [msgspec.structs.replace(p, severity="warning") for p in found]
        return manifest_problems(document) + found

    def load(self, source: Mapping[str, Any] | str | bytes, *, name: str = "") -> Manifest:
        """The manifest, or `ValidationFailed(MANIFEST_INVALID)` with every error."""
        document = _document(source, name=name)
        errors = [p for p in self.validate(document) if p.severity == "error"]
        if errors:
            text = f"{name or document.get('id', 'the manifest')} is not valid"
            raise ValidationFailed(Code.MANIFEST_INVALID, text, errors)
        return load_manifest(document, name=name)


def _document(
    source: Manifest | Mapping[str, Any] | str | bytes, *, name: str = ""
) -> Mapping[str, Any]:
    match source:
        case Manifest():
            return source.document()
        case str() | bytes():
            return read_document(source, code=Code.MANIFEST_SYNTAX, name=name)
        case _:
            return source


# rules


def duplicate_pins(document: Mapping[str, Any]) -> Iterator[Problem]:
    for side in ("inputs", "outputs"):
        seen: set[object] = set()
        for path, pin in pins_of(document, (side,)):
            name = pin.get("name")
            if isinstance(name, str) and name in seen:
                text = f"two {side} are called {name!r}"
                hint = "give one of the two another name"
                yield Problem(Code.MANIFEST_DUPLICATE_PIN, path + pointer("name"), text, hint)
            seen.add(str(name))


def bad_sizes(document: Mapping[str, Any]) -> Iterator[Problem]:
    for path, pin in pins_of(document):
        yield from _below(path, size_problems(pin))


def media_types(document: Mapping[str, Any]) -> Iterator[Problem]:
    for path, pin in pins_of(document, ("inputs",)):
        yield from _below(path, mime_problems(pin))
    for path, pin in pins_of(document, ("outputs",)):
        declared = (p for p in mime_problems(pin) if p.code != Code.MANIFEST_MISSING_MIME)
        yield from _below(path, declared)


def _below(path: str, problems: Iterable[Problem]) -> Iterator[Problem]:
    for problem in problems:
        yield msgspec.structs.replace(problem, path=path + problem.path)


def warm_service(document: Mapping[str, Any]) -> Iterator[Problem]:
    execution = document.get("execution")
    warm = is_object(execution) and execution.get("warm") is True
    if warm and document.get("longRunning") is True:
        yield Problem(
            Code.MANIFEST_WARM_SERVICE,
            pointer("execution", "warm"),
            "a service (`longRunning`) runs all the time; it cannot also be a warm worker",
            "choose one of the two",
        )


def old_env(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Values in a manifest: a warning in old ones, refused since."""
    entries = document.get("env")
    for index, entry in enumerate(array(entries)):
        try:
            parsed = parse_env(entry)
        except ValueError:
            continue  # the model tells
        if parsed.value is not None:
            yield Problem(
                Code.MANIFEST_OLD_ENV,
                pointer("env", index),
                f"the value of {parsed.name} stands in the manifest",
                f"write `- {parsed.name}` and set the value where the server runs",
                severity="warning" if is_old(document) else "error",
            )


def unknown_profiles(document: Mapping[str, Any]) -> Iterator[Problem]:
    resources = document.get("resources")
    names = resources.get("profiles") if is_object(resources) else None
    for index, name in enumerate(array(names)):
        if isinstance(name, str) and name not in PROFILES:
            yield Problem(
                Code.MANIFEST_UNKNOWN_PROFILE,
                pointer("resources", "profiles", index),
                f"no resource profile is called {name!r} here",
                f"profiles are {', '.join(PROFILES)}",
                severity="warning",
            )
