"""Text → JSON document → model: how every document that an author writes is read.

YAML is read by the rules of YAML 1.2's core schema (`on`, `no` and dates stay texts) and must be
JSON in meaning: text keys, finite numbers, no tags, no duplicate keys. Size, depth and the number
of values (aliases counted each time) are bounded.
"""

# PyYAML's stubs leave the methods of its loaders without types.
# pyright: reportUnknownMemberType=false

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mentatlab.protocol.errors import Code, Invalid, Problem
from mentatlab.protocol.values import is_object

if TYPE_CHECKING:
    from yaml import SafeLoader
else:  # eight times faster where PyYAML was built with libyaml; the same calls
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_CHARACTERS = 4 << 20
MAX_DEPTH = 64
MAX_VALUES = 200_000


class Model(BaseModel):
    """No coercion, and fields that this version does not know are kept."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", strict=True, frozen=True)

    def document(self) -> dict[str, Any]:
        """What the author wrote, unknown fields included."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def whole(value: object) -> object:
    """JSON has one kind of number: 2.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, BeforeValidator(whole), Field(gt=0)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=0)]
PositiveNumber = Annotated[float, Field(gt=0)]


class _SyntaxError(Exception):
    def __init__(self, message: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = None if mark is None else mark.line + 1
        self.column = None if mark is None else mark.column + 1


def read_document(source: str | bytes, *, code: Code, name: str = "") -> dict[str, Any]:
    """The one JSON object that YAML or JSON text holds; `Invalid(code)` naming line and column.

    `details` has `line` and `column` (from 1) where they are known.
    """
    try:
        document = _parse(_text(source))
        if not is_object(document):
            raise _SyntaxError("the document must be a mapping of fields")
        _check_json(document)
    except _SyntaxError as problem:
        place = "" if problem.line is None else f" line {problem.line}, column {problem.column}:"
        raise Invalid(
            code,
            f"{name + ':' if name else ''}{place} {problem.message}".strip(),
            hint="write one YAML or JSON document; a YAML checker shows the place",
            details={"line": problem.line, "column": problem.column},
        ) from None
    return document


def _text(source: str | bytes) -> str:
    if len(source) > MAX_CHARACTERS:
        raise _SyntaxError(f"the document is over {MAX_CHARACTERS} bytes")
    if isinstance(source, str):
        return source.removeprefix("\ufeff")
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _SyntaxError(f"the document is not UTF-8 (byte {error.start})") from error


def _parse(text: str) -> object:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            pass  # YAML's flow style also starts with a brace; its message names the line as well
    return _parse_yaml(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")  # told with its line by the YAML reader
    return result


class _Loader(SafeLoader):
    """Without the resolvers of YAML 1.1; those of the core schema follow."""


_CORE_SCHEMA = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?(?:0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]{1,64})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _CORE_SCHEMA:
    _regexp = re.compile(_pattern + r"\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regexp, _first)

_TAGS = {f"tag:yaml.org,2002:{t}" for t in ("map", "seq", "str", *(n for n, *_ in _CORE_SCHEMA))}


def _parse_yaml(text: str) -> object:
    try:
        _check_depth(text)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise _SyntaxError("the document is empty")
        _check_nodes(loader, root)
        return cast(object, loader.construct_document(root))
    except yaml.MarkedYAMLError as error:
        message = error.problem or error.context or "not YAML"
        raise _SyntaxError(message, error.problem_mark or error.context_mark) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _SyntaxError(str(error).splitlines()[0]) from error


def _check_depth(text: str) -> None:
    """Before the composer sees it, which recurses (in C: until the stack is gone)."""
    depth = 0
    for event in cast(Iterator[yaml.Event], yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _too_deep(event.start_mark)


def _check_nodes(loader: _Loader, root: yaml.Node) -> None:
    """Refuse tags and duplicate keys while the place is known; an aliased node once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        _check_tag(loader, node)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        waiting.extend(_children(node))


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_tag(loader: _Loader, node: yaml.Node) -> None:
    plain = node.tag in _TAGS
    if plain and isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str"):
        plain = node.tag == cast(str, loader.resolve(yaml.ScalarNode, node.value, (True, False)))
    if not plain:
        raise _SyntaxError(f"the tag {node.tag} is not accepted here", node.start_mark)


def _check_keys(node: yaml.MappingNode) -> None:
    names: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _SyntaxError("a key must be a text", key.start_mark)
        if key.value in names:
            raise _SyntaxError(f"the key {key.value!r} stands twice", key.start_mark)
        names.add(key.value)


def _check_json(root: object) -> None:
    """Over the expanded document, so that an alias bomb is counted before anything copies it."""
    waiting: list[tuple[object, int]] = [(root, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if count > MAX_VALUES:
            raise _SyntaxError(f"the document has more than {MAX_VALUES} values")
        if is_object(value):
            for key, inner in value.items():
                _check_scalar(key, is_key=True)
                waiting.append((inner, depth + 1))
        elif isinstance(value, list):
            waiting.extend((inner, depth + 1) for inner in cast(list[object], value))
        else:
            _check_scalar(value)


def _check_scalar(value: object, *, is_key: bool = False) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _SyntaxError("a text holds half a surrogate pair") from error
    elif is_key:
        raise _SyntaxError(f"the key {value!r} must be a text; quote it")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _SyntaxError("a number is not finite")


def _too_deep(mark: yaml.Mark | None = None) -> _SyntaxError:
    return _SyntaxError(f"the document is nested more than {MAX_DEPTH} levels deep", mark)


def array(value: object) -> list[object]:
    """A JSON array, or nothing where a document has something else."""
    return cast(list[object], value) if isinstance(value, list) else []


def pointer(*parts: str | int) -> str:
    """RFC 6901."""
    return "".join("/" + str(p).replace("~", "~0").replace("/", "~1") for p in parts)


_SEE = "docs/reference has every field with an example"


def problems_of(error: ValidationError, code: Code, forms: Mapping[str, str]) -> list[Problem]:
    """One problem for each thing that does not fit the model. `forms`: field → how to write it."""
    return [
        Problem(code, pointer(*e["loc"]), _message(e), forms.get(str(e["loc"][-1]), _SEE))
        for e in error.errors(include_url=False)
    ]


def _message(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return f"{str(error['loc'][-1])!r} is missing"
    if error["type"] == "string_pattern_mismatch":
        return f"{str(error['input'])[:60]!r} does not have the form of {error['loc'][-1]!r}"
    return error["msg"].removeprefix("Value error, ")
