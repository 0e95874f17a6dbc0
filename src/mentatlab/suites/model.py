"""What a suite may say. Pure: `load_suite` gives a value, or every problem of the document."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import jsonschema
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mentatlab.flows.document import problems_of, read_document
from mentatlab.protocol.errors import Code, ValidationFailed
from mentatlab.protocol.pins import PinType

M = TypeVar("M", bound="Strict")
RunEnd = Literal["succeeded", "partial", "failed", "cancelled"]


class Strict(BaseModel):
    """A field that is not known is a mistake: what is misspelt would test nothing."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)


class Bounds(Strict):
    min: float | None = None
    max: float | None = None
    equals: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        """A number is what it must be."""
        return {"equals": value} if isinstance(value, int | float) else value


class ValueCheck(Strict):
    """What a value must be. `type`: its pin type. `schema`: JSON Schema. `count`: elements of an
    array or stream, members of an object, characters of a text. `at`: a JSON pointer, to check
    what stands there instead."""

    type: Annotated[PinType, Field(strict=False)] | None = None
    json_schema: dict[str, Any] | bool | None = Field(None, alias="schema")
    equals: Any = None
    contains: Any = None
    matches: str | None = None
    count: Bounds | None = None
    min: float | None = None
    max: float | None = None
    at: dict[str, "ValueCheck"] = {}

    @model_validator(mode="after")
    def _is_a_schema(self) -> "ValueCheck":
        if self.json_schema is not None:
            try:
                jsonschema.Draft202012Validator.check_schema(self.json_schema)
            except SchemaError as error:
                raise ValueError(f"no JSON Schema: {error.message}") from error
        return self


class NodeCheck(Strict):
    """`chunks` by output pin; `items`: counts by state; `attempts` of the node itself."""

    state: str | None = None
    attempts: Bounds | None = None
    error: str | None = None
    chunks: dict[str, Bounds] = {}
    items: dict[str, Bounds] = {}


class TimingCheck(Strict):
    """A ratio of two durations, `node.run_s` and the like: no wall-clock times, which depend on the
    machine. Durations: `queued_s run_s waited_s stream_s first_chunk_s` of a node, `run.run_s`."""

    of: str = Field(pattern=r"^.+\.(queued_s|run_s|waited_s|stream_s|first_chunk_s)$")
    to: str = Field(pattern=r"^.+\.(queued_s|run_s|waited_s|stream_s|first_chunk_s)$")
    min: float | None = None
    max: float | None = None


class Expect(Strict):
    """`state`: how the run must end; `succeeded` where nothing is said. `error`: its code."""

    state: RunEnd | None = None
    error: str | None = None
    outputs: dict[str, ValueCheck] = {}
    nodes: dict[str, NodeCheck] = {}
    timings: list[TimingCheck] = []


class StepNode(Strict):
    type: str
    params: dict[str, Any] = {}


class Word(Strict):
    """What a step does. `argument`: a pattern such as `{fps:number}fps`, or the texts allowed; what
    it gives stands as `$fps` (else `$argument`) in params and expectations.

    `input`: the argument is a file that becomes a run input of this type. `node`: the step is this
    node; it `takes` values by own pin and `gives` names by own output pin. `expect`: of those
    names. A word with neither only checks.
    """

    argument: str | list[str] = "{argument}"
    input: Literal["image", "audio", "video", "binary"] | None = None
    node: StepNode | None = None
    takes: dict[str, str] = {}
    gives: dict[str, str] = {}
    expect: Expect = Expect()


class Test(Strict):
    """`flow`: steps, the path of a `.mlab` file, or a flow document."""

    name: str = Field(min_length=1)
    flow: list[dict[str, str | float | bool]] | str | dict[str, Any]
    inputs: dict[str, Any] = {}
    files: dict[str, str] = {}
    timeout_s: float = Field(300, gt=0)
    expect: Expect = Expect()


class Suite(Strict):
    """`steps`: words of this suite, before those that it is given and the ones that are known
    everywhere."""

    steps: dict[str, Word] = {}
    tests: list[Test] = Field(min_length=1)

    @field_validator("tests")
    @classmethod
    def _names_differ(cls, tests: list[Test]) -> list[Test]:
        names = [test.name for test in tests]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two tests are called {texts(sorted(twice))}")
        return tests


class Library(Strict):
    steps: dict[str, Word]


def load_suite(source: str | bytes, name: str = "") -> Suite:
    """`Invalid(SUITE_INVALID)` for what is no YAML; `ValidationFailed(SUITE_INVALID)` with every
    problem, each with its JSON pointer."""
    return _read(Suite, source, name)


def load_words(source: str | bytes, name: str = "") -> Mapping[str, Word]:
    """A file with `steps:` only, for several suites. Errors as in `load_suite`."""
    return _read(Library, source, name).steps


def _read(model: type[M], source: str | bytes, name: str) -> M:
    document = read_document(source, code=Code.SUITE_INVALID, name=name)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, Code.SUITE_INVALID, {})
        shown = PurePath(name).name or "the suite"
        raise ValidationFailed(
            Code.SUITE_INVALID, f"{shown} is no suite that can run", list(problems)
        ) from error


def texts(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
