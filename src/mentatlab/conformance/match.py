"""Patterns and templates of the conformance cases; pure.

A pattern says what must be there and is silent about the rest: an object matches one that has at
least its fields, a list one of the same length ("..." as its last element: or a longer one),
`$name` whatever comes (and remembers it; later it must be the same), everything else itself.
An object with one key of `OPERATORS` is a test. A template is JSON in which `$name` stands for
what was remembered; in the midst of a text, too.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

Bound = dict[str, Any]

_NAME = re.compile(r"\$([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_MISSING = object()


class UnboundError(LookupError):
    """A template names what nothing has remembered."""


def fill(template: Any, bound: Mapping[str, Any]) -> Any:
    """The template as JSON. `{"$text": n}` is n letters, `{"$list": n, "of": …}` n elements (with
    `$i` from 1), `{"$nested": n}` the text of a record whose data are lists n deep."""
    match template:
        case str():
            return _fill_text(template, bound)
        case {"$text": int(count)}:
            return "x" * count
        case {"$nested": int(depth)}:
            return f'{{"data": {"[" * depth}{"]" * depth}}}'
        case {"$list": count, "of": element}:
            total = int(fill(count, bound))
            return [fill(element, {**bound, "i": number}) for number in range(1, total + 1)]
        case dict():
            fields = cast("dict[Any, Any]", template)
            return {name: fill(value, bound) for name, value in fields.items()}
        case list():
            return [fill(value, bound) for value in cast("list[Any]", template)]
        case _:
            return template


def _fill_text(text: str, bound: Mapping[str, Any]) -> Any:
    if whole := _NAME.fullmatch(text):
        return _value(whole[1], bound)
    return _NAME.sub(lambda found: str(_value(found[1], bound)), text)


def _value(name: str, bound: Mapping[str, Any]) -> Any:
    try:
        return bound[name]
    except KeyError:
        raise UnboundError(f"${name} is not known here") from None


def match(pattern: Any, value: Any, bound: Bound) -> str:
    """Empty when it fits, else where and why not; what was remembered counts only when all fits."""
    learned = dict(bound)
    if fault := _match(pattern, value, learned, ""):
        return fault
    bound.update(learned)
    return ""


def _match(pattern: Any, value: Any, bound: Bound, path: str) -> str:
    match pattern:
        case dict():
            return _object(cast("dict[str, Any]", pattern), value, bound, path)
        case list():
            return _array(cast("list[Any]", pattern), value, bound, path)
        case str() if (name := _NAME.fullmatch(pattern)) and name[1] not in bound:
            if value is _MISSING:
                return _differs(path, pattern, value)
            bound[name[1]] = value
            return ""
        case _:
            wanted = fill(pattern, bound)
            return "" if _same(wanted, value) else _differs(path, wanted, value)


def _same(wanted: Any, value: Any) -> bool:
    """As JSON: true is not 1."""
    return isinstance(wanted, bool) is isinstance(value, bool) and wanted == value


def _object(pattern: dict[str, Any], value: Any, bound: Bound, path: str) -> str:
    if len(pattern) == 1 and (name := next(iter(pattern))) in OPERATORS:
        return OPERATORS[name](pattern[name], value, bound, path)
    if not isinstance(value, dict):
        return _differs(path, pattern, value)
    fields = cast("dict[str, Any]", value)
    for name, wanted in pattern.items():
        if fault := _match(wanted, fields.get(name, _MISSING), bound, f"{path}/{name}"):
            return fault
    return ""


def _array(pattern: list[Any], value: Any, bound: Bound, path: str) -> str:
    if not isinstance(value, list):
        return _differs(path, pattern, value)
    found = cast("list[Any]", value)
    wanted, more = (pattern[:-1], True) if pattern[-1:] == ["..."] else (pattern, False)
    if len(found) < len(wanted) or (len(found) > len(wanted) and not more):
        return f"{path or '/'}: expected {len(wanted)} elements, got {len(found)}: {shown(found)}"
    for index, (one, element) in enumerate(zip(wanted, found, strict=False)):
        if fault := _match(one, element, bound, f"{path}/{index}"):
            return fault
    return ""


def _differs(path: str, wanted: Any, value: Any) -> str:
    got = "nothing" if value is _MISSING else shown(value)
    return f"{path or '/'}: expected {shown(wanted)}, got {got}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"


def _absent(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    return "" if (value is _MISSING) is bool(wanted) else _differs(path, {"$absent": wanted}, value)


def _type(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    fits = isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or type(value) is not bool)
    return "" if fits else _differs(path, {"$type": wanted}, value)


def _regex(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    fits = isinstance(value, str) and re.search(wanted, value) is not None
    return "" if fits else _differs(path, {"$regex": wanted}, value)


def _at_least(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    least = fill(wanted, bound)
    fits = isinstance(value, int | float) and value >= least
    return "" if fits else _differs(path, {"$min": least}, value)


def _at_most(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    most = fill(wanted, bound)
    fits = isinstance(value, int | float) and value <= most
    return "" if fits else _differs(path, {"$max": most}, value)


def _all_of(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    return next((fault for one in wanted if (fault := _match(one, value, bound, path))), "")


def _one_of(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    for one in wanted:
        learned = dict(bound)
        if not _match(one, value, learned, path):
            bound.update(learned)
            return ""
    return _differs(path, {"$in": wanted}, value)


def _each(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    if not isinstance(value, list):
        return _differs(path, {"$each": wanted}, value)
    return _array([wanted] * len(cast("list[Any]", value)), value, bound, path)


def _length(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    if not isinstance(value, str | list):
        return _differs(path, {"$length": wanted}, value)
    return _match(wanted, len(cast("list[Any]", value)), bound, f"{path}/length")


def _has(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    if isinstance(value, list):
        for element in cast("list[Any]", value):
            if not _match(wanted, element, dict(bound), path):
                return _match(wanted, element, bound, path)
    return _differs(path, {"$has": wanted}, value)


def _not(wanted: Any, value: Any, bound: Bound, path: str) -> str:
    fits = _match(wanted, value, dict(bound), path) != ""
    return "" if fits else _differs(path, {"$not": wanted}, value)


OPERATORS: dict[str, Callable[[Any, Any, Bound, str], str]] = {
    "$absent": _absent,
    "$type": _type,
    "$regex": _regex,
    "$min": _at_least,
    "$max": _at_most,
    "$all": _all_of,
    "$in": _one_of,
    "$each": _each,
    "$length": _length,
    "$has": _has,
    "$not": _not,
}
"""What an object with one such key asks of the value in its place."""
