from pathlib import Path
from typing import Any

import pytest

from mentatlab.cli.inputs import Upload, read_value, split_pairs
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import PinType

REF = "blob_01J8ZK3V9QXW4T5Y6R7P8N9M0A"


@pytest.mark.parametrize(
    ("text", "type_", "expected"),
    [
        ("cat", PinType.STRING, "cat"),
        ("5", PinType.STRING, "5"),
        ("5", PinType.NUMBER, 5),
        ("-0.5e3", PinType.NUMBER, -500.0),
        ("true", PinType.BOOLEAN, True),
        ('{"a": [1]}', PinType.JSON, {"a": [1]}),
        ('"quoted"', PinType.JSON, "quoted"),
        ("[1, 2]", PinType.STREAM, [1, 2]),
        ("5", None, 5),
        ("five", None, "five"),
        (REF, PinType.IMAGE, REF),
        (f"mentat://default/{REF}", PinType.VIDEO, f"mentat://default/{REF}"),
        ('{"type": "image", "ref": {}}', PinType.IMAGE, {"type": "image", "ref": {}}),
    ],
)
def test_values(text: str, type_: PinType | None, expected: Any):
    assert read_value("x", text, type_) == expected


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("five", PinType.NUMBER),
        ("true", PinType.NUMBER),
        ("1", PinType.BOOLEAN),
        ("NaN", PinType.NUMBER),
        ("{broken", PinType.JSON),
        ("{broken", PinType.IMAGE),
        ("/nowhere/cat.jpg", PinType.IMAGE),
        ("@/nowhere/text", PinType.STRING),
    ],
)
def test_wrong_values_name_the_input(text: str, type_: PinType):
    with pytest.raises(Invalid, match="input x: "):
        read_value("x", text, type_)


def test_files(tmp_path: Path):
    file = tmp_path / "a=b.txt"
    file.write_text("hello")
    assert read_value("x", f"@{file}", PinType.STRING) == "hello"
    assert read_value("x", f"@{file}", PinType.AUDIO) == Upload(file)
    assert read_value("x", str(file), PinType.BINARY) == Upload(file)


def test_pairs():
    assert split_pairs(["a=1", "b.c=x=y", "d="]) == {"a": "1", "b.c": "x=y", "d": ""}


@pytest.mark.parametrize("pair", ["a", "=1", ""])
def test_what_is_no_pair(pair: str):
    with pytest.raises(Invalid) as caught:
        split_pairs([pair])
    assert caught.value.code is Code.INVALID_REQUEST


def test_a_pair_for_something_else_is_called_by_its_name():
    with pytest.raises(Invalid, match="'x' is not a parameter") as caught:
        split_pairs(["x"], what="a parameter", hint="write --param node.name=value")
    assert caught.value.hint == "write --param node.name=value"
