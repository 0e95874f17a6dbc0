"""The language of the cases: patterns, templates, frames, and what is no case."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.conformance import VERBS, load_cases, selected, shipped_cases
from mentatlab.conformance.frames import masked, media_frame, read_media_frame, websocket_frame
from mentatlab.conformance.match import UnboundError, fill, match
from mentatlab.protocol.errors import Invalid

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc.ä"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
)


def fits(pattern: Any, value: Any, **bound: Any) -> bool:
    return match(pattern, value, bound) == ""


@given(JSON)
def test_a_value_fits_itself_and_a_name(value: Any) -> None:
    assert fits(value, value)
    bound: dict[str, Any] = {}
    assert match("$x", value, bound) == ""
    assert bound == {"x": value}
    assert fits("$x", value, x=value)
    assert fill("$x", bound) == value


FITTING = [
    ({}, {"a": 1}),
    ({"a": 1}, {"a": 1, "b": 2}),
    ([1, "..."], [1, 2]),
    ([1, "..."], [1]),
    (["..."], []),
    ({"a": {"$absent": True}}, {}),
    ({"a": {"$absent": False}}, {"a": None}),
    ({"$type": "integer"}, 1),
    ({"$type": "number"}, 1.5),
    ({"$type": "boolean"}, False),
    ({"$regex": "^a"}, "ab"),
    ({"$min": 2}, 2),
    ({"$max": "$limit"}, 9),
    ({"$in": [1, 2]}, 2),
    ({"$all": [{"$min": 1}, {"$max": 3}]}, 2),
    ({"$not": 1}, 2),
    ({"$each": {"$min": 1}}, [1, 2]),
    ({"$has": {"a": "$limit"}}, [{}, {"a": 9}]),
    ({"$length": 3}, "abc"),
    ({"$length": {"$min": 1}}, [0, 0]),
    ("$limit:1", "9:1"),
]
OTHERS = [
    ({"a": 1}, {}),
    ({"a": 1}, [1]),
    ([1], {"a": 1}),
    ([1], [1, 2]),
    ([1, 2, "..."], [1]),
    ([1], [2]),
    ({"a": "$new"}, {}),
    ({"a": {"$absent": True}}, {"a": None}),
    ({"a": {"$absent": False}}, {}),
    ({"$type": "integer"}, True),
    ({"$type": "string"}, 1),
    ({"$regex": "^a"}, "ba"),
    ({"$regex": "^a"}, 1),
    ({"$min": 2}, 1),
    ({"$min": 2}, "2"),
    ({"$max": 2}, 3),
    ({"$in": [1, 2]}, 3),
    ({"$all": [{"$min": 1}, {"$max": 3}]}, 4),
    ({"$not": 1}, 1),
    ({"$each": 1}, [1, 2]),
    ({"$each": 1}, 1),
    ({"$has": 1}, [2]),
    ({"$has": 1}, 1),
    ({"$length": 3}, "ab"),
    ({"$length": 3}, 3),
    ("$limit", 8),
    ("$limit:1", "8:1"),
    (1, True),
    (0, False),
]


@pytest.mark.parametrize(("pattern", "value"), FITTING)
def test_what_fits(pattern: Any, value: Any) -> None:
    assert match(pattern, value, {"limit": 9}) == ""


@pytest.mark.parametrize(("pattern", "value"), OTHERS)
def test_what_does_not_fit_says_where(pattern: Any, value: Any) -> None:
    assert match(pattern, value, {"limit": 9}).startswith("/")


def test_a_fault_names_its_place_and_remembers_nothing() -> None:
    bound: dict[str, Any] = {}
    fault = match({"id": "$id", "a": [{"b": 1}]}, {"id": 5, "a": [{"b": 2}]}, bound)
    assert fault == "/a/0/b: expected 1, got 2"
    assert bound == {}


def test_long_values_are_shown_short() -> None:
    assert len(match("a", "x" * 10_000, {})) < 400


def test_alternatives_remember_the_one_that_fits() -> None:
    bound: dict[str, Any] = {}
    assert match({"$in": [{"a": "$x", "b": 2}, {"a": "$y"}]}, {"a": 1, "b": 3}, bound) == ""
    assert bound == {"y": 1}


def test_templates() -> None:
    bound = {"id": "st_1", "id.epoch": 7}
    assert fill({"a": ["$id", "$id.epoch"], "b": "$id.epoch:2"}, bound) == {
        "a": ["st_1", 7],
        "b": "7:2",
    }
    assert fill({"$text": 3}, bound) == "xxx"
    assert fill({"$list": 2, "of": {"n": "$i"}}, bound) == [{"n": 1}, {"n": 2}]
    assert fill({"$nested": 2}, bound) == '{"data": [[]]}'
    assert fill("costs 5$", bound) == "costs 5$"
    with pytest.raises(UnboundError, match=r"\$nobody"):
        fill({"a": "to $nobody"}, bound)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_nothing(data: bytes, key: bytes) -> None:
    assert masked(masked(data, key), key) == data
    assert masked(data, key) == bytes(b ^ key[n % 4] for n, b in enumerate(data))


@pytest.mark.parametrize(("size", "head"), [(0, 6), (125, 6), (126, 8), (65535, 8), (65536, 14)])
def test_websocket_frames_have_the_header_of_their_length(size: int, head: int) -> None:
    assert len(websocket_frame(2, bytes(size))) == head + size


def test_websocket_frames_may_be_wrong() -> None:
    assert websocket_frame(1, b"a", mask=False) == b"\x81\x01a"
    assert websocket_frame(1, b"a", mask=False, fin=False, rsv=4) == b"\x41\x01a"
    assert websocket_frame(2, b"", mask=False, length=300) == b"\x82\x7e\x01\x2c"


def test_media_frames() -> None:
    frame = media_frame({"lane": 2, "sequence": 5, "pts_us": -1, "ext": {"a": 1}, "payload": b"xy"})
    found = read_media_frame(frame)
    assert found["version"] == 1
    assert (found["lane"], found["sequence"], found["pts_us"]) == (2, 5, -1)
    assert (found["ext"], found["size"], found["hex"]) == ({"a": 1}, 2, "7879")
    assert "ext" not in read_media_frame(media_frame({}))
    assert read_media_frame(b"short") == {"broken": "73686f7274"}
    assert read_media_frame(media_frame({"version": 9, "length": 4}))["length"] == 4
    with pytest.raises(ValueError, match="Expecting"):
        read_media_frame(media_frame({"ext": "{"}))


def write(folder: Path, text: str) -> Path:
    (folder / "theme.yaml").write_text(text)
    return folder


CASE = "cases: [{{id: a, rule: b, section: c, steps: [{0}]}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cases: [", "theme.yaml"),
        ("cases: [{id: a}]", "rule"),
        ("other: []", "theme.yaml"),
        (CASE.format("{dance: 1}"), "one verb"),
        (CASE.format("{}"), "one verb"),
        (CASE.format("{init: {}, in: 1}"), "no option"),
        (CASE.format("{repeat: 2, steps: [{init: {}, to: 1}]}"), "no option 'to'"),
        (CASE.format("{together: [[{cut: a, in: 1}]]}"), "no option 'in'"),
        (CASE.format("{sequence: [1, 2], then: [{no: 1}]}"), "one verb"),
        (
            CASE.format("{init: {}}").replace(
                "]}]", "]}, {id: a, rule: b, section: c, steps: []}]"
            ),
            "this id",
        ),
    ],
)
def test_what_is_no_case_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        load_cases(write(tmp_path, text), VERBS)


def test_a_folder_without_cases_is_no_kit(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no cases"):
        load_cases(tmp_path, VERBS)


def test_cases_are_chosen_by_theme_and_id(tmp_path: Path) -> None:
    cases = load_cases(write(tmp_path, CASE.format("{init: {}}")), VERBS)
    for pattern in ("*", "a", "theme", "theme/*", "t*"):
        assert selected(cases, pattern) == cases
    assert selected(cases, "b*") == []


def test_the_kit_is_large_and_says_what_it_proves() -> None:
    cases = load_cases(shipped_cases(), VERBS)
    assert len(cases) >= 150
    assert all(case.rule.endswith(".") and case.section for case in cases)
    assert sum(case.slow for case in cases) < math.ceil(len(cases) / 10)


def test_every_verb_is_told_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "conformance/README.md").read_text()
    assert [verb for verb in VERBS if f"`{verb}: " not in readme] == []
