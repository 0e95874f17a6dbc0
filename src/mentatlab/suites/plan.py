"""A test made of steps becomes a flow document, its inputs, and what is expected of them. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from mentatlab.flows.document import pointer
from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.protocol.values import is_object
from mentatlab.suites.model import Expect, Suite, Test, Word, texts

RESULT = "result"
"""The output node that shows what the steps give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`flow`: a document, or the path of a file; `files`: input → path, both beside the suite.
    `outputs` of `expects` are the run's own names."""

    name: str
    flow: str | dict[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    expects: tuple[Expect, ...] = ()
    timeout_s: float = 300


def cases_of(
    suite: Suite, words: Mapping[str, Word], stand_ins: Mapping[str, str] | None = None
) -> list[Case]:
    """`words` beside the suite's own; `stand_ins`: argument → what is used in its place.

    `ValidationFailed(SUITE_INVALID)` with every problem of all tests.
    """
    problems: list[Problem] = []
    cases: list[Case] = []
    for number, test in enumerate(suite.tests):
        if isinstance(test.flow, list):
            steps = _Steps({**words, **suite.steps}, stand_ins or {}, ("tests", number, "flow"))
            cases.append(steps.case(test))
            problems += steps.problems
        else:
            cases.append(
                Case(
                    name=test.name,
                    flow=test.flow,
                    inputs=test.inputs,
                    files=test.files,
                    expects=(test.expect,),
                    timeout_s=test.timeout_s,
                )
            )
    if problems:
        raise ValidationFailed(Code.SUITE_INVALID, "the suite cannot run", problems)
    return cases


class _Steps:
    """The steps of one test, one after the other."""

    def __init__(
        self,
        words: Mapping[str, Word],
        stand_ins: Mapping[str, str],
        path: tuple[str | int, ...],
    ) -> None:
        self._words, self._stand_ins, self._path = words, stand_ins, path
        self.problems: list[Problem] = []
        self._nodes: list[dict[str, Any]] = []
        self._edges: list[dict[str, str]] = []
        self._files: dict[str, str] = {}
        self._expects: list[Expect] = []
        self._given: dict[str, str] = {}  # name → node.pin

    def case(self, test: Test) -> Case:
        assert isinstance(test.flow, list)
        for number, step in enumerate(test.flow):
            self._step(number, step)
        edges = [*self._edges, *self._results()]
        nodes = [*self._nodes, {"id": RESULT, "type": "ui.console"}]
        flow = {
            "apiVersion": "v1beta1",
            "kind": "Flow",
            "meta": {"id": f"suite.{_slug(test.name)}", "name": test.name},
            "graph": {"nodes": nodes, "edges": edges},
        }
        expects = [*self._expects, test.expect]
        return Case(
            name=test.name,
            flow=flow,
            inputs=test.inputs,
            files={**self._files, **test.files},
            expects=tuple(_of_results(e, self._given) for e in expects),
            timeout_s=test.timeout_s,
        )

    def _results(self) -> Iterator[dict[str, str]]:
        media = {f"{name}.file" for name in self._files}
        for name, place in self._given.items():
            if place not in media:
                yield {"from": place, "to": f"{RESULT}.{name}"}

    def _step(self, number: int, step: Mapping[str, Any]) -> None:
        if len(step) != 1:
            self._problem(number, "a step is one word with its argument", "- word: argument")
            return
        ((name, argument),) = step.items()
        word = self._words.get(name)
        if word is None:
            self._problem(number, f"nobody knows the step {name}", f"known: {texts(self._words)}")
            return
        text = str(argument)
        found = match(word.argument, self._stand_ins.get(text, text))
        if found is None:
            allowed = word.argument if isinstance(word.argument, str) else texts(word.argument)
            self._problem(number, f"{name} takes no {text!r}", f"it takes: {allowed}")
            return
        self._add(number, name, word, found)

    def _add(self, number: int, name: str, word: Word, found: Mapping[str, Any]) -> None:
        taken = {node["id"] for node in self._nodes}
        id_ = name if name not in taken else f"{name}-{number + 1}"
        if word.input is not None:
            accept = "*/*" if word.input == "binary" else f"{word.input}/*"
            self._nodes.append({"id": id_, "type": "ui.file-upload", "params": {"accept": accept}})
            self._files[id_] = str(found["argument"])
            self._given[word.gives.get("file", word.input)] = f"{id_}.file"
        elif word.node is not None:
            params = fill(word.node.params, found)
            self._nodes.append({"id": id_, "type": word.node.type, "params": params})
            for pin, wanted in word.takes.items():
                self._take(number, f"{id_}.{pin}", wanted)
            self._given.update({given: f"{id_}.{pin}" for pin, given in word.gives.items()})
        for wanted in word.expect.outputs:
            if wanted not in self._given:
                self._problem(number, f"no step before {name} gives {wanted}", self._there())
        expect = fill(word.expect.model_dump(by_alias=True, exclude_unset=True), found)
        self._expects.append(Expect.model_validate(expect))

    def _take(self, number: int, target: str, name: str) -> None:
        if name in self._given:
            self._edges.append({"from": self._given[name], "to": target})
        elif not name.endswith("?"):
            self._problem(number, f"no step before it gives {name}", self._there())
        elif name[:-1] in self._given:
            self._edges.append({"from": self._given[name[:-1]], "to": target})

    def _there(self) -> str:
        return f"there is: {texts(self._given)}"

    def _problem(self, number: int, message: str, hint: str) -> None:
        path = pointer(*self._path, number)
        self.problems.append(Problem(Code.SUITE_INVALID, path, message, hint))


def _of_results(expect: Expect, given: Mapping[str, str]) -> Expect:
    outputs = {
        (f"{RESULT}.{name}" if name in given else name): c for name, c in expect.outputs.items()
    }
    return expect.model_copy(update={"outputs": outputs})


_VARIABLE = re.compile(r"\{(\w+)(?::(number|text))?\}")


def match(pattern: str | list[str], argument: str) -> dict[str, Any] | None:
    """The variables of `{name}` and `{name:number}` in a text; None when it does not fit."""
    if not isinstance(pattern, str):
        return {"argument": argument} if argument in pattern else None
    pieces, kinds, at = "", dict[str, str](), 0
    for variable in _VARIABLE.finditer(pattern):
        kinds[variable[1]] = variable[2] or "text"
        form = r"[0-9]+(?:\.[0-9]+)?" if variable[2] == "number" else ".+"
        pieces += re.escape(pattern[at : variable.start()]) + f"(?P<{variable[1]}>{form})"
        at = variable.end()
    found = re.fullmatch(pieces + re.escape(pattern[at:]), argument)
    if found is None:
        return None
    values = found.groupdict()
    return {n: float(v) if kinds[n] == "number" else v for n, v in values.items()} | {
        "argument": argument
    }


def fill(value: Any, found: Mapping[str, Any]) -> Any:
    """Texts `$name` become what was found, anywhere in a JSON value."""
    if isinstance(value, str) and value.startswith("$") and value[1:] in found:
        return found[value[1:]]
    if is_object(value):
        return {name: fill(one, found) for name, one in value.items()}
    if isinstance(value, list):
        return [fill(one, found) for one in cast("list[Any]", value)]
    return value


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "test"
