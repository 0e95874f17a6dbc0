"""The streams' AsyncAPI document: whole, true to its own examples, and complete."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.support.asyncapi import DOCUMENT, MESSAGES, of_message

from mentatlab.conformance.frames import media_frame, read_media_frame

REFERENCE = Path(__file__).parents[2] / "docs/reference/streams-protocol.md"


def references(node: Any) -> Iterator[str]:
    match node:
        case {"$ref": str(target)}:
            yield target
        case dict():
            for value in node.values():
                yield from references(value)
        case list():
            for value in node:
                yield from references(value)
        case _:
            pass


def resolved(reference: str) -> Any:
    node = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return resolved(node["$ref"]) if "$ref" in node else node


def examples() -> list[Any]:
    return [
        pytest.param(name, example["payload"], id=f"{name}-{number}")
        for name, message in MESSAGES.items()
        for number, example in enumerate(message["examples"], 1)
    ]


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 100
    for reference in found:
        resolved(reference)


def test_the_schemas_are_schemas() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("name", "example"), examples())
def test_examples_are_what_they_show(name: str, example: Any) -> None:
    assert [error.message for error in of_message(name).iter_errors(example)] == []


FORMS = {"publication", "bytes", "batch"}  # told apart by more than a type


@pytest.mark.parametrize("name", sorted(MESSAGES.keys() - FORMS))
def test_a_message_is_no_other_one(name: str) -> None:
    """What lacks one of its required fields, or has another type, does not fit."""
    example = MESSAGES[name]["examples"][0]["payload"]
    fits = of_message(name).is_valid
    needed = [field for field in example if not fits({**example, field: object()})]
    assert needed
    lacking = [{k: v for k, v in example.items() if k != field} for field in example]
    assert not all(map(fits, lacking))
    if "type" in example:
        assert not fits({**example, "type": "dance"})


def test_publications() -> None:
    fits = of_message("publication").is_valid
    assert not fits({"type": "stream_start", "payload": {}})
    assert not fits({"type": "stream_data"})
    assert not fits({"payload": {"data": 1}, "producer": {"id": "me", "epoch": 0, "seq": 0}})
    assert not of_message("batch").is_valid({"records": [{"payload": {}}] * 257})


def test_every_message_of_the_protocol_is_there() -> None:
    said = {MESSAGES[name]["name"] for name in MESSAGES}
    design = (
        "hello welcome subscribe subscribed unsubscribe ack credit mark gap publish publishing "
    )
    design += "published throttle cancel bye ping pong auth error "
    design += "stream_start stream_data stream_end stream_error"
    assert said >= set(design.split())


def test_every_message_that_the_reference_names_is_there() -> None:
    text = REFERENCE.read_text()
    named = set(re.findall(r"`([a-z_]+)\{", text)) - {"producer", "stream_end"}
    assert {"subscribe", "credit", "mark", "published"} <= named
    assert named <= {message["name"] for message in MESSAGES.values()}


def test_every_close_code_of_the_reference_is_there() -> None:
    text = REFERENCE.read_text()
    rows = re.findall(r"(?m)^\| (\d{4}(?:, \d{4})*) \|", text)
    table = {code for row in rows for code in row.split(", ")}
    assert {"1000", "1012", "4100", "4129"} <= table
    assert table <= set(DOCUMENT["channels"]["socket"]["x-close-codes"])


def test_operations_and_channels_name_the_same_messages() -> None:
    for channel in ("socket", "plainSocket"):
        used = {
            reference["$ref"].rpartition("/")[2]
            for operation in DOCUMENT["operations"].values()
            if operation["channel"]["$ref"] == f"#/channels/{channel}"
            for reference in operation["messages"]
        }
        assert used == set(DOCUMENT["channels"][channel]["messages"])


def test_the_frames_header_is_the_one_that_is_written() -> None:
    bits = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "i64": 64}
    header = DOCUMENT["components"]["schemas"]["MediaFrame"]["x-header"]
    assert sum(bits[field["type"]] for field in header) == 40 * 8
    frame = media_frame({"sequence": 3, "ext": {"item": 1}, "payload": b"ab"})
    found = read_media_frame(frame)
    assert list(found)[: len(header)] == [field["name"] for field in header]
    assert [error.message for error in of_message("deliveredFrame").iter_errors(found)] == []
