import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.flows.document import MAX_CHARACTERS, array, pointer, read_document, whole
from mentatlab.protocol.errors import Code, Invalid


def read(source: str | bytes) -> dict[str, Any]:
    return read_document(source, code=Code.FLOW_SYNTAX, name="a.mlab")


def refused(source: str | bytes) -> Invalid:
    with pytest.raises(Invalid) as error:
        read(source)
    assert error.value.code == Code.FLOW_SYNTAX
    assert error.value.hint
    assert error.value.message.startswith("a.mlab:")
    return error.value


def test_yaml_is_read_by_the_core_schema() -> None:
    text = """
        created: 2025-07-22T14:05:00Z
        "on": off
        no: yes
        version: 1.0.0
        count: 3
        hex: 0x1F
        octal: 017
        ratio: 1.5
        big: 1e3
        nothing: ~
        empty:
        nan: .nan
        flag: true
    """
    assert read(text) == {
        "created": "2025-07-22T14:05:00Z",
        "on": "off",
        "no": "yes",
        "version": "1.0.0",
        "count": 3,
        "hex": 31,
        "octal": "017",
        "ratio": 1.5,
        "big": 1000.0,
        "nothing": None,
        "empty": None,
        "nan": ".nan",
        "flag": True,
    }


def test_anchors_and_merges_are_read() -> None:
    text = "a: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}\nd: *b\n"
    assert read(text) == {"a": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}, "d": {"x": 1, "y": 2}}


def test_bytes_with_a_mark_and_json_with_surrogate_pairs_are_read() -> None:
    assert read("\ufeffa: é".encode()) == {"a": "é"}
    assert read("\ufeffa: é") == {"a": "é"}
    assert read('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert read("{a: 1, b: [x]}") == {"a": 1, "b": ["x"]}


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("a: 1\nb: [1, 2\n", 3, "expected"),
        ("a: 1\nb: 2\na: 3", 3, "'a' stands twice"),
        ('{"a": 1,\n "a": 2}', 2, "'a' stands twice"),
        ("a: 1\n---\nb: 2", 2, "document"),
        ("x: 1\na: !!python/object:os.system y", 2, "tag"),
        ("a: !!bool maybe", 1, "tag"),
        ("a: !!timestamp x", 1, "tag"),
        ("a: !!binary aGk=", 1, "tag"),
        ("? [a]\n: b", 1, "key"),
        ("a: *nowhere", 1, "undefined alias"),
        ("a: " + "[" * 100, 1, "nested"),
        ("a: " + "{" * 300_000, 1, "nested"),
    ],
)
def test_a_fault_is_told_with_its_line(source: str, line: int, says: str) -> None:
    error = refused(source)
    assert error.details["line"] == line
    assert f"line {line}, column {error.details['column']}:" in error.message
    assert says in error.message


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "empty"),
        ("- 1", "mapping"),
        ("just a text", "mapping"),
        ("1: a", "key 1 must be a text"),
        ("true: a", "key True must be a text"),
        ("a: 1e999", "finite"),
        ('{"a": NaN}', "finite"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ("a: &x [*x]", "nested"),
        ("a: \x01", "control"),
        (b"\xff\xfe", "UTF-8"),
        ("#" * (MAX_CHARACTERS + 1), "over"),
    ],
)
def test_other_faults(source: str | bytes, says: str) -> None:
    assert says in refused(source).message


def test_an_alias_bomb_is_counted_before_it_is_copied() -> None:
    levels = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    levels += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "values" in refused("\n".join(levels)).message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON)


@given(OBJECTS, st.booleans())
def test_every_json_document_is_read_as_json_reads_it(
    document: dict[str, Any], ascii_only: bool
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    assert read(text) == json.loads(text)


YAML_TOKENS = [*"{}[],:?-&*!|>%@`#'\"\n\t ", "a", "1", "- ", ": ", "&a", "*a", "<<", "!!int", "~"]


@given(st.text() | st.lists(st.sampled_from(YAML_TOKENS)).map("".join) | st.binary())
def test_no_text_crashes_the_reader(source: str | bytes) -> None:
    with suppress(Invalid):
        assert isinstance(read(source), dict)


def test_small_parts() -> None:
    assert pointer("a/b", 0, "~") == "/a~1b/0/~0"
    assert array([1]) == [1]
    assert array({"a": 1}) == []
    assert (whole(2.0), whole(2.5), whole("2")) == (2, 2.5, "2")
